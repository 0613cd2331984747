"""The online probe: an encoder in training seen from outside.

n frames of the training part, m held-out ones, h x w px, C channels, Y numbers of a state, P pixel
numbers of a patch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.files import finite, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.data.images import to_input
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.sampling import spread
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import fit_attentive
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.losses import collapse_metrics, spectrum, spectrum_rank
from jepa_wm.models.vit import Encoder
from jepa_wm.training.parallel import full_weights

PATCHED = 500  # frames whose patches tell the spectrum


class Score(NamedTuple):
    """How well a probe reads one group of a state."""

    error: float  # in the group's unit
    normalised: float | None  # mean square error over that of the mean; at most .1: it is kept


Scores = Mapping[str, Score]


@dataclass(frozen=True)
class ProbedFrames:
    """Frames of a part of the data to read a state from: its rows, spread over them all."""

    data: Trajectories
    rows: np.ndarray  # [n]

    @classmethod
    def spread(cls, data: Trajectories, count: int, *, before: int = 0) -> ProbedFrames:
        """So many, of those with at least `before` earlier ones in their episode."""
        first = np.repeat(data.offsets, data.lengths)
        rows = np.concatenate(
            [np.arange(at, at + n) for at, n in zip(data.offsets, data.lengths, strict=True)]
        )
        rows = rows[rows - first >= before]
        return cls(data, rows[spread(len(rows), count)] if len(rows) else rows)

    def pictures(self, *, before: int = 0) -> np.ndarray:
        """[n, h, w, C] uint8, or those so many frames earlier."""
        return self.data.frames[self.rows - before]

    def states(self, *, before: int = 0) -> np.ndarray:
        """[n, Y] of the same."""
        return self.data.states()[self.rows - before]


class ProbedStates(NamedTuple):
    """Frames that probes are fitted on and held-out ones, and what their states are."""

    quantities: Quantities
    train: ProbedFrames
    heldout: ProbedFrames
    # The same for velocities: frames with one `gap` frames before them.
    pairs: tuple[ProbedFrames, ProbedFrames]
    gap: int


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
    ) -> tuple[dict[str, float | bool], Scores]:
        """(`collapsed`, `feature_std`, `effective_rank` and `patch_rank` on the frames; the score
        of each state group, none without, on the held-out ones), of a probe fitted in so many
        steps, under a progress bar if it is given a label."""
        copied = self._copied(encoder)
        frozen = self._frozen(copied)
        tokens, states = frozen.standardise_on(self.frames), self.states
        metrics = collapse_metrics(tokens * frozen.scale, self.frames)
        metrics["patch_rank"] = spectrum_rank(self._spectra(copied)["embedded"])
        if states is None:
            return metrics, {}
        heldout = frozen(torch.from_numpy(states.heldout.pictures()))
        truth = states.train.states(), states.heldout.states()
        return metrics, self._scores((tokens, heldout), truth, steps, label)

    def velocities(self, encoder: Encoder, *, steps: int, label: str = "") -> Scores:
        """The score of each state group that moves: its change over a clip's shortest gap of
        frames, read from both frames' tokens at each place side by side."""
        if self.states is None or not all(len(part.rows) for part in self.states.pairs):
            return {}
        gap, tokens, truth = self.states.gap, [], []
        frozen, columns = self._frozen(self._copied(encoder)), self.states.quantities
        frozen.standardise_on(self.states.pairs[0].pictures())
        for part in self.states.pairs:
            both = (frozen(torch.from_numpy(part.pictures(before=back))) for back in (gap, 0))
            tokens.append(torch.cat([each.bfloat16() for each in both], -1))
            truth.append(columns.difference(part.states(), part.states(before=gap)))
        scores = self._scores((tokens[0], tokens[1]), (truth[0], truth[1]), steps, label)
        return {name: score for name, score in scores.items() if score.normalised is not None}

    def patch_spectra(self, encoder: Encoder) -> dict[str, Tensor]:
        """Shares of the variance [P] or [D], falling, of patches in `pixels` and `embedded`: what
        has a tiny share is hardly seen by an encoder at its first steps."""
        return self._spectra(self._copied(encoder))

    @torch.no_grad()
    def _spectra(self, encoder: Encoder) -> dict[str, Tensor]:
        few = torch.from_numpy(self.frames[spread(len(self.frames), PATCHED)])
        still = to_input(few.to(encoder.embed.weight.device), self.image_size)[:, None]
        clip = still.expand(-1, encoder.tubelet_size, -1, -1, -1)
        patches = encoder.patches(clip).flatten(0, 1)
        spectra = {}
        for name, each in (("pixels", patches), ("embedded", encoder.embed(patches))):
            centred = each.double() - each.double().mean(0)
            spectra[name] = spectrum(centred.T @ centred).flip(0)
        return spectra

    def metrics(self, encoder: Encoder, *, steps: int) -> dict[str, float]:
        """The same as flat numbers for the metrics file."""
        metrics, scores = self(encoder, steps=steps)
        flat = {name: float(value) for name, value in metrics.items()}
        for name, score in scores.items():
            flat[f"probe/{name}"] = score.error
            if score.normalised is not None:
                flat[f"normalised_error/{name}"] = score.normalised
        return flat

    def _copied(self, encoder: Encoder) -> Encoder:
        # A copy: the encoder in training may be sharded or compiled.
        copied = Encoder(self.image_size, self.encoder)
        copied.load_state_dict(full_weights(encoder))
        return copied

    def _frozen(self, encoder: Encoder) -> FrozenEncoder:
        return FrozenEncoder(encoder, self.image_size, precision=self.precision).to(dist().device)

    def _scores(
        self, tokens: tuple[Tensor, Tensor], truth: tuple[np.ndarray, np.ndarray], steps: int,
        label: str,
    ) -> dict[str, Score]:  # fmt: skip
        """Of a probe fitted to the first of each, on the second."""
        assert self.states is not None
        columns = self.states.quantities
        target = columns.unrolled(truth[0])
        probe = fit_attentive(
            tokens[0].bfloat16(), torch.from_numpy(target), steps=steps, seed=self.seed,
            label=label,
        )  # fmt: skip
        predicted = columns.rolled(probe.predict(tokens[1].bfloat16()).numpy())
        constant = columns.rolled(target.mean(0, dtype=np.float64))
        normalised = columns.normalised_errors(predicted, truth[1], constant)
        return {
            name: Score(float(each.mean()), normalised.get(name))
            for name, each in columns.errors(predicted, truth[1]).items()
        }


def probe_once(
    run: Run, probe: OnlineProbe, random_encoder: Encoder, steps: int
) -> dict[str, dict[str, float | None]]:
    """{"probe": {state group: its error}, "velocity": the same} of the encoder before training,
    measured once for a run folder; null where not finite."""
    file = run.stage_dir("pretrain") / "random_encoder.json"
    if dist().first and not file.exists():
        label = "probe of a random encoder"
        scores = {
            "probe": probe(random_encoder, steps=steps, label=label)[1],
            "velocity": probe.velocities(random_encoder, steps=steps, label=label),
        }
        errors = {
            kind: {name: score.error for name, score in each.items()}
            for kind, each in scores.items()
        }
        write_atomic(file, json.dumps(finite(errors)))
    return dist().broadcast(json.loads(file.read_text(encoding="utf-8")) if dist().first else {})
