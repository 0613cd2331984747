"""How good what was predicted or played is; every figure of ours is told with an interval.

S training seeds, T tasks, n samples, U units (videos or frames), C classes, Y numbers. S seeds on
the same T tasks are not S * T independent episodes: outcomes [S, T] are drawn anew by seed and
task."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jepa_wm.data.quantities import Quantities
from jepa_wm.evals.labelled import Labelled, Part
from jepa_wm.report.plots import confusion_matrix
from jepa_wm.worlds.tasks import Task, judge

FEW = 5  # tasks that were lost (or won) by anybody, below which the bootstrap alone is too sure
DRAWS = 10_000  # of a bootstrap
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


def bootstrap(outcomes: np.ndarray, *, draws: int = DRAWS) -> tuple[float, float]:
    """(low, high) of the 95 % interval of the mean of outcomes [S, T], training seeds and tasks
    both drawn anew; the same outcomes give the same.

    Deviations of seeds are scaled by sqrt(S / (S - 1)), since few seeds show too little of their
    spread; with one seed the interval is over tasks, for that training alone. No width means equal
    outcomes, not certainty. Raises ValueError for outcomes that are not [S, T] or not finite.
    Source: A. B. Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1 (2007); the scale:
    Davison and Hinkley, Bootstrap Methods (1997), 3.8."""
    _check(outcomes)
    r = np.random.default_rng(0)
    seeds = _weights(r, outcomes.shape[0], draws, scaled=True)
    tasks = _weights(r, outcomes.shape[1], draws)
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
    drawn = bootstrap(won.astype(np.float64))
    return min(least[0], drawn[0]), max(least[1], drawn[1])


def paired_difference(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
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
        _weights(r, len(outcomes), DRAWS, scaled=True) @ outcomes for outcomes in (first, second)
    )
    drawn = ((one - other) * _weights(r, len(gap), DRAWS)).sum(1)
    low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    if first.dtype == bool:
        if (gap != np.median(gap)).sum() < FEW:
            better, worse = (
                wilson(float(np.maximum(sign * gap, 0).sum()), len(gap)) for sign in (1, -1)
            )
            low, high = min(low, better[0] - worse[1]), max(high, better[1] - worse[0])
        low, high = max(low, -1.0), min(high, 1.0)
    return float(gap.mean()), low, high


def over_episodes(
    values: np.ndarray, episode: np.ndarray, *, rate: bool = False
) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of values [n] of windows of episodes [n], with its 95 % interval: whole
    episodes are drawn anew, since windows of one are not independent. None of fewer than FEW
    episodes, which drawn anew show too little of their spread.

    Of rates, where fewer than FEW episodes have one above 0 or below 1, the interval is not
    narrower than Wilson's of so many episodes."""
    episodes, number = np.unique(episode, return_inverse=True)
    total, count = np.bincount(number, values), np.bincount(number)
    mean = float(values.mean())
    if len(episodes) < FEW:
        return mean, None, None
    drawn = np.random.default_rng(0).integers(len(episodes), size=(DRAWS // 10, len(episodes)))
    low, high = np.quantile(total[drawn].sum(1) / count[drawn].sum(1), (0.025, 0.975)).tolist()
    if rate and min((total > 0).sum(), (total < count).sum()) < FEW:
        least, most = wilson(mean * len(episodes), len(episodes))
        low, high = min(low, least), max(high, most)
    return mean, low, high


def success(distance: np.ndarray, task: Task) -> dict[str, float | int | str]:
    """Success at the end and at any step, with Wilson's 95 % interval of the former, for distances
    to the goal [B, T+1]."""
    # The interval is over episodes of one training: it says nothing of other seeds.
    outcome = judge(distance, radius=task.radius)
    low, high = wilson(int(outcome.success_final.sum()), len(distance))
    figures: dict[str, float | int | str] = {
        "success_final": float(outcome.success_final.mean()),
        "low": low,
        "high": high,
        "success_any": float(outcome.success_any.mean()),
        "episodes": len(distance),
        "seeds": 1,
        "budget": distance.shape[1] - 1,
        "radius": task.radius,
        "unit": task.unit,
    }
    # Where a task has two radii: how many of its successes would be so by the strict one.
    if task.strict_radius is not None:
        close = judge(distance, radius=task.strict_radius)
        figures |= {
            "success_final_strict": float(close.success_final.mean()),
            "success_any_strict": float(close.success_any.mean()),
            "strict_radius": task.strict_radius,
        }
    return figures


def score(
    prediction: np.ndarray, part: Part, data: Labelled, picture: Path | None = None
) -> dict[str, object]:
    """Figures of predictions for the samples of a part: shares [n, C] that sum to 1, or numbers
    [n, Y].

    The clips of one video are averaged first, so each video counts once, whatever became of single
    clips."""
    prediction, truth, group = _by_unit(prediction, part)
    if data.classes is None:
        return _numbers(prediction, truth, group, data.quantities)
    return _classes(prediction.argmax(1), truth, data.classes, picture)


class Losses(NamedTuple):
    """What a score is one less the share of: of each video, or of each episode of numbers."""

    lost: np.ndarray  # [U] bool, wrong classes, or squared errors
    total: np.ndarray  # [U] 1 of a video, or squared deviations from the mean
    unit: np.ndarray  # [U] which it is

    def of(self, units: np.ndarray) -> Losses:
        """Those of some units."""
        rows = np.flatnonzero(np.isin(self.unit, units))
        return Losses(self.lost[rows], self.total[rows], self.unit[rows])

    def shares(self, drawn: np.ndarray) -> np.ndarray:
        """[...] accuracy or R2 of units [..., U] drawn by number."""
        return 1 - self.lost[drawn].sum(-1) / np.maximum(self.total[drawn].sum(-1), 1e-12)


def losses(prediction: np.ndarray, part: Part, data: Labelled) -> dict[str, Losses]:
    """What `score` is taken of, for each group of numbers ("" of classes)."""
    prediction, truth, group = _by_unit(prediction, part)
    if data.classes is not None:
        wrong = prediction.argmax(1) != truth
        return {"": Losses(wrong, np.ones(len(wrong)), np.unique(part.unit))}
    return _squares(prediction, truth, group, data.quantities)


def better_by(first: Losses, second: Losses) -> dict[str, float | None]:
    """The `difference` of accuracy or R2, first less second, with its 95 % interval `low` to
    `high`: the same `n` videos or episodes drawn anew for both, of those that both have. Of videos
    as `paired_difference`; of fewer than two episodes there is no interval.

    Raises ValueError where they have none in common."""
    both = np.intersect1d(first.unit, second.unit)
    if not len(both):
        raise ValueError("no video or episode was read by both: nothing can be compared")
    first, second = first.of(both), second.of(both)
    low: float | None
    high: float | None
    if first.lost.dtype == bool:
        difference, low, high = paired_difference(~first.lost[None], ~second.lost[None])
        return {"difference": difference, "low": low, "high": high, "n": len(both)}
    every, low, high = np.arange(len(both)), None, None
    if len(both) > 1:
        drawn = np.random.default_rng(0).integers(len(both), size=(DRAWS // 10, len(both)))
        differences = first.shares(drawn) - second.shares(drawn)
        low, high = np.quantile(differences, (0.025, 0.975)).tolist()
    difference = float(first.shares(every) - second.shares(every))
    return {"difference": difference, "low": low, "high": high, "n": len(both)}


def _by_unit(prediction: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean predictions of each unit [U, ...], their targets [U, ...], their groups [U])."""
    units, first, unit = np.unique(part.unit, return_index=True, return_inverse=True)
    summed = np.zeros((len(units), prediction.shape[1]))
    np.add.at(summed, unit, prediction)
    return summed / np.bincount(unit)[:, None], part.target[first], part.group[first]


def _classes(
    prediction: np.ndarray, truth: np.ndarray, classes: list[str], picture: Path | None
) -> dict[str, object]:
    """`accuracy` with its 95 % interval, `per_class`, and the confusion matrix, rows the truth."""
    confusion = np.zeros((len(classes), len(classes)), np.int64)
    np.add.at(confusion, (truth, prediction), 1)
    right, count = int(confusion.trace()), int(confusion.sum())
    low, high = wilson(right, count)
    result: dict[str, object] = {"accuracy": right / count, "low": low, "high": high, "n": count}
    result["per_class"] = {
        name: {"accuracy": row[k] / row.sum() if row.sum() else None, "n": int(row.sum())}
        for k, (name, row) in enumerate(zip(classes, confusion, strict=True))
    }
    if picture is not None:
        picture.write_bytes(confusion_matrix(confusion, classes).png())
        result["confusion"] = str(picture)
    return {**result, "confusion_matrix": confusion.tolist()}


def _numbers(
    prediction: np.ndarray, truth: np.ndarray, group: np.ndarray, known: Quantities
) -> dict[str, object]:
    """For each group of numbers `r2`, its 95 % interval (episodes drawn anew, with replacement),
    mean `error` and its `unit`; of angles by the shorter way round."""
    r = np.random.default_rng(0)
    episodes = len(np.unique(group))
    missed = known.difference(known.rolled(prediction), known.rolled(truth))
    result: dict[str, object] = {"n": len(truth), "episodes": episodes}
    for name, squares in _squares(prediction, truth, group, known).items():
        shares = squares.shares(r.integers(episodes, size=(DRAWS // 10, episodes)))
        low, high = np.quantile(shares, (0.025, 0.975)).tolist()
        result[name] = {
            "r2": float(squares.shares(np.arange(episodes))),
            "low": low,
            "high": high,
            "error": float(np.linalg.norm(missed[:, list(known.groups[name])], axis=1).mean()),
            "unit": known.unit(name),
        }
    return result


def _squares(
    prediction: np.ndarray, truth: np.ndarray, group: np.ndarray, known: Quantities
) -> dict[str, Losses]:
    """For each group of numbers, of each episode the squared errors of all samples and their
    squared spread, less whose share R2 is one."""
    episodes, episode = np.unique(group, return_inverse=True)
    missed = known.difference(known.rolled(prediction), known.rolled(truth))
    spread = known.difference(known.rolled(truth), known.rolled(truth.mean(0)))
    squares = {}
    for name, ids in known.groups.items():
        lost, total = (
            np.bincount(episode, (values[:, list(ids)] ** 2).sum(1)) for values in (missed, spread)
        )
        squares[name] = Losses(lost, total, episodes)
    return squares


def _weights(r: np.random.Generator, n: int, draws: int, *, scaled: bool = False) -> np.ndarray:
    """[draws, n] shares of n things drawn n times with replacement; scaled: their deviations by
    sqrt(n / (n - 1))."""
    shares = r.multinomial(n, np.full(n, 1 / n), size=draws) / n
    return 1 / n + math.sqrt(n / (n - 1)) * (shares - 1 / n) if scaled and n > 1 else shares


def _check(outcomes: np.ndarray) -> None:
    if outcomes.ndim != 2 or not outcomes.size or not np.isfinite(outcomes).all():
        raise ValueError(
            f"outcomes {outcomes.shape}: expected finite ones as [training seeds, tasks], at "
            "least one each"
        )
