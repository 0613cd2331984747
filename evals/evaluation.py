"""Evaluations of frozen features on labelled data: the table of them, what one is given, and how
its result is stored. Compared are the encoder of a run, a random encoder of its shape, and raw
pixels.

    @evaluation("mine")
    def mine(asked: Evaluation) -> Rows: ...

is then `jepa-wm eval mine`. Each distinct evaluation is made once: its settings, data and encoder
name the folder of its result, and stand in it.

<run>/eval_linear/<digest>/result.json     `evaluated` tells what was measured
<run>/eval_linear/<digest>/config.yaml     all settings that it depends on

n samples, B of them at a time, T frames, N tokens, D width, C classes, Y numbers, S side in px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.core.config import as_plain, digest
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import centred_scale
from jepa_wm.core.stage import EVAL, Stage, stage
from jepa_wm.data.images import middle, to_input
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import data_folder
from jepa_wm.evals.labelled import Labelled, Part, batches, open_labelled
from jepa_wm.evals.scores import Losses, losses, score
from jepa_wm.evals.settings import ProbeSettings
from jepa_wm.features.backbone import Backbone
from jepa_wm.features.cache import encoder_of
from jepa_wm.features.encoder import fresh_encoder
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.features.store import weights_digest
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

Rows: TypeAlias = dict[str, Any]  # figures by representation
# Clips [B, T, C, S, S] in -1..1 to tokens [B, steps, N, D] of each frame, or of each tubelet.
Representation = Callable[[Tensor], Tensor]


@dataclass
class Features:
    """Standardised tokens [n, steps * N, D] (fp16) of the samples that could be read, these
    samples, and of how many time steps the tokens are."""

    tokens: Tensor
    part: Part
    steps: int = 1


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

    def losses(self, prediction: np.ndarray, test: Features) -> dict[str, Losses]:
        """What of such predictions is compared with those of another representation, for each
        group of numbers ("" of classes)."""
        return losses(prediction, test.part, self.data)


@dataclass(frozen=True)
class Sections:
    """The settings of an evaluation of frozen features; `precision` is fp32 or bf16."""

    seed: int
    data: DataSettings
    encoder: EncoderSettings
    features: FeatureSettings
    probes: ProbeSettings
    pretrain_steps: int
    patch_init: str
    precision: str


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
            jepa_patch_init: str,
            probes: ProbeSettings,
            train_pretrain_steps: int,
            train_precision: str,
        ) -> Rows:
            sections = Sections(
                seed, data, encoder, features, probes, train_pretrain_steps, jepa_patch_init,
                train_precision,
            )  # fmt: skip
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
        pretrain_steps=s.pretrain_steps, patch_init=s.patch_init, seed=s.seed,
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
            "train": {"samples": len(data.train), "digest": data.train.digest},
            "test": {"samples": len(data.test), "digest": data.test.digest},
            "reads": data.classes or dict(data.quantities.groups),
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


def representations_of(
    encoder: Encoder | Backbone, settings: Sections
) -> dict[str, Representation]:
    """What is to be compared: `encoder` first, then the baselines that are asked for."""
    precision, size = settings.precision, settings.data.image_size
    representations = {"encoder": _through(encoder, precision)}
    if "random_encoder" in settings.probes.baselines:
        torch.manual_seed(settings.seed)
        random = fresh_encoder(encoder.sizes, size)
        representations["random_encoder"] = _through(random, precision)
    if "pixels" in settings.probes.baselines:
        representations["pixels"] = partial(patches, patch_size=settings.encoder.patch_size)
    return representations


def extract_features(
    representation: Representation, data: Labelled, name: str, *, size: int
) -> tuple[Features, Features]:
    """Training and test samples as `representation` encodes frames of `size` px.

    Each position's mean over the training part is removed and each dimension divided by its spread
    there."""
    train = _extract(representation, data.train, size, f"{name}: train", data.left_out)
    test = _extract(representation, data.test, size, f"{name}: test", data.left_out)
    mean = train.tokens.float().mean(0)
    scale = centred_scale(train.tokens, mean)
    for part in (train, test):
        for rows in part.tokens.split(1024):  # in place: the tokens are most of what is in memory
            rows.copy_((rows - mean) / scale)
    return train, test


def patches(clips: Tensor, patch_size: int) -> Tensor:
    """Raw pixels as tokens [B, T, N, D]: one for each patch of each frame of clips [B, T, C, S,
    S]."""
    side = clips.shape[-1] // patch_size * patch_size
    x = F.pixel_unshuffle(clips[..., :side, :side], patch_size)  # [B, T, D, rows, columns]
    return x.flatten(3).transpose(2, 3)


@torch.no_grad()
def _extract(
    representation: Representation, part: Part, size: int, name: str, left_out: list[str]
) -> Features:
    tokens, rows = [], []
    for numbers, clips in batches(part, 64, name, left_out):
        tokens.append(representation(torch.stack([_input(clip, size) for clip in clips])).half())
        rows.append(numbers)
    read, joined = np.concatenate(rows), torch.cat(tokens)  # [n, steps, N, D]
    samples = part if len(read) == len(part) else part.of(read)
    return Features(joined.flatten(1, 2), samples, joined.shape[1])


def _input(clip: np.ndarray, size: int) -> Tensor:
    """[T, C, S, S] the middle square of frames [T, h, w, 3]."""
    return to_input(torch.from_numpy(np.array(middle(clip, min(clip.shape[1:3])))), size)


def _through(encoder: Encoder | Backbone, precision: str) -> Representation:
    """The tokens of a frozen encoder, on the CPU."""
    encoder.eval().requires_grad_(False).to(dist().device)

    def tokens(clips: Tensor) -> Tensor:
        clips = clips.to(dist().device)
        if clips.shape[1] < encoder.tubelet_size:  # an image is repeated to fill a tubelet
            clips = clips[:, -1:].expand(-1, encoder.tubelet_size, -1, -1, -1)
        with autocast(clips.device, precision):
            encoded = encoder(clips).float().cpu()
        return encoded.unflatten(1, (-1, encoder.tokens_per_frame))

    return tokens
