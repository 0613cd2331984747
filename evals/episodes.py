"""Closed-loop episodes, toward goals and for reward: one player, an agent as its policy, finished
chunks that are kept, and what a model must beat in goal tasks: random actions and the task's
scripted policies.

B episodes, T environment steps, J decisions, I solver iterations, S plan samples, H horizon, X
state numbers, P numbers of a position, A action numbers, h and w frame height and width."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import StopFlag, UserError, catching_signals
from jepa_wm.core.files import written_whole
from jepa_wm.core.progress import Progress
from jepa_wm.data.held_out import TRAINING
from jepa_wm.evals.scores import success
from jepa_wm.planning.agent import Agent
from jepa_wm.world_model.proprio import proprio_columns
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import Episodes, GoalPolicy, ShowsGoals, Task
from jepa_wm.worlds.world import Rewarding, Split, World

# what folders and keys of the episodes of a split end in
SUFFIXES: dict[Split, str] = {"heldout": "", "train": TRAINING}
CHUNK = 25  # episodes played together, and the most that an interrupt can cost

Act = Callable[[World], np.ndarray]  # the worlds as they stand to actions [B, k, A]


@dataclass(frozen=True)
class Track:
    """What happened in a batch of episodes."""

    state: np.ndarray  # [B, T+1, X] at every environment step; X = 0 where the world has none
    reward: np.ndarray  # [B, T] float32; 0 where the world has none
    decision_steps: np.ndarray  # [J+1] steps taken at each decision and at the end

    @property
    def returns(self) -> np.ndarray:
        """[B] float64 sums of the rewards, added up step by step."""
        total: np.ndarray = np.add.reduce(self.reward.T, axis=0, dtype=np.float64)
        return total


def play(
    world: World,
    act: Act,
    *,
    budget: int,
    observe: Callable[[World], None] | None = None,
    every: int = 1,
) -> Track:
    """Let `act` meet the worlds, which must be reset, and answer with actions for k steps, until
    `budget` steps are taken.

    `observe`, such as an agent's, meets them after each `every` of the k steps but the last, of a
    plan that is longer."""
    states, rewards, decisions = [world.state()], [], [0]
    taken = 0
    while taken < budget:
        actions = np.moveaxis(act(world), 1, 0)[: budget - taken]
        for number, action in enumerate(actions, 1):
            world.step(action)
            states.append(world.state())
            rewards.append(_reward(world))
            taken += 1
            # The frame after the last action of a plan is the one that the next decision sees.
            between = number < len(actions) and number % every == 0
            if observe is not None and between:
                observe(world)
        decisions.append(taken)
    return Track(np.stack(states, 1), np.stack(rewards, 1), np.array(decisions))


def _reward(world: World) -> np.ndarray:
    if isinstance(world, Rewarding) and world.has_reward:
        return world.reward()
    return np.zeros(len(world), np.float32)


class AgentPolicy:
    """An agent as a policy of `play`, which keeps what it was shown, how its searches went and how
    long they took.

    `watch`, if given, is told before each decision how many steps are planned so far; `filmed` is
    of how many episodes frames are kept, None: of all."""

    def __init__(
        self,
        agent: Agent,
        *,
        watch: Callable[[int], None] | None = None,
        filmed: int | None = None,
    ) -> None:
        self.agent, self.watch, self.filmed = agent, watch, filmed
        self.frames: list[np.ndarray] = []  # [B or filmed, h, w, 3] at each decision
        self.seconds: list[float] = []  # of each decision
        self.traces: list[np.ndarray] = []  # [B, I] cost of the best plan after each iteration
        self._planned = 0

    def __call__(self, world: World) -> np.ndarray:
        """[B, k, A] actions for the worlds as they stand."""
        if self.watch is not None:
            self.watch(self._planned)
        frames = world.render()
        self._film(frames)
        began = time.monotonic()
        actions = self.agent.act(frames)
        self.seconds.append(time.monotonic() - began)
        assert self.agent.mpc.last is not None
        self.traces.append(self.agent.mpc.last.trace.numpy())
        self._planned += actions.shape[1]
        return actions

    def play(self, world: World, *, budget: int, every: int) -> Track:
        """A whole batch of episodes, their last frames filmed too."""
        track = play(world, self, budget=budget, observe=self.observe, every=every)
        self._film(world.render())
        return track

    def observe(self, world: World) -> None:
        """Show the agent a frame between two decisions."""
        self.agent.observe(world.render())

    def _film(self, frames: np.ndarray) -> None:
        self.frames.append(frames if self.filmed is None else frames[: self.filmed].copy())


class Watch:
    """Stops at a signal and moves the progress bar while a chunk of episodes is played."""

    def __init__(self, stop: StopFlag, bar: Progress, first: int, count: int, budget: int) -> None:
        self.stop, self.bar = stop, bar
        self.first, self.count, self.budget = first, count, budget

    def __call__(self, taken: int) -> None:
        """`taken` of the budget's steps are planned."""
        self.stop.raise_if_requested()
        self.bar.update(self.first + self.count * taken // self.budget)


PlayRows = Callable[[int, int, Watch], Mapping[str, Any]]  # first, last -> arrays


def play_in_chunks(
    folder: Path,
    rows: range,
    play_rows: PlayRows,
    *,
    keys: tuple[str, ...],
    label: str,
    budget: int,
    together: int = CHUNK,
) -> dict[str, np.ndarray]:
    """The arrays `keys` of episodes `rows`, `together` at a time; each finished chunk is kept in a
    file that is named by its first episode, so an interrupt costs at most one.

    Chunks that others have played of them, of whatever size, are not played again."""
    folder.mkdir(parents=True, exist_ok=True)
    first = rows.start
    with catching_signals() as stop, Progress(label, len(rows)) as bar:
        while first < rows.stop:
            file = folder / f"{first:05d}.npz"
            if not file.exists():
                starts = (int(chunk.stem) for chunk in folder.glob("*[0-9].npz"))
                last = min(
                    first + together, rows.stop, *(start for start in starts if start > first)
                )
                watch = Watch(stop, bar, first - rows.start, last - first, budget)
                played = dict(play_rows(first, last, watch))
                with written_whole(file) as temporary:
                    np.savez_compressed(temporary, **played)
            with np.load(file) as stored:
                first += len(stored[keys[0]])
            bar.update(first - rows.start)
    return read_chunks(folder, rows, keys)


def read_chunks(folder: Path, rows: range, keys: tuple[str, ...]) -> dict[str, np.ndarray]:
    """The arrays `keys` of the chunks there from episode `rows.start` on, until all of `rows` are
    read; UserError where one is missing."""
    first, parts = rows.start, []
    while first < rows.stop:
        file = folder / f"{first:05d}.npz"
        if not file.exists():
            raise UserError(
                f"{file}: is not there, so the outcomes of single tasks are not known; plan again"
            )
        with np.load(file) as stored:
            parts.append({key: stored[key] for key in keys})
        first += len(parts[-1][keys[0]])
    return {key: np.concatenate([part[key] for part in parts]) for key in keys}


def shard_of(count: int, shard: int, shards: int) -> range:
    """The episodes of one of `shards` equal parts."""
    return range(count * shard // shards, count * (shard + 1) // shards)


def showing_goals(task: Task) -> ShowsGoals:
    """The task, whose goals carry proprioception; UserError for one whose goals are images
    alone."""
    if not isinstance(task, ShowsGoals):
        raise UserError(
            f"planner.cost.proprio: the goals of the task {task.name} are images alone, which "
            "carry no proprioception; set planner.cost.proprio=0"
        )
    return task


def goal_proprio(model: WorldModel, task: Task, episodes: Episodes) -> np.ndarray:
    """[B, P] the numbers of the goals' states that the model's latent names; no other reaches an
    agent. UserError as `showing_goals`."""
    world = showing_goals(task).at_goals(episodes)
    columns = proprio_columns(model, world)
    assert columns is not None, "check_cost refuses it"
    return columns.read(world.state())


def baselines(task: Task, episodes: Episodes, *, budget: int, repeat: int) -> dict[str, object]:
    """Success of random actions, each repeated `repeat` steps, and of the task's own baselines;
    that of a random encoder is left for `demo` to fill in."""
    random = UniformActions(episodes.seed, repeat)
    measured: dict[str, object] = {"random": _success(task, episodes, random, budget)}
    for name, policy in task.baselines().items():
        act = partial(_scripted, policy, episodes.goal)
        measured[name] = _success(task, episodes, act, budget)
    return {**measured, "random_encoder": None}


def _success(
    task: Task, episodes: Episodes, act: Act, budget: int
) -> dict[str, float | int | str]:
    return success(distances_of(task, episodes, act, budget=budget), task)


def distances_of(task: Task, episodes: Episodes, act: Act, *, budget: int) -> np.ndarray:
    """[B, T+1] to the goal in episodes that `act` plays."""
    track = play(task.begin(episodes), act, budget=budget)
    return task.distance(task.position(track.state), episodes.goal[:, None])


def _scripted(policy: GoalPolicy, goal: np.ndarray, world: World) -> np.ndarray:
    return policy(world, goal)[:, None]


class UniformActions:
    """Uniformly drawn actions, each repeated; of a choice the largest number wins."""

    def __init__(self, seed: int, repeat: int) -> None:
        self.repeat = repeat
        self._generator = np.random.default_rng([seed, 7])

    def __call__(self, world: World) -> np.ndarray:
        """[B, repeat, A]."""
        low, high = world.action_space.low, world.action_space.high
        action = self._generator.uniform(low, high, (len(world), len(low))).astype(np.float32)
        return np.repeat(action[:, None], self.repeat, 1)
