"""The reacher's goal task: bring the finger to where an image of the arm shows it.

E episodes, B worlds, X state numbers, which are also the numbers P of a start and a goal. Lengths
in m."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.position_task import PositionTask, two_moments
from jepa_wm.worlds.reacher.drawing import LINK
from jepa_wm.worlds.reacher.policies import control, straight_line
from jepa_wm.worlds.reacher.world import Reacher, ReacherSettings
from jepa_wm.worlds.tasks import TASKS, Episodes, GoalPolicy, TaskSettings
from jepa_wm.worlds.world import World, WorldSettings

FIRST = 50  # steps of a play, among which the start is drawn
ATTEMPTS = 40  # plays that are drawn for an episode, at most


class ReachImage(PositionTask):
    """Start and goal are whole states, whose fingers are no nearer to each other than the radius:
    two configurations at rest, or two moments of one play of the exploring policy.

    The image shows the whole arm, but success is of the finger alone, as in the suite. Raises
    UserError for a radius that an arm of this length cannot keep."""

    def __init__(self, settings: ReacherTask, world: ReacherSettings) -> None:
        super().__init__(settings, world)
        self.unit, self.offset = "m", settings.offset
        if not self.radius <= 2 * LINK:
            raise UserError(
                f"evaluation.task.radius {self.radius:g} m does not fit an arm of {2 * LINK:g} m; "
                "lower it"
            )

    def sample(self, episodes: int, seed: int) -> Episodes:
        """`episodes` of which each depends on (task, world, seed, its number) alone: a longer set
        holds the shorter one.

        Raises ValueError for episodes < 1, UserError for an offset in which the finger hardly
        leaves the radius."""
        if self.offset is None:
            resting = super().sample(episodes, seed)
            return replace(resting, settings={**resting.settings, "offset": None})
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")

        # Plays in which the finger hardly moves are drawn again. Every generator moves on, but
        # only the near pairs read theirs.
        generators = [np.random.default_rng([seed, i, 4]) for i in range(episodes)]
        seeds = np.array([r.integers(2**31) for r in generators], np.int64)
        start, goal = self._moments(seeds)
        for _ in range(ATTEMPTS):
            near = self.distance(start, goal) < self.radius
            if not near.any():
                break
            drawn = np.array([r.integers(2**31) for r in generators], np.int64)
            seeds = np.where(near, drawn, seeds)
            start[near], goal[near] = self._moments(seeds[near])
        else:
            raise UserError(
                f"evaluation.task.offset {self.offset}: in so few steps the finger hardly moves "
                f"by evaluation.task.radius {self.radius:g} m; raise offset or lower radius"
            )
        split, layout = np.array(["heldout"] * episodes), np.zeros((episodes, 0), np.float32)
        about = {
            "radius": self.radius, "offset": self.offset, "world": self.world.model_dump()
        }  # fmt: skip
        return Episodes(self.name, seed, about, seeds, split, layout, start, goal)

    def _moments(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([B, X] start, [B, X] goal) of a play per seed, `offset` steps apart."""
        assert self.offset is not None
        return two_moments(self.world, seeds, lead_in=FIRST, offset=self.offset)

    def distance(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[...] m between the fingers of states [..., X]."""
        return super().distance(position[..., 4:6], goal[..., 4:6])

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """A controller that knows the goal's joint angles, and a pull at the finger straight
        toward the goal's, which knows that place alone."""
        return {"joint_control": _joint_control, "straight_line": _straight_line}

    def simulate(self, world: World, times: int) -> Reacher:
        """Copies that the same simulator moves."""
        assert isinstance(world, Reacher), "a world of this task"
        return world.copies(times)

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] m from finger to finger."""
        return self.distance(state, goal).astype(np.float32)


def _joint_control(world: World, goal: np.ndarray) -> np.ndarray:
    return control(world.state(), goal[:, :2]).astype(np.float32)


def _straight_line(world: World, goal: np.ndarray) -> np.ndarray:
    return straight_line(world.state(), goal[:, 4:6]).astype(np.float32)


@TASKS.register("reacher")
class ReacherTask(TaskSettings):
    """Bring the finger to where it is in the goal image."""

    name: Literal["reacher"] = "reacher"
    radius: float = Field(0.06, gt=0)  # m, of target and finger in the suite's task `easy`
    strict_radius: float | None = Field(0.025, gt=0)  # m, in its task `hard`
    # environment steps of one play from start to goal; null: two configurations at rest
    offset: int | None = Field(None, ge=1)

    def make(self, world: WorldSettings) -> ReachImage:
        """The task with an arm."""
        assert isinstance(world, ReacherSettings), "a world that names this task"
        return ReachImage(self, world)
