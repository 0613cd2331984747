"""Clips of videos for pretraining: which seconds, as a pure function of (seed, step), and their frames.

B clips, T frames, R far frames, V videos, S side in pixels. A row number here is a moment of a video: video * 2^40 +
microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.observe.video import VideoError
from jepa_wm.observe.videos import VideoSet

MOMENTS = 2**40  # microseconds, twelve days: more than a video lasts


@dataclass(frozen=True)
class SampleOrder:
    """Which sample comes when: every epoch a new permutation, dealt out to the ranks in turn.

    A pure function of seed, epoch, position and rank, and of how many samples there are: nothing to save, and no
    sample for two ranks in one epoch. What is left when all ranks have had equally many is not used in that epoch.
    """

    count: int  # samples
    seed: int
    rank: int = 0
    ranks: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise UserError(f"rank {self.rank} is none of 0 to {self.ranks - 1}")
        if self.count < self.ranks:
            raise UserError(f"{self.count} videos are too few for {self.ranks} processes; use fewer, or more videos")

    @property
    def positions(self) -> int:
        """Samples of one rank in one epoch."""
        return self.count // self.ranks

    def index(self, epoch: int, position: int) -> int:
        """The sample at a position, 0 to `positions` - 1, of this rank's epoch."""
        assert 0 <= position < self.positions
        return int(_permutation(self.seed, epoch, self.count)[position * self.ranks + self.rank])

    def nth(self, n: int) -> tuple[int, int]:
        """(epoch, sample) of the n-th sample since the beginning."""
        epoch, position = divmod(n, self.positions)
        return epoch, self.index(epoch, position)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, 6, epoch]).permutation(count)


class VideoClipSampler:
    """Draws clips of T frames, 1/fps seconds apart, one from each video an epoch; has the methods of `ClipSampler`.

    `fps` are the rates to draw from, one for each clip. Frames are scaled to S on their shorter side and cut to the
    middle square. Of a video shorter than a clip, the clip begins with the first frame and the last one is repeated.
    """

    def __init__(self, videos: VideoSet, *, frames: int, fps: tuple[float, ...], size: int, order: SampleOrder) -> None:
        if order.count != len(videos):
            raise UserError(f"the order is of {order.count} samples, but {len(videos)} videos are readable")
        if not fps or min(fps) <= 0:
            raise UserError(f"fps {fps}: give at least one rate above 0")
        self.videos, self.frames, self.fps, self.size, self.order = videos, frames, fps, size, order

    def rows(self, step: int, batch: int) -> np.ndarray:
        """[B, T] moments of batch `step`."""
        return np.stack([self._clip(*self.order.nth(step * batch + i)) for i in range(batch)])

    def far_rows(self, step: int, batch: int, *, count: int, apart: int) -> np.ndarray:
        """[B, R] moments of `count` other frames of each clip's video, at least `apart` frame intervals of the clip
        from it where the video is long enough, else as far as it allows."""
        rows = self.rows(step, batch)
        r = np.random.default_rng([self.order.seed, 7, self.order.rank, step])
        video, moment = np.divmod(rows, MOMENTS)
        end = (self.videos.seconds[video[:, 0]] * 1e6).astype(np.int64)
        away = apart * (moment[:, 1] - moment[:, 0] if self.frames > 1 else int(1e6 / self.fps[0]))
        before = np.maximum(moment[:, 0] - away, 0)  # microseconds that are far enough, at either side
        after = np.maximum(end - (moment[:, -1] + away), 0)
        pick = (r.random((batch, count)) * (before + after)[:, None]).astype(np.int64)
        found = np.where(pick < before[:, None], pick, (end - after - before)[:, None] + pick)
        farther = np.where(moment[:, 0] > end - moment[:, -1], 0, end)
        found = np.where((before + after == 0)[:, None], farther[:, None], found)
        return video[:, :1] * MOMENTS + found

    def path_at(self, rows: np.ndarray) -> Tensor:
        """[B, T, 0]: a video has no actions."""
        return torch.zeros(*rows.shape, 0)

    def frames_at(self, rows: np.ndarray) -> Tensor:
        """[B, ..., S, S, 3] uint8 frames of moments [B, ...], each row of one video.

        A video that cannot be decoded there is noted in `videos.unreadable`, with a warning, and the next readable clip
        of the batch stands in for its clip, so that no process waits for another. UserError if there are too many.
        """
        clips: list[np.ndarray | None] = [self._decoded(row.reshape(-1)) for row in rows]
        good = [i for i, clip in enumerate(clips) if clip is not None]
        if not good:
            raise UserError(f"no clip of a batch of {len(rows)} can be decoded; see the warnings for their names")
        stand_in = [i if clips[i] is not None else next((g for g in good if g > i), good[0]) for i in range(len(rows))]
        stacked = np.stack([clip for i in stand_in if (clip := clips[i]) is not None])
        return torch.from_numpy(stacked.reshape(*rows.shape, *stacked.shape[2:]))

    def _clip(self, epoch: int, video: int) -> np.ndarray:
        """[T] moments of the clip that a video gives in an epoch."""
        r = np.random.default_rng([self.order.seed, 8, epoch, video])
        interval = 1 / self.fps[r.integers(len(self.fps))]
        span = (self.frames - 1) * interval
        start = r.random() * max(self.videos.seconds[video] - span - interval, 0.0)  # the last frame has its time too
        return video * MOMENTS + ((start + interval * np.arange(self.frames)) * 1e6).astype(np.int64)

    def _decoded(self, moments: np.ndarray) -> np.ndarray | None:
        """[n, S, S, 3] frames, None if the video cannot be read there."""
        video, seconds = int(moments[0] // MOMENTS), moments % MOMENTS / 1e6
        entry = self.videos.entries[video]
        try:
            footage = entry.open(fps=self.videos.folder_fps, size=self.size)
            try:
                return _middle(footage.at(seconds), self.size)
            finally:
                footage.close()
        except VideoError as error:
            self.videos.unreadable.add(entry.path, error)
            return None


def _middle(frames: np.ndarray, size: int) -> np.ndarray:
    top, left = (frames.shape[1] - size) // 2, (frames.shape[2] - size) // 2
    return frames[:, top : top + size, left : left + size]
