"""Clips for pretraining: which frames, as a pure function of (seed, step), and where the actions
between them lead.

B clips, T frames, R distant frames of each clip's episode, A action numbers; h x w px, c channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.scaling import ActionStatistics
from jepa_wm.data.sampling import EvenDraw, leave_out_short
from jepa_wm.data.trajectories import Trajectories


@dataclass(frozen=True)
class BatchShape:
    """How many clips a step takes, over all ranks, and what is read beside them."""

    clips: int = 1  # B
    num_distant: int = 0  # R, frames from elsewhere in each clip's episode
    min_gap: int = 1  # frame intervals between a clip and its distant frames, where there is room


ONE_CLIP = BatchShape()


class ClipSample(NamedTuple):
    """Clips with their distant frames behind them."""

    frames: Tensor  # [B, T + R, h, w, c] uint8
    displacement: Tensor  # [B, T + R, A] from a clip's first frame, by actions; NaN where unknown
    rows: Tensor  # [B, T + R] int64, which frames they are, in one unit of time within an episode
    episode: Tensor  # [B] int64, a number for each episode or file


class ClipSource(ABC):
    """Where pretraining gets its clips from: `sample(step, rows)`, a pure function of the two.

    A kind of data says which frames it draws (`rows`, `distant_rows`) and reads them (`read`)."""

    batch = ONE_CLIP
    decodes = False  # reading takes long, so that it is worth a thread of its own

    def sample(self, step: int, rows: slice) -> ClipSample:
        """Clips `rows` of the batch of a step: drawn for the whole batch, then cut, so that the
        union over ranks is what one process would have drawn."""
        shape = self.batch
        drawn = self.rows(step, shape.clips)
        if shape.num_distant:
            distant = self.distant_rows(
                step, shape.clips, count=shape.num_distant, min_gap=shape.min_gap
            )
            drawn = np.concatenate([drawn, distant], 1)

        # Of a video that cannot be read another stands in, so what was read counts from here on.
        frames, read = self.read(drawn[rows])
        return ClipSample(
            frames,
            self.displacement_at(read),
            torch.from_numpy(read),
            torch.from_numpy(self.episode_at(read)),
        )

    @abstractmethod
    def rows(self, step: int, batch: int) -> np.ndarray:
        """[B, T] row numbers of batch `step`."""

    @abstractmethod
    def distant_rows(self, step: int, batch: int, *, count: int, min_gap: int) -> np.ndarray:
        """[B, R] row numbers of `count` other frames of each clip's episode, at least `min_gap`
        intervals from the clip where the episode is long enough, else as far as it allows."""

    @abstractmethod
    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(frames [B, ..., h, w, c] uint8, the row numbers [B, ...] that they are of) of row
        numbers [B, ...], each row of one episode."""

    @abstractmethod
    def displacement_at(self, rows: np.ndarray) -> Tensor:
        """[B, T, A] the displacement of each frame [B, T] from its clip's first one, by the
        actions between; NaN where no action tells it, A = 0 where there are no actions."""

    @abstractmethod
    def episode_at(self, rows: np.ndarray) -> np.ndarray:
        """[B] int64 numbers of the episodes of clips [B, T]."""

    @property
    def unreadable(self) -> list[str]:
        """What could not be read so far, and why."""
        return []

    def frames_at(self, rows: np.ndarray) -> Tensor:
        """The frames alone, as `read`."""
        return self.read(rows)[0]


class ClipSampler(ClipSource):
    """Draws clips of T frames, a gap apart, from episodes; batch k of seed s is always the same.

    Each gap is drawn equally often, and each clip of a gap too, so that an episode counts by its
    frames. Episodes that are too short for a gap give no clips of it, which is said; UserError
    where none is long enough for one. `absolute` says what actions are: places to go to, not
    moves."""

    def __init__(
        self,
        data: Trajectories,
        *,
        frames: int,
        gaps: tuple[int, ...],
        seed: int,
        absolute: bool = False,
        batch: BatchShape = ONE_CLIP,
    ) -> None:
        self.data, self.frames, self.gaps, self.seed = data, frames, gaps, seed
        self.batch = batch
        self._draws: dict[int, EvenDraw] = {}
        for gap in sorted(set(gaps)):
            span = (frames - 1) * gap
            purpose = f"a clip of data.num_frames {frames} at a gap of {gap} (data.frame_gaps)"
            leave_out_short(data.path, data.lengths, span + 1, purpose)
            self._draws[gap] = EvenDraw(np.maximum(data.lengths - span, 0))
        self._displacement = Displacement(data, absolute=absolute)

    def rows(self, step: int, batch: int) -> np.ndarray:
        episode, start, gap = self._clips(step, batch)
        first = self.data.offsets[episode] + start
        return first[:, None] + gap[:, None] * np.arange(self.frames)

    def _clips(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], first frame [B], gap [B]) of batch `step`."""
        r = np.random.default_rng([self.seed, 3, step])
        gap = np.array(self.gaps)[r.integers(len(self.gaps), size=batch)]
        unit = r.random(batch)
        episode, start = np.zeros((2, batch), np.int64)
        for one_gap, draw in self._draws.items():
            of_gap = gap == one_gap
            episode[of_gap], start[of_gap] = draw.at(unit[of_gap])
        return episode, start, gap

    def distant_rows(self, step: int, batch: int, *, count: int, min_gap: int) -> np.ndarray:
        """As `ClipSource.distant_rows`; an interval is a step of the environment here."""
        episode, first, gap = self._clips(step, batch)
        last = first + (self.frames - 1) * gap
        length = self.data.lengths[episode]
        r = np.random.default_rng([self.seed, 9, step])

        # How many frames are far enough: the first of the episode, and its last.
        before = np.maximum(first - min_gap + 1, 0)
        after = np.maximum(length - (last + min_gap), 0)

        # Of an episode that is too short its farther end will do.
        none = before + after == 0
        before = np.where(none & (first >= length - 1 - last), 1, before)
        after = np.where(none & (before == 0), 1, after)

        pick = (r.random((batch, count)) * (before + after)[:, None]).astype(np.int64)
        from_end = length[:, None] - 1 - (pick - before[:, None])
        frame = np.where(pick < before[:, None], pick, from_end)
        return self.data.offsets[episode][:, None] + frame

    def displacement_at(self, rows: np.ndarray) -> Tensor:
        return self._displacement.at(rows)

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """As `ClipSource.read`, of row numbers of any shape: always those that are asked for."""
        return torch.from_numpy(self.data.frames[rows]), rows

    def episode_at(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.data.offsets, rows[:, 0], side="right") - 1


class Displacement:
    """The displacements between frames of an episode by its actions, for pretraining and for the
    latent's training.

    A frame is where the action *before* it led. So with moves (`absolute` false) the displacement
    between two frames is the sum of the actions from the earlier one up to the later; with places
    to go to it is the difference of the places that the actions before the two name, and of an
    episode's first frame, which no action led to, it is not known. An action number that never
    varies adds up to nothing, and a glitch to no more than the bounds of the others. Nor does a
    move that hardly varies beside its own size: its sum would tell the time that passed, which no
    frame shows."""

    def __init__(self, data: Trajectories, *, absolute: bool) -> None:
        usual = ActionStatistics.of(data.taken_actions)
        varied = usual.low < usual.high if absolute else ~usual.steady
        actions = np.where(varied, data.actions.astype(np.float64).clip(usual.low, usual.high), 0)
        if absolute:
            self._place = np.roll(actions, 1, 0)
            self._place[data.offsets] = np.nan
        else:
            # The sum of the actions before each row.
            total = np.cumsum(actions, 0)
            self._place = np.concatenate([np.zeros_like(total[:1]), total[:-1]])

    def at(self, rows: np.ndarray) -> Tensor:
        """[B, T, A] displacement of each frame from the first one of its clip whose place is
        known, of the rows [B, T] of frames of one episode a clip; NaN where it is not known."""
        place = self._place[rows]
        known = np.isfinite(place).all(-1)  # [B, T]
        origin = place[np.arange(len(rows)), known.argmax(1)]
        return torch.from_numpy((place - origin[:, None]).astype(np.float32))
