"""Goal tasks of a world whose whole state is a position: the part that most tasks share; and
starts and goals out of a play of the exploring policy.

E episodes, B worlds in a batch, X state numbers, P numbers of a position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jepa_wm.worlds.tasks import Episodes, GoalPolicy
from jepa_wm.worlds.world import World, WorldSettings


class PositionTask:
    """Goals among the positions that a world draws, for any world whose `reset` takes a `start`
    and whose whole state is that position; a task of more than that overrides what differs. Made
    of TaskSettings and WorldSettings."""

    def __init__(self, settings: Any, world: Any) -> None:
        self.settings, self.world = settings, world
        if settings.radius is None:
            raise ValueError(f"task {settings.name}: give its settings a radius")
        self.name, self.radius = settings.name, settings.radius
        self.strict_radius = settings.strict_radius
        self.unit = (*world.make().state_units, "")[0]

    def sample(self, episodes: int, seed: int) -> Episodes:
        """Starts and goals that two resets draw, no nearer to each other than the radius.

        Raises ValueError for episodes < 1."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        generators = [np.random.default_rng([seed, i, 3]) for i in range(episodes)]
        seeds = np.array([r.integers(2**31) for r in generators], np.int64)
        start, goal = self._drawn(seeds), self._drawn(seeds + 1)
        # Every generator moves on, but only the near pairs read theirs.
        while (near := self.distance(start, goal) < self.radius).any():
            redrawn = self._drawn(np.array([r.integers(2**31) for r in generators], np.int64))
            goal = np.where(near[:, None], redrawn, goal)
        split, layout = np.array(["heldout"] * episodes), np.zeros((episodes, 0), np.float32)
        about = {"radius": self.radius, "world": self.world.model_dump(exclude={"exploration"})}
        return Episodes(self.name, seed, about, seeds, split, layout, start, goal)

    def _drawn(self, seeds: np.ndarray) -> np.ndarray:
        world = self.world.make()
        world.reset(seeds)
        return self.position(world.state()).astype(np.float32)

    def begin(self, episodes: Episodes) -> World:
        """The worlds at their starts."""
        world: World = self.world.make()
        world.reset(episodes.seeds, start=episodes.start)
        return world

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> World:
        """The worlds begun at their goals."""
        world: World = self.world.make()
        world.reset(episodes.seeds, start=episodes.goal)
        return world

    def goal_images(self, episodes: Episodes, *, clean: bool = False) -> np.ndarray:
        """[E, h, w, 3] uint8 of these."""
        return self.at_goals(episodes, clean=clean).render()

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., P] the state itself."""
        return state

    def distance(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[...] in a straight line."""
        apart: np.ndarray = np.linalg.norm(position - goal, axis=-1)
        return apart

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """None."""
        return {}


def two_moments(
    settings: WorldSettings, seeds: np.ndarray, *, lead_in: int, offset: int
) -> tuple[np.ndarray, np.ndarray]:
    """[E, X] states of one play of the exploring policy per seed: one of its first `lead_in`
    steps, and `offset` steps later."""
    world, policy = settings.make(), settings.explore()(seeds)
    world.reset(seeds)
    first = np.array([np.random.default_rng([int(s), 5]).integers(lead_in) for s in seeds])
    states = [world.state()]
    for _ in range(int(first.max()) + offset):
        world.step(policy(world))
        states.append(world.state())
    played, rows = np.stack(states), np.arange(len(seeds))  # [T, E, X]
    return played[first, rows], played[first + offset, rows]
