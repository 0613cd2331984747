"""The cross-entropy method for discrete actions: a table of probabilities instead of a Gaussian.

B episodes, S candidates, K elites, H horizon in model steps, G choices a model step among n, A = G
* n, R rounds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.action_space import DiscreteSpace, first_plan, zero_plan
from jepa_wm.planning.search import (
    Best,
    Cost,
    Plan,
    cheapest,
    check,
    checked_start,
    noise,
    score,
    with_known,
)


@dataclass(frozen=True, kw_only=True)
class CategoricalCEM:
    """Draw every choice from its own probabilities, keep the elites, count how often they choose
    what.

    A refit keeps a share `momentum` of the old probabilities; a share `explore` is spread evenly
    over all choices, so that none dies out. The mean of a plan [B, H, A] is its probabilities, and
    so is a warm start. The likeliest plan is one candidate of every round. Raises ValueError for
    settings that make no search. Source: R. Rubinstein, Methodology and Computing in Applied
    Probability 1 (1999)."""

    space: DiscreteSpace
    horizon: int
    candidates: int = 128
    rounds: int = 6
    elites: int = 16
    momentum: float = 0.0
    explore: float = 0.05

    def __post_init__(self) -> None:
        check(self.horizon, self.candidates, self.rounds)
        if not 1 <= self.elites <= self.candidates:
            raise ValueError(
                f"elites must lie in 1..candidates ({self.candidates}), got {self.elites}; lower elites or draw more"
            )
        if not 0 <= self.momentum < 1 or not 0 <= self.explore <= 1:
            raise ValueError(
                f"momentum {self.momentum}, explore {self.explore}: momentum must lie in 0..1 (1 excluded), explore "
                "in 0..1"
            )

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`. Raises ValueError for a warm start that holds no probabilities."""
        chance = self._first_chance(start, generator)  # [B, H, A]
        second = zero_plan(self.space, len(chance), self.horizon, device=chance.device)
        best = Best(second)
        for _ in range(self.rounds):
            plans = with_known(
                self._draw(chance, generator), self.space.project(chance), second
            )  # [B, S, H, A]
            costs = score(cost, self.space, plans)
            best.see(plans, costs)
            often = cheapest(plans, costs, self.elites).double().mean(1).to(chance)
            chance = self._explored(self.momentum * chance + (1 - self.momentum) * often)
            second = best.actions
            best.end_round()
        likeliest = self.space.project(chance)[:, None]
        best.see(likeliest, score(cost, self.space, likeliest))
        return best.plan(chance)

    def _first_chance(self, start: Tensor | None, generator: list[torch.Generator]) -> Tensor:
        """[B, H, A] the warm start's probabilities, or equal ones; none of what is barred."""
        if not generator:
            raise ValueError("generator is empty; give one torch.Generator per episode")
        even = first_plan(self.space, len(generator), self.horizon, device=generator[0].device)
        if start is None:
            return even
        chance = checked_start(start, even)[:, 0]
        total = self._each(chance).sum(-1)
        if bool((chance < 0).any()) or not torch.allclose(
            total, torch.ones_like(total), atol=1e-3
        ):
            raise ValueError(
                "start must hold probabilities, of each choice's n numbers none negative and the sum 1"
            )
        if self.space.barred:
            allowed, equal = self._each(chance * (even > 0)), self._each(even)
            total = allowed.sum(-1, keepdim=True)
            chance = torch.where(total > 0, allowed / total, equal).flatten(-2)
        return self._explored(chance)

    def _draw(self, chance: Tensor, generator: list[torch.Generator]) -> Tensor:
        """[B, S, H, A] one-hot plans drawn from probabilities [B, H, A]."""
        cumulated = self._each(chance).double().cumsum(-1)[:, None, ..., :-1]  # [B, 1, H, G, n-1]
        uniform = noise(
            chance[..., : self.space.slots], self.candidates, generator, uniform=True
        )  # [B, S, H, G]
        return self.space.one_hot((uniform[..., None] >= cumulated).sum(-1))

    def _explored(self, chance: Tensor) -> Tensor:
        """[B, H, A] with a share of the probability spread evenly."""
        return (1 - self.explore) * chance + self.explore * chance.new_tensor(
            self.space.first_step()
        )

    def _each(self, chance: Tensor) -> Tensor:
        """[B, H, G, n]."""
        return chance.unflatten(-1, (self.space.slots, self.space.choices))
