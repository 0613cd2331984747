"""Two rooms as a Gymnasium environment for programs of others: images in, bounded moves out, an
optional goal.

Importing this module registers it: `gymnasium.make("jepa_wm/TwoRooms-v0")`, or in one
`gymnasium.make("jepa_wm.worlds.two_rooms.gym_env:jepa_wm/TwoRooms-v0")`.

h and w canvas height and width, which are equal. Positions are (x, y) in pixels."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from jepa_wm.worlds.two_rooms.tasks import TwoRoomsTask
from jepa_wm.worlds.two_rooms.world import TwoRooms, TwoRoomsSettings

ENV_ID = "jepa_wm/TwoRooms-v0"
BUDGET = 200  # steps, of the task


class TwoRoomsEnv(gymnasium.Env[np.ndarray, np.ndarray]):
    """One two-rooms world. `reset(seed=s)` gives the layout of `TwoRooms.reset([s])`, of all there
    are.

    Reset options: "start" and "goal", positions of two numbers, and "layout", wall x and door y,
    with which frozen episodes (`OtherRoom.sample`), held-out ones say, are played. With a goal,
    `info["goal"]` and `info["goal_image"]` (noise-free) are given at reset, `info["success"]` at
    every step, the reward is 1 on arrival (nearer than `radius` px) and the episode terminates
    there; without, the reward stays 0. `info["state"]` [4] is agent x, agent y, wall x, door
    y."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        *,
        settings: TwoRoomsSettings | None = None,
        radius: float = TwoRoomsTask().radius,
        render_mode: str | None = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode {render_mode!r} is not known; choose rgb_array or None")
        self.world = TwoRooms(settings)
        self.radius, self.render_mode = radius, render_mode
        size = self.world.geometry.size
        actions = self.world.action_space
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = spaces.Box(actions.low, actions.high, dtype=np.float32)
        self._goal: np.ndarray | None = None  # [2]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode; raises ValueError for an unknown option or a position outside the
        walls."""
        super().reset(seed=seed)
        # Gymnasium passes on any option, so a misspelt one would go unnoticed.
        options = options or {}
        unknown = sorted(set(options) - {"start", "goal", "layout"})
        if unknown:
            raise ValueError(
                f"reset option {unknown[0]!r} is not known; choose start, goal or layout"
            )
        start, layout = self._position(options, "start"), self._position(options, "layout")
        self._goal = self._position(options, "goal")

        # Without a seed one comes from gymnasium's generator: a seed that was given once counts
        # for the resets that follow.
        drawn = int(self.np_random.integers(2**31)) if seed is None else seed
        self.world.reset(
            np.array([drawn]),
            start=None if start is None else start[None],
            layout=None if layout is None else layout[None],
        )
        info = self._info()
        if self._goal is not None:
            info["goal"] = self._goal.copy()
            info["goal_image"] = self.world.render_clean(self._goal[None])[0]
        self._frame = self.world.render()[0]
        return self._frame, info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Move by the action [2], no longer than the geometry's longest step; it never truncates
        by itself."""
        self.world.step(np.asarray(action, np.float32)[None])
        self._frame = self.world.render()[0]
        info = self._info()
        arrived = bool(info.get("success", False))
        return self._frame, float(arrived), arrived, False, info

    def render(self) -> np.ndarray | None:
        """[h, w, 3] uint8, the latest observation; None without a render mode."""
        return self._frame.copy() if self.render_mode else None

    def _position(self, options: dict[str, Any], name: str) -> np.ndarray | None:
        if options.get(name) is None:
            return None
        g = self.world.geometry
        position = np.asarray(options[name], np.float32)
        if position.shape != (2,) or not bool(((position >= g.low) & (position <= g.high)).all()):
            raise ValueError(
                f"reset option {name!r} must be two numbers in {g.low}..{g.high} px, got "
                f"{options[name]}"
            )
        return position

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"state": self.world.state()[0]}
        if self._goal is not None:
            info["success"] = bool(np.linalg.norm(self.world.agent[0] - self._goal) < self.radius)
        return info


gymnasium.register(
    id=ENV_ID, entry_point=f"{__name__}:{TwoRoomsEnv.__name__}", max_episode_steps=BUDGET
)
