"""Units in which networks take numbers: mean 0 and spread 1 where there is a spread, and for the
actions of a data set how far the data reach as well.

n samples of numbers F; N actions of a numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TURN = {"rad": 2 * np.pi, "deg": 360.0}  # a whole turn in the units that are of angles
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


RARE = 1e-3  # share of the actions at either end that may be a sensor's glitches
# least scale, as a share of the range: small jitter beside seldom jumps is not made large
FLOOR = 0.05
# least scale, as a share of the values' size: nor is jitter on a number that is kept where it is
STEADY = 0.01
# a narrower range has a scale that fp32 cannot divide by
TINY = float(np.finfo(np.float32).tiny) / FLOOR


@dataclass(frozen=True)
class ActionStatistics:
    """Centre and scale of every action number, and the bounds outside of which the data say
    nothing, [a] each in fp64.

    A number that never varied has both bounds at its value and scale 1: it always enters as 0. One
    that hardly did, by less than a share STEADY of its own size, enters small."""

    centre: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray
    steady: np.ndarray  # bool: varied hardly or never

    @classmethod
    def of(cls, actions: np.ndarray) -> ActionStatistics:
        """Of actions [N, a]. In fp64, since fp32 sums lose a spread that is small beside the mean.

        The range is that of all but the rarest actions, whose glitches would else be the unit; or
        of all, where the others are all the same. The bounds lie a range farther out on either
        side."""
        columns = [_of_number(actions[:, i].astype(np.float64)) for i in range(actions.shape[1])]
        centre, scale, low, high, steady = np.array(columns).T
        return cls(centre, scale, low, high, steady.astype(bool))


def _of_number(values: np.ndarray) -> tuple[float, float, float, float, bool]:
    """(centre, scale, low, high, steady) of one action number's values [N]."""
    rare = int(RARE * len(values))
    least, most = np.partition(values, (rare, len(values) - 1 - rare))[
        [rare, len(values) - 1 - rare]
    ]
    if _same(least, most):
        least, most = values.min(), values.max()
    if _same(least, most):
        value = float(np.median(values))
        return value, 1.0, value, value, True
    usual, width, size = values.clip(least, most), most - least, max(abs(least), abs(most))
    scale = max(usual.std(), FLOOR * width, STEADY * size)
    return usual.mean(), scale, least - width, most + width, scale == STEADY * size


def _same(least: float, most: float) -> bool:
    """Whether all between the two is the same but for rounding, or for what fp32 cannot divide
    by."""
    return most - least <= max(ROUNDING * max(abs(least), abs(most)), TINY)
