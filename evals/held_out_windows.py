"""Windows of held-out trajectories in which plans are judged without a simulator, the chunks of
actions that the recorded one is ranked among, and the space that recorded actions span.

E episodes, W windows, C frames seen, H horizon, K candidate chunks, k frameskip, a numbers of an
action, A = k * a of a model step, P numbers of proprioception."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.core.scaling import ActionStatistics
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import WindowSampler
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace, Space
from jepa_wm.planning.agent import Agent
from jepa_wm.world_model.latents import Recording
from jepa_wm.world_model.world_model import WorldModel

CANDIDATES = 32  # chunks that the recorded one is ranked among, itself included


class HeldOutWindows:
    """Windows of one file, drawn by (seed, row): an agent sees C frames, a model step apart, and
    the goal is the frame H model steps after the last of them. A longer set holds the shorter.

    UserError where no episode is long enough, and where no other window is left to compare
    with."""

    def __init__(
        self, data: Trajectories, model: WorldModel, *, horizon: int, count: int, seed: int
    ) -> None:
        self.data, self.seed, self.frameskip = data, seed, model.frameskip
        self.seen, self.reach = model.context_frames, horizon * model.frameskip
        self.recording = Recording(data, model.latent_model)
        self._sampler = WindowSampler(
            data, frames=self.seen + horizon, frameskip=model.frameskip, stride=1, seed=0,
            setting="eval offline: dynamics.context_frames + planner.mpc.horizon",
        )  # fmt: skip
        self._starts = np.maximum(data.lengths - self._sampler.span, 0)  # [E]
        self.episode, self.first = draw_windows(self._starts, count, seed)  # [W] each

        # A window in the middle of the only episode may have no chunk to be compared with.
        spare = np.array(
            [len(self._apart(row)) + self._elsewhere(row) for row in range(len(self))]
        )
        self.episode, self.first = self.episode[spare > 0], self.first[spare > 0]
        spare = spare[spare > 0]
        streams = ([seed, row, 23] for row in range(len(self)))
        self.seeds = [int(np.random.default_rng(s).integers(2**31)) for s in streams]

        # As many other chunks for all windows, so that all have the same chance.
        if not len(spare):
            raise UserError(
                f"{data.path}: has no second chunk of planner.mpc.horizon model steps to compare "
                "a recorded one with; give more or longer held-out episodes, or lower "
                "planner.mpc.horizon"
            )
        self.candidates = min(CANDIDATES, 1 + int(spare.min()))

    def __len__(self) -> int:
        return len(self.episode)

    def frames(self, rows: range, step: int) -> np.ndarray:
        """[W, h, w, c] uint8 frame number `step` of windows, counted in model steps."""
        shown: np.ndarray = self.data.frames[self._at(rows, step)]
        return shown

    def proprio(self, rows: range, step: int) -> np.ndarray | None:
        """[W, P] the proprioception of such frames; None: the latent asks for none."""
        read = self.recording.at_rows(self._at(rows, step))
        return None if read is None else read.numpy()

    def goals(self, rows: range) -> np.ndarray:
        """[W, h, w, c] uint8 the goal images."""
        return self.frames(rows, self.goal_step)

    @property
    def goal_step(self) -> int:
        """The number of the frame that is the goal."""
        return self.seen - 1 + self.reach // self.frameskip

    def blocks(self, rows: range) -> tuple[Tensor, Tensor]:
        """(the action blocks [W, C-1, A] between the frames seen, the recorded chunks [W, H,
        A])."""
        blocks = self._blocks(self.episode[rows], self.first[rows])
        return blocks[:, : self.seen - 1], blocks[:, self.seen - 1 :]

    def alternatives(self, rows: range) -> tuple[Tensor, np.ndarray]:
        """(the chunks [W, K-1, H, A] of other windows, which of them [W, K-1] are of the same
        episode): up to half of them, none of which shares an action with the recorded one."""
        drawn = [self._drawn(row) for row in rows]
        episode, first = (np.concatenate([each[i] for each in drawn]) for i in range(2))
        chunks = self._blocks(episode, first)[:, self.seen - 1 :]
        same = episode.reshape(len(rows), -1) == self.episode[rows][:, None]
        return chunks.unflatten(0, (len(rows), -1)), same

    def _at(self, rows: range, step: int) -> np.ndarray:
        """[W] rows of the file."""
        first: np.ndarray = self.data.offsets[self.episode[rows]] + self.first[rows]
        return first + step * self.frameskip

    def _blocks(self, episode: np.ndarray, first: np.ndarray) -> Tensor:
        return self.recording.blocks(*self._sampler.at(episode, first))

    def _apart(self, row: int) -> np.ndarray:
        """Starts in the episode of a window whose chunks share no action with its own."""
        starts = np.arange(self._starts[self.episode[row]])
        return starts[np.abs(starts - self.first[row]) >= self.reach]

    def _elsewhere(self, row: int) -> int:
        """How many windows the other episodes have."""
        return int(self._starts.sum() - self._starts[self.episode[row]])

    def _drawn(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(episode [K-1], first frame [K-1]) of the windows whose chunks a window's is ranked
        among."""
        r = np.random.default_rng([self.seed, row, 24])
        episode, apart, count = self.episode[row], self._apart(row), self.candidates - 1
        near = min(len(apart), max(count // 2, count - self._elsewhere(row)))

        # The windows of other episodes are counted as if this one had none.
        starts = self._starts.copy()
        starts[episode] = 0
        last = starts.cumsum()
        number = r.choice(last[-1], count - near, replace=False) if count > near else apart[:0]
        other = np.searchsorted(last, number, side="right")
        first = number - (last[other] - starts[other])
        own = r.choice(apart, near, replace=False) if near else apart[:0]
        return np.append(np.full(near, episode), other), np.append(own, first)


def draw_windows(starts: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(episode, number of the start in it), [W] each, of `count` windows, or of all there are, for
    the numbers of starts [E]: one of each episode in turn, none twice."""
    order = np.random.default_rng([seed, 21]).permutation(np.flatnonzero(starts))
    within: dict[int, np.ndarray] = {}

    def turns() -> Iterator[tuple[int, int]]:
        for turn in range(int(starts.max())):
            for episode in order[starts[order] > turn].tolist():
                if episode not in within:
                    r = np.random.default_rng([seed, 22, episode])
                    within[episode] = r.permutation(starts[episode])
                yield episode, int(within[episode][turn])

    drawn = np.array([pair for pair, _ in zip(turns(), range(count), strict=False)])
    return drawn[:, 0], drawn[:, 1]


class RecordedActions:
    """The unit of recorded actions and the space that they span, of training trajectories: each
    number's usual range, or the choices where every action is one-hot.

    UserError for actions that never vary, and for held-out ones that are none of theirs."""

    def __init__(self, train: Recording, heldout: Recording) -> None:
        self.taken, self.data = train.taken_actions(), train.data  # [n, a]
        # What proprioception says was done is a change, whatever the file calls its actions.
        changes = train.model.settings.dynamics.acts_by_proprio
        self.absolute = self.data.action_kind == "absolute" and not changes
        held = heldout.taken_actions()
        if held.shape[1] != self.taken.shape[1]:
            raise UserError(
                f"{heldout.data.path}: has actions of {held.shape[1]} numbers, those that the "
                f"model was trained on have {self.taken.shape[1]}; name a recording of the same "
                "actions in evaluation.task.path"
            )
        self.discrete = is_one_hot(self.taken)
        if self.discrete and not is_one_hot(held):
            raise UserError(
                f"{heldout.data.path}: has actions that are no choices, as those that the model "
                "was trained on are; name a recording of the same actions in evaluation.task.path"
            )
        units = ActionStatistics.of(self.taken)
        self.mean, self.scale = units.centre, units.scale  # [a] each
        # The bounds of the statistics lie a range farther out on either side.
        width = (units.high - units.low) / 3
        self.low, self.high = units.low + width, units.high - width
        self.varied = units.low < units.high
        if not self.varied.any():
            raise UserError(
                f"{self.data.path}: its actions never vary, so there is nothing to plan; give "
                "trajectories with the actions that were taken"
            )

    def space(self, frameskip: int, *, action_repeat: bool) -> Space:
        """What is searched; doing nothing is 0, where that lies inside the range of every number
        that varied."""
        size = len(self.mean)
        if self.discrete:
            return DiscreteSpace.of_block(size, block=frameskip, action_repeat=action_repeat)
        absolute = self.absolute
        inside = (self.low < 0) & (self.high > 0)
        known = not absolute and bool((inside | ~self.varied).all())
        return ActionSpace.of_block(
            self.low.tolist(), self.high.tolist(), block=frameskip, action_repeat=action_repeat,
            idle=np.where(inside, 0, self.low).tolist() if known else None, absolute=absolute,
        )  # fmt: skip

    def usual(self) -> np.ndarray:
        """[a] the mean action, of choices the most frequent."""
        if not self.discrete:
            return self.mean
        return np.eye(len(self.mean))[self.taken.sum(0).argmax()]

    def error(self, action: Tensor, recorded: Tensor) -> Tensor:
        """[...] how far actions [..., a] are from recorded ones (they broadcast): the mean
        absolute difference of the numbers that varied, each in its spread; of choices 0 where
        both are the same, else 1."""
        if self.discrete:
            return (action.argmax(-1) != recorded.argmax(-1)).double()
        varied = torch.from_numpy(self.varied)
        return ((action - recorded).abs() / torch.from_numpy(self.scale))[..., varied].mean(-1)


def is_one_hot(actions: np.ndarray) -> bool:
    """Whether all actions [n, a] are choices: one number 1, of two or more, the others 0."""
    ones = (actions == 1).sum(1) == 1
    return actions.shape[1] > 1 and bool(ones.all() and ((actions == 0) | (actions == 1)).all())


class Replay:
    """What an agent is shown of windows, as if it had acted as was recorded until the last frame
    seen; its `proprio` is of the frame that is shown."""

    def __init__(self, windows: HeldOutWindows, rows: range) -> None:
        self.windows, self.rows, self.step = windows, rows, 0

    def proprio(self) -> np.ndarray:
        """[W, P]."""
        read = self.windows.proprio(self.rows, self.step)
        assert read is not None
        return read

    def act(self, agent: Agent, *, goal_proprio: bool) -> None:
        """Have the agent plan from the last frame seen toward the goal images, which carry their
        proprioception or not."""
        carried = self.windows.proprio(self.rows, self.windows.goal_step) if goal_proprio else None
        seeds = [self.windows.seeds[row] for row in self.rows]
        agent.reset(self.windows.goals(self.rows), seeds, goal_proprio=carried)
        past, _ = self.windows.blocks(self.rows)
        for self.step, block in enumerate(past.unbind(1)):
            agent.follow(self.windows.frames(self.rows, self.step), block)
        self.step = self.windows.seen - 1
        agent.act(self.windows.frames(self.rows, self.step))
