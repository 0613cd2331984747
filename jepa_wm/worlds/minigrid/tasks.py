"""The goal task of MiniGrid: be in another cell, which an image shows with the agent in it; in
four rooms one of another room, with door and key one behind the door.

E episodes, B worlds, X state numbers, L of a layout, g cells a side. Positions are cells: x, y."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from jepa_wm.worlds.minigrid.layouts import AGENT, CARRIED, DIRECTION, KEY, KINDS, walls
from jepa_wm.worlds.minigrid.routes import at_pose, next_action, routes, straight_line, togo
from jepa_wm.worlds.minigrid.world import MiniGrid, MiniGridSettings
from jepa_wm.worlds.position_task import PositionTask
from jepa_wm.worlds.tasks import SPLITS, TASKS, Episodes, GoalPolicy, TaskSettings
from jepa_wm.worlds.world import World, WorldSettings

MEMORY = 2**28  # bytes of ways that are kept


class OtherCell(PositionTask):
    """Starts are whole states that a reset draws, goals are cells: which way the agent looks there
    does not matter.

    A goal image is what the shortest way from the start leaves: with a door, it is open and the
    key is carried."""

    def __init__(self, settings: MiniGridTask, world: MiniGridSettings) -> None:
        super().__init__(settings, world)
        self.env, self.grid, self.kind = world.env, world.cells, KINDS[world.env]
        self._ways: dict[bytes, np.ndarray] = {}  # [7, 4, g, g] of a state but for the agent

    def sample(self, episodes: int, seed: int) -> Episodes:
        """`episodes` on held-out layouts and then as many on training layouts.

        Episode i of a split depends on (world, seed, split, i) alone: a longer set holds the
        shorter one. Raises ValueError for episodes < 1."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        world = MiniGrid(self.world)
        parts = [self._of_split(world.of_split(split), episodes, seed) for split in SPLITS]
        arrays = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        about = {"radius": self.radius, "world": self.world.model_dump(exclude={"exploration"})}
        return Episodes(self.name, seed, about, *arrays)

    def _of_split(self, world: MiniGrid, episodes: int, seed: int) -> tuple[np.ndarray, ...]:
        """The arrays of episodes on layouts of the world's split."""
        assert world.split is not None
        number = SPLITS.index(world.split)
        generators = [np.random.default_rng([seed, i, 3, number]) for i in range(episodes)]
        seeds = np.array([r.integers(2**31) for r in generators], np.int64)
        world.reset(seeds)
        start = world.state()
        layout = start[:, self.kind.layout]
        goal = np.zeros((episodes, 2), np.float32)
        for i, free in enumerate(self._goals(start)):
            cells = np.argwhere(free)[:, ::-1]
            goal[i] = cells[generators[i].integers(len(cells))]
        return seeds, np.array([world.split] * episodes), layout, start, goal

    def _goals(self, start: np.ndarray) -> np.ndarray:
        """[E, g, g] bool: the cells that may be goals."""
        axis, layout = np.arange(self.grid), start[:, self.kind.layout]
        free = ~walls(self.env, self.grid, layout)
        if self.env == "door_key":
            return free & (axis > layout[:, :1])[:, None]
        # A gap is in no room; an agent that starts in one may go to any but the one to its left
        # or above.
        middle = self.grid // 2
        free[:, middle] = free[:, :, middle] = False
        x, y = start[:, AGENT].T
        same_x = (axis > middle) == (x > middle)[:, None]
        same_y = (axis > middle) == (y > middle)[:, None]
        return free & ~(same_y[:, :, None] & same_x[:, None])

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> World:
        """What the shortest ways from the starts lead to."""
        world = self.begin(episodes)
        # No way takes more actions than there are poses.
        for _ in range(4 * self.grid**2):
            if (self.position(world.state()) == episodes.goal).all():
                return world
            world.step(self._shortest(world, episodes.goal))
        raise ValueError("a goal of these episodes cannot be reached; freeze the tasks again")

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., 2] the agent's cell."""
        return state[..., AGENT]

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """The shortest way, which knows all, and a straight line, which knows no walls."""
        return {"shortest_way": self._shortest, "straight_line": self._straight}

    def _shortest(self, world: World, goal: np.ndarray) -> np.ndarray:
        state = world.state()
        return self._chosen(next_action(self._costs(state, goal), state, goal))

    def _straight(self, world: World, goal: np.ndarray) -> np.ndarray:
        return self._chosen(straight_line(world.state(), goal))

    def _chosen(self, numbers: np.ndarray) -> np.ndarray:
        """[B, n] one-hot of the package's numbers [B]."""
        choices = np.searchsorted(self.kind.actions, numbers)
        return np.eye(len(self.kind.actions), dtype=np.float32)[choices]

    def simulate(self, world: World, times: int) -> MiniGrid:
        """Copies by the package's own rules."""
        assert isinstance(world, MiniGrid), "the world of this task"
        return world.copies(times)

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] float32 actions to go, by the key and through the door where they are needed."""
        return togo(self._costs(state, goal), state, goal)

    def _costs(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B, 7] actions to go if the first is the package's of that number."""
        # Ways are the same wherever the agent is: they are looked for once.
        rest = np.concatenate([state, goal], 1).astype(np.float32)
        rest[:, AGENT], rest[:, DIRECTION] = 0, 0
        if self.env == "door_key":
            rest[state[:, CARRIED] == 1, KEY] = 0
        unique, first, inverse = np.unique(rest, axis=0, return_index=True, return_inverse=True)
        keys = [row.tobytes() for row in unique]
        if len(self._ways) * 7 * 4 * self.grid**2 * 4 > MEMORY:
            self._ways.clear()
        new = [i for i, key in enumerate(keys) if key not in self._ways]
        if new:
            rows = first[new]
            ways = routes(self.env, self.grid, state[rows], goal[rows])
            self._ways.update(zip((keys[i] for i in new), ways, strict=True))
        costs = np.stack([self._ways[key] for key in keys])
        return at_pose(costs, state, inverse.reshape(-1))


@TASKS.register("minigrid")
class MiniGridTask(TaskSettings):
    """Reach the cell in which the goal image shows the agent."""

    name: Literal["minigrid"] = "minigrid"
    radius: float = Field(0.5, gt=0, le=1)  # cells: nearer than this is the same cell

    def make(self, world: WorldSettings) -> OtherCell:
        """The task in four rooms, or with door and key."""
        assert isinstance(world, MiniGridSettings), "a world that names this task"
        return OtherCell(self, world)
