"""The predictor: from the tokens in view, the latents of the tokens out of view.

B clips, K context tokens, M target tokens, D encoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.rope import Rope, rope_tables
from jepa_wm.models.settings import EncoderSettings, JepaSettings


@dataclass(frozen=True, kw_only=True)
class PredictorSizes:
    """What a predictor is made of: its own sizes, and those of the tokens that it meets."""

    width: int
    depth: int
    num_heads: int
    encoder_width: int
    output_width: int
    mask_types: int
    rope: Rope = "rotation"
    rope_base: float = 100.0
    mlp_ratio: float = 4.0
    locality: float = 0.0

    @classmethod
    def of(cls, encoder: EncoderSettings, jepa: JepaSettings) -> PredictorSizes:
        """The predictor of the config's pretraining."""
        return cls(
            width=jepa.width,
            depth=jepa.depth,
            num_heads=jepa.num_heads,
            encoder_width=encoder.width,
            output_width=jepa.target_levels * encoder.width,
            mask_types=len(jepa.masks),
            rope=encoder.rope,
            rope_base=encoder.rope_base,
            locality=jepa.locality,
        )


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens; one learned mask token per mask
    type."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.head_dim, self.rope, self.rope_base = (
            width // sizes.num_heads,
            sizes.rope,
            sizes.rope_base,
        )
        self.embed = nn.Linear(sizes.encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(sizes.mask_types, width))
        self.blocks = nn.ModuleList(
            Block(width, sizes.num_heads, sizes.mlp_ratio) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, sizes.output_width)
        init_transformer(self, self.blocks, locality=sizes.locality)
        trunc_normal_(self.mask_tokens, std=0.02)

    def forward(
        self,
        context: Tensor,
        context_positions: Tensor,
        target_positions: Tensor,
        mask_type: int,
        *,
        with_context: bool = False,
    ) -> Tensor:
        """[B, M, output] predictions at target_positions [B, M, 3] from context [B, K, D] at
        context_positions [B, K, 3]; `with_context` [B, K + M, output], what it makes of the tokens
        in view before them."""
        queries = self.mask_tokens[mask_type].expand(len(context), target_positions.shape[1], -1)
        x = self.embed(context)
        x = torch.cat([x, queries.to(x.dtype)], 1)
        positions = torch.cat([context_positions, target_positions], 1)
        cos, sin = rope_tables(positions, self.head_dim, self.rope_base, self.rope)
        rope = (cos[:, None], sin[:, None])
        for block in self.blocks:
            x = block(x, rope)
        return self.project(self.norm(x if with_context else x[:, context.shape[1] :]))
