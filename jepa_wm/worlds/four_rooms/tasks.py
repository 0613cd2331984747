"""The goal task of four rooms: reach a place in another room, through one door or two.

E episodes, B worlds. Positions are (x, y) in pixels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field

from jepa_wm.worlds.four_rooms.rooms import next_stop, way_to_go
from jepa_wm.worlds.four_rooms.world import FourRoomsSettings
from jepa_wm.worlds.tasks import TASKS, GoalPolicy, TaskSettings
from jepa_wm.worlds.two_rooms.policies import toward
from jepa_wm.worlds.two_rooms.tasks import OtherRoom
from jepa_wm.worlds.world import World, WorldSettings


class AnyOtherRoom(OtherRoom):
    """Start and goal are uniform in two different rooms of the four, no nearer to each other than
    the radius."""

    def _about(self) -> dict[str, Any]:
        return {**super()._about(), "distractors": self.world.distractors}

    def _rooms(self, generators: list[np.random.Generator]) -> tuple[np.ndarray, np.ndarray]:
        """[E] rooms of the starts and [E] of the goals."""
        here = np.array([r.integers(4) for r in generators], np.int64)
        onward = np.array([r.integers(1, 4) for r in generators], np.int64)
        return here, (here + onward) % 4

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """A straight line to the goal, which knows no walls, and the shortest way, which knows
        all of them."""
        return {**super().baselines(), "shortest_way": self._shortest_way}

    def _shortest_way(self, world: World, goal: np.ndarray) -> np.ndarray:
        g, state = self.world.geometry, world.state()
        stop = next_stop(state[:, :2], goal, state[:, 2:6], g)
        return toward(state[:, :2], stop, g.max_step * g.action_scale) / g.action_scale

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] px to walk, through the doors that are on the way."""
        return way_to_go(state[:, :2], goal, state[:, 2:6], self.world.geometry)


@TASKS.register("four_rooms")
class FourRoomsTask(TaskSettings):
    """Reach a place in another room."""

    name: Literal["four_rooms"] = "four_rooms"
    radius: float = Field(4.5, gt=0)  # px
    strict_radius: float | None = Field(1.41, gt=0)  # px, reported beside

    def make(self, world: WorldSettings) -> AnyOtherRoom:
        """The task in four rooms."""
        assert isinstance(world, FourRoomsSettings), "a world that names this task"
        return AnyOtherRoom(self, world)
