"""`jepa-wm eval linear`: linear heads on frozen tokens, their settings chosen on a part of the
training set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.config import Config
from jepa_wm.core.run import Run
from jepa_wm.core.standardise import own_scale
from jepa_wm.evals.distinct import measured
from jepa_wm.evals.labelled import Labelled
from jepa_wm.evals.probe_heads import Linear, Trained, best, train_heads
from jepa_wm.evals.representations import Features, Representation, extract_features, pools
from jepa_wm.evals.scores import score


def run(run: Run) -> dict[str, object]:
    """For the `encoder` and each baseline: the test's figures and what was `chosen`."""
    return measured(run, "eval_linear", _measure)


def _measure(
    config: Config, data: Labelled, representations: Mapping[str, Representation], folder: Path
) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, representation in representations.items():
        raw = name == "pixels"
        train, test = extract_features(
            representation, data, config, name, size=config.probes.pixel_size if raw else None
        )
        kinds = {pool: partial(Linear, pool=pool) for pool in pools(name)}
        picture = None if data.classes is None else folder / f"confusion_{name}.png"
        head = fitted(kinds, train, data, config, name)
        figures = score(guesses(head, test, train, data), test.part, data, picture)
        result[name] = {**figures, "chosen": vars(head.choice)}
    return result


def fitted(
    kinds: Mapping[str, Callable[..., nn.Module]],
    train: Features,
    data: Labelled,
    config: Config,
    name: str,
) -> Trained:
    """The best of all heads: trained on one share of the training part, chosen on the rest.

    `kinds` are called with the numbers of tokens, of their width and of outputs.
    """
    fit, choose = Labelled(train.part, train.part, data.classes, {}, []).split(
        config.probes.validation_fraction
    )
    target = _targets(train, data)
    outputs = len(data.classes) if data.classes is not None else target.shape[1]
    build = {kind: partial(make, *train.tokens.shape[1:], outputs) for kind, make in kinds.items()}
    rows = torch.from_numpy(fit)
    heads = train_heads(
        build,
        train.tokens[rows],
        target[rows],
        config.probes,
        seed=config.seed,
        name=f"{name}: heads",
    )
    rows = torch.from_numpy(choose)
    return best(heads, train.tokens[rows], target[rows])


def guesses(head: Trained, test: Features, train: Features, data: Labelled) -> np.ndarray:
    """[n, K] shares of classes, or [n, Y] numbers in their own units, of the test part."""
    outputs = head.outputs(test.tokens)
    if data.classes is not None:
        return outputs.softmax(-1).numpy()
    mean, spread = _units(train)
    return (outputs * spread + mean).numpy()


def _targets(train: Features, data: Labelled) -> Tensor:
    if data.classes is not None:
        return torch.from_numpy(train.part.target)
    mean, spread = _units(train)
    return (torch.from_numpy(train.part.target) - mean) / spread


def _units(train: Features) -> tuple[Tensor, Tensor]:
    target = torch.from_numpy(train.part.target)
    return target.double().mean(0).float(), own_scale(target)
