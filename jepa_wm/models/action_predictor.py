"""V-JEPA 2's action-conditioned predictor: the next frame's tokens from tokens, actions and robot
states so far.

B batch, T frames, N = grid * grid tokens a frame, D encoder width, P model width, A action and S
state numbers a frame, E numbers that place the camera, C = 2 or 3 tokens that stand before a
frame's own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.rope import Rope, grid_positions, rope_tables


class ActionPredictor(nn.Module):
    """A block-causal transformer: each frame is an action token, a state token, perhaps one for
    the camera, and its patches, and sees itself and all frames before (Assran et al., 2025)."""

    def __init__(
        self, *, encoder_width: int, grid: int, width: int, depth: int, num_heads: int, action_size: int = 7,
        state_size: int = 7, extrinsics_size: int = 6, mlp_ratio: float = 4.0, rope: Rope = "vjepa2",
        rope_base: float = 10_000.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.head_dim, self.rope, self.rope_base = (
            grid,
            width // num_heads,
            rope,
            rope_base,
        )
        self.embed = nn.Linear(encoder_width, width)
        self.action = nn.Linear(action_size, width)
        self.state = nn.Linear(state_size, width)
        self.extrinsics = nn.Linear(extrinsics_size, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.project = nn.Linear(width, encoder_width)
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
        conditions = [self.action(actions), self.state(states)]
        if extrinsics is not None:
            conditions.append(self.extrinsics(extrinsics))
        before = torch.stack(conditions, 2)  # [B, T, C, P]
        x = torch.cat([before, self.embed(tokens)], 2)
        frames, count = x.shape[1], before.shape[2]
        cos, sin = rope_tables(
            self._positions(frames, count, x.device), self.head_dim, self.rope_base, self.rope
        )
        bias = self._no_future(frames, x.shape[2], x.device)
        x = x.flatten(1, 2)  # [B, T*(C+N), P]
        for block in self.blocks:
            x = block(x, (cos, sin), bias)
        return self.project(self.norm(x.unflatten(1, (frames, -1))[:, :, count:]))

    def _positions(self, frames: int, conditions: int, device: torch.device) -> Tensor:
        """[T*(C+N), 3] time, row, column; what stands before the patches turns in time only."""
        patches = grid_positions(frames, self.grid, self.grid, device=device).view(frames, -1, 3)
        before = torch.zeros(frames, conditions, 3, dtype=patches.dtype, device=device)
        before[..., 0] = torch.arange(frames, device=device)[:, None]
        return torch.cat([before, patches], 1).flatten(0, 1)

    @staticmethod
    def _no_future(frames: int, tokens: int, device: torch.device) -> Tensor | None:
        """[T*(C+N), T*(C+N)] additive mask that hides later frames; None for one frame."""
        if frames == 1:
            return None
        frame = torch.arange(frames, device=device).repeat_interleave(tokens)
        hidden = frame[None] > frame[:, None]
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -1e4)
