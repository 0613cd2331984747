"""A map over a frame's tokens, and what of it lies around a place: what a thing runs into is next
to it, wherever in the picture it is.

N tokens a frame of width E, C channels, P places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.pooling import token_places

AROUND = 9  # tokens that are read of each place: the one that it lies in and its neighbours


class TokenMap(nn.Module):
    """C numbers of every token, by one linear map for all places."""

    offsets: Tensor
    last: Tensor

    def __init__(self, tokens: int, width: int, channels: int) -> None:
        super().__init__()
        self.channels, (_, self.columns) = channels, token_places(tokens)
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, channels)
        step = torch.arange(-1, 2)
        self.register_buffer("offsets", torch.cartesian_prod(step, step), persistent=False)
        last = torch.tensor([tokens // self.columns - 1, self.columns - 1])
        self.register_buffer("last", last, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., 1, N C] of tokens [..., N, E]."""
        numbers: Tensor = self.squeeze(self.norm(tokens.float()))
        return numbers.flatten(-2)[..., None, :]

    def near(self, numbers: Tensor, places: Tensor) -> Tensor:
        """[..., P (9 C + 2)] of maps [..., N C] at places [..., 2 P] as `Keypoints` gives them:
        the numbers of the token that a place lies in and of the eight around it, 0 beyond the
        edge of the picture, then the place's row and column from that token's middle, in
        tokens."""
        # In tokens; a place outside of the picture counts as at its edge.
        where = (places.unflatten(-1, (-1, 2)) + 0.5) * max(self.columns - 1, 1)  # [..., P, 2]
        where = where.maximum(torch.zeros_like(where)).minimum(self.last.to(where))
        own = where.detach().round()
        at = own.long()[..., None, :] + self.offsets  # [..., P, 9, 2]

        # The numbers there, each token's side by side.
        inside = ((at >= 0) & (at <= self.last)).all(-1)  # [..., P, 9]
        row, column = at.minimum(self.last).clamp(min=0).unbind(-1)
        index = (row * self.columns + column).flatten(-2)[..., None]
        tokens = numbers.unflatten(-1, (-1, self.channels))
        read = tokens.gather(-2, index.expand(*index.shape[:-1], self.channels))
        read = read.unflatten(-2, inside.shape[-2:]) * inside[..., None]
        return torch.cat([read.flatten(-2), where - own], -1).flatten(-2)

    def width_near(self, points: int) -> int:
        """Numbers that `near` gives of so many places."""
        return points * (AROUND * self.channels + 2)
