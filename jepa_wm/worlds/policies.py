"""Policies that are no part of the model or of the planner: random actions for any world, and
scripted two-rooms ones.

The scripted ones read the true state: one that explores to collect data, a solver that knows the door,
a straight line to the goal."""

from __future__ import annotations

import math

import numpy as np

from jepa_wm.worlds.protocol import VectorWorld
from jepa_wm.worlds.settings import Geometry
from jepa_wm.worlds.two_rooms.world import WALL_HALF


def toward(position: np.ndarray, target: np.ndarray, speed: np.ndarray | float) -> np.ndarray:
    """[B, 2] steps from `position` toward `target`, no longer than `speed` pixels and never beyond
    the target."""
    gap = target - position
    length = np.linalg.norm(gap, axis=1, keepdims=True)
    reach = np.minimum(np.asarray(speed).reshape(-1, 1), length)
    return (gap / np.maximum(length, 1e-8) * reach).astype(np.float32)


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


def solver(state: np.ndarray, goal: np.ndarray, geometry: Geometry) -> np.ndarray:
    """[B, 2] actions of the reference that knows walls and doors."""
    speed = geometry.max_step * geometry.action_scale
    return toward(state[:, :2], through_door(state, goal), speed) / geometry.action_scale


def straight_line(state: np.ndarray, goal: np.ndarray, geometry: Geometry) -> np.ndarray:
    """[B, 2] actions of a walk straight at the goal at full speed, whatever is in the way."""
    speed = geometry.max_step * geometry.action_scale
    return toward(state[:, :2], goal, speed) / geometry.action_scale


class RandomHolds:
    """Uniform random actions in any world (one-hot where discrete), each held for `hold` steps on
    average.

    World i depends on its seed alone.
    """

    def __init__(self, seeds: np.ndarray, *, hold: int = 5) -> None:
        if hold < 1:
            raise ValueError(f"hold must be at least 1 step, got {hold}")
        self.hold = hold
        self._generators = [np.random.default_rng([int(seed), 6]) for seed in seeds]
        self._action: np.ndarray | None = None  # [B, a]

    def __call__(self, world: VectorWorld) -> np.ndarray:
        """[B, a] actions within the world's bounds."""
        low, high, longest = world.action_bounds
        renew = np.array([r.random() * self.hold < 1 for r in self._generators])
        drawn = np.stack([r.uniform(low, high) for r in self._generators]).astype(np.float32)
        if world.choices is not None:
            drawn = np.eye(world.choices, dtype=np.float32)[drawn.argmax(1)]
        elif longest is not None:
            norm = np.linalg.norm(drawn, axis=1, keepdims=True)
            drawn *= np.minimum(1.0, longest / np.maximum(norm, 1e-8))
        self._action = (
            drawn if self._action is None else np.where(renew[:, None], drawn, self._action)
        )
        return self._action


class ExplorationPolicy:
    """The data policy: legs toward random points, some through the door, some straight at the wall
    that is in the way, with heading noise, pauses and drifting. What walls do can only be learned
    by walking into them.

    A leg has its own target, speed and heading noise and lasts until the target is near or time is
    up. Half of the legs go at full speed, as a planner's do, and none pushes for long against a
    wall: where most fast moves end at one, a model learns that fast moves do not move."""

    def __init__(
        self, geometry: Geometry, seeds: np.ndarray, *, cross: float = 0.5, drift: float = 0.3, blind: float = 0.3,
    ) -> None:  # fmt: skip
        self.geometry, self.cross, self.drift, self.blind = geometry, cross, drift, blind
        self._generators = [np.random.default_rng([int(seed), 2]) for seed in seeds]
        batch = len(seeds)
        self._target = np.zeros((batch, 2), np.float32)
        self._speed, self._wobble = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
        self._heading = np.array([r.random() for r in self._generators], np.float32) * 2 * np.pi
        self._left = np.zeros(batch, np.int64)  # steps left in the leg
        self._drifting = np.zeros(batch, bool)
        self._blind = np.zeros(batch, bool)

    def act(self, state: np.ndarray) -> np.ndarray:
        """[B, 2] actions in the world's units for states [B, 4]."""
        near = np.linalg.norm(state[:, :2] - self._target, axis=1) < 1.5
        for b in np.nonzero((self._left <= 0) | (near & ~self._drifting))[0]:
            self._new_leg(int(b), state[b])
        self._left -= 1
        shake = np.array([r.standard_normal() for r in self._generators], np.float32)
        waypoint = np.where(self._blind[:, None], self._target, through_door(state, self._target))
        aim = toward(state[:, :2], waypoint, self._speed)
        self._heading = np.where(
            self._drifting,
            self._heading + 0.35 * shake,
            np.arctan2(aim[:, 1], aim[:, 0]) + self._wobble * shake,
        ).astype(np.float32)
        length = np.where(self._drifting, self._speed, np.linalg.norm(aim, axis=1))
        move = length[:, None] * np.stack([np.cos(self._heading), np.sin(self._heading)], 1)
        return (move / self.geometry.action_scale).astype(np.float32)

    def _new_leg(self, b: int, state: np.ndarray) -> None:
        r, g = self._generators[b], self.geometry
        full = g.max_step * g.action_scale
        self._drifting[b] = r.random() < self.drift
        self._speed[b] = 0.0 if r.random() < 0.05 else full * min(1.0, r.uniform(0.3, 1.7))
        self._wobble[b] = 0.8 * r.uniform() ** 2
        self._blind[b] = r.random() < self.blind
        on_right = state[0] > state[2]
        to_right = on_right != (r.random() < self.cross)
        low, high = (state[2] + WALL_HALF, g.high) if to_right else (g.low, state[2] - WALL_HALF)
        self._target[b] = r.uniform(low, high), r.uniform(g.low, g.high)
        distance = np.linalg.norm(self._target[b] - state[:2])
        in_time = (
            math.ceil(distance / max(float(self._speed[b]), 0.3 * full)) + 3
        )  # the straight way and a little more
        self._left[b] = (
            r.integers(5, 16) if self._drifting[b] else in_time if self._blind[b] else 3 * in_time
        )
