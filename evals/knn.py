"""`jepa-wm eval knn`: what the nearest training samples are, by the cosine of frozen features
(faiss).

n samples, F numbers of a feature, k neighbours, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import faiss
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

TEMPERATURE = 0.07  # of the votes: a neighbour counts exp(cosine / temperature)


def run(run: Run) -> dict[str, object]:
    """For the `encoder` and each baseline the test's figures, and the way of pooling that was
    `chosen`."""
    return measured(run, "eval_knn", _measure)


def _measure(
    config: Config, data: Labelled, representations: Mapping[str, Representation], folder: Path
) -> dict[str, object]:
    k, result = config.probes.num_neighbors, {}
    for name, representation in representations.items():
        raw = name == "pixels"
        train, test = extract_features(
            representation, data, config, name, size=config.probes.pixel_size if raw else None
        )
        inside = Labelled(train.part, train.part, data.classes, data.groups, [])
        fit, choose = inside.split(config.probes.validation_fraction)
        if k > len(fit):
            raise UserError(
                f"probes.num_neighbors {k} are more than the {len(fit)} samples to choose them from"
            )
        pool = max(pools(name), key=lambda kind: _chosen_by(train, fit, choose, inside, kind, k))
        guess = votes(_unit(train, pool), train.part.target, _unit(test, pool), data.classes, k)
        picture = None if data.classes is None else folder / f"confusion_{name}.png"
        result[name] = {**score(guess, test.part, data, picture), "chosen": {"pool": pool}}
    return {**result}


def votes(
    known: np.ndarray, target: np.ndarray, asked: np.ndarray, classes: list[str] | None, k: int
) -> np.ndarray:
    """[n, K] shares of the votes of the k nearest of `known` [m, F] for `asked` [n, F], both of
    unit length; for numbers as targets [m, Y] their weighted mean [n, Y]."""
    index = faiss.IndexFlatIP(known.shape[1])
    index.add(known)
    cosine, nearest = index.search(asked, k)
    weight = np.exp((cosine - cosine[:, :1]) / TEMPERATURE)
    values = np.eye(len(classes))[target] if classes is not None else target
    return np.einsum("nk,nky->ny", weight / weight.sum(1, keepdims=True), values[nearest])


def _unit(seen: Features, pool: str) -> np.ndarray:
    """[n, F] features of unit length."""
    features = pooled(seen.tokens, pool).numpy()
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def _chosen_by(
    train: Features, fit: np.ndarray, choose: np.ndarray, data: Labelled, pool: str, k: int
) -> float:
    """How good a way of pooling is on the samples to choose by; more is better."""
    features, target = _unit(train, pool), train.part.target
    guess = votes(features[fit], target[fit], features[choose], data.classes, k)
    if data.classes is not None:
        return float((guess.argmax(1) == target[choose]).mean())
    return -float(
        (((guess - target[choose]) / own_scale(torch.from_numpy(target)).numpy()) ** 2).mean()
    )
