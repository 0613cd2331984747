"""Two rooms joined by a door: a point agent on a 65 px canvas, many layouts stepped and rendered
at once.

B worlds in the batch, h and w canvas height and width, which are equal. Positions are (x, y) in
pixels, x to the right, y down. The geometry is that of EB-JEPA's random-wall task: border 5, wall
3 px thick, door half-height 4, |a| <= 2.45."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.two_rooms.agents import PointAgents, between_jambs, stopped
from jepa_wm.worlds.two_rooms.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.two_rooms.rooms import (
    WALL_HALF,
    Distraction,
    Geometry,
    NoiseLevels,
    RenderStyle,
    check_split,
    draw_rooms,
    in_split,
)
from jepa_wm.worlds.world import WORLDS, NewPolicy, Split, WorldSettings


class TwoRooms(PointAgents):
    """A batch of worlds, each with its own layout, agent and distraction.

    With process noise, chance moves the agent as well: normally distributed, in units of the
    longest step.

    `reset` draws layouts from one seed per world, so world i is the same whatever batch it is in:
    from all layouts, or from those of one split (`of_split`)."""

    split: Split | None = None  # the layouts that are drawn; None: all
    state_names = ("agent_x", "agent_y", "wall_x", "door_y")
    state_units = ("px",) * 4
    layout_names = ("wall_x", "door_y")
    layout_resolution = 1.0  # px

    def __init__(self, settings: TwoRoomsSettings | None = None) -> None:
        self.settings = settings or TwoRoomsSettings()
        self.geometry: Geometry = self.settings.geometry
        self.style = self.settings.render_style
        self.process_noise = self.settings.process_noise
        self.wall_x = self.door_y = np.zeros(0, np.float32)
        self.agent = np.zeros((0, 2), np.float32)

    @property
    def has_reward(self) -> bool:
        """Whether there is a reward region."""
        return self.settings.reward_region is not None

    def of_split(self, split: Split) -> TwoRooms:
        """The same world, whose resets draw layouts of one split alone; see `layouts`.

        Raises UserError for a geometry with too few layouts to hold some out.
        """
        check_split(self.geometry)
        world = copy.copy(self)
        world.split = split
        return world

    def reset(
        self,
        seeds: np.ndarray,
        *,
        start: np.ndarray | None = None,
        layout: np.ndarray | None = None,
        noise_seeds: np.ndarray | None = None,
    ) -> None:
        """Draw a layout, an agent position (uniform in the free space) and a distraction per seed,
        but what is given: `start` are agent positions [B, 2] or whole states [B, 4], `layout` [B,
        2] wall x and door y, `noise_seeds` seeds of the distractions' own. Raises ValueError for
        what is not one pair, or state, per seed."""
        if start is not None and np.shape(start) == (len(seeds), 4):
            start, layout = start[:, :2], start[:, 2:]
        for name, given in (("start", start), ("layout", layout)):
            if given is not None and np.shape(given) != (len(seeds), 2):
                raise ValueError(
                    f"{name} has shape {np.shape(given)}; give a pair for each of the "
                    f"{len(seeds)} seeds"
                )

        # A generator for each seed: a world is the same in a batch of any size.
        g = self.geometry
        generators = [np.random.default_rng([int(seed), 0]) for seed in seeds]
        drawn = [self._layout(r) for r in generators] if layout is None else layout
        self.wall_x, self.door_y = np.array(drawn, np.float32).reshape(-1, 2).T.copy()
        side = np.array([r.random() < 0.5 for r in generators])
        uniform = self.uniform_position(generators, side)
        self.agent = uniform if start is None else np.array(start, np.float32)
        # Chance draws from others: with or without it the same seed begins in the same place.
        noisy = seeds if self.settings.process_noise else seeds[:0]
        self._chance = [np.random.default_rng([int(seed), 11]) for seed in noisy]
        self._rooms = draw_rooms(g, self.wall_x, self.door_y, self.style)
        self._distraction = Distraction(
            self.settings.noise, g.size, seeds if noise_seeds is None else noise_seeds
        )

    def _layout(self, r: np.random.Generator) -> tuple[int, int]:
        """(wall x, door y) uniform over the layouts of the split; others are drawn again."""
        g = self.geometry
        while True:
            wall = g.fixed_wall
            if wall is None:
                wall = int(r.integers(g.wall_padding, g.size - g.wall_padding))
            door = r.integers(g.door_padding, g.size - g.door_padding)
            if self.split is None or in_split(np.array([wall, door]), g, self.split):
                return wall, int(door)

    def place(self, state: np.ndarray) -> None:
        """Put the worlds into states [B, 4] without drawing anything; they can be stepped but not
        rendered."""
        self._chance = []
        self.agent, self.wall_x, self.door_y = state[:, :2].copy(), state[:, 2], state[:, 3]
        self._distraction = Distraction(NoiseLevels(), self.geometry.size, np.zeros(0))

    def uniform_position(
        self, generators: list[np.random.Generator], right: np.ndarray
    ) -> np.ndarray:
        """[B, 2] positions uniform in the right or left room of each world, clear of the wall."""
        g = self.geometry
        u = np.array([r.random(2) for r in generators], np.float32)
        left_edge, right_edge = self.wall_x - WALL_HALF, self.wall_x + WALL_HALF
        low = np.where(right, right_edge, g.low)
        high = np.where(right, g.high, left_edge)
        return np.stack(
            [low + u[:, 0] * (high - low), g.low + u[:, 1] * (g.high - g.low)], 1
        ).astype(np.float32)

    def _slide(self, agent: np.ndarray, move: np.ndarray) -> np.ndarray:
        """One short move; the wall stops what does not go through its door."""
        g = self.geometry
        in_door = np.abs(agent[:, 1] - self.door_y) <= g.door_half
        x = np.clip(agent[:, 0] + move[:, 0], g.low, g.high)
        x = stopped(agent[:, 0], x, self.wall_x, in_door)
        y = np.clip(agent[:, 1] + move[:, 1], g.low, g.high)
        y = between_jambs(y, x, self.wall_x, self.door_y, g.door_half)
        return np.stack([x, y], 1).astype(np.float32)

    @property
    def layout(self) -> np.ndarray:
        """[B, 2] float32: wall x, door y."""
        return np.stack([self.wall_x, self.door_y], 1)

    def state(self) -> np.ndarray:
        """[B, 4] float32: agent x, agent y, wall x, door y. For scoring, probes and scripted
        policies only."""
        return np.concatenate([self.agent, self.wall_x[:, None], self.door_y[:, None]], 1)

    def reward(self) -> np.ndarray:
        """[B] float32: 1 for agents in the reward region, 0 for others and where there is none."""
        region = self.settings.reward_region
        if region is None:
            return np.zeros(len(self), np.float32)
        gap = np.linalg.norm(self.agent - np.array(region.at, np.float32), axis=1)
        return (gap < region.radius).astype(np.float32)

    def terminated(self) -> np.ndarray:
        """[B] bool: never."""
        return np.zeros(len(self), bool)


class RewardRegion(Section):
    """A place with reward 1 for every step the agent ends there, the same in all
    layouts. Pixels."""

    at: tuple[float, float] = (54.0, 32.0)  # x, y; the default always lies in the right room
    radius: float = Field(5.0, gt=0)


@WORLDS.register("two_rooms")
class TwoRoomsSettings(WorldSettings):
    """Two rooms joined by a door, and who explores them."""

    name: Literal["two_rooms"] = "two_rooms"
    tasks: ClassVar[tuple[str, ...]] = ("two_rooms", "wall")
    geometry: Geometry = Geometry()
    # ebjepa: its two channels, agent and walls; the third is empty
    render_style: RenderStyle = "colour"
    # spread of the chance part of every move, in units of the longest step
    process_noise: float = Field(0.0, ge=0)
    reward_region: RewardRegion | None = None  # where there is a reward; null: nowhere
    noise: NoiseLevels = NoiseLevels()
    exploration: Exploration = Exploration()

    def make(self) -> TwoRooms:
        """A batch of two rooms."""
        return TwoRooms(self)

    def clean(self) -> TwoRoomsSettings:
        """The same without distractions."""
        return self.model_copy(update={"noise": NoiseLevels()})

    def explore(self) -> NewPolicy:
        """The scripted policy, with the geometry's speed."""
        return lambda seeds: ExplorationPolicy(self.geometry, seeds, self.exploration)
