"""The physics of gym-pusht in pymunk, without its renderer: a T-shaped block that a disc pushes
about a square board with walls; the shape of the block, which drawing and policies take from here.

Positions are (x, y) in pixels of the board, x to the right, y down. The block's position is that
of the middle of the bar's outer edge, as the package has it; it turns about its centre of mass,
45 px further down the stem. Angles in rad, velocities per second."""

from __future__ import annotations

from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError

SIDE = 512.0  # px, of the board
RADIUS = 15.0  # px, of the agent
WALLS, WALL_HALF = (5.0, 506.0), 2.0  # px: the middle of the walls, and half their thickness
BAR = (-60.0, 0.0, 60.0, 30.0)  # px: left, top, right and bottom of the bar in the block's frame
STEM = (-15.0, 30.0, 15.0, 120.0)
CENTRE = 45.0  # px from the block's position to its centre of mass, along the stem
REACH = 78.0  # px from the centre of mass to the farthest corner
GOAL_POSE = (256.0, 256.0, np.pi / 4)  # of the T that the package draws as the goal

DT, SUBSTEPS = 0.01, 10  # s, and how many an environment step takes: 10 steps a second
STIFFNESS, DAMPING = 100.0, 20.0  # of the controller that takes the agent to its target


def pymunk_module() -> Any:
    """The package of the physics; UserError where it is missing or of another physics."""
    try:
        import pymunk
    except ImportError as error:
        raise UserError("the world pusht needs pymunk; pip install 'jepa-wm[pusht]'") from error
    if int(pymunk.version.split(".")[0]) >= 7:
        raise UserError(
            f"the world pusht needs pymunk below 7, not {pymunk.version}; "
            "pip install 'jepa-wm[pusht]'"
        )
    return pymunk


def driven(
    position: np.ndarray, velocity: np.ndarray, target: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How the controller moves agents [B, 2] toward targets [B, 2], which nothing can hold up:
    their velocities in each substep [B, SUBSTEPS, 2], and position and velocity [B, 2] after
    them. In float64 and in the package's order of operations, so equal to the bit."""
    velocities = []
    for _ in range(SUBSTEPS):
        acceleration = STIFFNESS * (target - position) + DAMPING * (0.0 - velocity)
        velocity = velocity + acceleration * DT
        position = position + velocity * DT
        velocities.append(velocity)
    return np.stack(velocities, 1), position, velocity


class Board:
    """One space of the physics, in a state [10] as `PushT.state` has it."""

    def __init__(self, pymunk: Any, state: np.ndarray) -> None:
        # Made in the package's order, which the solver's results depend on.
        self._space = space = pymunk.Space()
        space.gravity, space.damping = (0, 0), 0.0
        low, high = WALLS
        ends = [((low, high), (low, low)), ((low, low), (high, low)),
                ((high, low), (high, high)), ((low, high), (high, high))]  # fmt: skip
        space.add(*(pymunk.Segment(space.static_body, a, b, WALL_HALF) for a, b in ends))
        self._agent = agent = pymunk.Body(body_type=pymunk.Body.KINEMATIC)
        agent.position = state[:2].tolist()
        space.add(agent, pymunk.Circle(agent, RADIUS))

        # Twice the inertia of the bar, as the package takes it, for bar and stem of equal weight.
        inertia = pymunk.moment_for_poly(1, vertices=_corners(BAR))
        self._block = block = pymunk.Body(1, 2 * inertia)
        shapes = [pymunk.Poly(block, _corners(rectangle)) for rectangle in (BAR, STEM)]
        block.center_of_gravity = (0.0, CENTRE)
        # The angle first: turning about the centre of mass moves the position.
        block.angle = float(state[4])
        block.position = state[2:4].tolist()
        space.add(block, *shapes)
        agent.velocity, block.velocity = state[5:7].tolist(), state[7:9].tolist()
        block.angular_velocity = float(state[9])

    def step(self, velocities: list[list[float]]) -> tuple[float, ...]:
        """One environment step with the agent's velocities [SUBSTEPS, 2]; the block's x, y and
        angle, then their velocities."""
        agent, space, block = self._agent, self._space, self._block
        for velocity in velocities:
            agent.velocity = velocity
            space.step(DT)
        return (*block.position, block.angle, *block.velocity, block.angular_velocity)


def _corners(rectangle: tuple[float, float, float, float]) -> list[tuple[float, float]]:
    left, top, right, bottom = rectangle
    return [(left, top), (right, top), (right, bottom), (left, bottom)]
