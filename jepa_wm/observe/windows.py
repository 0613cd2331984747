"""Windows of frames and action blocks for dynamics, pairs for the metric and the policy, as pure functions of
(seed, step).

B windows, T frames, H model steps, A = action size a x frameskip k.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.observe.trajectories import Trajectories


class WindowSampler:
    """Draws windows of T frames, `frameskip` environment steps apart, starting at multiples of `stride`."""

    def __init__(self, data: Trajectories, *, frames: int, frameskip: int, stride: int, seed: int) -> None:
        self.span = (frames - 1) * frameskip
        if data.lengths.min() <= self.span:
            raise UserError(
                f"{data.path}: an episode of {data.lengths.min()} frames is too short for train.dynamics.frames "
                f"{frames} at dynamics.frameskip {frameskip} ({self.span + 1} needed)"
            )
        self.data, self.frames, self.frameskip, self.stride, self.seed = data, frames, frameskip, stride, seed

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B, T], frame [B, T], action blocks [B, T-1, A]) of batch `step`."""
        r = np.random.default_rng([self.seed, 4, step])
        episode = r.integers(self.data.episodes, size=batch)
        starts = (self.data.lengths[episode] - 1 - self.span) // self.stride + 1
        first = (r.random(batch) * starts).astype(np.int64) * self.stride
        return self.at(episode, first)

    def elsewhere(self, step: int, episode: np.ndarray, *, count: int = 1) -> np.ndarray:
        """[B, count] frames from anywhere in the episodes [B] of batch `step`, at multiples of `stride`."""
        r, frames = np.random.default_rng([self.seed, 13, step]), -(-self.data.lengths[episode] // self.stride)
        return (r.random((len(episode), count)) * frames[:, None]).astype(np.int64) * self.stride

    def at(self, episode: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows of `episode` [B] that begin at frame `first` [B]."""
        frame = first[:, None] + self.frameskip * np.arange(self.frames)
        blocks = self.data.actions[self.rows(episode, first)].reshape(len(episode), self.frames - 1, -1)
        return np.repeat(episode[:, None], self.frames, 1), frame, blocks

    def rows(self, episode: np.ndarray, first: np.ndarray) -> np.ndarray:
        """[B, (T-1) * frameskip] rows of the file whose actions lead through the windows."""
        return (self.data.offsets[episode] + first)[:, None] + np.arange(self.span)


class PairSampler:
    """Draws a frame and a later one of the same episode, at multiples of `stride`."""

    def __init__(self, data: Trajectories, *, stride: int, seed: int) -> None:
        self.data, self.stride, self.seed = data, stride, seed

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], frames [2, B], environment steps between them [B]) of batch `step`; an episode with a single
        multiple of `stride` gives pairs 0 steps apart."""
        r = np.random.default_rng([self.seed, 5, step])
        episode = r.integers(self.data.episodes, size=batch)
        last = (self.data.lengths[episode] - 1) // self.stride
        first = (r.random(batch) * last).astype(np.int64)
        later = np.minimum(first + 1 + (r.random(batch) * (last - first)).astype(np.int64), last)
        return episode, np.stack([first, later]) * self.stride, (later - first) * self.stride


class GoalSampler:
    """Draws a frame, a later one of the same episode as the goal, and the action blocks taken from the former on."""

    def __init__(self, data: Trajectories, *, steps: int, frameskip: int, stride: int, seed: int) -> None:
        if data.lengths.max() <= frameskip:
            raise UserError(f"{data.path}: no episode is longer than dynamics.frameskip {frameskip}")
        self.data, self.steps, self.frameskip, self.stride, self.seed = data, steps, frameskip, stride, seed
        self._long = np.nonzero(data.lengths > frameskip)[0]

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], frames [2, B], blocks [B, H, A], counts [B, H]) of batch `step`.

        The goal lies any number of model steps later; `counts` is 1 for blocks taken before it was reached.
        """
        r = np.random.default_rng([self.seed, 8, step])
        episode = self._long[r.integers(len(self._long), size=batch)]
        last = self.data.lengths[episode] - 1
        starts = (last - self.frameskip) // self.stride + 1
        first = (r.random(batch) * starts).astype(np.int64) * self.stride
        # Model steps; near goals more often, as a way there says more about the next action than about the last.
        gap = 1 + (r.random(batch) ** 2 * ((last - first) // self.frameskip)).astype(np.int64)
        after = np.minimum(first[:, None] + np.arange(self.steps * self.frameskip), last[:, None])
        blocks = self.data.actions[self.data.offsets[episode][:, None] + after].reshape(batch, self.steps, -1)
        counts = (np.arange(self.steps) < gap[:, None]).astype(np.float32)
        return episode, np.stack([first, first + gap * self.frameskip]), blocks, counts


def way_of(acts: Tensor, kind: str) -> Tensor:
    """[B, T, a] the way from the first frame to each, by actions [B, T-1, k, a] of `kind` (Trajectories.action_kind)."""
    if kind == "absolute":  # a frame is where the action before it led, the first one where the next has just begun
        return torch.cat([acts[:, :1, 0], acts[:, :, -1]], 1)
    return torch.nn.functional.pad(acts.sum(-2).cumsum(1), (0, 0, 1, 0))
