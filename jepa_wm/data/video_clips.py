"""Clips of videos for pretraining: which seconds, as a pure function of (seed, step), and their
frames; and the sets of videos of a run.

B clips, T frames, R distant frames, V videos, S side in pixels. A row number here is a timestamp
of a video: video * 2^36 + microseconds; the videos of several sets are numbered on."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.data.clips import ONE_CLIP, BatchShape, ClipSource
from jepa_wm.data.images import middle
from jepa_wm.data.sampling import MixtureSampler, ShuffledOrder
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import find

MAX_MICROSECONDS = 2**36  # microseconds, nineteen hours; of a longer video the rest is not used


@dataclass
class MixturePart:
    """One set of a mixture, in an order of its own by `seed`, and its share of the samples
    relative to the other parts.

    Every video gives `clips` samples an epoch.
    """

    videos: VideoSet
    seed: int
    weight: float = 1.0
    clips: int = 1

    def __post_init__(self) -> None:
        self.order = ShuffledOrder(len(self.videos) * self.clips, self.seed)


class VideoClipSampler(ClipSource):
    """Draws clips of T frames, 1/fps seconds apart, from each video as often in an epoch as its
    part says. Rows are timestamps.

    `fps` are the rates to draw from, one for each clip. Frames are scaled to S on their shorter
    side and cut to the middle square. Of a video shorter than a clip, the clip begins with the
    first frame and the last one is repeated. Every set of a mixture gives samples in proportion to
    its weight. `workers` threads decode."""

    decodes = True

    def __init__(
        self,
        parts: Sequence[MixturePart],
        *,
        frames: int,
        fps: tuple[float, ...],
        size: int,
        workers: int = 1,
        batch: BatchShape = ONE_CLIP,
    ) -> None:
        if not fps or min(fps) <= 0:
            raise UserError(f"fps {fps}: give at least one rate above 0")
        self.parts, self.frames, self.fps, self.size = parts, frames, fps, size
        self.batch, self.seed = batch, parts[0].seed
        self._mixture = MixtureSampler(tuple(part.weight for part in parts), self.seed)
        # the number of each part's first video
        self._first = np.cumsum([0, *(len(part.videos) for part in parts)])
        self._pool = ThreadPoolExecutor(workers) if workers > 1 else None

    def rows(self, step: int, batch: int) -> np.ndarray:
        return np.stack([self._clip(step * batch + i) for i in range(batch)])

    def distant_rows(self, step: int, batch: int, *, count: int, min_gap: int) -> np.ndarray:
        """As `ClipSource.distant_rows`; an interval is one between the clip's frames here."""
        rows = self.rows(step, batch)
        r = np.random.default_rng([self.seed, 7, 0, step])
        video, timestamp = np.divmod(rows, MAX_MICROSECONDS)
        places = [self._at(int(number)) for number in video[:, 0]]
        seconds = np.array([part.videos.length(number) for part, number in places])
        end = (seconds * 1e6).astype(np.int64).clip(max=MAX_MICROSECONDS - 1)

        # Microseconds that are far enough, from the start of the video and up to its end.
        single = int(1e6 / self.fps[0])
        interval = timestamp[:, 1] - timestamp[:, 0] if self.frames > 1 else single
        before = np.maximum(timestamp[:, 0] - min_gap * interval, 0)
        after = np.maximum(end - (timestamp[:, -1] + min_gap * interval), 0)
        pick = (r.random((batch, count)) * (before + after)[:, None]).astype(np.int64)
        from_end = (end - after - before)[:, None] + pick
        distant = np.where(pick < before[:, None], pick, from_end)

        # Of a video that is too short its farther end will do.
        farther = np.where(timestamp[:, 0] > end - timestamp[:, -1], 0, end)
        distant = np.where((before + after == 0)[:, None], farther[:, None], distant)
        return video[:, :1] * MAX_MICROSECONDS + distant

    def displacement_at(self, rows: np.ndarray) -> Tensor:
        """[B, T, 0]: a video has no actions."""
        return torch.zeros(*rows.shape, 0)

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(frames [B, ..., S, S, 3] uint8, the timestamps [B, ...] that they are of) of timestamps
        [B, ...], each row of one video.

        A video that cannot be decoded there is noted in its set's `unreadable`, with a warning,
        and the next readable clip of the batch, or else the start of the next readable video,
        stands in for its clip, so that no process waits for another. UserError if there are too
        many."""
        flat = rows.reshape(len(rows), -1).copy()
        each = map if self._pool is None else self._pool.map
        decoded = enumerate(each(self._decoded, flat))
        readable = {i: clip for i, clip in decoded if clip is not None}
        if not readable:
            readable[0], flat[0] = self._next_readable(flat[0])
        good = sorted(readable)

        # For a clip that cannot be read the next one stands in, after the last the first.
        stand_in = np.array(good)[np.searchsorted(good, np.arange(len(rows))) % len(good)]
        stacked = np.stack([readable[i] for i in stand_in])
        frames = torch.from_numpy(stacked.reshape(*rows.shape, *stacked.shape[2:]))
        return frames, flat[stand_in].reshape(rows.shape)

    def episode_at(self, rows: np.ndarray) -> np.ndarray:
        """[B] a number for the file of each clip [B, T]: the same for the same file, also where it
        is listed twice."""
        numbers = []
        for video in rows[:, 0] // MAX_MICROSECONDS:
            part, number = self._at(int(video))
            entry = part.videos.entry(number)
            named = f"{os.path.normpath(entry.path)} {entry.span}".encode()
            numbers.append(int.from_bytes(hashlib.sha256(named).digest()[:7], "big"))
        return np.array(numbers, np.int64)

    @property
    def unreadable(self) -> list[str]:
        """What is wrong with each video that could not be read so far."""
        return [why for part in self.parts for why in part.videos.unreadable.why.values()]

    def _clip(self, n: int) -> np.ndarray:
        """[T] timestamps of the n-th sample."""
        number, before = self._mixture.nth(n)
        part = self.parts[number]
        epoch, sample = part.order.nth(before)
        video = sample // part.clips
        r = np.random.default_rng([part.seed, 8, number, epoch, sample])
        interval = 1 / self.fps[r.integers(len(self.fps))]
        span = (self.frames - 1) * interval
        seconds = min(part.videos.length(video), MAX_MICROSECONDS / 1e6 - span - interval)
        start = r.random() * max(seconds - span - interval, 0.0)  # the last frame has its time too
        timestamps = ((start + interval * np.arange(self.frames)) * 1e6).astype(np.int64)
        return (self._first[number] + video) * MAX_MICROSECONDS + timestamps

    def _at(self, video: int) -> tuple[MixturePart, int]:
        """(the part a video belongs to, its number there)."""
        number = int(np.searchsorted(self._first, video, side="right")) - 1
        return self.parts[number], video - int(self._first[number])

    def _decoded(self, timestamps: np.ndarray) -> np.ndarray | None:
        """[n, S, S, 3] frames, None if the video cannot be read there."""
        part, video = self._at(int(timestamps[0] // MAX_MICROSECONDS))
        entry = part.videos.entry(video)
        try:
            with closing(entry.open(fps=part.videos.folder_fps, size=self.size)) as source:
                return middle(source.at(timestamps % MAX_MICROSECONDS / 1e6), self.size)
        except VideoError as error:
            part.videos.unreadable.add(entry.path, error)
            return None

    def _next_readable(self, timestamps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(frames, timestamps) the same timestamps of the next video that can be read; more than
        `max_unreadable` before it end the search."""
        video, count = int(timestamps[0] // MAX_MICROSECONDS), int(self._first[-1])
        for number in range(video + 1, video + count):
            instead = number % count * MAX_MICROSECONDS + timestamps % MAX_MICROSECONDS
            clip = self._decoded(instead)
            if clip is not None:
                return clip, instead
        raise UserError("no video can be decoded; see the warnings for their names")


def open_sets(folder: Path, settings: DataSettings) -> list[VideoSet]:
    """The sets that `data.videos` names.

    What is found on looking into every file is kept in `folder`, so that a run that goes on later,
    when files may have come or gone, numbers them as before. Raises UserError for a set that is
    not there or is too broken."""
    opened = []
    for number, part in enumerate(settings.sets):
        index = Path(part.path)
        if index.suffix != ".h5":
            index = folder / f"videos_{number}.h5"
            if not index.exists():
                entries = find(part.path, single_images=part.single_images)
                VideoSet(
                    entries, max_unreadable=settings.max_unreadable, folder_fps=settings.folder_fps
                ).save(index)
        opened.append(VideoSet.open(index, max_unreadable=settings.max_unreadable))
    return opened


def clip_sampler(
    sets: list[VideoSet], settings: DataSettings, *, seed: int, batch: BatchShape = ONE_CLIP
) -> VideoClipSampler:
    """Pretraining clips of those sets; where clips are cropped they are loaded larger."""
    size = settings.image_size
    if settings.augment is not None:
        # A crop of between the smallest and all of the area has about the size wanted then.
        size = math.ceil(size / math.sqrt((settings.augment.scale[0] + 1) / 2))
    parts = [
        MixturePart(videos, seed, part.weight, settings.clips_per_video)
        for videos, part in zip(sets, settings.sets, strict=True)
    ]
    return VideoClipSampler(
        parts, frames=settings.num_frames, fps=settings.fps, size=size,
        workers=settings.num_workers, batch=batch,
    )  # fmt: skip
