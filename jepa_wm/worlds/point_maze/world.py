"""A ball that is pushed through a maze: Gymnasium-Robotics' PointMaze, stepped by MuJoCo without
its renderer and drawn from above, many at once.

B worlds in the batch, h and w frame height and width, which are equal. Positions are (x, y) in m,
x to the right, y up, the middle of the map at (0, 0); a step takes .01 s."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from jepa_wm.worlds.point_maze.maze import Name, maze_of, physics_of
from jepa_wm.worlds.point_maze.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, WorldSettings

FASTEST = 5.0  # m/s along each axis, to which the package cuts velocities before every step


class PointMaze:
    """A batch of balls in one maze, each pushed by its own force.

    A step is the package's: velocities are cut to 5 m/s, forces to [-1, 1] (of 100 N), then MuJoCo
    takes one step of .01 s. The state is kept in float32, as it is recorded, and every step begins
    MuJoCo's solver anew, so what follows depends on state and actions alone: a world reset to a
    recorded state shows the recorded picture and goes on as the recorded one did, to the bit. The
    package keeps float64, from which a step differs by rounding (1e-6 m, 1e-4 m/s); where a ball
    meets a corner that grows, so whole episodes part in the end."""

    state_names = ("agent_x", "agent_y", "velocity_x", "velocity_y")
    state_units = ("m", "m", "m/s", "m/s")

    def __init__(self, settings: PointMazeSettings | None = None) -> None:
        self.settings = settings or PointMazeSettings()
        self.maze = maze_of(self.settings.maze)
        self._model = physics_of(self.settings.maze)
        import mujoco
        from mujoco import rollout

        self._data, self._rollout = mujoco.MjData(self._model), rollout.rollout
        self._state = np.zeros((0, 4), np.float32)

    @property
    def action_space(self) -> Actions:
        """Forces, which push and add up to no displacement; none lets the ball roll on."""
        limit = np.ones(2, np.float32)
        return Actions(-limit, limit, idle=np.zeros(2, np.float32))

    def __len__(self) -> int:
        return len(self._state)

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Draw a place for a ball at rest per seed, uniform over the free cells, or begin at
        `start` [B, 4], whole states.

        Raises ValueError for starts of another shape, that are not finite or lie in a wall."""
        if start is not None:
            if len(start) != len(seeds):
                raise ValueError(
                    f"start has {len(start)} states; give one for each of the {len(seeds)} seeds"
                )
            self.place(np.asarray(start, np.float32))
            return
        state = np.zeros((len(seeds), 4), np.float32)
        for i, seed in enumerate(seeds):
            r = np.random.default_rng([int(seed), 0])
            state[i, :2] = self.maze.place(r, int(r.integers(len(self.maze.cells))))
        self._state = state

    def place(self, state: np.ndarray) -> None:
        """Put the worlds into states [B, 4]."""
        if state.ndim != 2 or state.shape[1] != 4 or not np.isfinite(state).all():
            raise ValueError(f"start {state.shape}: expected [B, 4], all finite")
        if (self.maze.cell(state[:, :2]) < 0).any():
            raise ValueError("start lies in a wall or outside the maze; give places in free cells")
        self._state = state.copy()

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, 2] float32: forces as they are taken, cut to [-1, 1]."""
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Push every ball with a force [B, 2] for .01 s.

        Raises ValueError for another shape and for numbers that are not finite."""
        if np.shape(action) != (len(self), 2) or not np.isfinite(action).all():
            raise ValueError(
                f"actions of shape {np.shape(action)} must be finite and [{len(self)}, 2]"
            )
        # MuJoCo's state is the time, positions and velocities.
        before = np.zeros((len(self), 5))
        before[:, 1:3] = self._state[:, :2]
        before[:, 3:] = np.clip(self._state[:, 2:], -FASTEST, FASTEST)
        force = self.taken(action).astype(np.float64)[:, None]
        after, _ = self._rollout(self._model, self._data, before, force)
        self._state = after[:, 0, 1:].astype(np.float32)

    def state(self) -> np.ndarray:
        """[B, 4] float32: where the ball is, and how fast."""
        return self._state.copy()

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: floor, walls and ball; never a goal."""
        return self.maze.draw(self._state[:, :2], self.settings.size)


@WORLDS.register("point_maze")
class PointMazeSettings(WorldSettings):
    """A ball in one of PointMaze's mazes, and who explores it."""

    name: Literal["point_maze"] = "point_maze"
    tasks: ClassVar[tuple[str, ...]] = ("point_maze",)
    maze: Name = "u"
    size: int = Field(64, ge=32)  # px, side of a picture
    exploration: Exploration = Exploration()

    def make(self) -> PointMaze:
        """A batch of mazes; UserError where the simulator is not installed."""
        return PointMaze(self)

    def explore(self) -> NewPolicy:
        """The scripted policy, which wanders and walks to random places."""
        return lambda seeds: ExplorationPolicy(maze_of(self.maze), seeds, self.exploration)
