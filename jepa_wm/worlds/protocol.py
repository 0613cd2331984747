"""What a simulator must offer to be collected from, planned in and scored: one protocol, whole
batches at a time.

B worlds in the batch, h and w frame height and width, A action numbers, X state numbers (0 where
there is no state)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np

Split = Literal["train", "heldout"]


@runtime_checkable
class World(Protocol):
    """A batch of worlds that step together; world i depends on its seed and its actions, never on
    its neighbours."""

    @property
    def action_bounds(self) -> tuple[np.ndarray, np.ndarray, float | None]:
        """(low [A], high [A], longest norm or None) of one action; a discrete one is a one-hot of
        A numbers."""
        ...

    @property
    def choices(self) -> int | None:
        """How many discrete actions there are; None where actions are continuous."""
        ...

    @property
    def state_names(self) -> tuple[str, ...]:
        """X names for the numbers of `state`; empty where the simulator shows none.

        Names that differ only after their last underscore ("agent_x", "agent_y") are probed as one
        quantity."""
        ...

    @property
    def state_units(self) -> tuple[str, ...]:
        """The unit of each number of `state`, "" where it has none or nobody knows it; empty where
        none is known.

        Numbers in "rad" or "deg" are angles, the same after a whole turn.
        """
        ...

    def __len__(self) -> int:
        """B, 0 before the first reset."""
        ...

    def reset(self, seeds: np.ndarray, *, start: np.ndarray | None = None) -> None:
        """Begin one world per seed, its agent at `start` [B, 2] where that is given."""
        ...

    def step(self, action: np.ndarray) -> None:
        """Act in every world: [B, A], or the numbers of discrete actions [B, 1]."""
        ...

    def render(self) -> np.ndarray:
        """[B, h, w, 3] uint8: what the agent sees."""
        ...

    def state(self) -> np.ndarray:
        """[B, X] float32: for scoring and probes only; the planner never sees it."""
        ...


@runtime_checkable
class SelfScoring(World, Protocol):
    """A world that ends its episodes and judges its success by itself, such as `GymWorld`."""

    def ended(self) -> np.ndarray:
        """[B] bool: whether each episode is over; such a world stands still until the next
        reset."""
        ...

    def succeeded(self) -> np.ndarray:
        """[B] bool: whether each world has reported success at any step since its reset."""
        ...


@runtime_checkable
class Rewarding(World, Protocol):
    """A world that gives rewards, if `has_reward`."""

    @property
    def has_reward(self) -> bool:
        """Whether any reward can be earned."""
        ...

    def reward(self) -> np.ndarray:
        """[B] float32: what the latest step earned; 0 after the reset, and in an episode that was
        over before it."""
        ...

    def terminated(self) -> np.ndarray:
        """[B] bool: whether the latest step ended the episode for good, not by a limit of time."""
        ...


@runtime_checkable
class Adjusting(World, Protocol):
    """A world that takes some actions otherwise than they are given: clipped, say."""

    def taken(self, action: np.ndarray) -> np.ndarray:
        """[B, A] float32: what `step` takes for actions [B, A]; what is recorded."""
        ...


@runtime_checkable
class SaysActionKind(World, Protocol):
    """A world that says what its actions are; those of one that does not are moves."""

    @property
    def action_kind(self) -> Literal["delta", "absolute"]:
        """Whether actions are moves, which add up, or places to go to."""
        ...


@runtime_checkable
class Splitting(World, Protocol):
    """A world that keeps some of what it draws at a reset apart, its layouts: what its two splits
    show is disjoint."""

    @property
    def layout_names(self) -> tuple[str, ...]:
        """The numbers of `state` that tell a layout, by their names."""
        ...

    @property
    def layout_resolution(self) -> float:
        """Layouts that are nearer than this in every number are the same; in their unit."""
        ...

    def of_split(self, split: Split) -> Splitting:
        """The same world drawing from one split alone; UserError where there is too little to keep
        apart."""
        ...


AnyWorld = TypeVar("AnyWorld", bound=World)


def of_split(world: AnyWorld, split: Split) -> AnyWorld:
    """The world drawing from one split alone; of a world that keeps nothing apart only the seeds
    can differ."""
    if not isinstance(world, Splitting):
        return world
    split_world: Any = world.of_split(split)
    same_kind: AnyWorld = split_world
    return same_kind


@runtime_checkable
class Idling(World, Protocol):
    """A world that knows what doing nothing is there, such as coasting; a search tries that
    first."""

    def idle_action(self) -> np.ndarray | None:
        """[A] the action that does nothing, or [1] a choice's number; None where the world cannot
        tell."""
        ...


Policy = Callable[[World], np.ndarray]  # actions [B, A] for the worlds as they stand
NewPolicy = Callable[
    [np.ndarray], Policy
]  # the policy of a batch with these seeds [B], which it draws from alone
