"""`jepa-wm eval state`: ridge regression from frozen, standardised tokens to a column of
trajectories.

The penalty and the way of pooling are chosen on a part of the training set; the test set is looked
at once. n samples, F numbers of a feature, Y numbers of a state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from jepa_wm.config import Config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.standardise import own_scale
from jepa_wm.evals.distinct import measured
from jepa_wm.evals.labelled import Labelled
from jepa_wm.evals.representations import Features, Representation, extract_features, pooled, pools
from jepa_wm.evals.scores import score
from jepa_wm.features.ridge import fit_ridge

PENALTIES = tuple(
    float(10**power) for power in np.arange(-4, 3.01, 0.5)
)  # a sample, on features of unit spread


def run(run: Run) -> dict[str, object]:
    """For the `encoder` and each baseline, R2 and error of each group of numbers on the test part;
    what was `chosen`."""
    return measured(run, "eval_state", _measure)


def _measure(
    config: Config, data: Labelled, representations: Mapping[str, Representation], folder: Path
) -> dict[str, object]:
    if data.classes is not None:
        raise UserError(
            "the data has classes, and eval state reads numbers; use linear, attentive or knn"
        )
    result: dict[str, object] = {}
    for name, representation in representations.items():
        raw = name == "pixels"
        train, test = extract_features(
            representation, data, config, name, size=config.probes.pixel_size if raw else None
        )
        fit, choose = Labelled(train.part, train.part, None, {}, []).split(
            config.probes.validation_fraction
        )
        tried = {pool: _best_penalty(train, fit, choose, pool) for pool in pools(name)}
        pool = min(tried, key=lambda kind: tried[kind][1])
        ridge = fit_ridge(_features(train, pool), train.part.target, (tried[pool][0],))[0]
        figures = score(ridge.read(_features(test, pool)), test.part, data)
        result[name] = {**figures, "chosen": {"pool": pool, "penalty": tried[pool][0]}}
    return result


def _best_penalty(
    seen: Features, fit: np.ndarray, choose: np.ndarray, pool: str
) -> tuple[float, float]:
    """(penalty, its mean squared error in units of each number's variance, on the samples to
    choose by)."""
    features, target = _features(seen, pool), seen.part.target
    spread = own_scale(torch.from_numpy(target)).numpy()
    errors = [
        float((((ridge.read(features[choose]) - target[choose]) / spread) ** 2).mean())
        for ridge in fit_ridge(features[fit], target[fit], PENALTIES)
    ]
    return PENALTIES[int(np.argmin(errors))], min(errors)


def _features(seen: Features, pool: str) -> np.ndarray:
    return pooled(seen.tokens, pool).numpy()
