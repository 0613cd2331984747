"""Windows of frames and action blocks for dynamics, and pairs for the metric, as pure functions of (seed, step).

B windows, T frames, A = action size x frameskip.
"""

from __future__ import annotations

import numpy as np

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

    def at(self, episode: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows of `episode` [B] that begin at frame `first` [B]."""
        frame = first[:, None] + self.frameskip * np.arange(self.frames)
        row = (self.data.offsets[episode] + first)[:, None] + np.arange(self.span)
        blocks = self.data.actions[row].reshape(len(episode), self.frames - 1, -1)
        return np.repeat(episode[:, None], self.frames, 1), frame, blocks


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
