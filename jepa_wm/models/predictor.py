"""The predictors of V-JEPA: of tokens out of view from those in view, and of the next frame's
tokens from actions and states.

B clips, K context tokens, M target tokens, T frames, N = grid * grid tokens a frame, D encoder
width, P model width, A action and S state numbers a frame, E numbers that place the camera, C = 2
or 3 tokens that stand before a frame's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from jepa_wm.models.blocks import (
    Block,
    Rope,
    attention_bias,
    grid_positions,
    init_transformer,
    rope_tables,
)
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.masks import TokenMask


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
            width=jepa.width, depth=jepa.depth, num_heads=jepa.num_heads, locality=jepa.locality,
            encoder_width=encoder.width, output_width=target_width(encoder, jepa),
            mask_types=len(jepa.masks), rope=encoder.rope, rope_base=encoder.rope_base,
        )  # fmt: skip


class Predictor(nn.Module):
    """A narrow transformer over context tokens and mask tokens; one learned mask token per mask
    type."""

    def __init__(self, sizes: PredictorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.head_dim = width // sizes.num_heads
        self.rope, self.rope_base = sizes.rope, sizes.rope_base
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
        positions = torch.cat([context_positions, target_positions], 1)[:, None]
        rope = rope_tables(positions, self.head_dim, self.rope_base, self.rope)
        for block in self.blocks:
            x = block(x, rope)
        return self.project(self.norm(x if with_context else x[:, context.shape[1] :]))


def target_width(encoder: EncoderSettings, jepa: JepaSettings) -> int:
    """Numbers of a target token: the encoder's width for each level of each kind of target."""
    return len(jepa.target_kinds) * jepa.target_levels * encoder.width


class NeighborPredictor(nn.Module):
    """A target token from the nearest tokens in view before and after it, of its own place and of
    the eight around it.

    What moves is at the next place a frame later. Attention has to find that first, for hundreds
    of steps; a convolution looks there from the first one. Its output is added to the
    transformer's."""

    def __init__(self, encoder_width: int, width: int, output_width: int) -> None:
        super().__init__()
        # Both neighbours' tokens, and how near each is.
        self.embed = nn.Conv2d(2 * encoder_width + 2, width, 3, padding=1)
        self.project = nn.Conv2d(width, output_width, 1)

    def forward(self, context: Tensor, mask: TokenMask, extent: tuple[int, int, int]) -> Tensor:
        """[B, M, output] for the targets of a mask, from context [B, K, D], in clips of an extent
        of (T, rows, columns) tokens."""
        (steps, rows, columns), batch = extent, len(context)
        before, after = nearest_in_view(mask.context_ids, steps, rows * columns)
        times = torch.arange(steps, device=context.device)[None].expand(batch, -1)
        if mask.full_frames is not None:  # the targets are all the other frames
            hidden = torch.ones_like(times, dtype=torch.bool).scatter(1, mask.full_frames, False)
            times = hidden.nonzero()[:, 1].view(batch, -1)

        # Where a token has no neighbour in view on one side, that side is all zeros.
        tokens, nearness = [], []
        for step_of in (before, after):
            step = step_of.gather(1, times[..., None].expand(-1, -1, rows * columns))  # [B, H, N]
            exists = (step >= 0) & (step < steps)
            ids = step.clamp(0, steps - 1) * rows * columns
            ids = ids + torch.arange(rows * columns, device=context.device)
            slots = torch.searchsorted(mask.context_ids, ids.flatten(1)).clamp(
                max=context.shape[1] - 1
            )
            near = context.gather(1, slots[..., None].expand(-1, -1, context.shape[-1]))
            tokens.append(near.unflatten(1, step.shape[1:]) * exists[..., None])
            nearness.append(exists / (step - times[..., None]).abs())
        x = torch.cat([*tokens, torch.stack(nearness, -1).to(context.dtype)], -1)

        # Time steps as images, and of their places those that are targets.
        grid = x.flatten(0, 1).unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        out = self.project(F.gelu(self.embed(grid))).flatten(2).transpose(1, 2)
        out = out.reshape(batch, -1, out.shape[-1])
        if mask.full_frames is not None:
            return out
        return out.gather(1, mask.target_ids[..., None].expand(-1, -1, out.shape[-1]))


def nearest_in_view(context_ids: Tensor, steps: int, places: int) -> tuple[Tensor, Tensor]:
    """The time steps [B, T, N] of the last token in view before each token at its place (-1: there
    is none), and of the first one after it (T: there is none), from context_ids [B, K]."""
    in_view = torch.zeros(len(context_ids), steps * places, device=context_ids.device).bool()
    in_view = in_view.scatter(1, context_ids, True).unflatten(1, (steps, places))
    time = torch.arange(steps, device=context_ids.device)[:, None]
    last = time.where(in_view, -1).cummax(1).values
    first = time.where(in_view, steps).flip(1).cummin(1).values.flip(1)
    none = last[:, :1]
    return (
        torch.cat([torch.full_like(none, -1), last[:, :-1]], 1),
        torch.cat([first[:, 1:], torch.full_like(none, steps)], 1),
    )


@dataclass(frozen=True, kw_only=True)
class ActionPredictorSizes:
    """What an action-conditioned predictor is made of: its own sizes, and those of the tokens,
    actions and states that it meets."""

    encoder_width: int
    grid: int
    width: int
    depth: int
    num_heads: int
    action_size: int = 7
    state_size: int = 7
    extrinsics_size: int = 6
    mlp_ratio: float = 4.0
    rope: Rope = "vjepa2"
    rope_base: float = 10_000.0


class ActionPredictor(nn.Module):
    """A block-causal transformer: each frame is an action token, a state token, perhaps one for
    the camera, and its patches, and sees itself and all frames before (Assran et al., 2025)."""

    def __init__(self, sizes: ActionPredictorSizes) -> None:
        super().__init__()
        width = sizes.width
        self.grid, self.head_dim = sizes.grid, width // sizes.num_heads
        self.rope, self.rope_base = sizes.rope, sizes.rope_base
        self.embed = nn.Linear(sizes.encoder_width, width)
        self.action = nn.Linear(sizes.action_size, width)
        self.state = nn.Linear(sizes.state_size, width)
        self.extrinsics = nn.Linear(sizes.extrinsics_size, width)
        self.blocks = nn.ModuleList(
            Block(width, sizes.num_heads, sizes.mlp_ratio) for _ in range(sizes.depth)
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, sizes.encoder_width)
        init_transformer(self, self.blocks)

    def forward(
        self, tokens: Tensor, actions: Tensor, states: Tensor, extrinsics: Tensor | None = None
    ) -> Tensor:
        """The tokens one frame later, [B, T, N, D], for tokens [B, T, N, D] of frames that were
        encoded one by one, and actions [B, T, A], states [B, T, S] and, for a model trained with
        them, extrinsics [B, T, E] there.

        Raises ValueError if the frames are not of the model's own grid.
        """
        if tokens.shape[2] != self.grid**2:
            raise ValueError(
                f"tokens has {tokens.shape[2]} tokens a frame, the model {self.grid} x {self.grid}"
            )
        # Conditions are tokens before a frame's patches: without a camera a frame is merely one
        # token shorter.
        conditions = [self.action(actions), self.state(states)]
        if extrinsics is not None:
            conditions.append(self.extrinsics(extrinsics))
        before = torch.stack(conditions, 2)  # [B, T, C, P]
        x = torch.cat([before, self.embed(tokens)], 2)
        frames, count = x.shape[1], before.shape[2]
        positions = self._positions(frames, count, x.device)
        rope = rope_tables(positions, self.head_dim, self.rope_base, self.rope)
        # Whole frames are hidden, not single tokens: those of one frame are known at once.
        time = positions[:, 0]
        bias = attention_bias(time[None] > time[:, None]) if frames > 1 else None
        x = x.flatten(1, 2)  # [B, T*(C+N), P]
        for block in self.blocks:
            x = block(x, rope, bias)
        return self.project(self.norm(x.unflatten(1, (frames, -1))[:, :, count:]))

    def _positions(self, frames: int, conditions: int, device: torch.device) -> Tensor:
        """[T*(C+N), 3] time, row, column; what stands before the patches turns in time only."""
        patches = grid_positions(frames, self.grid, self.grid, device=device).view(frames, -1, 3)
        before = torch.zeros(frames, conditions, 3, dtype=patches.dtype, device=device)
        before[..., 0] = torch.arange(frames, device=device)[:, None]
        return torch.cat([before, patches], 1).flatten(0, 1)
