"""A space of discrete actions: a choice among n, searched as one-hot plans, taken as each choice's
own numbers.

H horizon in model steps, A searched numbers a step, a numbers of one environment action, block =
frameskip, n choices of a discrete action, G choices searched per model step (A = G * n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError


@dataclass(frozen=True)
class DiscreteSpace:
    """A choice among n actions; a plan is one-hot, [..., H, G * n], and the model takes each
    choice's numbers.

    Choice `idle` does nothing, if one is known to; those in `barred` are never taken. Make it with
    `DiscreteSpace.of_block`. Raises ValueError for vectors that are fewer than two, of unequal
    lengths, not finite or not distinct, and for an `idle` that is none of the choices."""

    vectors: tuple[tuple[float, ...], ...]  # [n, a] what the model takes for each choice
    slots: int = 1  # G
    repeat: int = 1
    idle: int | None = None
    barred: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        # Each choice has numbers of its own.
        object.__setattr__(
            self, "vectors", tuple(tuple(float(x) for x in vector) for vector in self.vectors)
        )
        if (
            len(self.vectors) < 2
            or not self.vectors[0]
            or len({len(vector) for vector in self.vectors}) > 1
        ):
            raise ValueError(
                f"vectors {self.vectors}: give at least two, one a choice and all of one length"
            )
        if not all(math.isfinite(x) for vector in self.vectors for x in vector):
            raise ValueError(f"vectors {self.vectors} must be finite")
        if len(set(self.vectors)) < len(self.vectors):
            raise ValueError(
                f"vectors {self.vectors}: two choices have the same; the model could not tell "
                "them apart"
            )
        # Some are chosen a model step, and taken some times; doing nothing is one of them.
        for name in ("slots", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.idle is not None and not 0 <= self.idle < len(self.vectors):
            raise ValueError(
                f"idle {self.idle} is none of the {len(self.vectors)} choices, which are counted "
                "from 0"
            )

    @classmethod
    def of_block(
        cls,
        choices: int,
        *,
        block: int,
        action_repeat: bool,
        vectors: Sequence[Sequence[float]] | None = None,
        idle: int | None = None,
    ) -> DiscreteSpace:
        """The space for `block` environment actions per model step, each one of `choices`.

        With `action_repeat`, one is chosen and held for the block. The model takes `vectors` [n,
        a], one-hot if None."""
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if vectors is None:
            vectors = torch.eye(choices).tolist()
        if len(vectors) != choices:
            raise ValueError(f"{len(vectors)} vectors for {choices} choices; give one each")
        rows = tuple(tuple(vector) for vector in vectors)
        return cls(rows, 1, block, idle) if action_repeat else cls(rows, block, 1, idle)

    def within(self, low: Sequence[float], high: Sequence[float]) -> DiscreteSpace:
        """The space without the choices whose numbers lie outside low..high [a], such as those
        that a model never saw taken. UserError where none is left."""
        bounds = tuple(zip(low, high, strict=True))
        inside = [
            all(a - 1e-5 <= x <= b + 1e-5 for x, (a, b) in zip(vector, bounds, strict=True))
            for vector in self.vectors
        ]
        if not any(inside):
            raise UserError(
                "none of the world's choices was taken in the data that the model was trained "
                "on: plan in the world of the data"
            )
        barred = tuple(sorted({*self.barred, *(i for i, kept in enumerate(inside) if not kept)}))
        return self if barred == self.barred else replace(self, barred=barred)

    @property
    def choices(self) -> int:
        """n."""
        return len(self.vectors)

    @property
    def size(self) -> int:
        """a: numbers of one environment action as the model takes it."""
        return len(self.vectors[0])

    @property
    def plan_dim(self) -> int:
        """A: numbers of a plan per model step, G * n."""
        return self.slots * self.choices

    @property
    def model_action_dim(self) -> int:
        """Numbers the model takes per step: block * a."""
        return self.slots * self.repeat * self.size

    @property
    def absolute(self) -> bool:
        """Choices are no places to go to."""
        return False

    def staying(self, last: Tensor | None) -> Tensor | None:
        """[a] the numbers of the choice that does nothing, whatever the last was; None: not
        known."""
        return None if self.idle is None else torch.tensor(self.vectors[self.idle])

    def one_hot(self, chosen: Tensor) -> Tensor:
        """[..., A] float plans of chosen numbers [..., G]."""
        return torch.nn.functional.one_hot(chosen, self.choices).flatten(-2).float()

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] one-hot: of each slot's n numbers the largest wins, the first of equals; barred
        ones never do."""
        return self.one_hot(self._chosen(actions)).to(actions)

    def idle_step(self) -> tuple[float, ...]:
        """[A] doing nothing, the first choice where none is known to; where that is barred, the
        first that is not."""
        still = (
            torch.nn.functional.one_hot(torch.tensor(self.idle or 0), self.choices)
            .float()
            .repeat(self.slots)
        )
        return tuple(self.project(still).tolist())

    def first_step(self) -> tuple[float, ...]:
        """[A] what a search without a warm start begins from: the same chance for all choices that
        are not barred."""
        even = [
            0.0 if i in self.barred else 1 / (self.choices - len(self.barred))
            for i in range(self.choices)
        ]
        return tuple(even * self.slots)

    def to_model(self, actions: Tensor) -> Tensor:
        """[..., H, A] plans as [..., H, block * a], what the model takes; time runs first within a
        block."""
        numbers = actions.new_tensor(self.vectors)[self._chosen(actions)]  # [..., H, G, a]
        return numbers.repeat_interleave(self.repeat, -2).flatten(-2)

    def to_plan(self, blocks: Tensor) -> Tensor:
        """[..., H, A] the one-hot plan whose numbers are nearest to model steps [..., H, block *
        a]."""
        held = blocks.unflatten(-1, (self.slots, self.repeat, self.size)).mean(
            -2
        )  # [..., H, G, a]
        gap = (held[..., None, :] - blocks.new_tensor(self.vectors)).square().sum(-1)
        gap[..., list(self.barred)] = torch.inf
        return self.one_hot(gap.argmin(-1)).to(blocks)

    def to_env(self, blocks: Tensor) -> Tensor:
        """[..., H, block * a] as the numbers of the chosen actions [..., H * block, 1] in the
        order they are taken."""
        taken = blocks.unflatten(-1, (-1, self.size)).flatten(-3, -2)
        gap = (taken[..., None, :] - blocks.new_tensor(self.vectors)).square().sum(-1)
        return gap.argmin(-1, keepdim=True)

    def _chosen(self, actions: Tensor) -> Tensor:
        """[..., G] the number of the largest entry of each slot."""
        each = actions.unflatten(-1, (self.slots, self.choices))
        if self.barred:
            each = each.clone()
            each[..., list(self.barred)] = -torch.inf
        return (
            (each == each.amax(-1, keepdim=True)).int().argmax(-1)
        )  # argmax alone may return any of equals
