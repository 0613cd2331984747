"""The online probe: an encoder in training seen from outside.

n frames of the training part, m held-out ones, h x w px, C channels, Y numbers of a state."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.core.files import finite, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.data.quantities import Quantities
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import fit_attentive
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.losses import collapse_metrics
from jepa_wm.models.vit import Encoder
from jepa_wm.training.parallel import full_weights


class ProbedStates(NamedTuple):
    """The states of the frames that a probe is fitted on, and held-out frames with theirs."""

    quantities: Quantities
    train: np.ndarray  # [n, Y]
    heldout_frames: np.ndarray  # [m, h, w, C] uint8
    heldout: np.ndarray  # [m, Y]


@dataclass(frozen=True)
class OnlineProbe:
    """An encoder in training seen from outside: collapse metrics of its features, and an attentive
    probe of the state where the data have one."""

    frames: np.ndarray  # [n, h, w, C] uint8
    states: ProbedStates | None
    image_size: int
    encoder: EncoderSettings
    precision: str
    seed: int

    def __call__(
        self, encoder: Encoder, *, steps: int, label: str = ""
    ) -> tuple[dict[str, float | bool], dict[str, float]]:
        """(`collapsed`, `feature_std` and `effective_rank` on the frames; the error for each state
        group, none without, on the held-out ones), of a probe fitted in so many steps, under a
        progress bar if it is given a label."""
        # A copy: the encoder in training may be sharded or compiled.
        copied = Encoder(self.image_size, self.encoder)
        copied.load_state_dict(full_weights(encoder))
        frozen = FrozenEncoder(copied, self.image_size, precision=self.precision).to(dist().device)
        tokens, states = frozen.standardise_on(self.frames), self.states
        metrics = collapse_metrics(tokens * frozen.scale, self.frames)
        if states is None:
            return metrics, {}

        columns = states.quantities
        target = torch.from_numpy(columns.unrolled(states.train))
        probe = fit_attentive(tokens.bfloat16(), target, steps=steps, seed=self.seed, label=label)
        heldout = frozen(torch.from_numpy(states.heldout_frames)).bfloat16()
        predicted = columns.rolled(probe.predict(heldout).numpy())
        errors = columns.errors(predicted, states.heldout)
        return metrics, {name: float(each.mean()) for name, each in errors.items()}

    def metrics(self, encoder: Encoder, *, steps: int) -> dict[str, float]:
        """The same as flat numbers for the metrics file."""
        metrics, errors = self(encoder, steps=steps)
        flat = {name: float(value) for name, value in metrics.items()}
        return flat | {f"probe/{name}": error for name, error in errors.items()}


def probe_once(
    run: Run, probe: OnlineProbe, random_encoder: Encoder, steps: int
) -> dict[str, float | None]:
    """The probe's errors on the encoder before training, measured once for a run folder; null
    where not finite."""
    file = run.stage_dir("pretrain") / "random_encoder.json"
    if dist().first and not file.exists():
        errors = probe(random_encoder, steps=steps, label="probe of a random encoder")[1]
        write_atomic(file, json.dumps(finite(errors)))
    return dist().broadcast(json.loads(file.read_text(encoding="utf-8")) if dist().first else {})
