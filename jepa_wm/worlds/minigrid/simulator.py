"""One of MiniGrid's own environments, which is drawn from a seed, put into a state, stepped and
read, and never pictured.

X state numbers, g cells a side."""

from __future__ import annotations

from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.minigrid.layouts import (
    AGENT,
    CARRIED,
    CLOSED,
    DIRECTION,
    KEY,
    KINDS,
    LATCH,
    LOCKED,
    OPEN,
    QUARTER,
    Env,
    in_split,
    walls,
)
from jepa_wm.worlds.world import Split

ENDLESS = 2**31  # steps: an episode is never over


class Simulator:
    """An environment of the package, by its own rules, without observations and without its green
    goal.

    Raises UserError where the package is not installed."""

    def __init__(self, env: Env, grid: int) -> None:
        try:
            from minigrid.envs import DoorKeyEnv, FourRoomsEnv
        except ImportError as error:
            raise UserError(
                f"world.name minigrid needs a package that is not there ({error}); pip install "
                "'jepa-wm[minigrid]'"
            ) from error
        self.env, self.grid, self.kind = env, grid, KINDS[env]
        package: Any = FourRoomsEnv if env == "four_rooms" else DoorKeyEnv
        self.package = package() if env == "four_rooms" else package(size=grid)
        # FourRooms takes no size of its own, but lays out any odd one.
        self.package.width = self.package.height = grid
        self.package.max_steps = ENDLESS
        self.package.gen_obs = _nothing  # most of the time of a step, and nobody reads it
        self._key: Any = None
        self._door: Any = None

    def draw(self, seed: int, split: Split | None) -> np.ndarray:
        """[X] float32 the state that the package draws from a seed, and from the same generator
        again until the layout is of the split."""
        self.package.reset(seed=seed)
        while True:
            row = self._drawn()
            if split is None or in_split(self.env, row[self.kind.layout], split):
                return row
            self.package.reset()

    def _drawn(self) -> np.ndarray:
        """[X] what the package's grid shows."""
        cells = np.array([None if cell is None else cell.type for cell in self.package.grid.grid])
        kinds = cells.reshape(self.grid, self.grid)
        agent = (*self.package.agent_pos, QUARTER * self.package.agent_dir)
        if self.env == "door_key":
            (key_y, key_x), (door_y, door_x) = (
                np.argwhere(kinds == name)[0] for name in ("key", "door")
            )
            return np.array([*agent, key_x, key_y, 0, LOCKED, door_x, door_y], np.float32)
        # The green goal may lie in a gap.
        gap, middle = kinds != "wall", self.grid // 2
        beyond = middle + 1
        gaps = (
            gap[:middle, middle].argmax(),
            gap[middle, :middle].argmax(),
            beyond + gap[middle, beyond:].argmax(),
            beyond + gap[beyond:, middle].argmax(),
        )
        return np.array([*agent, *gaps], np.float32)

    def place(self, row: np.ndarray) -> None:
        """Put the environment into a state [X]."""
        from minigrid.core.grid import Grid
        from minigrid.core.world_object import Door, Key, Wall

        package, numbers = self.package, [int(number) for number in row]
        solid = walls(self.env, self.grid, row[None, self.kind.layout])[0]
        wall = Wall()  # one for all: a wall has no state
        package.grid = Grid(self.grid, self.grid)
        package.grid.grid = [wall if cell else None for cell in solid.flat]
        package.agent_pos = tuple(numbers[AGENT])
        package.agent_dir, package.carrying = int(row[DIRECTION] / QUARTER), None
        package.step_count = 0
        if self.env == "four_rooms":
            return
        # A carried key lies in no cell.
        self._key = Key("yellow")
        self._door = Door("yellow", numbers[LATCH] == OPEN, numbers[LATCH] == LOCKED)
        package.put_obj(self._door, *numbers[self.kind.layout])
        if numbers[CARRIED]:
            package.carrying = self._key
        else:
            package.put_obj(self._key, *numbers[KEY])

    def act(self, number: int) -> None:
        """One step by the package's number of an action."""
        self.package.step(number)

    def read(self, row: np.ndarray) -> None:
        """Write into a row [X] what an action can change."""
        package = self.package
        row[AGENT] = package.agent_pos
        row[DIRECTION] = QUARTER * package.agent_dir
        if self.env == "door_key":
            held = package.carrying is not None
            row[KEY] = package.agent_pos if held else self._key.cur_pos
            row[CARRIED] = held
            door = self._door
            row[LATCH] = OPEN if door.is_open else LOCKED if door.is_locked else CLOSED


def _nothing() -> dict[str, Any]:
    """In place of the package's observation."""
    return {}
