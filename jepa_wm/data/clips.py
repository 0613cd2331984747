"""Clips for pretraining: which frames, as a pure function of (seed, step), and where the actions
between them lead.

B clips, T frames, C channels, A action numbers, S side in pixels.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.action_units import ActionStatistics
from jepa_wm.data.sampling import EvenDraw, leave_out_short
from jepa_wm.data.trajectories import Trajectories


class ClipSampler:
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
    ) -> None:
        self.data, self.frames, self.gaps, self.seed = data, frames, gaps, seed
        for gap in sorted(set(gaps)):
            purpose = f"a clip of data.num_frames {frames} at a gap of {gap} (data.frame_gaps)"
            leave_out_short(data.path, data.lengths, (frames - 1) * gap + 1, purpose)
        self._draws = {
            gap: EvenDraw(np.maximum(data.lengths - (frames - 1) * gap, 0)) for gap in set(gaps)
        }
        self._displacement = Displacement(data, absolute=absolute)

    def rows(self, step: int, batch: int) -> np.ndarray:
        """[B, T] row numbers of batch `step`."""
        episode, start, gap = self._clips(step, batch)
        return (self.data.offsets[episode] + start)[:, None] + gap[:, None] * np.arange(
            self.frames
        )

    def _clips(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], first frame [B], gap [B]) of batch `step`."""
        r = np.random.default_rng([self.seed, 3, step])
        gap = np.array(self.gaps)[r.integers(len(self.gaps), size=batch)]
        unit, episode, start = (
            r.random(batch),
            np.zeros(batch, np.int64),
            np.zeros(batch, np.int64),
        )
        for one, draw in self._draws.items():
            of_gap = gap == one
            episode[of_gap], start[of_gap] = draw.at(unit[of_gap])
        return episode, start, gap

    def distant_rows(self, step: int, batch: int, *, count: int, min_gap: int) -> np.ndarray:
        """[B, R] row numbers of `count` other frames of each clip's episode, at least `min_gap`
        steps from the clip where the episode is long enough, else as far as it allows."""
        episode, first, gap = self._clips(step, batch)
        last = first + (self.frames - 1) * gap
        r = np.random.default_rng([self.seed, 9, step])
        before = np.maximum(first - min_gap + 1, 0)  # frames 0 .. before - 1 are far enough
        after = np.maximum(self.data.lengths[episode] - (last + min_gap), 0)
        none = before + after == 0  # a short episode: its farther end will do
        before = np.where(none & (first >= self.data.lengths[episode] - 1 - last), 1, before)
        after = np.where(none & (before == 0), 1, after)
        pick = (r.random((batch, count)) * (before + after)[:, None]).astype(np.int64)
        from_end = self.data.lengths[episode][:, None] - 1 - (pick - before[:, None])
        return self.data.offsets[episode][:, None] + np.where(
            pick < before[:, None], pick, from_end
        )

    def displacement_at(self, rows: np.ndarray) -> Tensor:
        """[B, T, a] the displacement of each frame [B, T] from its clip's first one, by
        the actions between; NaN where no action tells it (see `Displacement`)."""
        return self._displacement.at(rows)

    def frames_at(self, rows: np.ndarray) -> Tensor:
        """[..., h, w, c] uint8 frames of row numbers [...]."""
        return torch.from_numpy(self.data.frames[rows])

    def read(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """(frames, the row numbers that they are of) of row numbers: here always those that are
        asked for."""
        return self.frames_at(rows), rows

    def episode_at(self, rows: np.ndarray) -> np.ndarray:
        """[B] numbers of the episodes of clips [B, T]."""
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
        found = ActionStatistics.of(data.taken_actions)
        varied = found.low < found.high if absolute else ~found.steady
        actions = np.where(varied, data.actions.astype(np.float64).clip(found.low, found.high), 0)
        if absolute:
            self._place = np.roll(actions, 1, 0)
            self._place[data.offsets] = np.nan
        else:
            total = np.cumsum(actions, 0)
            self._place = np.concatenate(
                [np.zeros_like(total[:1]), total[:-1]]
            )  # sum of the actions before each row

    def at(self, rows: np.ndarray) -> Tensor:
        """[B, T, a] displacement of each frame from the first one of its clip whose place is
        known, of the rows [B, T] of frames of one episode a clip; NaN where it is not known."""
        place = self._place[rows]
        known = np.isfinite(place).all(-1)  # [B, T]
        origin = place[np.arange(len(rows)), known.argmax(1)]
        return torch.from_numpy((place - origin[:, None]).astype(np.float32))
