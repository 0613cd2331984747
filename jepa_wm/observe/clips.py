"""Clips for pretraining: which frames, as a pure function of (seed, step), and frames as float tensors.

B clips, T frames, C channels, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.observe.frames import antialiased
from jepa_wm.observe.trajectories import Trajectories


class ClipSampler:
    """Draws clips of T frames, a gap apart, from episodes; batch k of seed s is always the same.

    `absolute` says what actions are: places to go to, not moves.
    """

    def __init__(
        self, data: Trajectories, *, frames: int, gaps: tuple[int, ...], seed: int, absolute: bool = False
    ) -> None:
        longest = (frames - 1) * max(gaps) + 1
        if data.lengths.min() < longest:
            raise UserError(
                f"{data.path}: an episode of {data.lengths.min()} frames is shorter than a clip "
                f"(observe.frames {frames} x gap {max(gaps)} needs {longest})"
            )
        self.data, self.frames, self.gaps, self.seed = data, frames, gaps, seed
        if absolute:
            self._path = data.actions
        else:
            actions = np.cumsum(data.actions, 0, dtype=np.float64)
            self._path = np.concatenate([np.zeros_like(actions[:1]), actions])  # of the actions before each row

    def rows(self, step: int, batch: int) -> np.ndarray:
        """[B, T] row numbers of batch `step`."""
        r = np.random.default_rng([self.seed, 3, step])
        episode = r.integers(self.data.episodes, size=batch)
        gap = np.array(self.gaps)[r.integers(len(self.gaps), size=batch)]
        span = (self.frames - 1) * gap
        start = (r.random(batch) * (self.data.lengths[episode] - span)).astype(np.int64)
        return self.data.offsets[episode][:, None] + start[:, None] + gap[:, None] * np.arange(self.frames)

    def far_rows(self, step: int, batch: int, *, count: int, apart: int) -> np.ndarray:
        """[B, R] row numbers of `count` other frames of each clip's episode, at least `apart` steps from the clip
        where the episode is long enough, else as far as it allows."""
        rows = self.rows(step, batch)
        r = np.random.default_rng([self.seed, 9, step])
        episode = self.episode_at(rows)
        first, last = rows[:, 0] - self.data.offsets[episode], rows[:, -1] - self.data.offsets[episode]
        before = np.maximum(first - apart + 1, 0)  # frames 0 .. before - 1 are far enough
        after = np.maximum(self.data.lengths[episode] - (last + apart), 0)
        none = before + after == 0  # a short episode: its farther end will do
        before = np.where(none & (first >= self.data.lengths[episode] - 1 - last), 1, before)
        after = np.where(none & (before == 0), 1, after)
        pick = (r.random((batch, count)) * (before + after)[:, None]).astype(np.int64)
        from_end = self.data.lengths[episode][:, None] - 1 - (pick - before[:, None])
        return self.data.offsets[episode][:, None] + np.where(pick < before[:, None], pick, from_end)

    def path_at(self, rows: np.ndarray) -> Tensor:
        """[B, T, a] the way from each clip's first frame to each of its frames [B, T], by their actions."""
        return torch.from_numpy((self._path[rows] - self._path[rows[:, :1]]).astype(np.float32))

    def frames_at(self, rows: np.ndarray) -> Tensor:
        """[..., h, w, c] uint8 frames of row numbers [...]."""
        return torch.from_numpy(self.data.frames[rows])

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(frames, the row numbers that they are of) of row numbers: here always those that are asked for."""
        return self.frames_at(rows), rows

    def episode_at(self, rows: np.ndarray) -> np.ndarray:
        """[B] numbers of the episodes of clips [B, T]."""
        return np.searchsorted(self.data.offsets, rows[:, 0], side="right") - 1


def to_input(frames: Tensor, size: int) -> Tensor:
    """uint8 frames [..., h, w, c] as float [..., c, size, size] in -1..1.

    A frame at most a few pixels larger than `size` is cut at its right and lower edge, which keeps pixels exact;
    any other size is resized with antialiasing.
    """
    x = frames.movedim(-1, -3)
    height, width = x.shape[-2:]
    if size <= min(height, width) and max(height, width) - size < 8:
        return x[..., :size, :size].float().div_(127.5).sub_(1.0)
    flat = antialiased(x.reshape(-1, *x.shape[-3:]).float(), size)
    return flat.div_(127.5).sub_(1.0).view(*x.shape[:-2], size, size)
