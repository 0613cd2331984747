"""What keeps vectors spread out: two terms against collapse, shared by pretraining and by
summaries.

B samples, F numbers.
"""

from __future__ import annotations

from torch import Tensor

from jepa_wm.core.distributed import all_gather


def variance_covariance(latents: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's two terms for latents [B, F]: mean shortfall of each spread from 1, mean squared
    covariance (Bardes et al., 2022)."""
    latents = all_gather(latents)  # both are statistics of the batch
    x = latents - latents.mean(0)
    spread = (x.square().mean(0) + 1e-4).sqrt()
    covariance = (x.T @ x) / (len(x) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - spread).clamp(min=0).mean(), off_diagonal / x.shape[1]
