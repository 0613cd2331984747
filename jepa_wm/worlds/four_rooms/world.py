"""Four rooms in a square: a point agent on a 65 px canvas that a cross of walls divides, one door
in each of the four arms, and dots that drift by themselves if they are asked for.

B worlds in the batch, h and w canvas height and width, which are equal, D distractors, X state
numbers. Positions are (x, y) in pixels, x to the right, y down. Border, walls, doors and steps are
those of `two_rooms`."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jepa_wm.worlds.four_rooms.rooms import (
    DOORS,
    FourGeometry,
    draw_four,
    in_split,
    next_stop,
    room_bounds,
    room_of,
    slide,
)
from jepa_wm.worlds.two_rooms.agents import PointAgents
from jepa_wm.worlds.two_rooms.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.two_rooms.rooms import Distraction, NoiseLevels, draw_dots
from jepa_wm.worlds.world import WORLDS, NewPolicy, Split, WorldSettings

COLOURS = ((96, 220, 110), (232, 96, 205), (240, 222, 90), (150, 110, 255))  # of distractors
DRIFT = (0.5, 1.5)  # px per step, the speeds of distractors
CANDIDATES = 512  # layouts drawn at once, of which the first of the split is taken


class FourRooms(PointAgents):
    """A batch of worlds, each with its own doors, agent and distractors.

    A distractor drifts at a constant velocity, goes through doors and bounces off walls; nothing
    else moves it and it holds nobody up. Its position and velocity are part of the state, so that
    a world that is reset to a recorded state shows the recorded frame again, to the bit, and goes
    on as it did. Only noise (`noise`), of the sensor, is of the seed and the steps since the
    reset.

    World i is the same whatever batch it is in: its layout is drawn from its seed, from all
    layouts, or from those of one split (`of_split`)."""

    split: Split | None = None  # the layouts that are drawn; None: all
    layout_names = DOORS
    layout_resolution = 1.0  # px

    def __init__(self, settings: FourRoomsSettings | None = None) -> None:
        self.settings = settings or FourRoomsSettings()
        self.geometry: FourGeometry = self.settings.geometry
        self.agent = np.zeros((0, 2), np.float32)
        self.layout = np.zeros((0, 4), np.float32)  # [B, 4] the place of each door
        self.distractors = np.zeros((0, self.settings.distractors, 4), np.float32)  # [B, D, 4]

    @property
    def state_names(self) -> tuple[str, ...]:
        """Agent, doors, then x, y and their velocities of each distractor."""
        names = ["agent_x", "agent_y", *DOORS]
        for number in range(1, self.settings.distractors + 1):
            dot = f"distractor{number}"
            names += [f"{dot}_x", f"{dot}_y", f"{dot}_velocity_x", f"{dot}_velocity_y"]
        return tuple(names)

    @property
    def state_units(self) -> tuple[str, ...]:
        """Pixels, of velocities per step."""
        return ("px",) * 6 + ("px", "px", "px/step", "px/step") * self.settings.distractors

    def of_split(self, split: Split) -> FourRooms:
        """The same world, whose resets draw layouts of one split alone; see `rooms`."""
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
        """Draw doors, an agent position (uniform in the free space) and distractors per seed, but
        what is given: `start` are whole states [B, X] or agent positions [B, 2], `layout` [B, 4]
        places of doors, `noise_seeds` seeds of the distractors' and the noise's own. Raises
        ValueError for what is not one row per seed."""
        own = seeds if noise_seeds is None else noise_seeds
        # A generator for each seed: a world is the same in a batch of any size.
        generators = [np.random.default_rng([int(seed), 0]) for seed in seeds]
        drawn = [self._drawn_layout(r) for r in generators]
        self.layout = np.array(drawn, np.float32).reshape(-1, 4)
        room = np.array([r.integers(4) for r in generators], np.int64)
        self.agent = self.uniform_position(generators, room)
        self.distractors = self._drawn_distractors(own)
        # What is given takes the place of what was drawn.
        if start is not None:
            self._begin_at(_checked(start, "start", len(seeds), (2, len(self.state_names))))
        if layout is not None:
            self.layout = _checked(layout, "layout", len(seeds), (4,))
        self._chance = []
        self._rooms = draw_four(self.geometry, self.layout)
        self._distraction = Distraction(self.settings.noise, self.geometry.size, own)

    def place(self, state: np.ndarray) -> None:
        """Put the worlds into states [B, X] without their distractors; they can be stepped but not
        rendered."""
        self._chance = []
        self.agent, self.layout = state[:, :2].copy(), state[:, 2:6]
        self.distractors = np.zeros((len(state), 0, 4), np.float32)
        self._distraction = Distraction(NoiseLevels(), self.geometry.size, np.zeros(0))

    def _begin_at(self, start: np.ndarray) -> None:
        self.agent = start[:, :2].copy()
        if start.shape[1] > 2:
            self.layout = start[:, 2:6].copy()
            self.distractors = start[:, 6:].reshape(len(start), -1, 4).copy()

    def _drawn_layout(self, r: np.random.Generator) -> np.ndarray:
        """[4] places of doors, uniform over the layouts of the split; others are drawn again."""
        first, last = self.geometry.door_places
        if self.split is None:
            return r.integers(first, last + 1)
        while True:
            drawn = r.integers(first, last + 1, (CANDIDATES, 4))
            fitting = in_split(drawn, self.geometry, self.split)
            if fitting.any():
                first_fitting: np.ndarray = drawn[fitting.argmax()]
                return first_fitting

    def _drawn_distractors(self, seeds: np.ndarray) -> np.ndarray:
        """[B, D, 4] positions uniform in the free space, velocities of any direction."""
        count = self.settings.distractors
        generators = [np.random.default_rng([int(seed), 12]) for seed in seeds]
        drawn = np.zeros((len(seeds), count, 4), np.float32)
        for number in range(count):
            room = np.array([r.integers(4) for r in generators], np.int64)
            drawn[:, number, :2] = self.uniform_position(generators, room)
            u = np.array([r.random(2) for r in generators]).reshape(-1, 2)
            speed, angle = DRIFT[0] + (DRIFT[1] - DRIFT[0]) * u[:, 0], 2 * np.pi * u[:, 1]
            drawn[:, number, 2:] = speed[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        return drawn

    def uniform_position(
        self, generators: list[np.random.Generator], room: np.ndarray
    ) -> np.ndarray:
        """[B, 2] positions uniform in a room [B] of each world, clear of the walls."""
        low, high = room_bounds(room, self.geometry)
        u = np.array([r.random(2) for r in generators]).reshape(-1, 2)
        return (low + u * (high - low)).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Move every agent by its action [B, 2]; agents slide along walls. Distractors drift on.

        Raises ValueError for another shape and for numbers that are not finite."""
        super().step(action)
        count = self.distractors.shape[1]
        if not count:
            return
        at, velocity = self.distractors[..., :2].reshape(-1, 2), self.distractors[..., 2:]
        velocity = velocity.reshape(-1, 2)
        new = slide(at, velocity, self.geometry, np.repeat(self.layout, count, 0))
        # What a wall has cut off turns round.
        velocity = np.where(new != at + velocity, -velocity, velocity)
        self.distractors = np.concatenate([new, velocity], 1).reshape(-1, count, 4)

    def _slide(self, agent: np.ndarray, move: np.ndarray) -> np.ndarray:
        """One short move; the cross stops what does not go through its doors."""
        return slide(agent, move, self.geometry, self.layout)

    def state(self) -> np.ndarray:
        """[B, X] float32: agent x, agent y, the four doors, then the distractors; it is whole. For
        scoring, probes and scripted policies only."""
        dots = self.distractors.reshape(len(self), -1)
        return np.concatenate([self.agent, self.layout, dots], 1).astype(np.float32)

    def _behind(self) -> np.ndarray:
        """[B, h, w, 3] uint8 rooms with the distractors, which agents are drawn on."""
        rooms = self._rooms
        for number in range(self.distractors.shape[1]):
            colour = COLOURS[number % len(COLOURS)]
            rooms = draw_dots(rooms, self.distractors[:, number, :2], colour)
        return rooms


def _checked(given: np.ndarray, name: str, count: int, widths: tuple[int, ...]) -> np.ndarray:
    """`given` [count, one of `widths`] as float32."""
    array = np.array(given, np.float32)
    if array.ndim != 2 or len(array) != count or array.shape[1] not in widths:
        numbers = " or ".join(map(str, widths))
        raise ValueError(
            f"{name} has shape {array.shape}; give {numbers} numbers for each of the {count} seeds"
        )
    return array


class FourRoomsExploration(ExplorationPolicy):
    """The data policy of two rooms, its segments toward any of the four rooms on the shortest
    way."""

    geometry: FourGeometry

    def _waypoint(self, state: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[B, 2] where to walk straight to from states [B, X], on the way to targets [B, 2]."""
        return next_stop(state[:, :2], target, state[:, 2:6], self.geometry)

    def _new_target(self, r: np.random.Generator, state: np.ndarray) -> tuple[float, float]:
        """Where a segment from a state [X] goes: uniformly in this room or in another one."""
        room = room_of(state[:2], self.geometry)
        if r.random() < self.settings.cross:
            room = (room + r.integers(1, 4)) % 4
        x, y = r.uniform(*room_bounds(room, self.geometry))
        return float(x), float(y)


@WORLDS.register("four_rooms")
class FourRoomsSettings(WorldSettings):
    """Four rooms with a door between each and the next, and who explores them."""

    name: Literal["four_rooms"] = "four_rooms"
    tasks: ClassVar[tuple[str, ...]] = ("four_rooms",)
    geometry: FourGeometry = FourGeometry()
    distractors: int = Field(0, ge=0, le=16)  # dots that drift by themselves and mean nothing
    noise: NoiseLevels = NoiseLevels()
    exploration: Exploration = Exploration(cross=0.75)  # rooms are equally likely

    def make(self) -> FourRooms:
        """A batch of four rooms."""
        return FourRooms(self)

    def clean(self) -> FourRoomsSettings:
        """The same without distractors and noise."""
        return self.model_copy(update={"noise": NoiseLevels(), "distractors": 0})

    def explore(self) -> NewPolicy:
        """The scripted policy, with the geometry's speed."""
        return lambda seeds: FourRoomsExploration(self.geometry, seeds, self.exploration)
