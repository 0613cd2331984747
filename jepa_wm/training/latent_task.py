"""The training of a latent before there are dynamics: its batches, and one step of it.

B batch, T frames of a window, R distant frames of its episode."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.data.clips import Displacement
from jepa_wm.data.windows import WindowSampler
from jepa_wm.models.latent import LatentBatch, LatentTraining
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.training.frames import Frames
from jepa_wm.training.loop import Losses, TrainingTask

APART = 2**39  # step whose batch is the first that no training draws
JUDGED = 8  # batches there that what was learned is judged by
READ = 8  # batches each that a start is read from and judged by
SLAB = 64  # windows read at once there


class LatentBatches:
    """Windows with distant frames of their episodes, as a latent's training takes them."""

    def __init__(
        self, model: LatentModel, frames: Frames, sampler: WindowSampler, batch: int,
        num_distant: int,
    ) -> None:  # fmt: skip
        """`batch` is B, `num_distant` R."""
        self.model, self.frames, self.sampler = model, frames, sampler
        self.batch, self.num_distant, data = batch, num_distant, frames.features.data
        self._displacement = Displacement(data, absolute=data.action_kind == "absolute")

    def __call__(self, step: int, rows: slice) -> LatentBatch:
        """Rows of the batch of a step."""
        sampler, data = self.sampler, self.frames.features.data
        episode, frame, actions = sampler.batch(step, self.batch)
        # From anywhere in the episode, later than the window too: it only helps to train, an agent
        # never needs it.
        distant = sampler.elsewhere(step, episode[:, 0], count=self.num_distant)
        episode, frame, distant = episode[rows], frame[rows], distant[rows]
        blocks = self.frames.recording.blocks(episode, frame, actions[rows]).to(dist().device)
        gap = np.abs(frame[:, :, None] - distant[:, None]) / sampler.frameskip
        return LatentBatch(
            self.frames.at(episode, frame),
            self.frames.at(np.broadcast_to(episode[:, :1], distant.shape), distant),
            self._displacement.at(data.offsets[episode] + frame).to(dist().device),
            self.model.scaled(blocks),
            torch.from_numpy(gap).to(dist().device),
            torch.from_numpy(episode[:, 0]).to(dist().device),
        )

    def start(self) -> tuple[Iterator[LatentBatch], Iterator[LatentBatch]]:
        """Batches that no training has, the same for all ranks: (from which a start is read, by
        which it is judged)."""
        return self._apart(JUDGED, READ), self._apart(JUDGED + READ, READ)

    def judged(self) -> Iterator[LatentBatch]:
        """Other such batches, by which what was learned is judged."""
        return self._apart(0, JUDGED)

    def _apart(self, first: int, count: int) -> Iterator[LatentBatch]:
        for step in range(APART + first, APART + first + count):
            for at in range(0, self.batch, SLAB):
                yield self(step, slice(at, min(at + SLAB, self.batch)))


def begin(training: LatentTraining, batches: LatentBatches) -> None:
    """What data tell before the first step, read by rank 0 for all."""
    if dist().first:
        training.begin(*batches.start())
    start = {name: value.cpu() for name, value in training.state_dict().items()}
    training.load_state_dict(dist().broadcast(start))


def latent_task(training: LatentTraining, batches: LatentBatches) -> TrainingTask:
    """Trains what of the latent is trained before there are dynamics, in fp32: in bf16 keypoints
    and contrasts of a few numbers hardly learn."""

    def losses(step: int, rows: slice) -> Losses:
        return training.losses(batches(step, rows))

    return TrainingTask("dynamics", training, losses, part="latent")
