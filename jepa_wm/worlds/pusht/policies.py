"""Scripted policies of PushT, which read the true state: the one that explores to collect data, by
pushing the block from all sides, and a straight way to where the goal has the agent.

B worlds. Positions are (x, y) in pixels of the board, angles in rad."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.pusht.board import BAR, CENTRE, RADIUS, REACH, SIDE, STEM, WALLS
from jepa_wm.worlds.world import World

LOW, HIGH = 20.0, SIDE - 20.0  # px, where the explorer goes
# The edges of the T in the block's frame: from, to, and the normal outward.
EDGES = (
    ((-60.0, 0.0), (60.0, 0.0), (0.0, -1.0)),
    ((60.0, 0.0), (60.0, 30.0), (1.0, 0.0)),
    ((15.0, 30.0), (60.0, 30.0), (0.0, 1.0)),
    ((15.0, 30.0), (15.0, 120.0), (1.0, 0.0)),
    ((-15.0, 120.0), (15.0, 120.0), (0.0, 1.0)),
    ((-15.0, 30.0), (-15.0, 120.0), (-1.0, 0.0)),
    ((-60.0, 30.0), (-15.0, 30.0), (0.0, 1.0)),
    ((-60.0, 0.0), (-60.0, 30.0), (-1.0, 0.0)),
)
CORNERS = [corner for edge in EDGES for corner in edge[:2]]
LENGTHS = np.array([math.dist(a, b) for a, b, _ in EDGES])


class Exploration(Section):
    """How the exploring policy pushes."""

    roam: float = Field(0.15, ge=0, le=1)  # share of the segments straight to anywhere
    # px between the agent and the place it is sent to; half of that is its way in a step
    lead: tuple[float, float] = (12.0, 60.0)
    push: tuple[int, int] = (5, 25)  # steps that a push takes
    noise: float = Field(5.0, ge=0)  # px, spread of each action

    def model_post_init(self, context: object) -> None:
        """Refuse ranges that hold nothing."""
        for name, least in (("lead", 1.0), ("push", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(
                    f"{name} [{low}, {high}] must begin at {least} or more and not end before it"
                )


class PushingPolicy:
    """The data policy: around the block to a point beside it, drawn uniformly from its outline,
    then through it for a while, and again; sometimes straight to anywhere, whatever is in the
    way. World i depends on its seed and its states alone."""

    def __init__(self, seeds: np.ndarray, settings: Exploration | None = None) -> None:
        self._pushers = [Pusher(int(seed), settings or Exploration()) for seed in seeds]

    def __call__(self, world: World) -> np.ndarray:
        """[B, 2] actions for the worlds as they stand, absolute or relative as they take them."""
        state = world.state()
        rows = zip(self._pushers, state.tolist(), strict=True)
        places = np.array([pusher.place(row) for pusher, row in rows], np.float32).reshape(-1, 2)
        return as_actions(world, state, places)


class Pusher:
    """Who explores one world, segment by segment: approach and push, or roam."""

    def __init__(self, seed: int, settings: Exploration) -> None:
        self.settings = settings
        self._generator = np.random.default_rng([seed, 2])
        self._phase, self._steps_left, self._lead = "push", 0, 1.0
        # Where on the outline and which way its normal is, in the block's frame; where to roam.
        self._point, self._normal, self._goal = (0.0, 0.0), (0.0, -1.0), (0.0, 0.0)
        self._heading = 0.0  # of a push
        self._way_round = 0.0  # rad, from which angle on it is shorter to go round the other side

    def place(self, state: Sequence[float]) -> tuple[float, float]:
        """Where to send the agent in a state [10]."""
        r, agent, block = self._generator, (state[0], state[1]), state[2:5]
        if self._steps_left <= 0:
            self._next_segment(agent, block)
        self._steps_left -= 1
        # A push keeps its heading, whatever becomes of the block, and ends at the walls.
        if self._phase == "push":
            x, y = math.cos(self._heading), math.sin(self._heading)
            target = (agent[0] + self._lead * x, agent[1] + self._lead * y)
            if math.dist(target, _inside(target)) > self._lead / 2:
                self._steps_left = 0
        else:
            target, last = self._waypoint(agent, block)
            if last and math.dist(agent, target) < 12.0:
                self._steps_left = 0
            target = _toward(agent, target, self._lead)
        # Nothing holds the agent up, so it could push the block through a wall.
        if _against_wall(block, agent, target):
            self._phase, self._steps_left, target = "roam", 0, agent
        shake = r.standard_normal(2) * self.settings.noise
        return _inside((target[0] + float(shake[0]), target[1] + float(shake[1])))

    def _next_segment(self, agent: tuple[float, float], block: Sequence[float]) -> None:
        """After an approach the push, along the normal or nearly so; else a new approach."""
        r, settings = self._generator, self.settings
        self._lead = float(r.uniform(*settings.lead))
        if self._phase == "approach":
            x, y = _turned(self._normal, block[2])
            self._phase = "push"
            self._heading = math.atan2(-y, -x) + 0.3 * float(r.standard_normal())
            self._steps_left = int(r.integers(settings.push[0], settings.push[1] + 1))
            return
        # Points that cannot be reached for a wall are drawn again.
        self._phase, self._steps_left = "roam" if r.random() < settings.roam else "approach", 40
        self._goal = (float(r.uniform(LOW, HIGH)), float(r.uniform(LOW, HIGH)))
        self._way_round = math.pi + 0.8 * float(r.standard_normal())
        for _ in range(20):
            a, b, self._normal = EDGES[r.choice(len(EDGES), p=LENGTHS / LENGTHS.sum())]
            share = float(r.random())
            self._point = (a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1]))
            beside = self._beside(block)
            if beside == _inside(beside) and self._leads_inward(block):
                return

    def _leads_inward(self, block: Sequence[float]) -> bool:
        """Whether 60 px further along the push the block's centre of mass is clear of the walls,
        or the push goes along the wall or away from it."""
        middle, normal = _turned((0.0, CENTRE), block[2]), _turned(self._normal, block[2])
        for axis in (0, 1):
            ahead = block[axis] + middle[axis] - 60.0 * normal[axis]
            if (
                ahead < REACH
                and normal[axis] > 0.25
                or ahead > SIDE - REACH
                and normal[axis] < -0.25
            ):
                return False
        return True

    def _beside(self, block: Sequence[float]) -> tuple[float, float]:
        """Where the push begins."""
        away = RADIUS + 8.0
        x, y = (self._point[i] + away * self._normal[i] for i in (0, 1))
        x, y = _turned((x, y), block[2])
        return block[0] + x, block[1] + y

    def _waypoint(
        self, agent: tuple[float, float], block: Sequence[float]
    ) -> tuple[tuple[float, float], bool]:
        """The next place on the way, and whether it is the last: of an approach along a circle
        around the block until the point lies ahead."""
        if self._phase == "roam":
            return self._goal, True
        beside = self._beside(block)
        x, y = _turned((0.0, CENTRE), block[2])
        middle = (block[0] + x, block[1] + y)
        here = math.atan2(agent[1] - middle[1], agent[0] - middle[0])
        there = math.atan2(beside[1] - middle[1], beside[0] - middle[0])
        turn = (there - here) % (2 * math.pi)
        turn -= 2 * math.pi if turn > self._way_round else 0.0
        if abs(turn) < 0.5:
            return beside, True
        # Onto the circle, and along it.
        angle = here + math.copysign(min(abs(turn), 0.7), turn)
        around = REACH + RADIUS + 8.0
        on_circle = (middle[0] + around * math.cos(angle), middle[1] + around * math.sin(angle))
        return _inside(on_circle), False


def as_actions(world: World, state: np.ndarray, places: np.ndarray) -> np.ndarray:
    """[B, 2] the actions that send agents to places [B, 2], in the kind that the world takes."""
    if world.action_space.kind == "absolute":
        return places.astype(np.float32)
    limits = world.action_space
    return np.clip(places - state[:, :2], limits.low, limits.high).astype(np.float32)


def gap_to_block(point: Sequence[float] | np.ndarray, block: Sequence[float]) -> float:
    """px from a point to a block of x, y and angle; 0 inside."""
    x, y = _turned((point[0] - block[0], point[1] - block[1]), -block[2])
    gaps = []
    for left, top, right, bottom in (BAR, STEM):
        outside = max(left - x, x - right, 0.0), max(top - y, y - bottom, 0.0)
        gaps.append(math.hypot(*outside))
    return min(gaps)


def _against_wall(
    block: Sequence[float], agent: tuple[float, float], target: tuple[float, float]
) -> bool:
    """Whether an agent beside the block goes toward a wall that the block is at."""
    if gap_to_block(agent, block) > RADIUS + 4.0:
        return False
    corners = [_turned(corner, block[2]) for corner in CORNERS]
    low, high = WALLS[0] + 6.0, WALLS[1] - 6.0
    slant = 0.3 * math.dist(agent, target)  # along the wall is not toward it
    for axis in (0, 1):
        places = [block[axis] + corner[axis] for corner in corners]
        way = target[axis] - agent[axis]
        if (min(places) < low and way < -slant) or (max(places) > high and way > slant):
            return True
    return False


def _turned(vector: tuple[float, float], angle: float) -> tuple[float, float]:
    cos, sin = math.cos(angle), math.sin(angle)
    return vector[0] * cos - vector[1] * sin, vector[0] * sin + vector[1] * cos


def _toward(
    here: tuple[float, float], there: tuple[float, float], longest: float
) -> tuple[float, float]:
    share = min(1.0, longest / max(math.dist(here, there), 1e-8))
    return here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1])


def _inside(point: tuple[float, float]) -> tuple[float, float]:
    return min(max(point[0], LOW), HIGH), min(max(point[1], LOW), HIGH)
