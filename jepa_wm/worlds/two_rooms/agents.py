"""Point agents in rooms, which move by their actions, stop at walls and slide along them: what all
worlds of rooms have in common.

B worlds in the batch, h and w canvas height and width, which are equal. Positions are (x, y) in
pixels, x to the right, y down."""

from __future__ import annotations

import numpy as np

from jepa_wm.worlds.two_rooms.rooms import WALL_HALF, Canvas, Distraction, RenderStyle, draw_agents
from jepa_wm.worlds.world import Actions


class PointAgents:
    """A batch of worlds with a point agent in each. A world of rooms says where its walls are:
    it draws `_rooms` and lets an agent `_slide` along them."""

    geometry: Canvas
    agent: np.ndarray  # [B, 2]
    style: RenderStyle = "colour"
    process_noise = 0.0  # spread of the chance part of every move, in units of the longest step
    _rooms: np.ndarray  # [B, h, w, 3] uint8, empty
    _distraction: Distraction
    _chance: list[np.random.Generator]  # one a world with process noise, else none

    @property
    def action_space(self) -> Actions:
        """Moves in pixels per step, before `action_scale`."""
        limit = np.full(2, self.geometry.max_step, np.float32)
        return Actions(-limit, limit, self.geometry.max_step, idle=np.zeros(2, np.float32))

    def __len__(self) -> int:
        return len(self.agent)

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
            spread = self.process_noise * g.max_step * g.action_scale
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
        """[B, 2] where short moves [B, 2] of agents [B, 2] end, x first, then y; what a wall
        forbids is cut off and the rest goes on along it."""
        raise NotImplementedError

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: background, walls and agent, then the distraction on top."""
        return self._distraction.apply(self.render_clean(self.agent))

    def render_clean(self, agent: np.ndarray) -> np.ndarray:
        """[B, h, w, 3] uint8 of the same layouts with agents at `agent` [B, 2] and no
        distraction."""
        return draw_agents(self._behind(), agent, self.style)

    def _behind(self) -> np.ndarray:
        """[B, h, w, 3] uint8 what agents are drawn on."""
        return self._rooms


def stopped(
    before: np.ndarray, after: np.ndarray, wall: np.ndarray | float, in_door: np.ndarray
) -> np.ndarray:
    """[B] where a move across a wall ends, from `before` to `after` on the axis of its
    thickness: at the face that it comes to, unless the agent is in front of a door."""
    low_face, high_face = wall - WALL_HALF, wall + WALL_HALF
    from_low, from_high = before <= low_face, before >= high_face
    after = np.where(~in_door & from_low, np.minimum(after, low_face), after)
    return np.where(~in_door & from_high, np.maximum(after, high_face), after)


def between_jambs(
    along: np.ndarray,
    across: np.ndarray,
    wall: np.ndarray | float,
    door: np.ndarray,
    door_half: float,
) -> np.ndarray:
    """[B] where a move along a wall ends: within the jambs of the door, for agents that are in
    the wall at `across` on the axis of its thickness."""
    in_wall = (across > wall - WALL_HALF) & (across < wall + WALL_HALF)
    return np.where(in_wall, np.clip(along, door - door_half, door + door_half), along)
