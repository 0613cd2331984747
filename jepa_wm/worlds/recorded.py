"""Goal tasks out of a recording, in any world that can be put into a recorded state: start at one
frame of a held-out episode, the goal is a later one, or a frame of another episode.

E episodes, B worlds in a batch, X state numbers, which are the positions here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.worlds.tasks import (
    TASKS,
    Episodes,
    GoalPolicy,
    HasOracle,
    Task,
    TaskSettings,
    make_task,
)
from jepa_wm.worlds.world import Splitting, World, WorldSettings

TRIES = 1000  # draws of an episode's start and goal before the recording is given up
AGAIN = 20  # draws of a pair that no earlier episode has
NEAR = 1e-3  # share of a state number that a world may be off after a reset to it
ALIKE = 4.0  # mean difference of pixel values, of 255, up to which a picture is the same


class Recorded:
    """Tasks of a recording, judged by the rule of a task of the world's own.

    Raises UserError for a file that is not of this world or has no state, and for one in which no
    two frames are as far apart as is asked."""

    def __init__(self, settings: RecordedTask, world: WorldSettings, judged_by: Task) -> None:
        if settings.path is None:
            raise UserError("evaluation.task.path: name a held-out trajectory file")
        self.settings, self.world, self.own = settings, world, judged_by
        self.name, self.unit = settings.name, judged_by.unit
        own = settings.radius, settings.strict_radius
        self.radius = judged_by.radius if own[0] is None else own[0]
        strict = judged_by.strict_radius if own[1] is None else own[1]
        self.strict_radius = strict if strict is not None and strict < self.radius else None
        self.data = Trajectories(settings.path)
        names = self.world.make().state_names
        self._state = self.data.states()
        count = self._state.shape[1]
        if count != len(names):
            raise UserError(
                f"{settings.path}: its state has {count} numbers, that of the world {world.name} "
                f"{len(names)} ({', '.join(names)}); name a recording of this world in "
                "evaluation.task.path"
            )

    def sample(self, episodes: int, seed: int) -> Episodes:
        """Frames drawn uniformly over the episodes that are long enough; the start is no nearer to
        the goal than the radius. Depends on (file, seed) alone; a longer set holds the
        shorter."""
        if episodes < 1:
            raise ValueError(f"episodes must be at least 1, got {episodes}")
        rows = np.array(self._pairs(episodes, seed))
        seeds = [np.random.default_rng([seed, i, 5]).integers(2**31) for i in range(episodes)]
        start, goal = self._state[rows[:, 0]], self._state[rows[:, 1]]
        world, layout = self.world.make(), start[:, :0]
        if isinstance(world, Splitting):
            layout = start[:, [world.state_names.index(name) for name in world.layout_names]]
        drawn = Episodes(
            self.name, seed, self._about(), np.array(seeds, np.int64),
            np.array(["heldout"] * episodes), layout, start, goal,
        )  # fmt: skip
        self._check(drawn, rows)
        return drawn

    def begin(self, episodes: Episodes) -> World:
        """The worlds in the states of the starts."""
        return self._at(episodes.seeds, episodes.start)

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> World:
        """The worlds in the states of the goals."""
        world = (self.world.clean() if clean else self.world).make()
        # Distractors are the last numbers of a state, and a clean world has none.
        world.reset(episodes.seeds + 1, start=episodes.goal[:, : len(world.state_names)])
        return world

    def goal_images(self, episodes: Episodes, *, clean: bool = False) -> np.ndarray:
        """[E, h, w, 3] uint8 of these."""
        return self.at_goals(episodes, clean=clean).render()

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., X] the state itself."""
        return state

    def distance(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[...] as the world's own task has it, between states [..., X]."""
        return self.own.distance(self.own.position(position), self.own.position(goal))

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """Those of the world's own task."""

        def of_own(policy: GoalPolicy) -> GoalPolicy:
            return lambda world, goal: policy(world, self.own.position(goal))

        return {name: of_own(policy) for name, policy in self.own.baselines().items()}

    def _at(self, seeds: np.ndarray, state: np.ndarray) -> World:
        world = self.world.make()
        world.reset(seeds, start=state)
        return world

    def _about(self) -> dict[str, object]:
        recording = {"recording": self.data.digest, "offset": self.settings.offset}
        return {**recording, "radius": self.radius, "judged_by": self.own.name}

    def _pairs(self, episodes: int, seed: int) -> list[tuple[int, int]]:
        """Rows of starts and goals, none twice as long as there are others."""
        pairs: list[tuple[int, int]] = []
        for i in range(episodes):
            r = np.random.default_rng([seed, i, 4])
            pair = self._pair(r)
            for _ in range(AGAIN):
                if pair not in pairs:
                    break
                pair = self._pair(r)
            pairs.append(pair)
        return pairs

    def _pair(self, r: np.random.Generator) -> tuple[int, int]:
        """(row of the start, row of the goal)."""
        lengths, offsets, ahead = self.data.lengths, self.data.offsets, self.settings.offset
        enough = np.flatnonzero(lengths > (ahead or 0))
        for _ in range(TRIES if len(enough) and (ahead or len(lengths) > 1) else 0):
            first = int(r.choice(enough))
            at = int(r.integers(lengths[first] - (ahead or 0)))
            start, goal = int(offsets[first]) + at, int(offsets[first]) + at + (ahead or 0)
            if not ahead:
                other = int(r.choice(np.delete(np.arange(len(lengths)), first)))
                goal = int(offsets[other] + r.integers(lengths[other]))
            if self.distance(self._state[start], self._state[goal]) >= self.radius:
                return start, goal
        raise UserError(
            f"{self.data.path}: in {TRIES} draws no start was evaluation.task.radius "
            f"{self.radius:g} {self.unit} from a goal "
            + (f"{ahead} steps on; lower or raise" if ahead else "of another episode; set")
            + " evaluation.task.offset, or name longer recordings"
        )

    def _check(self, episodes: Episodes, rows: np.ndarray) -> None:
        """UserError where the world cannot be put into the states of the starts, which are these
        rows of the file, or looks otherwise there."""
        seeds, start = episodes.seeds, episodes.start
        world, again = self._at(seeds, start), self._at(seeds + 1, start)
        frames, recorded = world.render(), self.data.frames[rows[:, 0]]
        wrong = None
        if (np.abs(world.state() - start) > NEAR * (1 + np.abs(start))).any():
            wrong = "cannot be put into its states"
        elif frames.shape != recorded.shape:
            wrong = f"has frames {frames.shape[1:]}, not {recorded.shape[1:]}"
        # Where a picture has noise of its own no two are the same.
        elif np.array_equal(frames, again.render()):
            apart = np.abs(frames.astype(np.float32) - recorded).mean()
            wrong = f"looks otherwise, by {apart:.0f} of 255" if apart > ALIKE else None
        if not self.settings.offset and episodes.layout.shape[1]:
            raise UserError(
                f"evaluation.task.offset null: the world {self.world.name} has layouts, and "
                "another episode has another; set evaluation.task.offset"
            )
        if wrong is not None:
            raise UserError(
                f"{self.data.path}: the world {self.world.name} {wrong}; name a recording of this "
                "world in evaluation.task.path"
            )


class RecordedWithOracle(Recorded):
    """The same, where the world's own task has an oracle."""

    own: _OracleTask

    def simulate(self, world: World, times: int) -> World:
        """As the world's own task."""
        return self.own.simulate(world, times)

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] as the world's own task has it, from states [B, X] to states [B, X]."""
        return self.own.oracle_cost(state, self.own.position(goal))


class _OracleTask(Task, HasOracle, Protocol):
    """A task with an oracle."""


@TASKS.register("recorded")
class RecordedTask(TaskSettings):
    """From one frame of a held-out recording to another."""

    anywhere: ClassVar[bool] = True
    name: Literal["recorded"] = "recorded"
    # trajectories of this world with its state in the column 'state'; null: the run's own held-out
    path: str | None = None
    # environment steps from the start to the goal; null: the goal is a frame of another episode
    offset: int | None = Field(25, ge=1)

    def of_data(self, heldout: Path) -> RecordedTask:
        return self if self.path else self.model_copy(update={"path": str(heldout)})

    def make(self, world: WorldSettings) -> Recorded:
        """The task in a world that has one of its own, by whose rule it is judged."""
        own = make_task(world, None)
        kind = RecordedWithOracle if isinstance(own, HasOracle) else Recorded
        return kind(self, world, own)
