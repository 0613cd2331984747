"""PushT: a disc that pushes a T-shaped block about a board, by the physics of gym-pusht and drawn
by numpy, many boards at once.

B worlds in the batch, h and w frame height and width, which are equal. Positions are (x, y) in
pixels of the board of 512 px, whatever the size of the frames. A step takes .1 s."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jepa_wm.worlds.pusht.board import CENTRE, RADIUS, SIDE, Board, driven, pymunk_module
from jepa_wm.worlds.pusht.drawing import draw
from jepa_wm.worlds.pusht.policies import Exploration, PushingPolicy, gap_to_block
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, WorldSettings


class PushT:
    """A batch of boards, each with its agent and block.

    Actions are places that a controller takes the agent to, or moves from where it is; nothing
    holds the agent up. Blocks slide without friction and come to rest as soon as nothing pushes.

    A world reset to a recorded state shows the recorded picture to the bit. What it does then is
    that of the recording to the bit until agent and block touch; the solver of contacts
    remembers the last ones, which a state does not hold, so from then on to within some pixels
    (a test says how many)."""

    state_names = (
        "agent_x", "agent_y", "block_x", "block_y", "angle",
        "agent_velocity_x", "agent_velocity_y", "block_velocity_x", "block_velocity_y", "spin",
    )  # fmt: skip
    state_units = (*("px",) * 4, "rad", *("px/s",) * 4, "rad/s")

    def __init__(self, settings: PushTSettings | None = None) -> None:
        self.settings = settings or PushTSettings()
        self._pymunk = pymunk_module()
        self._boards: list[Board] = []
        self._begin(np.zeros((0, 10), np.float32))

    @property
    def action_space(self) -> Actions:
        """Places on the board, or moves of up to `max_move` px along each axis."""
        if self.settings.actions == "absolute":
            return Actions(np.zeros(2, np.float32), np.full(2, SIDE, np.float32), kind="absolute")
        limit = np.full(2, self.settings.max_move, np.float32)
        return Actions(-limit, limit, idle=np.zeros(2, np.float32))

    def __len__(self) -> int:
        return len(self._boards)

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Begin one world per seed: agent and block uniform over the board, clear of each other
        and of the walls, at rest; or in the states `start` [B, 10]. Raises ValueError for starts
        of another shape or that are not finite."""
        if start is None:
            start = np.array([_drawn(int(seed)) for seed in seeds], np.float32).reshape(-1, 10)
        elif np.shape(start) != (len(seeds), 10) or not np.isfinite(start).all():
            raise ValueError(
                f"start has shape {np.shape(start)}; give a state of 10 finite numbers for each "
                f"of the {len(seeds)} seeds"
            )
        self._begin(np.asarray(start, np.float32))

    def _begin(self, state: np.ndarray) -> None:
        self._state = state.astype(np.float64)  # [B, 10]
        self._boards = [Board(self._pymunk, row) for row in self._state]

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, 2] float32: actions as they are taken, clipped to the bounds."""
        space = self.action_space
        return np.clip(np.asarray(action, np.float32), space.low, space.high)

    def step(self, action: np.ndarray) -> None:
        """Take each agent toward its place, or by its move, [B, 2] for .1 s. Raises ValueError for
        another shape and for numbers that are not finite."""
        if np.shape(action) != (len(self), 2) or not np.isfinite(action).all():
            raise ValueError(
                f"actions of shape {np.shape(action)} must be finite and [{len(self)}, 2]"
            )
        # A place that a move leads to lies on the board as well.
        state, target = self._state, self.taken(action).astype(np.float64)
        if self.settings.actions == "relative":
            target = np.clip(state[:, :2] + target, 0.0, SIDE)
        velocities, agent, velocity = driven(state[:, :2], state[:, 5:7], target)
        boards = zip(self._boards, velocities.tolist(), strict=True)
        block = np.array([board.step(its) for board, its in boards]).reshape(-1, 6)
        self._state = np.concatenate([agent, block[:, :3], velocity, block[:, 3:]], 1)

    def state(self) -> np.ndarray:
        """[B, 10] float32: agent x and y, block x, y and angle (0 to a whole turn), then their
        velocities in this order; for scoring, probes and scripted policies only."""
        state = self._state.copy()
        state[:, 4] %= 2 * math.pi
        return state.astype(np.float32)

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8 of the states in the precision in which they are recorded."""
        return draw(self.state()[:, :5], self.settings.size)


def _drawn(seed: int) -> list[float]:
    """A state at rest: the block's centre of mass 25 px and more from where it would touch a wall,
    the agent clear of the block."""
    r = np.random.default_rng([seed, 0])
    x, y = r.uniform(110.0, SIDE - 110.0, 2)
    angle = r.uniform(0, 2 * math.pi)
    block = (x + CENTRE * math.sin(angle), y - CENTRE * math.cos(angle), angle)
    while True:
        agent = r.uniform(50.0, SIDE - 50.0, 2)
        if gap_to_block(agent, block) > RADIUS + 5.0:
            return [*agent, *block, 0.0, 0.0, 0.0, 0.0, 0.0]


@WORLDS.register("pusht")
class PushTSettings(WorldSettings):
    """A block to push, and who explores how."""

    name: Literal["pusht"] = "pusht"
    tasks: ClassVar[tuple[str, ...]] = ("pusht",)
    size: int = Field(64, ge=16)  # px, side of the frames
    # places to go to, as the package has them, or moves from where the agent is
    actions: Literal["absolute", "relative"] = "absolute"
    max_move: float = Field(64.0, gt=0)  # px, the longest relative move along an axis
    exploration: Exploration = Exploration()

    def make(self) -> PushT:
        """A batch of boards; UserError where the package of the physics is missing."""
        return PushT(self)

    def explore(self) -> NewPolicy:
        """The scripted pusher."""
        return lambda seeds: PushingPolicy(seeds, self.exploration)
