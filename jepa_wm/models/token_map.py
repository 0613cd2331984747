"""A map over a frame's tokens: what of it lies around a place, since what a thing runs into is
next to it wherever in the picture it is, and what it says of far places.

N tokens a frame of width E, C channels, C' channels of a field, P places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.precision import exact
from jepa_wm.core.scaling import ROUNDING
from jepa_wm.models.pooling import token_places

AROUND = 9  # tokens that are read of each place: the one that it lies in and its neighbours


class TokenMap(nn.Module):
    """C numbers of every token, by one linear map for all places."""

    offsets: Tensor
    last: Tensor

    def __init__(self, tokens: int, width: int, channels: int) -> None:
        super().__init__()
        self.tokens, (_, self.columns) = tokens, token_places(tokens)
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
        """[..., P (9 C + 2)] of maps [..., N C], or of others with C numbers a token, at places
        [..., 2 P] as `Keypoints` gives them (maps broadcast to places): the numbers of the token
        that a place lies in and of the eight around it, 0 beyond the edge of the picture, then the
        place's row and column from that token's middle, in tokens."""
        # In tokens; a place outside of the picture counts as at its edge.
        where = (places.unflatten(-1, (-1, 2)) + 0.5) * max(self.columns - 1, 1)  # [..., P, 2]
        where = where.maximum(torch.zeros_like(where)).minimum(self.last.to(where))
        own = where.detach().round()
        at = own.long()[..., None, :] + self.offsets  # [..., P, 9, 2]

        # The numbers there, each token's side by side.
        inside = ((at >= 0) & (at <= self.last)).all(-1)  # [..., P, 9]
        row, column = at.minimum(self.last).clamp(min=0).unbind(-1)
        index = (row * self.columns + column).flatten(-2)[..., None]
        tokens = numbers.unflatten(-1, (self.tokens, -1))
        tokens = tokens.expand(*index.shape[:-2], *tokens.shape[-2:])
        read = tokens.gather(-2, index.expand(*index.shape[:-1], tokens.shape[-1]))
        read = read.unflatten(-2, inside.shape[-2:]) * inside[..., None]
        return torch.cat([read.flatten(-2), where - own], -1).flatten(-2)


def width_near(points: int, channels: int) -> int:
    """Numbers that `TokenMap.near` gives of so many places and channels."""
    return points * (AROUND * channels + 2)


class MapField(nn.Module):
    """What a map says of every place, far things included: convolutions pass on from token to
    token what lies there, as a way to a goal is found (value iteration networks: Tamar et al.,
    2016). The same weights everywhere, so that a layout that was never met reads like those that
    were."""

    centre: Tensor
    spread: Tensor

    def __init__(self, tokens: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.columns = token_places(tokens)[1]
        self.rows, self.channels = tokens // self.columns, width // 2
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GELU(), nn.Conv2d(width, width, 3, padding=1), nn.GELU(),
                nn.Conv2d(width, width, 1),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.leave = nn.Sequential(nn.GELU(), nn.Conv2d(width, self.channels, 1))
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(()))

    def forward(self, maps: Tensor) -> Tensor:
        """[B, N C'] numbers of every token, C' of each, of maps [B, N C]."""
        each = (self._each(maps) - self.centre) / self.spread  # [B, N, C]
        with exact(maps.device):
            x = self.enter(each.transpose(1, 2).unflatten(2, (self.rows, self.columns)))
            for block in self.blocks:
                x = x + block(x)
            return self.leave(x).flatten(2).transpose(1, 2).flatten(1)

    @torch.no_grad()
    def standardise(self, maps: Tensor) -> None:
        """Have the net see maps [S, N C] with mean 0 and a common spread of 1; those that are all
        the same keep their own."""
        each = self._each(maps).flatten(0, 1)
        self.centre.copy_(each.mean(0))
        spread = each.std(0, correction=0).mean()
        self.spread.fill_(float(spread) if spread > ROUNDING * self.centre.abs().max() else 1.0)

    def _each(self, maps: Tensor) -> Tensor:
        return maps.float().unflatten(-1, (self.rows * self.columns, -1))
