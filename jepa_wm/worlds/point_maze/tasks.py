"""The goal task of the maze: come to a place that a picture shows, from a place anywhere in it.

E episodes, B worlds, N free cells. Positions are (x, y) in m."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.point_maze.maze import maze_of
from jepa_wm.worlds.point_maze.policies import shortest_way, straight_line
from jepa_wm.worlds.point_maze.world import PointMaze, PointMazeSettings
from jepa_wm.worlds.position_task import PositionTask
from jepa_wm.worlds.tasks import TASKS, Episodes, GoalPolicy, TaskSettings
from jepa_wm.worlds.world import World, WorldSettings


class PlaceInMaze(PositionTask):
    """Start and goal are places in free cells, the ball at rest, no nearer to each other than the
    radius and at least `min_cells` cells apart.

    Raises UserError for a maze that has no cells so far apart."""

    def __init__(self, settings: PointMazeTask, world: PointMazeSettings) -> None:
        super().__init__(settings, world)
        self.maze = maze_of(world.maze)
        farthest = int(self.maze.cell_steps.max())
        if settings.min_cells > farthest:
            raise UserError(
                f"evaluation.task.min_cells {settings.min_cells}: no two cells of the maze "
                f"{world.maze} are more than {farthest} apart; lower it"
            )
        if not self.radius < np.linalg.norm(self.maze.free.shape) / 2:
            raise UserError(
                f"evaluation.task.radius {self.radius:g} m does not fit the maze {world.maze}; "
                "lower it"
            )

    def sample(self, episodes: int, seed: int) -> Episodes:
        """Starts and goals, uniform over the pairs of cells that are far enough apart.

        Episode i depends on (settings, seed, i) alone. Raises ValueError for episodes < 1."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        pairs = np.argwhere(self.maze.cell_steps >= self.settings.min_cells)
        seeds = np.zeros(episodes, np.int64)
        places = np.zeros((episodes, 2, 2), np.float32)
        for i in range(episodes):
            r = np.random.default_rng([seed, i, 3])
            seeds[i] = r.integers(2**31)
            # Pairs of places that are too near are drawn again, cells and all.
            near = True
            while near:
                pair = pairs[r.integers(len(pairs))]
                places[i] = [self.maze.place(r, int(cell)) for cell in pair]
                near = self.distance(places[i, 0], places[i, 1]) < self.radius
        split, layout = np.array(["heldout"] * episodes), np.zeros((episodes, 0), np.float32)
        about = {
            "radius": self.radius,
            "min_cells": self.settings.min_cells,
            "world": self.world.model_dump(exclude={"exploration"}),
        }
        return Episodes(self.name, seed, about, seeds, split, layout, places[:, 0], places[:, 1])

    def begin(self, episodes: Episodes) -> PointMaze:
        """The balls at rest at their starts."""
        world = PointMaze(self.world)
        world.reset(episodes.seeds, start=_at_rest(episodes.start))
        return world

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> PointMaze:
        """The balls at rest at their goals."""
        world = PointMaze(self.world)
        world.reset(episodes.seeds, start=_at_rest(episodes.goal))
        return world

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., 2] where the ball is."""
        return state[..., :2]

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """A straight line to the goal, which knows no walls, and the shortest way through free
        cells."""
        return {"straight_line": self._straight_line, "shortest_way": self._shortest_way}

    def _straight_line(self, world: World, goal: np.ndarray) -> np.ndarray:
        return straight_line(world.state(), goal)

    def _shortest_way(self, world: World, goal: np.ndarray) -> np.ndarray:
        return shortest_way(self.maze, world.state(), goal)

    def simulate(self, world: World, times: int) -> PointMaze:
        """Copies in the same states."""
        copies = PointMaze(self.world)
        copies.place(np.repeat(world.state(), times, 0))
        return copies

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] m to go, through free cells; of what lies in a wall, from the nearest of them."""
        free = self.maze.nearest_free(state[:, :2])
        outside = np.linalg.norm(state[:, :2] - free, axis=1)
        length: np.ndarray = self.maze.way(free, goal)[1] + outside.astype(np.float32)
        return length


def _at_rest(position: np.ndarray) -> np.ndarray:
    """[E, 4] states."""
    return np.concatenate([position, np.zeros_like(position)], 1)


@TASKS.register("point_maze")
class PointMazeTask(TaskSettings):
    """Come to a place that a picture shows, anywhere in the maze."""

    name: Literal["point_maze"] = "point_maze"
    radius: float = Field(0.5, gt=0)  # m
    min_cells: int = Field(0, ge=0)  # from the cell of the start to that of the goal, at least

    def make(self, world: WorldSettings) -> PlaceInMaze:
        """The task in this maze."""
        assert isinstance(world, PointMazeSettings), "a world that names this task"
        return PlaceInMaze(self, world)
