"""Collapse meters: whether frozen features still tell samples apart.

B samples, N tokens, D width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

COLLAPSED_STD = 0.05  # of LayerNorm'd features, whose total spread is 1
COLLAPSED_RANK = 2.0
SAMPLES, SIDE = 512, 32  # frames, and pixels on a side of pictures, that a rank over whole frames is taken of


def collapse_meters(tokens: Tensor, pictures: np.ndarray | None = None) -> dict[str, float | bool]:
    """`feature_std`, `effective_rank` and `collapsed` of frozen tokens [B, N, D].

    feature_std is the spread across samples at equal position (a part that depends on position alone does not count).
    effective_rank is the smaller of two, both the exponential of the entropy of a spectrum (Roy and Vetterli 2007):
    how many directions of the D tokens use, and how many of the N*D frames use. Where in the picture something is
    counts, as it does for all that reads the tokens: a mean over them would hide what moves and does not change.
    Of `pictures` [B, h, w, c], where they are given, fewer than two directions ask for no more of the features.
    """
    x = tokens.float()
    centred = x - x.mean(0)
    std = centred.square().mean().sqrt().item()
    each = centred.flatten(0, 1)
    rank = min(_effective_rank(each.T @ each), _effective_rank(_between(centred)))
    few = rank < COLLAPSED_RANK and (pictures is None or picture_rank(pictures) >= COLLAPSED_RANK)
    return {"feature_std": std, "effective_rank": rank, "collapsed": std < COLLAPSED_STD or few}


def picture_rank(pictures: np.ndarray) -> float:
    """How many directions pictures [B, h, w, c] themselves use, made small."""
    some = torch.from_numpy(pictures[_spread(len(pictures))]).movedim(-1, 1).float()
    return _effective_rank(_between(torch.nn.functional.adaptive_avg_pool2d(some, SIDE)))


def _between(x: Tensor) -> Tensor:
    """[S, S] products of samples [B, ...], some of them, centred and flattened: their spectrum is that of all numbers,
    of which there are more."""
    some = x[torch.from_numpy(_spread(len(x))).to(x.device)].flatten(1)
    some = some - some.mean(0)
    return some @ some.T


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).astype(np.int64))


def _effective_rank(products: Tensor) -> float:
    energy = torch.linalg.eigvalsh(products.double()).clamp_min(0)
    share = energy / energy.sum().clamp_min(1e-30)
    return torch.exp(-(share * share.clamp_min(1e-30).log()).sum()).item()
