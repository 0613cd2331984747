"""Windows of frames and action blocks for dynamics, model steps up to an episode's end for heads,
spans for the temporal distance, goals for the policy, as pure functions of (seed, step).

Every start in a file is as likely as any other, so a long episode counts by its frames; a span is
drawn around a frame that is.
B windows, T frames, H model steps, k frameskip, A = action size a x k.
"""

from __future__ import annotations

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.sampling import EvenDraw, leave_out_short
from jepa_wm.data.trajectories import Trajectories

# Of the goals that values are trained with: the start itself, one later in the episode; the rest
# is of anywhere (as in OGBench, Park et al., 2025).
VALUE_GOALS = (0.2, 0.5)


class WindowSampler:
    """Draws windows of T frames, `frameskip` environment steps apart, starting at multiples of
    `stride`.

    Episodes that are too short for one are left out, which is said; UserError where none is left.
    `setting` names what asks for so many frames."""

    def __init__(
        self, data: Trajectories, *, frames: int, frameskip: int, stride: int, seed: int,
        setting: str = "train.dynamics.frames",
    ) -> None:  # fmt: skip
        self.span = (frames - 1) * frameskip
        purpose = f"{setting} {frames} at dynamics.frameskip {frameskip}"
        leave_out_short(data.path, data.lengths, self.span + 1, purpose)
        self.data, self.frames, self.frameskip = data, frames, frameskip
        self.stride, self.seed = stride, seed
        self._starts = EvenDraw(np.maximum((data.lengths - 1 - self.span) // stride + 1, 0))

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B, T], frame [B, T], action blocks [B, T-1, A]) of batch `step`."""
        r = np.random.default_rng([self.seed, 4, step])
        episode, start = self._starts.at(r.random(batch))
        return self.at(episode, start * self.stride)

    def elsewhere(self, step: int, episode: np.ndarray, *, count: int = 1) -> np.ndarray:
        """[B, count] frames from anywhere in the episodes [B] of batch `step`, at multiples of
        `stride`."""
        return self._any_of(13, step, self.data.lengths[episode] - 1, count)

    def up_to(self, step: int, last: np.ndarray, *, count: int = 1) -> np.ndarray:
        """[B, count] frames of batch `step` at multiples of `stride`, from the episode's first to
        frame `last` [B]."""
        return self._any_of(14, step, last, count)

    def _any_of(self, stream: int, step: int, last: np.ndarray, count: int) -> np.ndarray:
        r, frames = np.random.default_rng([self.seed, stream, step]), last // self.stride + 1
        return (r.random((len(last), count)) * frames[:, None]).astype(np.int64) * self.stride

    def at(
        self, episode: np.ndarray, first: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows of `episode` [B] that begin at frame `first` [B]."""
        frame = first[:, None] + self.frameskip * np.arange(self.frames)
        rows = (self.data.offsets[episode] + first)[:, None] + np.arange(self.span)
        blocks = self.data.actions[rows].reshape(len(episode), self.frames - 1, -1)
        return np.repeat(episode[:, None], self.frames, 1), frame, blocks


class SpanSampler:
    """Draws T frames, at multiples of `stride`, from a span of an episode: around any frame of it
    and of any length from T frames on, so that near and far pairs of frames are among them, none
    twice; of an episode that has fewer all frames, some of them more than once. UserError where no
    episode has two."""

    def __init__(self, data: Trajectories, *, frames: int, stride: int, seed: int) -> None:
        self.data, self.frames, self.stride, self.seed = data, frames, stride, seed
        purpose = f"a pair of frames at features.stride {stride}"
        leave_out_short(data.path, data.lengths, stride + 1, purpose)
        self._starts = EvenDraw((data.lengths - 1) // stride)

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(episode [B], frames [B, T] in the order of time) of batch `step`."""
        r = np.random.default_rng([self.seed, 5, step])
        episode, _ = self._starts.at(r.random(batch))
        count = (self.data.lengths[episode] - 1) // self.stride + 1
        # The span's length evenly on a logarithmic scale; its place around a frame drawn evenly,
        # so that the ends of an episode count as well.
        least = np.minimum(self.frames, count)
        length = (least * (count / least) ** r.random(batch) + 0.5).astype(np.int64)
        within = (r.random(batch) * count).astype(np.int64)
        low, high = np.maximum(0, within - length + 1), np.minimum(within, count - length)
        first = low + (r.random(batch) * (high - low + 1)).astype(np.int64)

        # Its ends, and one frame of each of equal parts of what lies between.
        bound = 1 + np.arange(self.frames - 1) * (length[:, None] - 2) // max(self.frames - 2, 1)
        part = (r.random((batch, self.frames - 2)) * np.diff(bound)).astype(np.int64)
        frame = np.zeros((batch, self.frames), np.int64)
        frame[:, 1:-1], frame[:, -1] = bound[:, :-1] + part, length - 1
        few = np.linspace(0, length - 1, self.frames, axis=1).round().astype(np.int64)
        frame = np.where(length[:, None] < self.frames, few, frame)
        return episode, (first[:, None] + frame) * self.stride


class GoalSampler:
    """Draws a frame, a later one of the same episode as the goal, and the action blocks taken from
    the former on."""

    def __init__(
        self, data: Trajectories, *, steps: int, frameskip: int, stride: int, seed: int
    ) -> None:
        purpose = f"a goal at dynamics.frameskip {frameskip}"
        leave_out_short(data.path, data.lengths, frameskip + 1, purpose)
        self.data, self.steps, self.frameskip = data, steps, frameskip
        self.stride, self.seed = stride, seed
        self._starts = EvenDraw(np.maximum((data.lengths - 1 - frameskip) // stride + 1, 0))
        self._frames = EvenDraw(-(-data.lengths // stride))

    def batch(
        self, step: int, batch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], frames [2, B], blocks [B, H, A], counts [B, H]) of batch `step`.

        The goal lies any number of model steps later; `counts` is 1 for blocks taken before it was
        reached."""
        r = np.random.default_rng([self.seed, 8, step])
        episode, start = self._starts.at(r.random(batch))
        first, last = start * self.stride, self.data.lengths[episode] - 1
        # Model steps; near goals more often, as a way there says more about the next action than
        # about the last.
        gap = 1 + (r.random(batch) ** 2 * ((last - first) // self.frameskip)).astype(np.int64)
        after = np.minimum(first[:, None] + np.arange(self.steps * self.frameskip), last[:, None])
        rows = self.data.offsets[episode][:, None] + after
        blocks = self.data.actions[rows].reshape(batch, self.steps, -1)
        counts = (np.arange(self.steps) < gap[:, None]).astype(np.float32)
        return episode, np.stack([first, first + gap * self.frameskip]), blocks, counts

    def value_goals(
        self, step: int, episode: np.ndarray, frames: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(episode [B], frame [B]) of goals that values are trained with, for the `episode` [B]
        and `frames` [2, B] of batch `step`: by the shares of VALUE_GOALS the start itself, the
        goal, or any frame of the file at a multiple of `stride`."""
        r = np.random.default_rng([self.seed, 18, step])
        kind, (elsewhere, number) = r.random(len(episode)), self._frames.at(r.random(len(episode)))
        here, later = kind < VALUE_GOALS[0], kind < VALUE_GOALS[0] + VALUE_GOALS[1]
        goal = np.where(here, frames[0], np.where(later, frames[1], number * self.stride))
        return np.where(here | later, episode, elsewhere), goal


class StepSampler:
    """Draws a frame and the model step that begins there; the last one of an episode may be cut by
    its end.

    `taken` [E] says how many actions of each episode count, from its first on, and `ended` [E]
    whether the last of them ended it. A step that such an end cuts is drawn as any other, and its
    actions after the end, which were never taken, are those of steps elsewhere in the file: an
    agent's plan goes on past an end that it does not know of, and whatever marked these actions
    would tell what they cannot know. A step that is cut where the recording merely stops is left
    out, since nobody knows how it went on."""

    def __init__(
        self, data: Trajectories, *, taken: np.ndarray, ended: np.ndarray, frameskip: int,
        stride: int, seed: int,
    ) -> None:  # fmt: skip
        self.data, self.taken, self.ended = data, taken, ended
        self.frameskip, self.stride, self.seed = frameskip, stride, seed
        cut, whole = -(-taken // stride), np.maximum((taken - frameskip) // stride + 1, 0)
        self._starts, self._whole = EvenDraw(np.where(ended, cut, whole)), EvenDraw(whole)
        if not self._starts.total or not self._whole.total:
            raise UserError(
                f"{data.path}: no episode has a whole model step of dynamics.frameskip "
                f"{frameskip} actions; lower it, or give longer episodes"
            )

    def batch(
        self, step: int, batch: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(episode [B], frame [B], rows of its actions [B, k], which of them were taken [B, k],
        blocks [B, A]) of batch `step`; the rows of actions that were not taken repeat the last one
        that was."""
        r = np.random.default_rng([self.seed, 15, step])
        episode, start = self._starts.at(r.random(batch))
        number = (start * self.stride)[:, None] + np.arange(self.frameskip)
        last = self.taken[episode][:, None] - 1
        rows = self.data.offsets[episode][:, None] + np.minimum(number, last)
        taken = number <= last

        # For actions that were never taken, those of whole steps elsewhere.
        elsewhere, begin = self._whole.at(r.random(batch))
        first = self.data.offsets[elsewhere] + begin * self.stride
        instead = first[:, None] + np.arange(self.frameskip)
        blocks = self.data.actions[np.where(taken, rows, instead)].reshape(batch, -1)
        return episode, start * self.stride, rows, taken, blocks


class FrameSampler:
    """Draws single frames at multiples of `stride`."""

    def __init__(self, data: Trajectories, *, stride: int, seed: int) -> None:
        self.stride, self.seed = stride, seed
        self._starts = EvenDraw(-(-data.lengths // stride))

    def batch(self, step: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """(episode [B], frame [B]) of batch `step`."""
        r = np.random.default_rng([self.seed, 16, step])
        episode, number = self._starts.at(r.random(batch))
        return episode, number * self.stride


def usual_steps(lengths: np.ndarray, frameskip: int) -> int:
    """Model steps that at least half of the episodes of `lengths` [E] frames hold, never fewer
    than one.

    For what reads windows of one length in all episodes: a single short one shall not shorten
    them all."""
    return max(1, int(np.sort(lengths)[len(lengths) // 2] - 1) // frameskip)
