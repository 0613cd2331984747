"""MiniGrid's FourRooms and DoorKey (Chevalier-Boisvert et al., 2023) seen from above: an agent
that turns and steps from cell to cell, by the package's own rules and in our own drawing.

B worlds in the batch, h and w frame height and width, which are equal, X state numbers, n choices
of an action, g cells a side."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import numpy as np
from gymnasium.spaces import Discrete
from pydantic import Field, model_validator

from jepa_wm.worlds import gym_checks as checks
from jepa_wm.worlds.minigrid.drawing import draw_things, draw_walls
from jepa_wm.worlds.minigrid.layouts import KINDS, Env, walls, wrong
from jepa_wm.worlds.minigrid.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.minigrid.rules import stepped
from jepa_wm.worlds.minigrid.simulator import Simulator
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, Split, WorldSettings

CELL = 3.0  # px, the smallest cell: of smaller ones a picture shows too little


class MiniGrid:
    """A batch of worlds, each an environment of the package with a layout of its own.

    Actions are the package's, one-hot or by number: left, right, forward, done (which does
    nothing) in four rooms; left, right, forward, pickup, drop, toggle, done with door and key. The
    state is whole numbers, so a world reset to a recorded one is the recorded world to the bit.
    The package's green goal is left out: nothing ends an episode.

    `reset` draws from one seed per world, as the package does, from all layouts or from those of
    one split (`of_split`)."""

    split: Split | None = None  # the layouts that are drawn; None: all
    layout_resolution = 1.0  # cells

    def __init__(self, settings: MiniGridSettings | None = None) -> None:
        self.settings = settings or MiniGridSettings()
        self.env, self.grid = self.settings.env, self.settings.cells
        self.kind = KINDS[self.env]
        self.state_names, self.state_units = self.kind.state_names, self.kind.state_units
        self.layout_names = self.state_names[self.kind.layout]
        self._space = Discrete(len(self.kind.actions))
        # Environments are kept from one reset to the next; one draws the starts of all.
        self._drawing = Simulator(self.env, self.grid)
        self._simulators: list[Simulator] = []
        self._solid: np.ndarray | None = None  # [B, g, g] bool: walls, of copies alone
        self._state = np.zeros((0, len(self.state_names)), np.float32)

    @property
    def action_space(self) -> Actions:
        """A choice among n; the last does nothing."""
        n = len(self.kind.actions)
        low, high = np.zeros(n, np.float32), np.ones(n, np.float32)
        return Actions(low, high, 1.0, n, np.array([n - 1]))

    def __len__(self) -> int:
        return len(self._state)

    def of_split(self, split: Split) -> MiniGrid:
        """The same world, whose resets draw layouts of one split alone."""
        world = copy.copy(self)
        world._simulators, world.split = [], split
        return world

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Draw a layout, an agent and, with a door, a key per seed, or begin in whole states
        `start` [B, X].

        Raises ValueError for a start that is not a state of these worlds for each seed."""
        if start is None:
            drawn = [self._drawing.draw(int(seed), self.split) for seed in seeds]
            start = np.array(drawn, np.float32).reshape(-1, len(self.state_names))
        given = np.asarray(start, np.float32)
        if given.shape != (len(seeds), len(self.state_names)):
            raise ValueError(
                f"start has shape {given.shape}; give {len(self.state_names)} numbers "
                f"({', '.join(self.state_names)}) for each of the {len(seeds)} seeds"
            )
        why = wrong(self.env, self.grid, given)
        if why is not None:
            raise ValueError(f"start: {why}")
        while len(self._simulators) < len(seeds):
            self._simulators.append(Simulator(self.env, self.grid))
        for simulator, row in zip(self._simulators, given, strict=False):
            simulator.place(row)
        self._state, self._solid = given.copy(), None
        self._rooms = draw_walls(
            self.env, self.grid, self.settings.size, given[:, self.kind.layout]
        )

    def copies(self, times: int) -> MiniGrid:
        """`times` copies of each world, one after the other, to be stepped by the same rules in
        one go (`stepped`), and not rendered."""
        world = copy.copy(self)
        solid = walls(self.env, self.grid, self._state[:, self.kind.layout])
        world._simulators, world._solid = [], np.repeat(solid, times, 0)
        world._state = np.repeat(self._state, times, 0)
        return world

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, n] float32 one-hot: what `step` takes for an action, the largest number winning."""
        return checks.taken(self._space, action, len(self)).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Act with [B, n], or numbers of choices [B, 1], in every world. Raises ValueError for
        other shapes and for numbers that are not finite."""
        numbers = np.array(self.kind.actions)[self.taken(action).argmax(1)]
        if self._solid is not None:
            self._state = stepped(self.env, self._solid, self._state, numbers)
            return
        state = self._state.copy()  # that of before may be in somebody's hands
        for simulator, number, row in zip(self._simulators, numbers, state, strict=False):
            simulator.act(int(number))
            simulator.read(row)
        self._state = state

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: the whole grid from above."""
        return draw_things(self.env, self.grid, self._rooms, self._state)

    def state(self) -> np.ndarray:
        """[B, X] float32: everything there is. For scoring, probes and scripted policies only."""
        return self._state


@WORLDS.register("minigrid")
class MiniGridSettings(WorldSettings):
    """MiniGrid's FourRooms or DoorKey, and who explores it."""

    name: Literal["minigrid"] = "minigrid"
    tasks: ClassVar[tuple[str, ...]] = ("minigrid",)
    env: Env = "four_rooms"
    # cells a side, walls included; null: the package's, 19 of four_rooms and 8 of door_key
    grid: int | None = Field(None, ge=6, le=32)
    size: int = Field(64, ge=16)  # px, side of a frame
    exploration: Exploration = Exploration()

    @property
    def cells(self) -> int:
        """g."""
        return KINDS[self.env].grid if self.grid is None else self.grid

    @model_validator(mode="after")
    def _fits(self) -> MiniGridSettings:
        if self.env == "four_rooms" and self.cells % 2 == 0:
            raise ValueError(
                f"grid {self.cells} is even, and four_rooms of equal size need a wall in the "
                f"middle; set world.grid={self.cells + 1}"
            )
        if self.size < CELL * self.cells:
            raise ValueError(
                f"size {self.size} px leaves less than {CELL:g} px to each of {self.cells} cells; "
                f"set world.size={int(CELL * self.cells)} or more, or lower world.grid"
            )
        return self

    def make(self) -> MiniGrid:
        """A batch of rooms; UserError where the package is not installed."""
        return MiniGrid(self)

    def explore(self) -> NewPolicy:
        """Shortest ways to random cells."""
        return lambda seeds: ExplorationPolicy(self.env, self.cells, seeds, self.exploration)
