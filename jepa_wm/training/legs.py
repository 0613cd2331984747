"""What policies toward goals are trained on, as pure functions of the step: legs of episodes, each
with whether it is efficient.

B samples, T frames, F numbers that policies read, N latent tokens of width D, R frames of a
file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.models.policies import Legs
from jepa_wm.training.samples import Samples, on_device

SLACK = 0.25  # share by which an efficient leg may exceed the distance
ALLOWANCE = 0.5  # by which it may beside that, in the unit of the distance


class LegSampler:
    """Draws legs of a trajectory file's latents.

    A leg is efficient where no more passed than (1 + SLACK) times the distance from start to goal,
    and ALLOWANCE. What passed is model steps where the temporal distance was fitted to these, and
    the length of the path where it was fitted to paths. Where none was learned, it is the path,
    beside the straight line in the latent."""

    def __init__(self, samples: Samples, *, fast_step: float | None = None) -> None:
        """Of held-out samples, paths are measured in the `fast_step` of those that were trained
        on, as distances are."""
        self.samples, self.model = samples, samples.model
        self.fast_step = 1.0  # of the latent, in whose units a straight line is measured
        self._path: Tensor | None = None  # [R]
        distance = self.model.distance
        if distance is None or distance.settings.measure == "path":
            moved, own = samples.latents.moved()
            self.fast_step = own if fast_step is None else fast_step
            self._path = moved / self.fast_step

    def batch(self, step: int, batch: int, part: slice = slice(None)) -> Legs:
        """The legs of batch `step`, or some of its samples, where this process computes."""
        # The whole batch is drawn and a part of it kept, whoever computes the rest.
        pairs, skip = self.samples.pairs, self.model.frameskip
        episode, frames, blocks, counts = pairs.batch(step, batch)
        value_episode, value_goal = (x[part] for x in pairs.value_goals(step, episode, frames))
        episode, (first, last), blocks = episode[part], frames[:, part], blocks[part]
        steps = (last - first) // skip

        # Four frames a leg, all as an agent believes them that stands at the first.
        of = np.stack([episode, episode, episode, value_episode], 1)
        inputs, apart = self._read(of, np.stack([first, first + skip, last, value_goal], 1))
        passed = self._passed(episode, first, last, steps)
        most, same = (1 + SLACK) * apart + ALLOWANCE, episode == value_episode
        return Legs(
            start=inputs[:, 0],
            after=inputs[:, 1],
            goal=inputs[:, 2],
            value_goal=inputs[:, 3],
            at_value_goal=on_device(same & (first == value_goal)),
            after_at_value_goal=on_device(same & (first + skip == value_goal)),
            blocks=self.model.scaled(on_device(blocks)),
            counts=on_device(counts[part]),
            steps=on_device(steps),
            remaining=on_device(passed).float(),
            efficient=(on_device(passed) <= most).float(),
            fast=(on_device(steps) <= most).float(),
        )

    @torch.no_grad()
    def _read(self, episodes: np.ndarray, frames: np.ndarray) -> tuple[Tensor, Tensor]:
        """(what policies read [B, T, F] of frames [B, T], the distance [B] from the first to the
        third, which is its goal)."""
        model, latents = self.model, self.samples.latents
        own, standing, goal = episodes[:, 0], frames[:, 0], frames[:, 2]
        if not model.latent.map_dim:
            read = on_device(latents.flat_together(own, frames, standing, goal, of=episodes))
            return read, self._apart(read)

        # Of a map the field is made once a leg: all four have the same.
        at = on_device(latents.together(own, frames, standing, goal, of=episodes))
        field = model.map_field(at[:, 2])
        around = None if field is None else field[:, None]
        compared = model.flat(at) if field is None else model.distance_input(at, around)
        return model.policy_input(at, around), self._apart(compared)

    def _apart(self, compared: Tensor) -> Tensor:
        """[B] the distance from the first to the third of what it reads [B, T, F]."""
        start, goal = compared[:, 0], compared[:, 2]
        if self.model.distance is None:
            return (goal - start).norm(dim=-1) / self.fast_step
        return self.model.distance(start, goal)

    def _passed(
        self, episode: np.ndarray, first: np.ndarray, last: np.ndarray, steps: np.ndarray
    ) -> np.ndarray | Tensor:
        """[B] what passed from first to last frame, in the unit of the distance."""
        if self._path is None:
            return steps.astype(np.float32)
        index = self.samples.latents.features.index
        begun, ended = (self._path[torch.from_numpy(index(episode, x))] for x in (first, last))
        return (ended - begun).float()
