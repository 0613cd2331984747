"""Who explores MiniGrid's rooms to collect data: shortest ways to cells drawn at random, by the
key and through the door where they lead there, with noise.

B worlds, X state numbers, g cells a side, n choices."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.minigrid.layouts import (
    AGENT,
    CARRIED,
    DIRECTION,
    DROP,
    KEY,
    KINDS,
    LATCH,
    OPEN,
    QUARTER,
    STEPS,
    TOGGLE,
    Env,
    walls,
)
from jepa_wm.worlds.minigrid.routes import at_pose, next_action, routes
from jepa_wm.worlds.world import World


class Exploration(Section):
    """How the exploring policy strays from shortest ways."""

    # of the steps, the share that are random actions; drawn anew, up to twice this, for each way
    noise: float = Field(0.15, ge=0, le=0.5)
    stray: float = Field(0.2, ge=0, le=1)  # of the ways, the share that is random actions alone
    drop: float = Field(0.1, ge=0, le=1)  # chance that a carried key is dropped before a way
    shut: float = Field(0.1, ge=0, le=1)  # chance at each step in front of an open door


class ExplorationPolicy:
    """The data policy: ways to cells drawn uniformly, so that half of them or more lead into
    another room, and stretches of random actions.

    A way ends at its cell, or after twice as many steps as it should take. World i depends on its
    seed and on its states alone."""

    def __init__(
        self, env: Env, grid: int, seeds: np.ndarray, settings: Exploration | None = None
    ) -> None:
        self.env, self.grid, self.settings = env, grid, settings or Exploration()
        self.kind = KINDS[env]
        self._generators = [np.random.default_rng([int(seed), 2]) for seed in seeds]
        batch = len(seeds)
        self._target = np.zeros((batch, 2), np.float32)
        self._steps_left = np.zeros(batch, np.int64)
        self._noise = np.zeros(batch)
        self._drop = np.zeros(batch, bool)  # the key, as soon as there is room for it
        self._costs = np.zeros((batch, 7, 4, grid, grid), np.float32)
        self._known = np.full((batch, len(self.kind.state_names)), np.nan, np.float32)

    def __call__(self, world: World) -> np.ndarray:
        """[B, n] one-hot actions for the worlds as they stand."""
        return self.act(world.state())

    def act(self, state: np.ndarray) -> np.ndarray:
        """[B, n] one-hot actions for states [B, X]."""
        # A way ends with its steps, or at its cell; one of random actions has no cell.
        arrived = (state[:, AGENT] == self._target).all(1)
        renewed = np.nonzero((self._steps_left <= 0) | arrived)[0]
        for b in map(int, renewed):
            self._new_way(b, state[b])
        self._map(state, renewed)
        self._steps_left -= 1

        # The package's numbers of the next actions, then those that chance puts in their place.
        costs = at_pose(self._costs, state)
        numbers = next_action(costs, state, self._target)
        choices: np.ndarray = np.searchsorted(self.kind.actions, numbers)
        for b, generator in enumerate(self._generators):
            strays, drawn = generator.random(), generator.integers(len(self.kind.actions))
            if strays < self._noise[b]:
                choices[b] = drawn
        if self.env == "door_key":
            self._meddle(choices, state)
        return np.eye(len(self.kind.actions), dtype=np.float32)[choices]

    def _meddle(self, choices: np.ndarray, state: np.ndarray) -> None:
        """Put into `choices` [B] what no shortest way would do: drop the key, shut the door."""
        dropping = self._drop & (state[:, CARRIED] == 1)
        choices[dropping] = self.kind.actions.index(DROP)
        self._drop[:] = False
        ahead = state[:, AGENT] + STEPS[(state[:, DIRECTION] / QUARTER).astype(np.int64)]
        before = (ahead == state[:, self.kind.layout]).all(1) & (state[:, LATCH] == OPEN)
        shutting = np.array([r.random() < self.settings.shut for r in self._generators])
        choices[before & shutting] = self.kind.actions.index(TOGGLE)

    def _new_way(self, b: int, row: np.ndarray) -> None:
        generator, settings = self._generators[b], self.settings
        free = ~walls(self.env, self.grid, row[None, self.kind.layout])[0]
        cells = np.argwhere(free)[:, ::-1]  # x, y
        cells = cells[(cells != row[AGENT]).any(1)]
        self._target[b] = cells[generator.integers(len(cells))]
        self._noise[b] = 2 * settings.noise * generator.random()
        self._drop[b] = generator.random() < settings.drop
        self._steps_left[b] = 0  # until the way is known
        if generator.random() < settings.stray:
            self._noise[b], self._target[b] = 1.0, 0
            self._steps_left[b] = generator.integers(4, 13)

    def _map(self, state: np.ndarray, renewed: np.ndarray) -> None:
        """Find the ways of the worlds whose target is new, or whose key or door has changed."""
        rest = state.copy()
        rest[:, AGENT], rest[:, DIRECTION] = 0, 0
        if self.env == "door_key":  # a carried key is where the agent is
            rest[state[:, CARRIED] == 1, KEY] = 0
        changed = (rest != self._known).any(1)
        changed[renewed] = True
        changed &= self._noise < 1
        worlds = np.nonzero(changed)[0]
        if not len(worlds):
            return
        self._known[worlds] = rest[worlds]
        self._costs[worlds] = routes(self.env, self.grid, state[worlds], self._target[worlds])

        # How long a way may take, by what it should.
        least = at_pose(self._costs[worlds], state[worlds]).min(1)
        begun = np.isin(worlds, renewed)
        twice = 2 * np.where(np.isfinite(least), least, 2) + 2
        self._steps_left[worlds[begun]] = twice[begun].astype(np.int64)
