"""Ridge regression in closed form, in whichever of its two forms is the smaller: never a matrix of
F x F for F > n.

n samples, F numbers of a feature, Y numbers of a target.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from jepa_wm.core.scaling import shared_scale

BLOCK = 2**23  # numbers that are held as float64 in one go, beside the products


@dataclass(frozen=True)
class Ridge:
    """A linear map with a constant."""

    weight: np.ndarray  # [F, Y]
    centre: np.ndarray  # [F]
    constant: np.ndarray  # [Y]

    def predict(self, features: np.ndarray) -> np.ndarray:
        """[n, Y] from features [n, F]."""
        step = max(1, BLOCK // features.shape[1])
        parts = [features[k : k + step] - self.centre for k in range(0, len(features), step)]
        return np.concatenate([part @ self.weight for part in parts]) + self.constant


def fit_ridge(
    features: np.ndarray,
    target: np.ndarray,
    penalties: tuple[float, ...],
    *,
    standardise: bool = False,
) -> list[Ridge]:
    """A ridge regression for each penalty (per sample), of features [n, F] to targets [n, Y].

    The constant is not penalised. `standardise` has the penalty see every feature with spread 1.
    """
    features = np.asarray(features)
    centre, spread = _moments(features)
    if not standardise:
        spread = np.ones_like(spread)
    constant = target.mean(0, dtype=np.float64)

    # What is to be solved: [n, n] where there are more numbers than samples, else [F, F].
    dual = features.shape[0] < features.shape[1]
    if dual:
        gram, right = np.zeros((len(features), len(features))), target - constant
        for _, x in _columns(features, centre, spread):
            gram += x @ x.T
    else:
        x = np.concatenate([block for _, block in _columns(features, centre, spread)], 1)
        gram, step = x.T @ x, max(1, BLOCK // len(target))
        blocks = [slice(k, k + step) for k in range(0, target.shape[1], step)]
        right = np.concatenate([x.T @ (target[:, block] - constant[block]) for block in blocks], 1)

    # Once for each penalty.
    diagonal = torch.eye(len(gram), dtype=torch.float64) * len(features)
    fitted = []
    for penalty in penalties:
        factor = torch.linalg.cholesky(torch.from_numpy(gram) + penalty * diagonal)
        solved = torch.cholesky_solve(torch.from_numpy(right), factor).numpy()
        if dual:
            solved = np.concatenate([x.T @ solved for _, x in _columns(features, centre, spread)])
        fitted.append(Ridge(solved / spread[:, None], centre, constant))
    return fitted


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(mean [F], spread [F]) over the samples."""
    centre, spread = np.zeros(features.shape[1]), np.ones(features.shape[1])
    for block, x in _columns(features, centre, spread.copy()):
        centre[block], spread[block] = x.mean(0), x.std(0)
    return centre, shared_scale(torch.from_numpy(spread)).numpy()


def _columns(
    features: np.ndarray, centre: np.ndarray, spread: np.ndarray
) -> Iterator[tuple[slice, np.ndarray]]:
    """(columns, standardised features [n, part of F] in float64), a block at a time."""
    step = max(1, BLOCK // len(features))
    for start in range(0, features.shape[1], step):
        block = slice(start, start + step)
        yield block, (features[:, block].astype(np.float64) - centre[block]) / spread[block]
