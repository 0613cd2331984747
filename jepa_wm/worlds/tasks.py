"""Frozen goal tasks: layout, start and goal of every episode, made once; and the rules by which
success is judged.

A set has as many tasks on held-out layouts, which training never draws, as on training layouts.

E episodes, T environment steps. Positions are (x, y) in pixels. The state is used to score, never
to plan."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ValidationError

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.text import read_text
from jepa_wm.worlds.protocol import Split
from jepa_wm.worlds.settings import Geometry
from jepa_wm.worlds.two_rooms.world import TwoRooms

TaskName = Literal["two_rooms", "wall"]
BUDGETS: dict[TaskName, tuple[int, ...]] = {
    "two_rooms": (200,),
    "wall": (30, 50),
}  # environment steps
RADIUS = 4.5  # px; success is a distance below it
UNIT = "px"  # of positions and distances
STRICT_RADIUS = 1.41  # px, PLDM's rule, reported beside
SPLITS: tuple[Split, ...] = ("heldout", "train")  # the order of the tasks in a set


ARRAYS = (
    "seeds",
    "split",
    "layout",
    "start",
    "goal",
)  # fields of Tasks that have an entry for each task


@dataclass(frozen=True)
class Tasks:
    """One frozen set of episodes: `TwoRooms(tasks.geometry).reset(tasks.seeds, start=tasks.start,
    layout=tasks.layout)` begins them all."""

    name: TaskName
    seed: int  # that drew the set
    radius: float  # px; no start lies this near to its goal
    geometry: Geometry
    seeds: np.ndarray  # [E] int64: of distractions, of chance and of the search
    split: np.ndarray  # [E] "heldout" or "train": whether training may draw the layout
    layout: np.ndarray  # [E, 2] float32 wall x, door y
    start: np.ndarray  # [E, 2] float32
    goal: np.ndarray  # [E, 2] float32

    def __len__(self) -> int:
        return len(self.seeds)

    def part(self, first: int, last: int) -> Tasks:
        """Episodes `first` to `last` (excluded) as tasks of their own."""
        return self._chosen(np.arange(len(self))[first:last])

    def of(self, split: Split) -> Tasks:
        """The tasks on layouts of one split."""
        return self._chosen(np.flatnonzero(self.split == split))

    def _chosen(self, some: np.ndarray) -> Tasks:
        return replace(self, **{name: getattr(self, name)[some] for name in ARRAYS})

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with anything in the set."""
        return hashlib.sha256(json.dumps(self._plain(), sort_keys=True).encode()).hexdigest()[:16]

    def save(self, path: Path) -> None:
        """Write as JSON, whole or not at all."""
        write_atomic(path, json.dumps({**self._plain(), "digest": self.digest}, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Tasks:
        """The mirror image of `save`; raises UserError for a file that is missing, damaged or
        edited."""
        try:
            plain = json.loads(read_text(path))
            stored = plain.pop("digest")
            tasks = cls(
                plain["name"],
                int(plain["seed"]),
                float(plain["radius"]),
                Geometry(**plain["geometry"]),
                np.array(plain["seeds"], np.int64),
                np.array(plain["split"], np.str_),
                *(
                    np.array(plain[name], np.float32).reshape(-1, 2)
                    for name in ("layout", "start", "goal")
                ),
            )
            if len({len(getattr(tasks, name)) for name in ARRAYS}) > 1 or not set(tasks.split) <= {
                *get_args(Split)
            }:
                raise ValueError(f"one of {', '.join(ARRAYS)}")
        except FileNotFoundError:
            raise UserError(
                f"{path}: there is no such task file; freeze the tasks first"
            ) from None
        except (json.JSONDecodeError, UserError, ValidationError) as error:
            raise UserError(
                f"{path}: is no task file ({error}); delete it, or freeze the tasks again"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: is no task file (wrong or missing {error}); delete it, or freeze the tasks again"
            ) from None
        if tasks.digest != stored:
            raise UserError(
                f"{path}: was changed after it was frozen (digest {tasks.digest}, written {stored})"
            )
        return tasks

    def _plain(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "radius": self.radius,
            "geometry": self.geometry.model_dump(),
            **{name: getattr(self, name).tolist() for name in ARRAYS},
        }


def task_geometry(name: TaskName, geometry: Geometry | None = None) -> Geometry:
    """The world of a task: the given one for two_rooms; for wall, the same in DINO-WM's setting.

    That is the wall fixed at x = 32, doors of +-4 px, next = position + 2 * action. Raises
    ValueError for another name."""
    if name not in BUDGETS:
        raise ValueError(f"task {name!r} is not known; choose one of {', '.join(BUDGETS)}")
    geometry = geometry or Geometry()
    if name == "two_rooms":
        return geometry
    return geometry.model_copy(update={"fixed_wall": 32, "door_half": 4.0, "action_scale": 2.0})


def freeze_tasks(
    name: TaskName = "two_rooms",
    *,
    geometry: Geometry | None = None,
    episodes: int = 100,
    seed: int = 0,
    radius: float = RADIUS,
) -> Tasks:
    """Draw a task's episodes, `episodes` on held-out layouts and then as many on training layouts.

    Start and goal are uniform in opposite rooms, pairs nearer than `radius` are drawn again.
    Episode i of a split depends on (name, geometry, radius, seed, split, i) alone: a longer set
    holds the shorter one. Raises ValueError for episodes < 1 or a radius that rooms of this
    geometry cannot keep, UserError for a geometry with too few layouts to hold some out."""
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    world = TwoRooms(task_geometry(name, geometry))
    parts = [_drawn(world.of_split(split), episodes, seed, radius) for split in SPLITS]
    arrays = [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    return Tasks(name, seed, radius, task_geometry(name, geometry), *arrays)


def _drawn(world: TwoRooms, episodes: int, seed: int, radius: float) -> tuple[np.ndarray, ...]:
    """The ARRAYS of tasks on layouts of the world's split."""
    if not 0 <= radius < (world.geometry.high - world.geometry.low) / 2:
        raise ValueError(
            f"radius {radius} px does not fit rooms of {world.geometry.size} px; lower it"
        )
    assert world.split is not None
    generators = [
        np.random.default_rng([seed, i, 3, SPLITS.index(world.split)]) for i in range(episodes)
    ]
    seeds = np.array([r.integers(2**31) for r in generators], np.int64)
    right = np.array([r.random() < 0.5 for r in generators])  # the room of the start
    world.reset(seeds)
    start = world.uniform_position(generators, right=right)
    goal = world.uniform_position(generators, right=~right)
    while (near := np.linalg.norm(start - goal, axis=1) < radius).any():
        # Every generator moves on, but only the near pairs read theirs: the others are settled.
        start = np.where(near[:, None], world.uniform_position(generators, right=right), start)
        goal = np.where(near[:, None], world.uniform_position(generators, right=~right), goal)
    return (
        seeds,
        np.array([world.split] * episodes),
        np.stack([world.wall_x, world.door_y], 1),
        start,
        goal,
    )


@dataclass(frozen=True)
class Outcome:
    """Who arrived, by both readings of the protocol."""

    success_final: np.ndarray  # [E] bool: at the end of the budget
    success_any: np.ndarray  # [E] bool: at any step
    distance: np.ndarray  # [E, T + 1] px to the goal


def judge(
    positions: np.ndarray, goal: np.ndarray, *, radius: float = RADIUS, budget: int | None = None
) -> Outcome:
    """Score the positions [E, T + 1, 2] of episodes, the start included, against goals [E, 2].

    With a budget, only its first steps count. Raises ValueError for shapes that do not fit,
    positions that are not finite and episodes shorter than the budget."""
    episodes = positions.shape[0]
    if (
        positions.ndim != 3
        or positions.shape[2] != 2
        or goal.shape != (episodes, 2)
        or positions.shape[1] < 1
    ):
        raise ValueError(
            f"positions {positions.shape}, goal {goal.shape}: expected [E, T + 1, 2] and [E, 2]"
        )
    if budget is not None:
        if positions.shape[1] < budget + 1:
            raise ValueError(
                f"{positions.shape[1] - 1} steps were recorded, the budget is {budget}"
            )
        positions = positions[:, : budget + 1]
    if not np.isfinite(positions).all():
        raise ValueError("positions hold NaN or infinity; a run that broke has no success rate")
    distance = np.linalg.norm(positions - goal[:, None], axis=2)
    inside = distance < radius
    return Outcome(inside[:, -1], inside.any(1), distance)
