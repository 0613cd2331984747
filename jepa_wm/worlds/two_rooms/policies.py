"""Scripted policies of two rooms, which read the true state: the one that explores to collect
data, and a straight line to the goal.

B worlds, X state numbers, the first two the agent's. Positions are (x, y) in pixels.
"""

from __future__ import annotations

import math

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.two_rooms.rooms import WALL_HALF, Canvas
from jepa_wm.worlds.world import World


class ExplorationPolicy:
    """The data policy: segments toward random points, some through the door, some straight at the
    wall that is in the way, with heading noise, pauses and drifting. What walls do can only be
    learned by walking into them.

    A segment has its own target, speed and heading noise and lasts until the target is near or
    time is up. Half of them go at full speed, as a planner's do, and none pushes for long against
    a wall: where most fast moves end at one, a model learns that fast moves do not move."""

    def __init__(
        self, geometry: Canvas, seeds: np.ndarray, settings: Exploration | None = None
    ) -> None:
        self.geometry, self.settings = geometry, settings or Exploration()
        self._generators = [np.random.default_rng([int(seed), 2]) for seed in seeds]
        batch = len(seeds)
        self._target = np.zeros((batch, 2), np.float32)
        self._speed, self._wobble = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
        self._heading = np.array([r.random() for r in self._generators], np.float32) * 2 * np.pi
        self._steps_left = np.zeros(batch, np.int64)  # of the segment
        self._drifting = np.zeros(batch, bool)
        self._blind = np.zeros(batch, bool)

    def __call__(self, world: World) -> np.ndarray:
        """[B, 2] actions for the worlds as they stand."""
        return self.act(world.state())

    def act(self, state: np.ndarray) -> np.ndarray:
        """[B, 2] actions in the world's units for states [B, X]."""
        # A segment ends with its time, or at its target.
        near = np.linalg.norm(state[:, :2] - self._target, axis=1) < 1.5
        for b in np.nonzero((self._steps_left <= 0) | (near & ~self._drifting))[0]:
            self._new_segment(int(b), state[b])
        self._steps_left -= 1
        # The heading drifts freely, or wobbles around the way to the target.
        shake = np.array([r.standard_normal() for r in self._generators], np.float32)
        way = self._waypoint(state, self._target)
        waypoint = np.where(self._blind[:, None], self._target, way)
        aim = toward(state[:, :2], waypoint, self._speed)
        self._heading = np.where(
            self._drifting,
            self._heading + 0.35 * shake,
            np.arctan2(aim[:, 1], aim[:, 0]) + self._wobble * shake,
        ).astype(np.float32)
        length = np.where(self._drifting, self._speed, np.linalg.norm(aim, axis=1))
        move = length[:, None] * np.stack([np.cos(self._heading), np.sin(self._heading)], 1)
        return (move / self.geometry.action_scale).astype(np.float32)

    def _new_segment(self, b: int, state: np.ndarray) -> None:
        r, g, shares = self._generators[b], self.geometry, self.settings
        full = g.max_step * g.action_scale
        # How it goes: drifting or not, at what speed, how steadily, whether into walls.
        self._drifting[b] = r.random() < shares.drift
        self._speed[b] = 0.0 if r.random() < 0.05 else full * min(1.0, r.uniform(0.3, 1.7))
        self._wobble[b] = 0.8 * r.uniform() ** 2
        self._blind[b] = r.random() < shares.blind
        self._target[b] = self._new_target(r, state)
        # How long it may take: the straight way and a little more, thrice that around walls.
        distance = np.linalg.norm(self._target[b] - state[:2])
        in_time = math.ceil(distance / max(float(self._speed[b]), 0.3 * full)) + 3
        if self._drifting[b]:
            self._steps_left[b] = r.integers(5, 16)
        else:
            self._steps_left[b] = in_time if self._blind[b] else 3 * in_time

    def _waypoint(self, state: np.ndarray, target: np.ndarray) -> np.ndarray:
        """[B, 2] where to walk straight to from states [B, X], on the way to targets [B, 2]."""
        return through_door(state, target)

    def _new_target(self, r: np.random.Generator, state: np.ndarray) -> tuple[float, float]:
        """Where a segment from a state [X] goes: uniformly in this room or in another one."""
        g, wall = self.geometry, state[2]
        on_right = state[0] > wall
        to_right = on_right != (r.random() < self.settings.cross)
        low, high = (wall + WALL_HALF, g.high) if to_right else (g.low, wall - WALL_HALF)
        return r.uniform(low, high), r.uniform(g.low, g.high)


class Exploration(Section):
    """What share of the segments of the exploring policy goes where."""

    cross: float = Field(0.5, ge=0, le=1)  # of the segments, to another room
    drift: float = Field(0.3, ge=0, le=1)  # of the segments, after a drifting heading
    blind: float = Field(0.5, ge=0, le=1)  # of the others, straight ahead and into walls


def through_door(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[B, 2] next waypoint on the way to `goal` [B, 2]: the near door mouth, the far mouth, then
    the goal itself."""
    agent, wall, door = state[:, :2], state[:, 2], state[:, 3]
    goal_side = np.where(goal[:, 0] > wall, 1.0, -1.0)
    here = (agent[:, 0] - wall) * goal_side  # negative: still in the other room
    near = np.stack([wall - goal_side * (WALL_HALF + 1.0), door], 1)
    far = np.stack([wall + goal_side * (WALL_HALF + 0.5), door], 1)
    at_mouth = (np.abs(agent[:, 1] - door) <= 2.5) & (here >= -(WALL_HALF + 3.5))
    waypoint = np.where(at_mouth[:, None], far, near)
    return np.where((here >= WALL_HALF)[:, None], goal, waypoint).astype(np.float32)


def toward(position: np.ndarray, target: np.ndarray, speed: np.ndarray | float) -> np.ndarray:
    """[B, 2] steps from `position` toward `target`, no longer than `speed` pixels and never beyond
    the target."""
    gap = target - position
    length = np.linalg.norm(gap, axis=1, keepdims=True)
    reach = np.minimum(np.asarray(speed).reshape(-1, 1), length)
    return (gap / np.maximum(length, 1e-8) * reach).astype(np.float32)


def straight_line(state: np.ndarray, goal: np.ndarray, geometry: Canvas) -> np.ndarray:
    """[B, 2] actions of a walk straight at the goal at full speed, whatever is in the way."""
    speed = geometry.max_step * geometry.action_scale
    return toward(state[:, :2], goal, speed) / geometry.action_scale


def way_to_go(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[B] float32 length in pixels of the way from states [B, 4] to goals [B, 2], through the door
    where it is needed."""
    waypoint = through_door(state, goal)
    first = np.linalg.norm(waypoint - state[:, :2], axis=1)
    reached = np.concatenate([waypoint, state[:, 2:]], 1)
    second_stop = through_door(reached, goal)
    second = np.linalg.norm(second_stop - waypoint, axis=1)
    return (first + second + np.linalg.norm(goal - second_stop, axis=1)).astype(np.float32)
