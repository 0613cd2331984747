"""Collapse metrics: whether features still tell samples apart.

B samples, N tokens, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COLLAPSED_STD = 0.05  # of LayerNorm'd features, whose total spread is 1
# of all directions but the largest: less is what noise and half precision leave
COLLAPSED_BESIDE = 0.02
FEW_DIRECTIONS = 2.0  # effective rank of pictures in which there is little to tell
SAMPLES, SIDE = 512, 32  # frames, and px of pictures, that a rank over frames is taken of


def collapse_metrics(
    tokens: Tensor, pictures: np.ndarray | None = None
) -> dict[str, float | bool]:
    """`feature_std`, `effective_rank` and `collapsed` of frozen tokens [B, N, D].

    feature_std is the spread across samples at equal position (a part that depends on position
    alone does not count). effective_rank is the smaller of two, both the exponential of the
    entropy of a spectrum (Roy and Vetterli 2007): how many directions of the D tokens use, and how
    many of the N*D frames use. Where in the picture something is counts, as it does for all that
    reads the tokens: a mean over them would hide what moves and does not change. collapsed: hardly
    any spread, or hardly any beside a single direction. A direction that outweighs the others, as
    that of a rod which swings from side to side, lowers the rank and is no collapse while the
    others are there. Of `pictures` [B, h, w, c], where they are given, fewer than two directions
    ask for no more of the features."""
    x = tokens.float()
    centred = x - x.mean(0)
    std = centred.square().mean().sqrt().item()
    each = centred.flatten(0, 1)
    spectra = [_spectrum(each.T @ each), _spectrum(_between(centred))]
    rank = min(_effective_rank(shares) for shares in spectra)
    beside = std * min(float(1 - shares.max()) for shares in spectra) ** 0.5
    few = beside < COLLAPSED_BESIDE
    if few and pictures is not None:
        few = picture_rank(pictures) >= FEW_DIRECTIONS
    return {"feature_std": std, "effective_rank": rank, "collapsed": std < COLLAPSED_STD or few}


def picture_rank(pictures: np.ndarray) -> float:
    """How many directions pictures [B, h, w, c] themselves use, made small."""
    frames = torch.from_numpy(pictures[_spread(len(pictures))]).movedim(-1, 1).float()
    small = torch.nn.functional.adaptive_avg_pool2d(frames, SIDE)
    return _effective_rank(_spectrum(_between(small)))


def _between(x: Tensor) -> Tensor:
    """[R, R] products of samples [B, ...], some of them, centred and flattened: their spectrum is
    that of all numbers, of which there are more."""
    rows = x[torch.from_numpy(_spread(len(x))).to(x.device)].flatten(1)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).astype(np.int64))


def _spectrum(products: Tensor) -> Tensor:
    """The share of each direction in the energy; all 0 where there is none."""
    energy = torch.linalg.eigvalsh(products.double()).clamp_min(0)
    return energy / energy.sum().clamp_min(1e-30)


def _effective_rank(shares: Tensor) -> float:
    return torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()).item()
