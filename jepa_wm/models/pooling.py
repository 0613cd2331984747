"""A frame's tokens in one vector: by learned queries, by a map that keeps places, or as their
principal components.

B frames, S sample frames, N tokens a frame, D width, Q queries, P keypoints, F pooled width, K
components or directions, h heads, d head width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.scaling import ROUNDING
from jepa_wm.models.blocks import mlp

QUERIES, NUM_HEADS = 8, 2  # of an attentive pool
CHANNELS = 16  # numbers that a grid pool keeps of each token
HIDDEN = 256  # width within a grid pool
LOOK, SHARPNESS = 64, 3.0  # width within keypoints, and what their scores are multiplied by


class AttentivePool(nn.Module):
    """Q learned queries attend to the tokens; an MLP turns what they read into F numbers.

    Positions start as sines and cosines of unit spread, not small and random: where something is
    can then be read off from the first step, which shortens the search for a small object from
    thousands of steps to a hundred. What is `normed` tells more of a small thing; what is not
    keeps how strong a token is, as the brightness of a patch of pixels."""

    def __init__(
        self, tokens: int, width: int, outputs: int, *, frames: int = 1, normed: bool = True
    ) -> None:
        super().__init__()
        self.position = nn.Parameter(fourier_positions(tokens, width, frames=frames))
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.query = nn.Parameter(torch.randn(QUERIES, width))
        self.key_value = nn.Linear(width, 2 * width)
        hidden = 2 * max(outputs, width)
        self.out = nn.Sequential(
            nn.Linear(QUERIES * width, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        x = self.norm(tokens) + self.position
        return self.out(query_attention(x, self.query, self.key_value, NUM_HEADS).flatten(1))


def query_attention(tokens: Tensor, query: Tensor, key_value: nn.Linear, num_heads: int) -> Tensor:
    """[B, Q, D] what learned queries [Q, D] read from tokens [B, N, D] by multi-head attention,
    with the keys and values of a linear map D -> 2 D.

    The few queries are carried to the tokens through the key map, and the value map comes after
    the weighted sum: the same numbers as with a key and a value for every token, at a fraction of
    the products."""
    key, value = key_value.weight.unflatten(0, (2, num_heads, -1))  # [h, d, D] each
    q = query.unflatten(-1, (num_heads, -1)).transpose(0, 1)  # [h, Q, d]
    # The queries in the tokens' own space; a bias of the keys would cancel in the softmax.
    carried = (q @ key).flatten(0, 1) * q.shape[-1] ** -0.5  # [h*Q, D]
    pooled = (tokens @ carried.T).softmax(1).transpose(1, 2) @ tokens  # [B, h*Q, D]
    values = pooled.unflatten(1, (num_heads, -1)) @ value.transpose(1, 2)  # [B, h, Q, d]
    return values.transpose(1, 2).flatten(2) + key_value.bias.chunk(2)[1]


def fourier_positions(tokens: int, width: int, *, frames: int = 1) -> Tensor:
    """[N, D] sines and cosines of each token's row and column (of its place in a line, if those of
    a frame are no square), and where N tokens are of several frames, of its time, at rising
    frequencies, of unit spread. Raises ValueError if frames do not divide the tokens."""
    if tokens % frames:
        raise ValueError(f"{tokens} tokens are not as many for each of {frames} frames")
    place, _ = token_places(tokens // frames)
    place = place.repeat(frames, 1)  # [N, 2]
    if frames > 1:
        time = torch.linspace(0, 1, frames).repeat_interleave(tokens // frames)
        place = torch.cat([place, time[:, None]], 1)
    frequency = torch.pi * 0.5 * 2 ** torch.linspace(0, 3, -(-width // (2 * place.shape[1])))
    angle = place[:, :, None] * frequency  # [N, 2 or 3, D/4 or D/6]
    return 2**0.5 * torch.cat([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


def token_places(tokens: int) -> tuple[Tensor, int]:
    """([N, 2] row and column of each token in 0..1, tokens along a side); of tokens that are no
    square their place in a line."""
    side = round(tokens**0.5) if round(tokens**0.5) ** 2 == tokens else tokens
    index = torch.arange(tokens)
    return torch.stack([index // side, index % side], -1).float() / max(side - 1, 1), side


class Keypoints(nn.Module):
    """Where in the picture that lies what P learned maps over the tokens look for: of each map the
    mean place, tokens telling where within their patch (spatial softmax: Levine et al., 2016).

    What is read off is a place from the first step, so that numbers change evenly with what moves;
    a pool of the same size has to learn a map for that."""

    place: Tensor

    def __init__(self, tokens: int, width: int, points: int) -> None:
        super().__init__()
        self.points = points
        # Without a scale of its own, which the linear maps after it have: a third of the products
        # of a training step are saved.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.score = mlp(width, points, LOOK, depth=1)
        self.offset = nn.Linear(width, 2 * points)
        place, side = token_places(tokens)
        self.patch = 1 / max(side - 1, 1)
        self.register_buffer("place", place, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., 2 P] fp32 rows and columns, the picture's middle being 0 and its edges 1 apart,
        from tokens [..., N, D]."""
        x = self.norm(tokens.float())
        weight = (SHARPNESS * self.score(x).float()).softmax(-2)  # [..., N, P]
        within = self.offset(x).float().unflatten(-1, (self.points, 2)).tanh() * self.patch
        where = self.place[:, None] - 0.5 + within  # [..., N, P, 2]
        return (weight[..., None] * where).sum(-3).flatten(-2)

    def sought(self, tokens: Tensor, directions: Tensor, mean: Tensor) -> Tensor:
        """[..., 2 K] places of K points that look for directions [K, D] of normed tokens [..., N,
        D] of this mean [D]; how long a direction is says how sharply."""
        score = (self.norm(tokens.float()) - mean) @ directions.T
        return torch.einsum("...nk,nc->...kc", score.softmax(-2), self.place - 0.5).flatten(-2)

    @torch.no_grad()
    def start_at(self, directions: Tensor, mean: Tensor) -> None:
        """Have points look for directions [K, D] as `sought` does, where scores are above the
        mean's, one or more points for each; with K = 0 they look for what they did."""
        enter, leave = self.score[0], self.score[-1]
        assert isinstance(enter, nn.Linear) and isinstance(leave, nn.Linear)
        for point in range(self.points if len(directions) else 0):
            # A hidden number of its own, or one that looks for the same, while half of them are
            # left at random, by which points that look for the same differ.
            hidden = point % (LOOK // 2)
            direction = directions[hidden % len(directions)]
            enter.weight[hidden], enter.bias[hidden] = direction, -direction @ mean
            leave.weight[point, hidden] = 1 / SHARPNESS


class GridPool(nn.Module):
    """Every token is squeezed to a few numbers that keep their place; an MLP reads the whole map
    into F numbers.

    Where a rare thing is acts on the output from the first step, without a query having to find it
    first: in noise this learns where a small object is sooner than an attentive pool
    (docs/results.md)."""

    def __init__(self, tokens: int, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, CHANNELS)
        self.out = nn.Sequential(
            nn.Linear(tokens * CHANNELS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        return self.out(F.gelu(self.squeeze(self.norm(tokens))).flatten(1))


class Components(nn.Module):
    """The principal components of all tokens of a frame together, each divided by the root of its
    spread."""

    mean: Tensor
    basis: Tensor

    def __init__(self, size: int, count: int) -> None:
        """Of frames of `size` = N * D numbers, `count` = K of them."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, count))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., K] fp32 components of tokens [..., N, D]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return (tokens.flatten(-2).float() - self.mean) @ self.basis

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Find them in sample frames [S, N, D]. The root is halfway between components as they
        are, of which the first few are all, and whitened ones, of which the last are noise."""
        x = tokens.flatten(1).float()
        self.mean.copy_(x.mean(0))
        x = x - self.mean
        # Of the products of frames with frames: there are fewer frames in the sample than numbers
        # in a frame.
        value, vector = torch.linalg.eigh((x @ x.T).double())
        count = min(self.basis.shape[1], len(x) - 1)
        value, vector = value.flip(0)[:count].float(), vector.flip(1)[:, :count].float()
        # Below the first is the rounding of products in fp32, below the second that of a mean no
        # frame differs from.
        rounding = len(x) * ROUNDING**2 * float(self.mean.double().square().sum())
        kept = value > max(1e-7 * float(value[0]), rounding)
        value, vector = value[kept], vector[:, kept]
        self.basis.zero_()
        if len(value):
            # The root of the spread of each, in units of their mean.
            spread = (value / len(x)).sqrt()
            basis = (x.T @ vector) / value.sqrt() / spread.sqrt()
            self.basis[:, : len(value)] = basis / spread.mean().sqrt()
