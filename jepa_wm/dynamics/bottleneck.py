"""A label-free summary of frozen tokens: a few slots that keep what actions change, and what changes their effect.

B samples, n frozen tokens of width E, N slots of width D, A action numbers.
"""

from __future__ import annotations

from torch import Tensor, nn

from jepa_wm.core.schema import Bottleneck
from jepa_wm.core.world import whole_batch
from jepa_wm.encode.pool import AttentivePool


class Slots(nn.Module):
    """An attentive pool over a frame's tokens, its output cut into N slots of width D."""

    def __init__(self, tokens: int, token_width: int, settings: Bottleneck) -> None:
        super().__init__()
        self.shape = (settings.slots, settings.width)
        self.pool = AttentivePool(tokens, token_width, settings.slots * settings.width, queries=settings.queries)

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., N, D] in fp32 from frozen tokens [..., n, E]."""
        lead = tokens.shape[:-2]
        return self.pool(tokens.reshape(-1, *tokens.shape[-2:])).float().view(*lead, *self.shape)


def variance_covariance(latents: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's two terms for latents [B, F]: mean shortfall of each spread from 1, mean squared covariance."""
    latents = whole_batch(latents)  # both are statistics of the batch
    x = latents - latents.mean(0)
    spread = (x.square().mean(0) + 1e-4).sqrt()
    covariance = (x.T @ x) / (len(x) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - spread).clamp(min=0).mean(), off_diagonal / x.shape[1]
