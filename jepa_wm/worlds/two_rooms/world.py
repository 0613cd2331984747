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
from jepa_wm.worlds.two_rooms.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.two_rooms.rooms import (
    WALL_HALF,
    Distraction,
    Geometry,
    NoiseLevels,
    RenderStyle,
    check_split,
    draw_agents,
    draw_rooms,
    in_split,
)
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, Split, WorldSettings


class TwoRooms:
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
        self.geometry = self.settings.geometry
        self.style = self.settings.render_style
        self.wall_x = self.door_y = np.zeros(0, np.float32)
        self.agent = np.zeros((0, 2), np.float32)

    @property
    def action_space(self) -> Actions:
        """Moves in pixels per step, before `action_scale`."""
        limit = np.full(2, self.geometry.max_step, np.float32)
        return Actions(-limit, limit, self.geometry.max_step, idle=np.zeros(2, np.float32))

    @property
    def has_reward(self) -> bool:
        """Whether there is a reward region."""
        return self.settings.reward_region is not None

    def __len__(self) -> int:
        return len(self.agent)

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
        but what is given: `start` [B, 2] are agent positions, `layout` [B, 2] wall x and door y,
        `noise_seeds` seeds of the distractions' own. Raises ValueError for what is not one pair
        per seed."""
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
        uniform = self.uniform_position(generators, right=side)
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
        self, generators: list[np.random.Generator], *, right: np.ndarray
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

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, 2] float32: actions as they are taken, the longer ones scaled back to the longest
        step."""
        longest = self.geometry.max_step
        norm = np.linalg.norm(action, axis=1, keepdims=True)
        return np.where(
            norm > longest * (1 + 1e-6), action * (longest / np.maximum(norm, 1e-8)), action
        ).astype("f4")

    def step(self, action: np.ndarray) -> None:
        """Move every agent by its action [B, 2]; agents slide along walls. Advances the
        distraction too.

        Raises ValueError for another shape and for numbers that are not finite.
        """
        if np.shape(action) != self.agent.shape or not np.isfinite(action).all():
            raise ValueError(
                f"actions of shape {np.shape(action)} must be finite and [{len(self.agent)}, 2]"
            )
        g = self.geometry
        norm = np.linalg.norm(action, axis=1, keepdims=True)
        move = action * np.minimum(1.0, g.max_step / np.maximum(norm, 1e-8)) * g.action_scale
        if self._chance:
            shake = np.stack([r.standard_normal(2) for r in self._chance])
            spread = self.settings.process_noise * g.max_step * g.action_scale
            move = (move + spread * shake).astype(np.float32)
        # Moves longer than the wall is thick are taken in pieces, so that none can jump through
        # it.
        shaken = float(np.abs(move).max(initial=0)) if self._chance else 0.0
        longest = max(g.max_step * g.action_scale, shaken)
        pieces = max(1, int(np.ceil(longest / (2 * WALL_HALF - 0.5))))
        for _ in range(pieces):
            self.agent = self._slide(self.agent, move / pieces)
        self._distraction.advance()

    def _slide(self, agent: np.ndarray, move: np.ndarray) -> np.ndarray:
        """One short move, x first, then y; what a wall forbids is cut off and the rest goes on
        along it."""
        g = self.geometry
        left_face, right_face = self.wall_x - WALL_HALF, self.wall_x + WALL_HALF
        in_door = np.abs(agent[:, 1] - self.door_y) <= g.door_half
        x = np.clip(agent[:, 0] + move[:, 0], g.low, g.high)
        from_left, from_right = agent[:, 0] <= left_face, agent[:, 0] >= right_face
        x = np.where(~in_door & from_left, np.minimum(x, left_face), x)
        x = np.where(~in_door & from_right, np.maximum(x, right_face), x)
        in_wall = (x > left_face) & (x < right_face)
        y = np.clip(agent[:, 1] + move[:, 1], g.low, g.high)
        y = np.where(in_wall, np.clip(y, self.door_y - g.door_half, self.door_y + g.door_half), y)
        return np.stack([x, y], 1).astype(np.float32)

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

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: background, walls and agent, then the distraction on top."""
        return self._distraction.apply(self.render_clean(self.agent))

    def render_clean(self, agent: np.ndarray) -> np.ndarray:
        """[B, h, w, 3] uint8 of the same layouts with agents at `agent` [B, 2] and no
        distraction."""
        return draw_agents(self._rooms, agent, self.style)


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

    def explore(self) -> NewPolicy:
        """The scripted policy, with the geometry's speed."""
        return lambda seeds: ExplorationPolicy(self.geometry, seeds, self.exploration)
