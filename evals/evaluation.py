"""Evaluations of frozen features on labelled data: the table of them, what one is given, and how
its result is stored.

    @evaluation("mine")
    def mine(asked: Evaluation) -> Rows: ...

is then `jepa-wm eval mine`. Each distinct evaluation is made once: its settings, data and encoder
name the folder of its result, and stand in it.

<run>/eval_linear/<digest>/result.json     `evaluated` tells what was measured
<run>/eval_linear/<digest>/config.yaml     all settings that it depends on
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from jepa_wm.core.config import as_plain, digest
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.stage import EVAL, Stage, stage
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import data_folder
from jepa_wm.evals.labelled import Labelled, Part, open_labelled
from jepa_wm.evals.representations import (
    Features,
    Representation,
    Sections,
    extract_features,
    representations_of,
)
from jepa_wm.evals.scores import score
from jepa_wm.evals.settings import ProbeSettings
from jepa_wm.features.cache import encoder_of, weights_digest
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.models.encoder_settings import EncoderSettings

Rows: TypeAlias = dict[str, Any]  # figures by representation


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation is given: representations by name (`encoder` first, then the baselines
    that are asked for), labelled data, and a folder for pictures."""

    representations: Mapping[str, Representation]
    data: Labelled
    settings: ProbeSettings
    image_size: int  # px, of the encoder
    seed: int
    folder: Path

    def features(self, name: str, *, size: int | None = None) -> tuple[Features, Features]:
        """Standardised features of the training and of the test samples, from frames of `size` px;
        if not given, of `probes.pixel_size` for raw pixels, else of the encoder's own."""
        if size is None:
            size = self.settings.pixel_size if name == "pixels" else self.image_size
        return extract_features(self.representations[name], self.data, name, size=size)

    def split(self, train: Features) -> tuple[np.ndarray, np.ndarray]:
        """(rows to fit on, rows to choose settings on) of training samples."""
        by_class = self.data.classes is not None
        return train.part.split(self.settings.validation_fraction, by_class=by_class)

    def values(self, train: Features) -> np.ndarray:
        """[n, C or Y] the target of training samples: classes as rows of 0 and 1, or numbers."""
        target, classes = train.part.target, self.data.classes
        return np.eye(len(classes))[target] if classes is not None else target

    def figures(self, prediction: np.ndarray, test: Features, name: str) -> dict[str, object]:
        """How good predictions for the test samples are: shares of classes [n, C], with a picture
        of the confusion under this name, or numbers [n, Y]."""
        picture = None if self.data.classes is None else self.folder / f"confusion_{name}.png"
        return score(prediction, test.part, self.data, picture)


Eval = Callable[[Evaluation], Rows]


def evaluation(name: str) -> Callable[[Eval], Stage]:
    """A decorator that makes a stage of a function that measures representations."""

    def enter(measure: Eval) -> Stage:
        def evaluate(
            run: Run,
            seed: int,
            data: DataSettings,
            encoder: EncoderSettings,
            features: FeatureSettings,
            probes: ProbeSettings,
            train_pretrain_steps: int,
            train_precision: str,
        ) -> Rows:
            sections = Sections(
                seed, data, encoder, features, probes, train_pretrain_steps, train_precision
            )
            return measured(run, EVAL + name, measure, sections)

        # The table of stages tells by these whose entry it is, and refuses a name taken twice.
        evaluate.__module__, evaluate.__qualname__ = measure.__module__, measure.__qualname__
        evaluate.__doc__ = measure.__doc__
        return stage(EVAL + name, after="pretrain", keep="own")(evaluate)

    return enter


def measured(run: Run, stage: str, measure: Eval, sections: Sections) -> dict[str, object]:
    """What `measure` makes of the labelled data; or the stored result, if the same was measured
    before. `evaluated` tells settings, data and encoder, `stored` where the result lies,
    `left_out` what could not be read."""
    s = sections
    data = open_labelled(s.probes, s.data, data_folder(run.path, s.data.path))
    encoder = encoder_of(
        run.path, s.encoder, s.features, image_size=s.data.image_size,
        pretrain_steps=s.pretrain_steps, seed=s.seed,
    )  # fmt: skip
    if data.train.digest == data.test.digest:
        raise UserError(
            "probes.train and probes.test hold the same samples; a test set is one that training "
            "has not met"
        )

    # The name of the folder: whatever the figures depend on.
    evaluated: dict[str, object] = {
        "settings": as_plain(s.probes),
        "data": {
            "train": _described(data.train),
            "test": _described(data.test),
            "reads": data.classes or data.groups,
        },
        "encoder": {
            "backbone": s.features.backbone,
            "weights": s.features.weights,
            "digest": weights_digest(encoder),
        },
        "precision": s.precision,
    }
    name = digest({"evaluated": evaluated, "depends": run.recorded(stage)})
    place = f"{stage}/{name}"

    def work(run: Run) -> dict[str, object]:
        asked = Evaluation(
            representations=representations_of(encoder, s),
            data=data,
            settings=s.probes,
            image_size=s.data.image_size,
            seed=s.seed,
            folder=run.stage_dir(place),
        )
        rows = measure(asked)
        return {
            **rows,
            "left_out": sorted(set(data.left_out)),
            "evaluated": evaluated,
            "stored": str(run.path / place),
        }

    return run.once(place, work)


def _described(part: Part) -> dict[str, object]:
    return {"samples": len(part), "digest": part.digest}
