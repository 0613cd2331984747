"""Intervals for measured rates and means: every figure of success of ours is printed with one."""

from __future__ import annotations

import math

import numpy as np

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(successes: int, n: int) -> tuple[float, float]:
    """(low, high) of the Wilson score 95 % interval of a rate, shares in 0..1; (0, 1) where nothing was tried.

    Raises ValueError for counts that cannot be. Source: E. B. Wilson, JASA 22 (1927), 209-212.
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} cannot be; successes lie between 0 and n")
    if n == 0:
        return 0.0, 1.0
    rate, z2 = successes / n, Z_95**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = Z_95 * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    # At 0 and n the bound is exact; rounding must not push it past.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def bootstrap(values: np.ndarray, *, draws: int = 10_000) -> tuple[float, float]:
    """(low, high) of the percentile bootstrap 95 % interval of the mean of values [n]; the same values give the same.

    Raises ValueError for no values. Source: B. Efron, Annals of Statistics 7 (1979).
    """
    if len(values) == 0:
        raise ValueError("values is empty; an interval needs at least one")
    rows = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)
