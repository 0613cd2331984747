"""The open tables of worlds and of their tasks, what every entry of either is, and who explores a
world that has no better policy.

An entry is its settings class in the file of what it makes: config sections choose one by its
`name`. B worlds in the batch, A action numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from jepa_wm.core.errors import UserError
from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section
from jepa_wm.worlds.protocol import NewPolicy, World
from jepa_wm.worlds.tasks import Task

WORLDS: Registry[type[WorldSettings]] = Registry(
    "worlds", "world", {"two_rooms": "jepa_wm.worlds.two_rooms.world", "gym": "jepa_wm.worlds.gym"}
)
TASKS: Registry[type[TaskSettings]] = Registry(
    "tasks",
    "task",
    {"two_rooms": "jepa_wm.worlds.two_rooms.tasks", "wall": "jepa_wm.worlds.two_rooms.tasks"},
)


class WorldSettings(Section):
    """What every world of the table declares: its name, what makes it, who explores it and its
    goal tasks, the one that counts where the config names none first."""

    name: str
    tasks: ClassVar[tuple[str, ...]] = ()  # names in TASKS

    def make(self) -> World:
        """A batch of this world; UserError for one that cannot be made."""
        raise NotImplementedError

    def explore(self) -> NewPolicy:
        """The policy that collects data in it: random actions, where a world has no better."""
        return RandomExploration().make


class TaskSettings(Section):
    """What every goal task of the table declares: its name, what makes it and when a goal is
    reached, in the task's unit."""

    name: str
    radius: float = Field(1.0, gt=0)  # nearer than this is success
    strict_radius: float | None = Field(None, gt=0)  # reported beside; null: not

    def make(self, world: WorldSettings) -> Task:
        """The task in a world that names it; UserError for a world that does not fit."""
        raise NotImplementedError


def make_world(settings: WorldSettings | Mapping[str, Any]) -> World:
    """A batch of the world of these settings, or of the same as plain data: {"name": "two_rooms"}.

    Raises UserError for a world that nobody registered or that cannot be made."""
    if not isinstance(settings, WorldSettings):
        settings = WORLDS.get(str(settings.get("name"))).model_validate(settings)
    return settings.make()


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
    if settings.name not in world.tasks:
        raise UserError(
            f"evaluation.task.name {settings.name} is no task of the world {world.name}; it has "
            f"{', '.join(world.tasks)}"
        )
    return settings.make(world)


class RandomExploration(Section):
    """Uniformly random actions."""

    mean_repeat: int = Field(5, ge=1)  # steps that an action is repeated, on average

    def make(self, seeds: np.ndarray) -> RandomActions:
        """The policy of a batch that begins with these seeds [B]."""
        return RandomActions(seeds, mean_repeat=self.mean_repeat)


class RandomActions:
    """Uniform random actions in any world (one-hot where discrete), each repeated for
    `mean_repeat` steps on average.

    World i depends on its seed alone.
    """

    def __init__(self, seeds: np.ndarray, *, mean_repeat: int = 5) -> None:
        if mean_repeat < 1:
            raise ValueError(f"mean_repeat must be at least 1 step, got {mean_repeat}")
        self.mean_repeat = mean_repeat
        self._generators = [np.random.default_rng([int(seed), 6]) for seed in seeds]
        self._action: np.ndarray | None = None  # [B, A]

    def __call__(self, world: World) -> np.ndarray:
        """[B, A] actions within the world's bounds."""
        low, high, longest = world.action_bounds
        renew = np.array([r.random() * self.mean_repeat < 1 for r in self._generators])
        drawn = np.stack([r.uniform(low, high) for r in self._generators]).astype(np.float32)
        # A choice is the largest of its numbers; moves are kept within the longest.
        if world.choices is not None:
            drawn = np.eye(world.choices, dtype=np.float32)[drawn.argmax(1)]
        elif longest is not None:
            norm = np.linalg.norm(drawn, axis=1, keepdims=True)
            drawn *= np.minimum(1.0, longest / np.maximum(norm, 1e-8))
        self._action = (
            drawn if self._action is None else np.where(renew[:, None], drawn, self._action)
        )
        return self._action


class CollectSettings(Section):
    """How much `collect` records of the world. A held-out episode has a seed, and in a world with
    splits a layout, that no training episode has."""

    episodes: int = Field(1500, ge=1)
    episode_length: int = Field(91, ge=2)  # frames
    heldout_episodes: int = Field(100, ge=1)
    heldout_episode_length: int = Field(181, ge=2)  # frames
    min_length: int = Field(2, ge=2)  # frames; episodes that end by themselves before are left out


if TYPE_CHECKING:  # for a reader of types a section is of the base class
    ChosenWorld = WorldSettings
    ChosenTask = TaskSettings | None
else:
    ChosenWorld = chosen(WORLDS, "two_rooms")
    ChosenTask = chosen(TASKS, "two_rooms", optional=True)
