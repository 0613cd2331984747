"""Goal tasks: what a task must offer to be planned in and scored, its frozen episodes, the rule by
which success is judged, and the open table of tasks.

E episodes, B worlds in a batch, T environment steps, X state numbers, P numbers of a position, L
of a layout, A action numbers. Distances are in the task's unit. The state is used to score, never
to plan."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, get_args, runtime_checkable

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text, write_atomic
from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section
from jepa_wm.worlds.world import Split, World, WorldSettings

TASKS: Registry[type[TaskSettings]] = Registry("tasks", "task", {
    "two_rooms": "jepa_wm.worlds.two_rooms.tasks",
    "wall": "jepa_wm.worlds.two_rooms.tasks",
    "recorded": "jepa_wm.worlds.recorded",
    "four_rooms": "jepa_wm.worlds.four_rooms.tasks",
    "reacher": "jepa_wm.worlds.reacher.tasks",
    "pusht": "jepa_wm.worlds.pusht.tasks",
    "point_maze": "jepa_wm.worlds.point_maze.tasks",
    "minigrid": "jepa_wm.worlds.minigrid.tasks",
})  # fmt: skip

SPLITS: tuple[Split, ...] = ("heldout", "train")  # the order of the episodes in a set
ARRAYS: dict[str, Any] = {  # of episodes, and their types
    "seeds": np.int64,
    "split": np.str_,
    "layout": np.float32,
    "start": np.float32,
    "goal": np.float32,
}


@dataclass(frozen=True)
class Episodes:
    """One frozen set of goal episodes, `Task.sample` of a number and a seed."""

    name: str  # of the task
    seed: int  # that drew the set
    settings: Mapping[str, Any]  # what else it was drawn for, as plain data
    seeds: np.ndarray  # [E] int64: of distractions, of chance and of the search
    split: np.ndarray  # [E] "heldout" or "train": whether training may draw the layout
    layout: np.ndarray  # [E, L] float32; L = 0 in a world that keeps none apart
    start: np.ndarray  # [E, P] float32
    goal: np.ndarray  # [E, P] float32

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, first: int, last: int) -> Episodes:
        """Episodes `first` to `last` (excluded) as a set of their own."""
        return self.at(slice(first, last))

    def of(self, split: Split) -> Episodes:
        """The episodes of one split."""
        return self.at(self.split == split)

    def at(self, rows: np.ndarray | slice) -> Episodes:
        """The episodes of these numbers."""
        return replace(self, **{name: getattr(self, name)[rows] for name in ARRAYS})

    @property
    def plain_settings(self) -> dict[str, Any]:
        """What else the set was drawn for, as it is read from a file."""
        plain: dict[str, Any] = json.loads(json.dumps(dict(self.settings)))
        return plain

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything in the set."""
        plain = json.dumps(self._plain(), sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_atomic(path, json.dumps({**self._plain(), "digest": self.digest}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Episodes:
        """The mirror image of `save`; raises UserError for a file that is missing, damaged or
        edited."""
        # Whatever is left of the file once the known keys are taken are the settings of its task.
        try:
            plain = json.loads(read_text(path))
            stored = plain.pop("digest")
            name, seed = str(plain.pop("name")), int(plain.pop("seed"))
            arrays = {key: np.array(plain.pop(key), kind) for key, kind in ARRAYS.items()}
            pairs = all(arrays[key].ndim == 2 for key in ("layout", "start", "goal"))
            lengths, known = {len(array) for array in arrays.values()}, {*get_args(Split)}
            if len(lengths) > 1 or not pairs or not set(arrays["split"]) <= known:
                raise ValueError(f"one of {', '.join(ARRAYS)}")
            episodes = cls(name, seed, plain, **arrays)
        except FileNotFoundError:
            raise UserError(
                f"{path}: there is no such task file; freeze the tasks first"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            unread = isinstance(error, (json.JSONDecodeError, UserError))
            why = error if unread else f"wrong or missing {error}"
            raise UserError(
                f"{path}: is no task file ({why}); delete it, or freeze the tasks again"
            ) from None

        # Figures of edited tasks could not be compared with those of anybody else.
        if episodes.digest != stored:
            raise UserError(
                f"{path}: was changed after it was frozen (digest {episodes.digest}, written "
                f"{stored})"
            )
        return episodes

    def _plain(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ARRAYS}
        return {"name": self.name, "seed": self.seed, **self.settings, **arrays}


GoalPolicy = Callable[[World, np.ndarray], np.ndarray]  # worlds, goals [B, P] -> actions [B, A]


class Task(Protocol):
    """Goal episodes of one world."""

    @property
    def name(self) -> str:
        """Of its settings."""

    @property
    def unit(self) -> str:
        """Of positions and distances."""

    @property
    def radius(self) -> float:
        """Success is a distance below it."""

    @property
    def strict_radius(self) -> float | None:
        """A second rule that is reported beside; None: there is none."""

    def sample(self, episodes: int, seed: int) -> Episodes:
        """`episodes` on held-out layouts and then as many on training layouts; just so many where
        the world keeps no layouts apart. A longer set holds the shorter one of the same seed."""

    def begin(self, episodes: Episodes) -> World:
        """The worlds of the episodes at their starts."""

    def goal_images(self, episodes: Episodes, *, clean: bool = False) -> np.ndarray:
        """[E, h, w, 3] uint8 what the agent is to reach; `clean`: without distractions, for
        people."""

    def position(self, state: np.ndarray) -> np.ndarray:
        """[..., P] the numbers of states [..., X] that a goal is given in."""

    def distance(self, position: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[...] between positions and goals [..., P], in the unit."""

    def baselines(self) -> Mapping[str, GoalPolicy]:
        """Scripted policies that the model is measured against, by name."""


@runtime_checkable
class HasOracle(Protocol):
    """A task in whose true simulator plans can be tried, by a cost that knows what is in the
    way."""

    def simulate(self, world: World, times: int) -> World:
        """`times` copies of each world as it stands, one after the other, to be stepped and not
        rendered."""

    def oracle_cost(self, state: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """[B] float32 the true cost to go from states [B, X] to goals [B, P]; also of states that
        are read from latents, which need be none that the world can be in."""


@runtime_checkable
class ShowsGoals(Protocol):
    """A task whose goals are worlds, so that they can carry the proprioception that belongs to
    their images."""

    def at_goals(self, episodes: Episodes, *, clean: bool = False) -> World:
        """The worlds of the episodes at their goals, as `goal_images` shows them."""


@runtime_checkable
class HasPlane(Protocol):
    """A task whose positions lie in a plane, over which an energy can be mapped."""

    def axes(self, grid: int) -> tuple[np.ndarray, np.ndarray]:
        """(xs, ys) [grid] each."""

    def pictures(self, episodes: Episodes, positions: np.ndarray) -> np.ndarray:
        """[n, h, w, 3] uint8: the world of the only episode with the agent at each of positions
        [n, P], each picture with a distraction of its own."""


@dataclass(frozen=True)
class Outcome:
    """Who arrived, by both readings of the protocol."""

    success_final: np.ndarray  # [E] bool: at the end of the budget
    success_any: np.ndarray  # [E] bool: at any step


def judge(distance: np.ndarray, *, radius: float) -> Outcome:
    """Score episodes by their distances to the goal [E, T + 1], that of the start included. Raises
    ValueError for another shape, and for distances that are not finite."""
    if distance.ndim != 2 or distance.shape[1] < 1:
        raise ValueError(f"distance {distance.shape}: expected [E, T + 1]")
    if not np.isfinite(distance).all():
        raise ValueError("distance holds NaN or infinity; a run that broke has no success rate")
    inside = np.asarray(distance < radius)
    return Outcome(inside[:, -1], np.asarray(inside.any(1)))


class TaskSettings(Section):
    """What every goal task of the table declares: its name, what makes it and when a goal is
    reached, in the task's unit."""

    anywhere: ClassVar[bool] = False  # whether every world that has a task of its own has it too
    name: str
    radius: float | None = Field(None, gt=0)  # nearer than this is success; most have one
    strict_radius: float | None = Field(None, gt=0)  # reported beside; null: not

    def of_data(self, heldout: Path) -> TaskSettings:
        """The same, for tasks out of a recording that name none: of these trajectories."""
        return self

    def make(self, world: WorldSettings) -> Task:
        """The task in a world that names it; UserError for a world that does not fit."""
        raise NotImplementedError


def make_task(world: WorldSettings, settings: TaskSettings | None) -> Task:
    """The task of these settings in this world, the world's own where there are none.

    Raises UserError for a world without tasks and for a task that is another world's."""
    if not world.tasks:
        raise UserError(
            f"the world {world.name} has no goal tasks: plan for reward in it "
            "(planner.cost.objective=reward), or toward images through Agent"
        )
    if settings is None:
        settings = TASKS.get(world.tasks[0]).model_validate({})
    if settings.name not in world.tasks and not settings.anywhere:
        raise UserError(
            f"evaluation.task.name {settings.name} is no task of the world {world.name}; it has "
            f"{', '.join(world.tasks)}"
        )
    return settings.make(world)


if TYPE_CHECKING:  # for a reader of types a section is of the base class
    ChosenTask = TaskSettings | None
else:
    ChosenTask = chosen(TASKS, "two_rooms", optional=True)
