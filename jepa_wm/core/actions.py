"""The space a solver searches, a box or a list of choices, and how a plan becomes the action blocks of model steps.

H horizon in model steps, A searched numbers a step, a numbers of one environment action, block = frameskip,
n choices of a discrete action, G choices searched per model step (A = G * n).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Space(Protocol):
    """What the protocol of solvers, the receding horizon and the agent ask of a space."""

    @property
    def searched(self) -> int: ...

    @property
    def expanded(self) -> int: ...

    def project(self, actions: Tensor) -> Tensor: ...

    def expand(self, actions: Tensor) -> Tensor: ...

    def condense(self, expanded: Tensor) -> Tensor: ...

    def steps(self, expanded: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class ActionSpace:
    """Bounds of one searched action, and how often it is repeated inside a model step's block.

    `max_norm` bounds the Euclidean norm of each consecutive `group` numbers, one environment action; a longer one is
    scaled back. Make it with `ActionSpace.of_block` when the environment's own bounds are at hand.
    Raises ValueError for a box that is empty, not finite or does not fit `group`, and for a norm whose ball is not
    centred in the box.
    """

    low: tuple[float, ...]  # [A]
    high: tuple[float, ...]  # [A]
    max_norm: float | None = None
    group: int | None = None  # a; None: the searched action is one environment action
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"low has {len(self.low)} numbers and high {len(self.high)}; give one each per action")
        object.__setattr__(self, "group", self.group or len(self.low))
        if not all(math.isfinite(x) for x in (*self.low, *self.high)):
            raise ValueError(f"low {self.low}, high {self.high}: a box to search in must be finite; bound the actions")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low {self.low} exceeds high {self.high}; swap them")
        if len(self.low) % self.size:
            raise ValueError(f"group {self.group} does not divide the {len(self.low)} searched numbers")
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {self.repeat}")
        if self.max_norm is not None:
            if not self.max_norm > 0:
                raise ValueError(f"max_norm must be positive, got {self.max_norm}; None means no bound")
            if any(low > 0 or high < 0 for low, high in zip(self.low, self.high, strict=True)):
                raise ValueError(f"max_norm needs a box around zero, got low {self.low}, high {self.high}")

    @classmethod
    def of_block(
        cls, low: Sequence[float], high: Sequence[float], *, max_norm: float | None = None, block: int, hold: bool
    ) -> ActionSpace:
        """The space for `block` environment actions bounded by low, high [a] and `max_norm` per model step.

        With `hold`, one environment action is searched and held for the block (A = a); else all are (A = block * a).
        """
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if hold:
            return cls(tuple(low), tuple(high), max_norm, len(low), block)
        return cls(tuple(low) * block, tuple(high) * block, max_norm, len(low))

    @property
    def size(self) -> int:
        """a: numbers of one environment action."""
        return self.group or len(self.low)

    @property
    def searched(self) -> int:
        """A: numbers a solver searches per model step."""
        return len(self.low)

    @property
    def expanded(self) -> int:
        """Numbers the model takes per step: block * a."""
        return len(self.low) * self.repeat

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] the actions clipped to the box, then scaled back where a group is longer than `max_norm`."""
        clipped = actions.clamp(actions.new_tensor(self.low), actions.new_tensor(self.high))
        if self.max_norm is None:
            return clipped
        groups = clipped.unflatten(-1, (-1, self.size))
        norm = groups.norm(dim=-1, keepdim=True)
        return (groups * (self.max_norm / norm.clamp_min(1e-12)).clamp_max(1.0)).flatten(-2)

    def expand(self, actions: Tensor) -> Tensor:
        """[..., H, A] searched actions as [..., H, block * a], what the model takes; time runs first within a block."""
        return actions.repeat(*[1] * (actions.dim() - 1), self.repeat)

    def condense(self, expanded: Tensor) -> Tensor:
        """[..., H, A] the plan of the space nearest to model steps [..., H, block * a]: where one action is held, the
        mean of the block's."""
        return self.project(expanded.unflatten(-1, (self.repeat, -1)).mean(-2))

    def steps(self, expanded: Tensor) -> Tensor:
        """[..., H, block * a] as single environment actions [..., H * block, a] in the order they are taken."""
        return expanded.unflatten(-1, (-1, self.size)).flatten(-3, -2)

    def half_width(self, like: Tensor) -> Tensor:
        """[A] half the box's width, on the device and in the type of `like`."""
        return (like.new_tensor(self.high) - like.new_tensor(self.low)) / 2

    def uniform(self, unit: Tensor) -> Tensor:
        """[..., A] numbers in 0..1 spread over the box, then projected."""
        return self.project(unit.new_tensor(self.low) + 2 * unit * self.half_width(unit))


@dataclass(frozen=True)
class DiscreteSpace:
    """A choice among n actions; a plan is one-hot, [..., H, G * n], and the model takes each choice's numbers.

    Choice 0 stands for doing nothing. Make it with `DiscreteSpace.of_block`.
    Raises ValueError for vectors that are fewer than two, of unequal lengths, not finite or not distinct.
    """

    vectors: tuple[tuple[float, ...], ...]  # [n, a] what the model takes for each choice
    slots: int = 1  # G
    repeat: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", tuple(tuple(float(x) for x in vector) for vector in self.vectors))
        if len(self.vectors) < 2 or not self.vectors[0] or len({len(vector) for vector in self.vectors}) > 1:
            raise ValueError(f"vectors {self.vectors}: give at least two, one a choice and all of one length")
        if not all(math.isfinite(x) for vector in self.vectors for x in vector):
            raise ValueError(f"vectors {self.vectors} must be finite")
        if len(set(self.vectors)) < len(self.vectors):
            raise ValueError(f"vectors {self.vectors}: two choices have the same; the model could not tell them apart")
        for name in ("slots", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @classmethod
    def of_block(
        cls, choices: int, *, block: int, hold: bool, vectors: Sequence[Sequence[float]] | None = None
    ) -> DiscreteSpace:
        """The space for `block` environment actions per model step, each one of `choices`.

        With `hold`, one is chosen and held for the block. The model takes `vectors` [n, a], one-hot if None.
        """
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if vectors is None:
            vectors = torch.eye(choices).tolist()
        if len(vectors) != choices:
            raise ValueError(f"{len(vectors)} vectors for {choices} choices; give one each")
        rows = tuple(tuple(vector) for vector in vectors)
        return cls(rows, 1, block) if hold else cls(rows, block, 1)

    @property
    def choices(self) -> int:
        """n."""
        return len(self.vectors)

    @property
    def size(self) -> int:
        """a: numbers of one environment action as the model takes it."""
        return len(self.vectors[0])

    @property
    def searched(self) -> int:
        """A: numbers of a plan per model step, G * n."""
        return self.slots * self.choices

    @property
    def expanded(self) -> int:
        """Numbers the model takes per step: block * a."""
        return self.slots * self.repeat * self.size

    def one_hot(self, chosen: Tensor) -> Tensor:
        """[..., A] float plans of chosen numbers [..., G]."""
        return torch.nn.functional.one_hot(chosen, self.choices).flatten(-2).float()

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] one-hot: of each slot's n numbers the largest wins, the first of equals."""
        return self.one_hot(self._chosen(actions)).to(actions)

    def expand(self, actions: Tensor) -> Tensor:
        """[..., H, A] plans as [..., H, block * a], what the model takes; time runs first within a block."""
        numbers = actions.new_tensor(self.vectors)[self._chosen(actions)]  # [..., H, G, a]
        return numbers.repeat_interleave(self.repeat, -2).flatten(-2)

    def condense(self, expanded: Tensor) -> Tensor:
        """[..., H, A] the one-hot plan whose numbers are nearest to model steps [..., H, block * a]."""
        held = expanded.unflatten(-1, (self.slots, self.repeat, self.size)).mean(-2)  # [..., H, G, a]
        gap = (held[..., None, :] - expanded.new_tensor(self.vectors)).square().sum(-1)
        return self.one_hot(gap.argmin(-1)).to(expanded)

    def steps(self, expanded: Tensor) -> Tensor:
        """[..., H, block * a] as the numbers of the chosen actions [..., H * block, 1] in the order they are taken."""
        taken = expanded.unflatten(-1, (-1, self.size)).flatten(-3, -2)
        gap = (taken[..., None, :] - expanded.new_tensor(self.vectors)).square().sum(-1)
        return gap.argmin(-1, keepdim=True)

    def _chosen(self, actions: Tensor) -> Tensor:
        """[..., G] the number of the largest entry of each slot."""
        each = actions.unflatten(-1, (self.slots, self.choices))
        return (each == each.amax(-1, keepdim=True)).int().argmax(-1)  # argmax alone may return any of equals


def zero_plan(space: Space, episodes: int, horizon: int, *, device: torch.device) -> Tensor:
    """[B, H, A] the plan of doing nothing: the nearest to it that the box allows, or choice 0 throughout."""
    return space.project(torch.zeros(episodes, horizon, space.searched, device=device))
