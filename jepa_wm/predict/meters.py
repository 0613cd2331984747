"""Collapse meters: whether frozen features still tell samples apart.

B samples, N tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

COLLAPSED_STD = 0.05  # of LayerNorm'd features, whose total spread is 1
COLLAPSED_RANK = 2.0


def collapse_meters(tokens: Tensor) -> dict[str, float | bool]:
    """`feature_std`, `effective_rank` and `collapsed` of frozen tokens [B, N, D].

    feature_std is the spread across samples at equal position (a part that depends on position alone does not count);
    effective_rank is the exponential of the entropy of the spectrum of position-centred, frame-averaged tokens
    (Roy and Vetterli 2007).
    """
    x = tokens.float()
    centred = x - x.mean(0)
    std = centred.square().mean().sqrt().item()
    energy = torch.linalg.svdvals(centred.mean(1)).square()
    share = energy / energy.sum().clamp_min(1e-12)
    rank = torch.exp(-(share * share.clamp_min(1e-12).log()).sum()).item()
    return {"feature_std": std, "effective_rank": rank, "collapsed": std < COLLAPSED_STD or rank < COLLAPSED_RANK}
