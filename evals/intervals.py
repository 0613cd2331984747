"""Intervals for measured rates and means: every figure of success of ours is printed with one.

S training seeds on the same T tasks are not S * T independent episodes: outcomes [S, T] are drawn
anew by seed and task."""

from __future__ import annotations

import math

import numpy as np

FEW = 5  # tasks that were lost (or won) by anybody, below which the bootstrap alone is too sure
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def wilson(successes: float, n: int) -> tuple[float, float]:
    """(low, high) of the Wilson score 95 % interval of a rate, shares in 0..1; (0, 1) where
    nothing was tried.

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
    """(low, high) of the percentile bootstrap 95 % interval of the mean of values [n]; the same
    values give the same.

    Values that are all equal give an interval without width, which is no certainty: whoever tells
    it has to say so. Raises ValueError for no values. Source: B. Efron, Annals of Statistics 7
    (1979)."""
    if len(values) == 0:
        raise ValueError("values is empty; an interval needs at least one")
    rows = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.percentile(values[rows].mean(1), [2.5, 97.5])
    return float(low), float(high)


def bootstrap_seeds_and_tasks(outcomes: np.ndarray, *, draws: int = 10_000) -> tuple[float, float]:
    """(low, high) of the 95 % interval of the mean of outcomes [S, T], training seeds and tasks
    both drawn anew.

    Deviations of seeds are scaled by sqrt(S / (S - 1)), since few seeds show too little of their
    spread; with one seed the interval is over tasks, for that training alone. No width means equal
    outcomes, not certainty. Raises ValueError for outcomes that are not [S, T] or not finite.
    Source: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007); the scale:
    Davison and Hinkley, Bootstrap Methods (1997), 3.8."""
    _check(outcomes)
    r = np.random.default_rng(0)
    seeds, tasks = (
        _weights(r, outcomes.shape[0], draws, scaled=True),
        _weights(r, outcomes.shape[1], draws),
    )
    low, high = np.percentile(((seeds @ outcomes) * tasks).sum(1), [2.5, 97.5])
    return max(float(low), float(outcomes.min())), min(float(high), float(outcomes.max()))


def rate_over_seeds(won: np.ndarray) -> tuple[float, float]:
    """(low, high) of the 95 % interval of a rate, for won [S, T] bool: S training seeds on the
    same T tasks.

    One seed: Wilson's over tasks. More: the bootstrap over seeds and tasks, never narrower than
    Wilson's of S * T independent episodes; where fewer than FEW tasks tell won from lost, not
    narrower than Wilson's of T episodes, so that all tasks won is no certainty."""
    _check(won)
    runs, tasks = won.shape
    if runs == 1:
        return wilson(int(won.sum()), tasks)
    few = min(int((~won).any(0).sum()), int(won.any(0).sum())) < FEW
    least = wilson(float(won.mean()) * tasks, tasks) if few else wilson(int(won.sum()), won.size)
    drawn = bootstrap_seeds_and_tasks(won.astype(np.float64))
    return min(least[0], drawn[0]), max(least[1], drawn[1])


def paired_difference(
    first: np.ndarray, second: np.ndarray, *, draws: int = 10_000
) -> tuple[float, float, float]:
    """(difference, low, high): mean of first [S, T] minus that of second [R, T] on the same T
    tasks, 95 % interval.

    A draw takes the same tasks for both, and the seeds of each. Of won and lost (bool), where
    fewer than FEW tasks differ from most, the interval is not narrower than what Wilson's bounds
    of the tasks won by one alone allow: equal outcomes are no proof of equal methods. Raises
    ValueError for other numbers of tasks."""
    _check(first)
    _check(second)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f"{first.shape[1]} and {second.shape[1]} tasks: a paired difference needs the same "
            "tasks"
        )
    gap = first.mean(0) - second.mean(0)  # [T]
    r = np.random.default_rng(0)
    one, other = (
        _weights(r, len(outcomes), draws, scaled=True) @ outcomes for outcomes in (first, second)
    )
    drawn = ((one - other) * _weights(r, len(gap), draws)).sum(1)
    low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    if first.dtype == bool and (gap != np.median(gap)).sum() < FEW:
        better, worse = (
            wilson(float(np.maximum(sign * gap, 0).sum()), len(gap)) for sign in (1, -1)
        )
        low, high = min(low, better[0] - worse[1]), max(high, better[1] - worse[0])
    if first.dtype == bool:
        low, high = max(low, -1.0), min(high, 1.0)
    return float(gap.mean()), low, high


def _weights(r: np.random.Generator, n: int, draws: int, *, scaled: bool = False) -> np.ndarray:
    """[draws, n] shares of n things drawn n times with replacement; scaled: their deviations by
    sqrt(n / (n - 1))."""
    shares = r.multinomial(n, np.full(n, 1 / n), size=draws) / n
    return 1 / n + math.sqrt(n / (n - 1)) * (shares - 1 / n) if scaled and n > 1 else shares


def _check(outcomes: np.ndarray) -> None:
    if outcomes.ndim != 2 or not outcomes.size or not np.isfinite(outcomes).all():
        raise ValueError(
            f"outcomes {outcomes.shape}: expected finite ones as [training seeds, tasks], at "
            "least "
            "one each"
        )
