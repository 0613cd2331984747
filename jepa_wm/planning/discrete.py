"""Discrete actions: a choice among n, searched as one-hot plans and taken as each choice's own
numbers; and the cross-entropy method of probabilities that searches them.

B episodes, S plans of a round, H horizon in model steps, A searched numbers a step, a numbers of
one environment action, block = frameskip, n choices of a discrete action, G choices searched per
model step (A = G * n)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from jepa_wm.core.errors import UserError
from jepa_wm.planning.search import Generators, Solver, State, cheapest, noise
from jepa_wm.planning.settings import CEM


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
        vectors = tuple(tuple(float(x) for x in vector) for vector in self.vectors)
        object.__setattr__(self, "vectors", vectors)
        if len(vectors) < 2 or not vectors[0] or len({len(vector) for vector in vectors}) > 1:
            raise ValueError(
                f"vectors {vectors}: give at least two, one a choice and all of one length"
            )
        if not all(math.isfinite(x) for vector in vectors for x in vector):
            raise ValueError(f"vectors {vectors} must be finite")
        if len(set(vectors)) < len(vectors):
            raise ValueError(
                f"vectors {vectors}: two choices have the same; the model could not tell them "
                "apart"
            )
        # Some are chosen a model step, and taken some times; doing nothing is one of them.
        for name in ("slots", "repeat"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.idle is not None and not 0 <= self.idle < len(vectors):
            raise ValueError(
                f"idle {self.idle} is none of the {len(vectors)} choices, which are counted from 0"
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
        if vectors is None:
            vectors = torch.eye(choices).tolist()
        if len(vectors) != choices:
            raise ValueError(f"{len(vectors)} vectors for {choices} choices; give one each")
        slots, repeat = (1, block) if action_repeat else (block, 1)
        return cls(tuple(tuple(vector) for vector in vectors), slots, repeat, idle)

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
        outside = {i for i, kept in enumerate(inside) if not kept}
        return replace(self, barred=tuple(sorted(outside.union(self.barred))))

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

    def box(self, solver: str) -> NoReturn:
        """ValueError: choices are no box."""
        raise ValueError(
            f"planner.solver {solver} searches continuous actions; set planner.solver.name=cem "
            "for discrete ones"
        )

    def cem(self, settings: CEM, horizon: int) -> CategoricalCEM:
        """The cross-entropy method here."""
        return CategoricalCEM(settings, self, horizon)

    def staying(self, last: Tensor | None) -> Tensor | None:
        """[a] the numbers of the choice that does nothing, whatever the last was; None: not
        known."""
        return None if self.idle is None else torch.tensor(self.vectors[self.idle])

    def one_hot(self, chosen: Tensor) -> Tensor:
        """[..., A] float plans of chosen numbers [..., G]."""
        return one_hot(chosen, self.choices).flatten(-2).float()

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] one-hot: of each slot's n numbers the largest wins, the first of equals; barred
        ones never do."""
        return self.one_hot(self._chosen(actions)).to(actions)

    def idle_step(self) -> tuple[float, ...]:
        """[A] doing nothing, the first choice where none is known to; where that is barred, the
        first that is not."""
        still = self.one_hot(torch.full((self.slots,), self.idle or 0))
        return tuple(self.project(still).tolist())

    def first_step(self) -> tuple[float, ...]:
        """[A] what a search without a warm start begins from: the same chance for all choices that
        are not barred."""
        even = 1 / (self.choices - len(self.barred))
        return tuple(0.0 if i in self.barred else even for i in range(self.choices)) * self.slots

    def to_model(self, actions: Tensor) -> Tensor:
        """[..., H, A] plans as [..., H, block * a], what the model takes; time runs first within a
        block."""
        numbers = actions.new_tensor(self.vectors)[self._chosen(actions)]  # [..., H, G, a]
        return numbers.repeat_interleave(self.repeat, -2).flatten(-2)

    def to_plan(self, blocks: Tensor) -> Tensor:
        """[..., H, A] the one-hot plan whose numbers are nearest to model steps [..., H, block *
        a]."""
        each = blocks.unflatten(-1, (self.slots, self.repeat, self.size))
        gap = self._gap(each.mean(-2))  # [..., H, G, n]
        gap[..., list(self.barred)] = torch.inf
        return self.one_hot(gap.argmin(-1)).to(blocks)

    def to_env(self, blocks: Tensor) -> Tensor:
        """[..., H, block * a] as the numbers of the chosen actions [..., H * block, 1] in the
        order they are taken."""
        taken = blocks.unflatten(-1, (-1, self.size)).flatten(-3, -2)
        return self._gap(taken).argmin(-1, keepdim=True)

    def _gap(self, numbers: Tensor) -> Tensor:
        """[..., n] the squared distances of numbers [..., a] to each choice's."""
        return (numbers[..., None, :] - numbers.new_tensor(self.vectors)).square().sum(-1)

    def _chosen(self, actions: Tensor) -> Tensor:
        """[..., G] the number of the largest entry of each slot."""
        each = actions.unflatten(-1, (self.slots, self.choices))
        if self.barred:
            each = each.clone()
            each[..., list(self.barred)] = -torch.inf
        # argmax alone may return any of equals
        return (each == each.amax(-1, keepdim=True)).int().argmax(-1)


class CategoricalCEM(Solver):
    """CEM of discrete actions: a table of probabilities instead of a Gaussian.

    A share `explore` of the probability is spread evenly over all choices, so that none dies out.
    The mean of a plan [B, H, A] is its probabilities, and so is a warm start. The likeliest plan
    is one of every round."""

    space: DiscreteSpace

    def __init__(self, settings: CEM, space: DiscreteSpace, horizon: int) -> None:
        super().__init__(space, horizon)
        self.settings, self.iterations = settings, settings.iterations

    def begin(self, start: Tensor | None, generator: Generators) -> State:
        """Raises ValueError for a warm start that holds no probabilities."""
        state = super().begin(None, generator)
        return state if start is None else replace(state, mean=self._chances(start[:, 0], state))

    def propose(self, state: State, generator: Generators) -> Tensor:
        """One-hot plans, each choice drawn from its own probabilities."""
        cumulated = self._each(state.mean).double().cumsum(-1)[:, None, ..., :-1]
        slots = state.mean[..., : self.space.slots]
        uniform = noise(slots, self.settings.num_samples, generator, uniform=True)  # [B, S, H, G]
        return self.space.one_hot((uniform[..., None] >= cumulated).sum(-1))

    def known(self, state: State) -> Tensor:
        return torch.stack([self.space.project(state.mean), state.best], 1)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        momentum, elites = self.settings.momentum, cheapest(plans, costs, self.settings.elites)
        often = elites.double().mean(1).to(state.mean)
        return replace(state, mean=self._explored(momentum * state.mean + (1 - momentum) * often))

    def last(self, state: State) -> Tensor:
        return self.space.project(state.mean)[:, None]

    def _chances(self, start: Tensor, state: State) -> Tensor:
        """[B, H, A] the probabilities of a warm start [B, H, A], none of what is barred."""
        total = self._each(start).sum(-1)
        if bool((start < 0).any()) or not torch.allclose(total, torch.ones_like(total), atol=1e-3):
            raise ValueError(
                "start must hold probabilities, of each choice's n numbers none negative and the "
                "sum 1"
            )
        if self.space.barred:
            allowed, equal = self._each(start * (state.mean > 0)), self._each(state.mean)
            total = allowed.sum(-1, keepdim=True)
            start = torch.where(total > 0, allowed / total, equal).flatten(-2)
        return self._explored(start)

    def _explored(self, chances: Tensor) -> Tensor:
        """[B, H, A] with a share of the probability spread evenly."""
        even = chances.new_tensor(self.space.first_step())
        return (1 - self.settings.explore) * chances + self.settings.explore * even

    def _each(self, chances: Tensor) -> Tensor:
        """[B, H, G, n]."""
        return chances.unflatten(-1, (self.space.slots, self.space.choices))
