"""How good predictions are: exact counts with intervals, per class and as a picture, or errors of
numbers.

n samples, U units (videos or frames), C classes, Y numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa_wm.data.quantities import Quantities
from jepa_wm.evals.intervals import wilson
from jepa_wm.evals.labelled import Labelled, Part
from jepa_wm.report.plots import confusion_matrix

RESAMPLES = 1000


def score(
    prediction: np.ndarray, part: Part, data: Labelled, picture: Path | None = None
) -> dict[str, object]:
    """Figures of predictions for the samples of a part: shares [n, C] that sum to 1, or numbers
    [n, Y].

    The clips of one video are averaged first, so each video counts once, whatever became of single
    clips."""
    units, first, unit = np.unique(part.unit, return_index=True, return_inverse=True)
    summed = np.zeros((len(units), prediction.shape[1]))
    np.add.at(summed, unit, prediction)
    prediction = summed / np.bincount(unit)[:, None]
    if data.classes is None:
        return _numbers(prediction, part.target[first], part.group[first], data.quantities)
    return _classes(prediction.argmax(1), part.target[first], data.classes, picture)


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
    r, episodes = np.random.default_rng(0), np.unique(group)
    missed = known.difference(known.rolled(prediction), known.rolled(truth))
    spread = known.difference(known.rolled(truth), known.rolled(truth.mean(0)))
    result: dict[str, object] = {"n": len(truth), "episodes": len(episodes)}
    for name, ids in known.groups.items():
        # R2 is one less the squared errors of all samples by their squared spread.
        columns = list(ids)
        lost = _sums_of_squares(missed[:, columns], group, episodes)
        total = _sums_of_squares(spread[:, columns], group, episodes)
        drawn = r.integers(len(episodes), size=(RESAMPLES, len(episodes)))
        shares = 1 - lost[drawn].sum(1) / np.maximum(total[drawn].sum(1), 1e-12)
        low, high = np.quantile(shares, (0.025, 0.975)).tolist()
        result[name] = {
            "r2": float(1 - lost.sum() / max(total.sum(), 1e-12)),
            "low": low,
            "high": high,
            "error": float(np.linalg.norm(missed[:, columns], axis=1).mean()),
            "unit": known.unit(name),
        }
    return result


def _sums_of_squares(values: np.ndarray, group: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    """[episodes] of the values [n, Y] of each episode."""
    return np.array([float((values[group == episode] ** 2).sum()) for episode in episodes])
