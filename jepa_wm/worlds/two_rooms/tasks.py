"""Goal tasks of two rooms: reach a place in the other room, through a door that is somewhere else
in every layout.

E episodes, B worlds. Positions are (x, y) in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.position_task import PositionTask
from jepa_wm.worlds.tasks import SPLITS, TASKS, Episodes, GoalPolicy, TaskSettings
from jepa_wm.worlds.two_rooms.policies import straight_line, way_to_go
from jepa_wm.worlds.two_rooms.rooms import Geometry
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings
from jepa_wm.worlds.world import World, WorldSettings

GOAL_NOISE = 10**9  # goal images have a distraction of their own


class OtherRoom(PositionTask):
    """Start and goal are uniform in opposite rooms, no nearer to each other than the radius. A
    task in other rooms overrides how rooms are drawn and what the way is.

    Raises UserError for a radius that rooms of this geometry cannot keep."""

    def __init__(self, settings: Any, world: Any) -> None:
        super().__init__(settings, world)
        g = world.geometry
        if not self.radius < (g.high - g.low) / 2:
            raise UserError(
                f"evaluation.task.radius {self.radius:g} px does not fit rooms of {g.size} px; "
                "lower it"
            )

    def sample(self, episodes: int, seed: int) -> Episodes:
        """`episodes` on held-out layouts and then as many on training layouts.

        Episode i of a split depends on (task, geometry, radius, seed, split, i) alone: a longer
        set holds the shorter one. Raises ValueError for episodes < 1, UserError for a geometry
        with too few layouts to hold some out."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        world = self.world.make()
        parts = [self._of_split(world.of_split(split), episodes, seed) for split in SPLITS]
        arrays = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
        return Episodes(self.name, seed, self._about(), *arrays)

    def _about(self) -> dict[str, Any]:
        """What else a set is drawn for."""
        return {"radius": self.radius, "geometry": self.world.geometry.model_dump()}

    def _of_split(self, world: Any, episodes: int, seed: int) -> tuple[np.ndarray, ...]:
        """The arrays of episodes on layouts of the world's split."""
        number = SPLITS.index(world.split)
        generators = [np.random.default_rng([seed, i, 3, number]) for i in range(episodes)]
        seeds = np.array([r.integers(2**31) for r in generators], np.int64)
        here, there = self._rooms(generators)
        world.reset(seeds)
        start = world.uniform_position(generators, here)
        goal = world.uniform_position(generators, there)
        # Pairs that are too near are drawn again. Every generator moves on, but only the near
        # pairs read theirs.
        while (near := np.linalg.norm(start - goal, axis=1) < self.radius).any():
            redrawn = world.uniform_position(generators, here)
            start = np.where(near[:, None], redrawn, start)
            redrawn = world.uniform_position(generators, there)
            goal = np.where(near[:, None], redrawn, goal)
        return seeds, np.array([world.split] * episodes), world.layout, start, goal

    def _rooms(self, generators: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """[E] rooms of the starts and [E] of the goals: whether each is the right one."""
        right = np.array([r.random() < 0.5 for r in generators])
        return right, ~right

    def begin(self, episodes: Episodes) -> World:
        """The worlds at their starts."""
        world = self.world.make()
        world.reset(episodes.seeds, start=episodes.start, layout=episodes.layout)
        begun: World = world
        return begun

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> World:
        """The same layouts with the agents at their goals."""
        world = (self.world.clean() if clean else self.world).make()
        world.reset(
            episodes.seeds,
            start=episodes.goal,
            layout=episodes.layout,
            noise_seeds=episodes.seeds + GOAL_NOISE,
        )
        begun: World = world
        return begun

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., 2] where the agent is."""
        return state[..., :2]

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """A straight line to the goal, which knows where it is but no walls."""
        return {"straight_line": self._straight_line}

    def _straight_line(self, world: World, goal: np.ndarray) -> np.ndarray:
        return straight_line(world.state(), goal, self.world.geometry)

    def simulate(self, world: World, times: int) -> World:
        """Copies that move as the rooms do, without chance."""
        copies = self.world.clean().make()
        copies.place(np.repeat(world.state(), times, 0))
        placed: World = copies
        return placed

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] px to walk, through the door where it is needed."""
        return way_to_go(state, goal)

    def axes(self, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """(xs, ys) [grid] where the agent may be."""
        axis = np.linspace(self.world.geometry.low, self.world.geometry.high, grid)
        return axis, axis

    def pictures(self, episodes: Episodes, positions: np.ndarray) -> np.ndarray:
        """[n, h, w, 3] uint8: the layout of the only episode with the agent at positions
        [n, 2]."""
        world, count = self.world.make(), len(positions)
        world.reset(
            np.repeat(episodes.seeds, count),
            start=positions,
            layout=np.repeat(episodes.layout, count, 0),
            noise_seeds=np.arange(count),
        )
        images: np.ndarray = world.render()
        return images


@TASKS.register("two_rooms")
class TwoRoomsTask(TaskSettings):
    """Reach a place in the other room, walls and doors as the world has them."""

    name: Literal["two_rooms", "wall"] = "two_rooms"
    radius: float = Field(4.5, gt=0)  # px
    strict_radius: float | None = Field(1.41, gt=0)  # px, PLDM's rule, reported beside

    def make(self, world: WorldSettings) -> OtherRoom:
        """The task in two rooms."""
        assert isinstance(world, TwoRoomsSettings), "a world that names this task"
        return OtherRoom(self, world.model_copy(update={"geometry": self.geometry(world)}))

    def geometry(self, world: TwoRoomsSettings) -> Geometry:
        """Of the rooms that the task is set in."""
        return world.geometry


@TASKS.register("wall")
class WallTask(TwoRoomsTask):
    """The same in DINO-WM's setting: the wall fixed at x = 32, doors of +-4 px, next = position +
    2 * action."""

    name: Literal["wall"] = "wall"

    def geometry(self, world: TwoRoomsSettings) -> Geometry:
        """Of the world, but for what DINO-WM sets."""
        fixed = {"fixed_wall": 32, "door_half": 4.0, "action_scale": 2.0}
        return world.geometry.model_copy(update=fixed)
