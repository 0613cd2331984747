"""The online probe: an encoder in training seen from outside, by collapse metrics and by a probe
of the state on held-out frames.

n frames of the training part, m held-out ones, h x w px, C channels, Y numbers of a state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.data.held_out import check_same_state
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.video_clips import VideoClipSampler
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import fit_attentive, state_errors
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.losses import collapse_metrics
from jepa_wm.models.vit import Encoder
from jepa_wm.training.parallel import full_weights

Outcome = tuple[dict[str, float | bool], dict[str, float]]  # collapse metrics, the probe's errors


@dataclass(frozen=True)
class StateFrames:
    """The state of the probe's training frames, and held-out frames with theirs."""

    quantities: Quantities
    train_state: np.ndarray  # [n, Y]
    heldout: np.ndarray  # [m, h, w, C] uint8
    heldout_state: np.ndarray  # [m, Y]


@dataclass(frozen=True)
class ProbeFrames:
    """What an encoder is probed on."""

    frames: np.ndarray  # [n, h, w, C] uint8
    state: StateFrames | None = None

    @classmethod
    def of_trajectories(
        cls, train: Trajectories, heldout: Trajectories, *, count: int
    ) -> ProbeFrames:
        """`count` frames spread over the training part, with the state where there is one."""
        rows, columns = _spread(len(train.actions), count), train.quantities
        if not columns.groups:
            return cls(train.frames[rows])
        check_same_state(train, heldout)
        test = _spread(len(heldout.actions), count // 4)
        state = StateFrames(
            columns, train.states()[rows], heldout.frames[test], heldout.states()[test]
        )
        return cls(train.frames[rows], state)

    @classmethod
    def of_videos(cls, sampler: VideoClipSampler, *, count: int) -> ProbeFrames:
        """At least `count` frames of the first clips of a sampler."""
        rows = sampler.rows(0, -(-count // sampler.frames))
        return cls(sampler.frames_at(rows).flatten(0, 1).numpy())


@dataclass(frozen=True)
class OnlineProbe:
    """Collapse metrics of an encoder's features, and an attentive probe of the state, where the
    data has one."""

    frames: ProbeFrames
    image_size: int
    encoder: EncoderSettings
    precision: str
    seed: int

    def __call__(self, encoder: Encoder, *, steps: int, label: str = "") -> Outcome:
        """`collapsed`, `feature_std`, `effective_rank`; and the error for each state group, none
        without, of a probe fitted in so many steps, under a progress bar if it is given a
        label."""
        # A copy: the encoder in training may be sharded or compiled.
        copied = Encoder(self.image_size, self.encoder)
        copied.load_state_dict(full_weights(encoder))
        frozen = FrozenEncoder(copied, self.image_size, precision=self.precision).to(dist().device)
        frames, state = self.frames.frames, self.frames.state
        tokens = frozen.standardise_on(frames)
        metrics = collapse_metrics(tokens * frozen.scale, frames)
        if state is None:
            return metrics, {}

        # The probe learns on the training frames and is scored on the held-out ones.
        columns = state.quantities
        target = torch.from_numpy(columns.unrolled(state.train_state))
        probe = fit_attentive(tokens.bfloat16(), target, steps=steps, seed=self.seed, label=label)
        heldout = frozen(torch.from_numpy(state.heldout)).bfloat16()
        predicted = columns.rolled(probe.predict(heldout).numpy())
        errors = state_errors(predicted, state.heldout_state, columns.groups, columns.units)
        return metrics, errors

    def unit(self, group: str) -> str:
        """The unit of a state group's error; "" where none is known."""
        return self.frames.state.quantities.unit(group) if self.frames.state else ""

    def metrics(self, encoder: Encoder, *, steps: int) -> dict[str, float]:
        """The same as flat numbers for the metrics file."""
        metrics, errors = self(encoder, steps=steps)
        flat = {name: float(value) for name, value in metrics.items()}
        return flat | {f"probe/{name}": error for name, error in errors.items()}


def _spread(rows: int, count: int) -> np.ndarray:
    """`count` row numbers spread evenly over the file (never more than there are)."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))
