"""What policies toward goals are trained on, as pure functions of the step: legs of episodes, each
with whether it is efficient.

B samples, T frames, C frames seen, F numbers that policies read of a goal and S of a start, N
latent tokens of width D, R frames of a file."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.models.latent_model import moved_before
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

    def __init__(
        self, samples: Samples, *, frames: int = 1, fast_step: float | None = None
    ) -> None:
        """Starts are read off `frames`, a model step apart. Of held-out samples, paths are
        measured in the `fast_step` of those that were trained on, as distances are."""
        self.samples, self.model, self.frames = samples, samples.model, frames
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

        # All as an agent believes them that stands at the start, and has seen no frame before the
        # episode's first.
        back = skip * np.arange(self.frames - 1, -1, -1)
        seen, later = (
            np.maximum(at[:, None] - back, at[:, None] % skip) for at in (first, first + skip)
        )
        shown = np.concatenate([seen, later, np.stack([last, value_goal], 1)], 1)
        of = np.repeat(np.stack([episode, value_episode], 1), [2 * self.frames + 1, 1], axis=1)
        starts, goals, apart = self._read(of, shown)
        passed = self._passed(episode, first, last, steps)
        most, same = (1 + SLACK) * apart + ALLOWANCE, episode == value_episode
        return Legs(
            start=starts[:, 0],
            after=starts[:, 1],
            goal=goals[:, 0],
            value_goal=goals[:, 1],
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
    def _read(self, episodes: np.ndarray, frames: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """(starts [B, 2, S], goals [B, 2, F], the distance [B] from the first start to the first
        goal) of frames [B, T]: C seen up to the one start, C up to the other, then both goals."""
        model, latents, c = self.model, self.samples.latents, self.frames
        own, standing, goal = episodes[:, 0], frames[:, c - 1], frames[:, 2 * c]
        ends = [c - 1, 2 * c - 1, 2 * c, 2 * c + 1]
        if not model.latent.map_dim:
            flat = on_device(latents.flat_together(own, frames, standing, goal, of=episodes))
            inputs = compared = flat[:, ends]
        else:
            # Of a map the field is made once a leg: all have the same.
            at = on_device(latents.together(own, frames, standing, goal, of=episodes))
            flat, at, field = model.flat(at), at[:, ends], model.map_field(at[:, 2 * c])
            around = None if field is None else field[:, None]
            compared = model.flat(at) if field is None else model.distance_input(at, around)
            inputs = model.policy_input(at, around)
        moves = moved_before(flat[:, : 2 * c].unflatten(1, (2, c)), c)
        return torch.cat([inputs[:, :2], moves], -1), inputs[:, 2:], self._apart(compared)

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
