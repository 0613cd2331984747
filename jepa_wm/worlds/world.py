"""What a simulator must offer to be collected from, planned in and scored, whole batches at a
time; the open table of worlds; and who explores a world that has no better policy.

An entry of the table is its settings class in the file of what it makes: config sections choose
one by its `name`. B worlds in the batch, h and w frame height and width, A action numbers, X state
numbers (0 where there is no state)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from pydantic import Field

from jepa_wm.core.registry import Registry, chosen
from jepa_wm.core.settings import Section

Split = Literal["train", "heldout"]
WORLDS: Registry[type[WorldSettings]] = Registry("worlds", "world", {
    "two_rooms": "jepa_wm.worlds.two_rooms.world",
    "gym": "jepa_wm.worlds.gym",
    "four_rooms": "jepa_wm.worlds.four_rooms.world",
    "reacher": "jepa_wm.worlds.reacher.world",
    "pusht": "jepa_wm.worlds.pusht.world",
    "point_maze": "jepa_wm.worlds.point_maze.world",
    "minigrid": "jepa_wm.worlds.minigrid.world",
})  # fmt: skip


@dataclass(frozen=True)
class Actions:
    """What actions a world takes; a discrete one is a one-hot of A numbers."""

    low: np.ndarray  # [A]
    high: np.ndarray  # [A]
    longest: float | None = None  # norm
    choices: int | None = None  # how many discrete actions there are; None: they are continuous
    # [A] what does nothing, such as coasting, or [1] a choice's number; None: nobody can tell
    idle: np.ndarray | None = None
    kind: Literal["delta", "absolute"] = "delta"  # moves, which add up, or places to go to


@runtime_checkable
class World(Protocol):
    """A batch of worlds that step together; world i depends on its seed and its actions, never on
    its neighbours."""

    @property
    def action_space(self) -> Actions:
        """What `step` takes."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """X names for the numbers of `state`; empty where the simulator shows none.

        Names that differ only after their last underscore ("agent_x", "agent_y") are probed as one
        quantity."""

    @property
    def state_units(self) -> tuple[str, ...]:
        """The unit of each number of `state`, "" where it has none or nobody knows it; empty where
        none is known. Numbers in "rad" or "deg" are angles, the same after a whole turn."""

    def __len__(self) -> int:
        """B, 0 before the first reset."""

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Begin one world per seed, its agent at `start` [B, 2] where that is given."""

    def step(self, action: np.ndarray) -> None:
        """Act in every world: [B, A], or the numbers of discrete actions [B, 1]."""

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: what the agent sees."""

    def state(self) -> np.ndarray:
        """[B, X] float32: for scoring and probes; the planner sees of it what latent.proprio
        names, which is nothing by default."""


@runtime_checkable
class Ending(World, Protocol):
    """A world whose episodes end by themselves, such as `GymWorld`."""

    def ended(self) -> np.ndarray:
        """[B] bool: whether each episode is over; such a world stands still until the next
        reset."""


@runtime_checkable
class Rewarding(World, Protocol):
    """A world that gives rewards, if `has_reward`."""

    @property
    def has_reward(self) -> bool:
        """Whether any reward can be earned."""

    def reward(self) -> np.ndarray:
        """[B] float32: what the latest step earned; 0 after the reset, and in an episode that was
        over before it."""

    def terminated(self) -> np.ndarray:
        """[B] bool: whether the latest step ended the episode for good, not by a limit of time."""


@runtime_checkable
class Adjusting(World, Protocol):
    """A world that takes some actions otherwise than they are given: clipped, say."""

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, A] float32: what `step` takes for actions [B, A]; what is recorded."""


@runtime_checkable
class Splitting(World, Protocol):
    """A world that keeps some of what it draws at a reset apart, its layouts: what its two splits
    show is disjoint."""

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The numbers of `state` that tell a layout, by their names."""

    @property
    def layout_resolution(self) -> float:
        """Layouts that are nearer than this in every number are the same; in their unit."""

    def of_split(self, split: Split) -> Splitting:
        """The same world drawing from one split alone; UserError where there is too little to keep
        apart."""


AnyWorld = TypeVar("AnyWorld", bound=World)


def of_split(world: AnyWorld, split: Split) -> AnyWorld:
    """The world drawing from one split alone; of a world that keeps nothing apart only the seeds
    can differ."""
    if not isinstance(world, Splitting):
        return world
    split_world: Any = world.of_split(split)
    same_kind: AnyWorld = split_world
    return same_kind


Policy = Callable[[World], np.ndarray]  # actions [B, A] for the worlds as they stand
# the policy of a batch with these seeds [B], which it draws from alone
NewPolicy = Callable[[np.ndarray], Policy]


class WorldSettings(Section):
    """What every world of the table declares: its name, what makes it, who explores it and its
    goal tasks, the one that counts where the config names none first."""

    name: str
    tasks: ClassVar[tuple[str, ...]] = ()  # names in TASKS

    def make(self) -> World:
        """A batch of this world; UserError for one that cannot be made."""
        raise NotImplementedError

    def clean(self) -> WorldSettings:
        """The same world without distractions, for people to look at."""
        return self

    def explore(self) -> NewPolicy:
        """The policy that collects data in it: random actions, where a world has no better."""
        return RandomExploration().make


def make_world(settings: WorldSettings | Mapping[str, Any]) -> World:
    """A batch of the world of these settings, or of the same as plain data: {"name": "two_rooms"}.

    Raises UserError for a world that nobody registered or that cannot be made."""
    if not isinstance(settings, WorldSettings):
        settings = WORLDS.get(str(settings.get("name"))).model_validate(settings)
    return settings.make()


class RandomExploration(Section):
    """Uniformly random actions."""

    mean_repeat: int = Field(5, ge=1)  # steps that an action is repeated, on average

    def make(self, seeds: np.ndarray) -> RandomActions:
        """The policy of a batch that begins with these seeds [B]."""
        return RandomActions(seeds, mean_repeat=self.mean_repeat)


class RandomActions:
    """Uniform random actions in any world (one-hot where discrete), each repeated for
    `mean_repeat` steps on average. World i depends on its seed alone."""

    def __init__(self, seeds: np.ndarray, *, mean_repeat: int = 5) -> None:
        if mean_repeat < 1:
            raise ValueError(f"mean_repeat must be at least 1 step, got {mean_repeat}")
        self.mean_repeat = mean_repeat
        self._generators = [np.random.default_rng([int(seed), 6]) for seed in seeds]
        self._action: np.ndarray | None = None  # [B, A]

    def __call__(self, world: World) -> np.ndarray:
        """[B, A] actions within the world's bounds."""
        actions = world.action_space
        renew = np.array([r.random() * self.mean_repeat < 1 for r in self._generators])
        uniform = [r.uniform(actions.low, actions.high) for r in self._generators]
        drawn = np.stack(uniform).astype(np.float32)
        # A choice is the largest of its numbers; moves are kept within the longest.
        if actions.choices is not None:
            drawn = np.eye(actions.choices, dtype=np.float32)[drawn.argmax(1)]
        elif actions.longest is not None:
            norm = np.linalg.norm(drawn, axis=1, keepdims=True)
            drawn *= np.minimum(1.0, actions.longest / np.maximum(norm, 1e-8))
        if self._action is not None:
            drawn = np.where(renew[:, None], drawn, self._action)
        self._action = drawn
        return drawn


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
else:
    ChosenWorld = chosen(WORLDS, "two_rooms")
