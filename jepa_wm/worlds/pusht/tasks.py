"""The goal task of PushT: bring agent and block to where the exploring policy has them some steps
on.

E episodes, B worlds, X = 10 state numbers. Distances are shares of what is allowed, without a
unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.position_task import PositionTask, two_moments
from jepa_wm.worlds.pusht.policies import as_actions
from jepa_wm.worlds.pusht.world import PushT, PushTSettings
from jepa_wm.worlds.tasks import TASKS, Episodes, GoalPolicy, TaskSettings
from jepa_wm.worlds.world import World, WorldSettings

TOGETHER = 20.0  # px that agent and block may be off: the norm over their four numbers
TURNED = math.pi / 9  # rad that the block's angle may be off
ATTEMPTS = 100  # episodes that are played for a start and a goal
LEAD_IN = 60  # steps, at most, that the policy plays before a start


class ReachPlayed(PositionTask):
    """Start and goal are states of one episode of the exploring policy, `offset` steps apart, and
    no nearer to each other than the radius.

    A goal is a whole state; distances are of poses, whatever the velocities."""

    def __init__(self, settings: PushTTask, world: PushTSettings) -> None:
        super().__init__(settings, world)
        self.unit = ""

    def sample(self, episodes: int, seed: int) -> Episodes:
        """Episodes of which each depends on (settings, seed, its number) alone: a longer set holds
        the shorter one. Raises ValueError for episodes < 1."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        generators = [np.random.default_rng([seed, i, 3]) for i in range(episodes)]
        seeds = np.array([r.integers(2**31) for r in generators], np.int64)
        start, goal = self._played(seeds)
        # Where the goal is reached at the start, another episode is played.
        for _ in range(ATTEMPTS):
            if not len(near := np.nonzero(self.distance(start, goal) < self.radius)[0]):
                break
            seeds[near] = [generators[i].integers(2**31) for i in near]
            start[near], goal[near] = self._played(seeds[near])
        else:
            raise UserError(
                f"evaluation.task.offset {self.settings.offset}: in {ATTEMPTS} episodes no goal "
                f"was evaluation.task.radius {self.radius:g} from its start; raise offset or "
                "lower radius"
            )
        split, layout = np.array(["heldout"] * episodes), np.zeros((episodes, 0), np.float32)
        about = {"radius": self.radius, "offset": self.settings.offset}
        about["world"] = self.world.model_dump()
        return Episodes(self.name, seed, about, seeds, split, layout, start, goal)

    def _played(self, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[E, X] starts, some steps into an episode, and goals."""
        return two_moments(self.world, seeds, lead_in=LEAD_IN, offset=self.settings.offset)

    def distance(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[...] the larger of what agent and block are off together, in 20 px, and of what the
        block's angle is off, in a ninth of half a turn; 1 is what the protocol allows."""
        apart, turned = _errors(position, goal)
        return np.maximum(apart, turned)

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """To stay, and to go straight to where the goal has the agent, whatever is in the way."""
        return {"idle": self._idle, "straight_line": self._straight_line}

    def _idle(self, world: World, goal: np.ndarray) -> np.ndarray:
        state = world.state()
        return as_actions(world, state, state[:, :2])

    def _straight_line(self, world: World, goal: np.ndarray) -> np.ndarray:
        return as_actions(world, world.state(), goal[:, :2])


class ReachPlayedWithOracle(ReachPlayed):
    """The same beside an oracle, which steps the simulator for every sample of a search."""

    def simulate(self, world: World, times: int) -> PushT:
        """Copies in the same states."""
        copies: PushT = self.world.make()
        state = np.repeat(world.state(), times, 0)
        copies.reset(np.zeros(len(state), np.int64), start=state)
        return copies

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] both errors, added up: a plan that mends one of them is better."""
        apart, turned = _errors(state, goal)
        return (apart + turned).astype(np.float32)


def _errors(position: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[...] what agent and block, and the block's angle, are off, in shares of what is
    allowed."""
    off = position.astype(np.float64) - goal
    turned = np.abs((off[..., 4] + math.pi) % (2 * math.pi) - math.pi)
    return np.linalg.norm(off[..., :4], axis=-1) / TOGETHER, turned / TURNED


@TASKS.register("pusht")
class PushTTask(TaskSettings):
    """Reach what the exploring policy reached."""

    name: Literal["pusht"] = "pusht"
    radius: float = Field(1.0, gt=0)  # of the distance, which is in units of what is allowed
    offset: int = Field(25, ge=1)  # steps of the exploring policy between start and goal
    oracle: bool = False  # measure the oracle too, in many minutes

    def make(self, world: WorldSettings) -> ReachPlayed:
        """The task on these boards."""
        assert isinstance(world, PushTSettings), "a world that names this task"
        return (ReachPlayedWithOracle if self.oracle else ReachPlayed)(self, world)
