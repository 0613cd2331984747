"""Scripted policies of the reacher, which read the true state: the one that explores to collect
data, a controller toward joint angles, and a pull at the finger straight toward the goal's.

B worlds, X state numbers, of which the first two are the joint angles in rad, the next two their
velocities in rad/s and the last two the finger's place in m. Torques are in -1..1."""

from __future__ import annotations

import numpy as np
from pydantic import Field

from jepa_wm.core.settings import Section
from jepa_wm.worlds.reacher.drawing import places
from jepa_wm.worlds.world import World

WRIST_RANGE = np.deg2rad(160.0)  # rad either way; the shoulder turns freely
GAIN, DAMPING = 4.0, 0.2  # torque a rad and a rad/s of the controller; .4 shakes the wrist
PULL = 60.0  # of the straight line: torque a metre of gap and a metre of lever


class Exploration(Section):
    """What the exploring policy does in its segments."""

    random: float = Field(0.3, ge=0, le=1)  # share of them with one random torque throughout
    # standard deviation of the torque that is added at each step, of the noisiest segments; others
    # have less, down to none
    noise: float = Field(0.6, ge=0)


class ExplorationPolicy:
    """The data policy: segments toward random joint angles under a controller of random strength,
    some long enough to stop there, and segments of one random torque, which reaches speeds that a
    controller never does; noise on both, of another strength in each segment.

    World i depends on its seed and its own states alone."""

    def __init__(self, seeds: np.ndarray, settings: Exploration | None = None) -> None:
        self.settings = settings or Exploration()
        self._generators = [np.random.default_rng([int(seed), 2]) for seed in seeds]
        batch = len(seeds)
        self._target, self._torque = np.zeros((batch, 2)), np.zeros((batch, 2))
        self._strength, self._noise = np.zeros((batch, 1)), np.zeros((batch, 1))
        self._controlled = np.zeros(batch, bool)
        self._steps_left = np.zeros(batch, np.int64)  # of the segment

    def __call__(self, world: World) -> np.ndarray:
        """[B, 2] torques for the worlds as they stand."""
        return self.act(world.state())

    def act(self, state: np.ndarray) -> np.ndarray:
        """[B, 2] torques for states [B, X]."""
        for b in np.nonzero(self._steps_left <= 0)[0]:
            self._new_segment(int(b))
        self._steps_left -= 1
        shake = np.array([r.standard_normal(2) for r in self._generators])
        aimed = self._strength * control(state, self._target)
        torque = np.where(self._controlled[:, None], aimed, self._torque)
        return np.clip(torque + self._noise * shake, -1, 1).astype(np.float32)

    def _new_segment(self, b: int) -> None:
        r = self._generators[b]
        # Everything is drawn whatever the kind: the shares do not change the rest of a segment.
        self._controlled[b] = r.random() >= self.settings.random
        # Some targets lie beyond the wrist's limit: what stops there is seen too.
        reach = 1.1 * WRIST_RANGE
        self._target[b] = r.uniform(-np.pi, np.pi), r.uniform(-reach, reach)
        self._strength[b] = r.uniform(0.2, 1.0)
        self._noise[b] = self.settings.noise * r.random() ** 2
        self._torque[b] = r.uniform(-1, 1, 2)
        # Half a turn takes thirty steps; a torque spins the arm up in ten.
        self._steps_left[b] = r.integers(15, 61) if self._controlled[b] else r.integers(5, 21)


def control(state: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """[B, 2] torques of a proportional-derivative controller from states [B, X] toward joint
    angles [B, 2] at rest; the shoulder goes the shorter way round."""
    gap = angles.astype(np.float64) - state[:, :2]
    gap[:, 0] = (gap[:, 0] + np.pi) % (2 * np.pi) - np.pi
    return np.clip(GAIN * gap - DAMPING * state[:, 2:4], -1, 1)


def straight_line(state: np.ndarray, finger: np.ndarray) -> np.ndarray:
    """[B, 2] torques of a pull at the finger of states [B, X] straight toward a place [B, 2], by
    the arm's Jacobian: it needs no joint angles of the goal, and stops where the arm is stretched
    along the pull or the wrist at its limit."""
    wrist, tip = places(state[:, :2].astype(np.float64))
    pull = PULL * (finger - tip)
    levers = np.stack([tip, tip - wrist], 1)  # [B, joint, 2] from each joint to the finger
    torque = levers[..., 0] * pull[:, None, 1] - levers[..., 1] * pull[:, None, 0]
    return np.clip(torque - DAMPING * state[:, 2:4], -1, 1)
