"""The predictor: from the tokens in view, guess the latents of the tokens out of view.

B clips, K context tokens, M target tokens, D encoder width, P predictor width.
"""

from __future__ import annotations

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.rope import Rope, rope_tables


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens; one learned mask token per mask
    type."""

    def __init__(
        self, *, width: int, depth: int, num_heads: int, encoder_width: int, output_width: int, mask_types: int,
        rope: Rope = "rotation", rope_base: float = 100.0, mlp_ratio: float = 4.0, locality: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim, self.rope, self.rope_base = width // num_heads, rope, rope_base
        self.embed = nn.Linear(encoder_width, width)
        self.mask_tokens = nn.Parameter(torch.zeros(mask_types, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, output_width)
        init_transformer(self, self.blocks, locality=locality)
        trunc_normal_(self.mask_tokens, std=0.02)

    def forward(
        self,
        context: Tensor,
        where: Tensor,
        wanted: Tensor,
        mask_type: int,
        *,
        visible: bool = False,
    ) -> Tensor:
        """[B, M, output] guesses for positions wanted [B, M, 3] from context [B, K, D] at
        positions where [B, K, 3]; if `visible`, [B, K + M, output], with what it makes of the
        tokens in view before them."""
        queries = self.mask_tokens[mask_type].expand(len(context), wanted.shape[1], -1)
        x = self.embed(context)
        x = torch.cat([x, queries.to(x.dtype)], 1)
        cos, sin = rope_tables(
            torch.cat([where, wanted], 1), self.head_dim, self.rope_base, self.rope
        )
        rope = (cos[:, None], sin[:, None])
        for block in self.blocks:
            x = block(x, rope)
        return self.project(self.norm(x if visible else x[:, context.shape[1] :]))
