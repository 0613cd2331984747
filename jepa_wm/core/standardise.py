"""Mean 0 and spread 1, where there is a spread: a number that does not vary comes out as 0, not as
noise made large.

n samples of numbers F.
"""

from __future__ import annotations

import torch
from torch import Tensor

# of its own size, what a number that never varied may vary by in fp32
ROUNDING = 4 * torch.finfo(torch.float32).eps
FAINT = 1e-3  # of the numbers' overall spread: less is what half precision makes up


def own_scale(values: Tensor) -> Tensor:
    """[F] the spread of numbers [n, F], each in a unit of its own, such as a state's; 1 for one
    that does not vary."""
    exact = values.double()
    spread = (exact - exact.mean(0)).square().mean(0).sqrt()
    return torch.where(spread > ROUNDING * exact.abs().amax(0), spread, 1.0).to(values.dtype)


def centred_scale(values: Tensor, mean: Tensor) -> Tensor:
    """[F] the shared scale of numbers [..., F] around their mean, which broadcasts to them."""
    axes = tuple(range(values.dim() - 1))
    return shared_scale((values - mean).square().mean(axes).sqrt())


def shared_scale(spread: Tensor) -> Tensor:
    """The scale of numbers that share a unit, such as a latent's, from the spread of each: never
    less than a share FAINT of their overall one; 1 where none varies."""
    least = FAINT * spread.double().square().mean().sqrt().to(spread)
    return spread.clamp_min(least) if bool(least > 0) else torch.ones_like(spread)
