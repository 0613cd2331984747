"""dm_control's reacher: an arm of two links, turned in the plane by torques at its shoulder and
wrist, stepped by MuJoCo and drawn by us.

B worlds, h and w frame height and width, which are equal. Angles in rad, velocities in rad/s,
places in m; a step is the suite's control step of .02 s."""

from __future__ import annotations

import copy
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.reacher.drawing import draw_arms, places
from jepa_wm.worlds.reacher.policies import WRIST_RANGE, Exploration, ExplorationPolicy
from jepa_wm.worlds.world import WORLDS, Actions, NewPolicy, WorldSettings

REMEDY = "pip install 'jepa-wm[reacher]'"


class Reacher:
    """A batch of arms, each with its own joint angles and velocities; no target is drawn.

    The physics are the package's own `reacher.xml` in double precision, one MuJoCo step a control
    step as in the suite. The state is whole but single precision, and the picture and the finger's
    place are drawn from it: a world that is reset to a recorded state shows the recorded picture
    to the bit, and is then within 1e-5 of the recorded numbers for hundreds of steps.

    `reset` draws angles as the suite does, uniformly, at rest."""

    state_names = (
        "angle_shoulder",
        "angle_wrist",
        "velocity_shoulder",
        "velocity_wrist",
        "finger_x",
        "finger_y",
    )
    state_units = ("rad", "rad", "rad/s", "rad/s", "m", "m")

    def __init__(self, settings: ReacherSettings | None = None) -> None:
        self.settings = settings or ReacherSettings()
        self._mujoco, self._model = load_model()
        self._data = self._mujoco.MjData(self._model)
        # All that a step of the simulator depends on, one copy a world: angles, velocities, and
        # where its search for the forces at the wrist's limit begins.
        self._angles = self._velocities = self._begin = np.zeros((0, 2))

    @property
    def action_space(self) -> Actions:
        """Torques at shoulder and wrist, in the motors' units."""
        limit = np.ones(2, np.float32)
        return Actions(-limit, limit, idle=np.zeros(2, np.float32))

    def __len__(self) -> int:
        return len(self._angles)

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Draw angles per seed, at rest; or begin at `start` [B, 6], whole states, of which the
        finger's place follows from the angles and is not read. Raises ValueError for another shape
        and for numbers that are not finite."""
        if start is None:
            generators = [np.random.default_rng([int(seed), 0]) for seed in seeds]
            limit = np.array([np.pi, WRIST_RANGE])
            drawn = np.array([r.uniform(-limit, limit) for r in generators], np.float32)
            start = np.concatenate([drawn.reshape(-1, 2), np.zeros((len(seeds), 4), "f4")], 1)
        start = np.asarray(start, np.float64)
        if start.shape != (len(seeds), 6) or not np.isfinite(start[:, :4]).all():
            raise ValueError(
                f"start has shape {start.shape}; give a state of six finite numbers for each of "
                f"the {len(seeds)} seeds"
            )
        self._angles, self._velocities = start[:, :2].copy(), start[:, 2:4].copy()
        self._begin = np.zeros_like(self._angles)

    def copies(self, times: int) -> Reacher:
        """`times` copies of each world as it stands, one after the other."""
        copied = copy.copy(self)  # the simulator is shared: it holds nothing between two steps
        copied._angles = np.repeat(self._angles, times, 0)
        copied._velocities = np.repeat(self._velocities, times, 0)
        copied._begin = np.repeat(self._begin, times, 0)
        return copied

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, 2] float32: torques clipped to -1..1."""
        return np.clip(action, -1, 1).astype(np.float32)

    def step(self, action: np.ndarray) -> None:
        """Apply torques [B, 2] for one control step. Raises ValueError for another shape and for
        numbers that are not finite."""
        if np.shape(action) != self._angles.shape or not np.isfinite(action).all():
            raise ValueError(
                f"actions of shape {np.shape(action)} must be finite and [{len(self)}, 2]"
            )
        # One simulator serves all worlds: each has its own numbers put in and taken out.
        data, step, model = self._data, self._mujoco.mj_step, self._model
        angles, velocities = data.qpos, data.qvel
        begin, torque = data.qacc_warmstart, data.ctrl
        for b, torques in enumerate(self.taken(action)):
            angles[:], velocities[:] = self._angles[b], self._velocities[b]
            begin[:], torque[:] = self._begin[b], torques
            step(model, data)
            self._angles[b], self._velocities[b], self._begin[b] = angles, velocities, begin

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: the two links and the finger."""
        return draw_arms(self._angles.astype(np.float32), self.settings.size)

    def state(self) -> np.ndarray:
        """[B, 6] float32: joint angles, of which the shoulder's counts its turns, their
        velocities, and the finger's place."""
        angles = self._angles.astype(np.float32)
        _, finger = places(angles.astype(np.float64))
        return np.concatenate([angles, self._velocities, finger], 1).astype(np.float32)


def load_model() -> tuple[Any, Any]:
    """(the module mujoco, the suite's model of the reacher); UserError where a package is
    missing.

    dm_control's file is read and its code is not imported: it would look for a way to draw."""
    try:
        import mujoco
    except ImportError as error:
        raise UserError(f"world.name reacher needs mujoco ({error}); {REMEDY}") from error
    package = importlib.util.find_spec("dm_control")
    if package is None or not package.submodule_search_locations:
        raise UserError(f"world.name reacher needs the model file of dm_control; {REMEDY}")
    file = Path(next(iter(package.submodule_search_locations))) / "suite" / "reacher.xml"
    return mujoco, _compiled(mujoco, str(file))


@cache
def _compiled(mujoco: Any, file: str) -> Any:
    """A model, which nobody changes: compiling it draws large textures, which takes longer than an
    episode."""
    return mujoco.MjModel.from_xml_path(file)


@WORLDS.register("reacher")
class ReacherSettings(WorldSettings):
    """The reacher of the DeepMind control suite, and who explores it."""

    name: Literal["reacher"] = "reacher"
    tasks: ClassVar[tuple[str, ...]] = ("reacher",)
    size: int = Field(64, ge=16)  # px, side of a frame
    exploration: Exploration = Exploration()

    def make(self) -> Reacher:
        """A batch of arms; UserError where mujoco or dm_control is missing."""
        return Reacher(self)

    def explore(self) -> NewPolicy:
        """The scripted policy."""
        return lambda seeds: ExplorationPolicy(seeds, self.exploration)
