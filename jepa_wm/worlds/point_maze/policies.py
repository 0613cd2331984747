"""Scripted policies of the maze, which read the true state: the one that explores to collect data,
the shortest way to the goal, and a straight line to it.

B worlds. Positions are (x, y) in m, speeds in m/s, forces in [-1, 1]."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.point_maze.maze import Maze
from jepa_wm.worlds.world import World

GAIN = 6.0  # 1/s, of the speed toward a waypoint over the distance to it
PUSH = 0.24  # m/s that the full force adds in one step
SPEED = 4.0  # m/s, the most that a scripted policy wants
ARRIVED = 0.15  # m
STEP = 0.01  # s
MEMORY = 0.9  # of the noise on forces, from one step to the next


class Exploration(Section):
    """How the exploring policy goes about."""

    wander: float = Field(0.35, ge=0, le=1)  # share of segments with forces that ignore the maze
    rest: float = Field(0.15, ge=0, le=1)  # share of the others that stop where they are
    mean_repeat: int = Field(12, ge=1)  # steps that a wandering force is kept, on average
    noise: float = Field(0.6, ge=0)  # on the forces toward a place: the most of its spread


class ExplorationPolicy:
    """The data policy: segments that wander with persistent random forces, into walls too,
    segments that walk the shortest way to a random place anywhere in the maze, each at its own
    speed and with noise of its own, and a few that come to rest where they are.

    Forces add up to no displacement, so what wanders alone stays in a few cells for long: the
    walks cover the maze. World b depends on its seed and its state alone."""

    def __init__(self, maze: Maze, seeds: np.ndarray, settings: Exploration | None = None) -> None:
        self.maze, self.settings = maze, settings or Exploration()
        self._generators = [np.random.default_rng([int(seed), 2]) for seed in seeds]
        batch = len(seeds)
        self._target = np.zeros((batch, 2), np.float32)
        self._speed, self._spread = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
        self._steps_left = np.zeros(batch, np.int64)  # of the segment
        self._wandering, self._resting = np.zeros(batch, bool), np.zeros(batch, bool)
        self._force = np.zeros((batch, 2), np.float32)  # of those that wander
        self._shake = np.zeros((batch, 2), np.float32)  # of those that walk

    def __call__(self, world: World) -> np.ndarray:
        """[B, 2] forces for the worlds as they stand."""
        return self.act(world.state())

    def act(self, state: np.ndarray) -> np.ndarray:
        """[B, 2] forces for states [B, 4]."""
        # A segment ends with its time, or at its target.
        near = np.linalg.norm(state[:, :2] - self._target, axis=1) < ARRIVED
        arrived = near & ~self._wandering & ~self._resting
        for b in map(int, np.nonzero((self._steps_left <= 0) | arrived)[0]):
            self._new_segment(b, state[b])
        self._steps_left -= 1
        # A wandering force is kept for a while; the noise of a walk forgets slowly.
        for i, r in enumerate(self._generators):
            drawn = r.random(3)
            if drawn[0] * self.settings.mean_repeat < 1:
                self._force[i] = 2 * drawn[1:] - 1
            fresh = r.standard_normal(2) * np.sqrt(1 - MEMORY**2)
            self._shake[i] = MEMORY * self._shake[i] + fresh
        waypoint, _ = self.maze.way(state[:, :2], self._target)
        walk = toward(state, waypoint, self._speed) + self._spread[:, None] * self._shake
        force = np.where(self._wandering[:, None], self._force, walk)
        return np.clip(force, -1, 1).astype(np.float32)

    def _new_segment(self, b: int, state: np.ndarray) -> None:
        r, settings = self._generators[b], self.settings
        self._wandering[b] = r.random() < settings.wander
        self._speed[b] = SPEED * min(1.0, r.uniform(0.2, 1.5))
        self._spread[b] = settings.noise * r.random() ** 2
        self._force[b] = r.uniform(-1, 1, 2)
        # All is drawn whatever is read of it. A walk gets thrice its time.
        rest, timed = r.random() < settings.rest, int(r.integers(30, 91))
        target = self.maze.place(r, int(r.integers(len(self.maze.cells))))
        self._resting[b] = rest and not self._wandering[b]
        self._target[b] = state[:2] if self._resting[b] else target
        _, length = self.maze.way(state[None, :2], self._target[b : b + 1])
        in_time = int(3 * length[0] / (STEP * self._speed[b])) + 50
        self._steps_left[b] = timed if self._wandering[b] or self._resting[b] else in_time


def toward(state: np.ndarray, target: np.ndarray, speed: np.ndarray | float) -> np.ndarray:
    """[B, 2] forces that bring balls in states [B, 4] to targets [B, 2] and to rest there, no
    faster than `speed`."""
    wish = GAIN * (target - state[:, :2])
    norm = np.linalg.norm(wish, axis=1, keepdims=True)
    wish = wish * np.minimum(1.0, np.reshape(speed, (-1, 1)) / np.maximum(norm, 1e-8))
    return np.clip((wish - state[:, 2:]) / PUSH, -1, 1).astype(np.float32)


def straight_line(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[B, 2] forces straight toward goals [B, 2], whatever is in the way."""
    return toward(state, goal, SPEED)


def shortest_way(maze: Maze, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[B, 2] forces along the shortest way through free cells to goals [B, 2]."""
    waypoint, _ = maze.way(state[:, :2], goal)
    return toward(state, waypoint, SPEED)
