"""Solvers that search for the cheapest plan: cross-entropy method, MPPI and random shooting,
batched over episodes.

B episodes, S candidates, K elites, H horizon in model steps, A searched numbers a step, R rounds.
`std` and `min_std` are shares of the action box's half width. In every round the current mean is
one candidate; the plan of doing nothing is one in the first round, the best plan so far in all
later ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace, Space, zero_plan
from jepa_wm.planning.search import (
    Best,
    Cost,
    Plan,
    cheapest,
    check,
    check_spread,
    first_mean,
    kept_plans,
    noise,
    refit,
    score,
    with_known,
)


@dataclass(frozen=True, kw_only=True)
class CEM:
    """Cross-entropy method: draw from a Gaussian, keep the elites, refit mean and spread of every
    number to them.

    `momentum` is the share of the old mean and spread that a refit keeps. Raises ValueError for
    settings that make no search. Source: R. Rubinstein, Methodology and Computing in Applied
    Probability 1 (1999); as in V-JEPA 2-AC."""

    space: ActionSpace
    horizon: int
    candidates: int = 128
    rounds: int = 6
    elites: int = 16
    std: float = 0.7
    min_std: float = 0.05
    momentum: float = 0.0

    def __post_init__(self) -> None:
        check(self.horizon, self.candidates, self.rounds)
        check_spread(self.std, self.min_std)
        if not 1 <= self.elites <= self.candidates:
            raise ValueError(
                f"elites must lie in 1..candidates ({self.candidates}), got {self.elites}; lower elites or draw more"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in 0..1 (1 excluded), got {self.momentum}")

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`."""
        mean = first_mean(self.space, self.horizon, start, generator)  # [B, H, A]
        half = self.space.half_width(mean)  # [A]
        std = (self.std * half).expand_as(mean)
        kept = kept_plans(self.space, self.horizon, start, generator)[:, : self.candidates - 2]
        second = zero_plan(self.space, len(mean), self.horizon, device=mean.device)
        best = Best(mean)
        for _ in range(self.rounds):
            drawn = self.space.project(
                mean[:, None] + std[:, None] * noise(mean, self.candidates, generator)
            )
            plans = with_known(drawn, mean, second, kept)  # [B, S, H, A]
            kept = kept[:, :0]
            costs = score(cost, self.space, plans)
            best.see(plans, costs)
            mean, std = refit(cheapest(plans, costs, self.elites), mean, std, keep=self.momentum)
            std = std.maximum(self.min_std * half)
            second = best.actions
            best.end_round()
        best.see(mean[:, None], score(cost, self.space, mean[:, None]))
        return best.plan(mean)


@dataclass(frozen=True, kw_only=True)
class MPPI:
    """Model predictive path integral: the mean moves to the candidates' average, weighted by
    softmax of their costs.

    Costs are taken in units of their own spread within the round, so `temperature` has no unit:
    small follows the cheapest, large averages all. The noise falls from `std` to `min_std` over
    the rounds; None keeps it fixed. Raises ValueError for settings that make no search. Source: G.
    Williams et al., ICRA 2017."""

    space: ActionSpace
    horizon: int
    candidates: int = 128
    rounds: int = 6
    temperature: float = 0.5
    std: float = 0.7
    min_std: float | None = None

    def __post_init__(self) -> None:
        check(self.horizon, self.candidates, self.rounds)
        check_spread(self.std, self.std if self.min_std is None else self.min_std)
        if self.min_std == 0:
            raise ValueError(
                "min_std must be positive for MPPI, whose noise falls geometrically; None keeps it fixed"
            )
        if not self.temperature > 0:
            raise ValueError(f"temperature must be positive, got {self.temperature}")

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`."""
        mean = first_mean(self.space, self.horizon, start, generator)  # [B, H, A]
        half = self.space.half_width(mean)
        kept = kept_plans(self.space, self.horizon, start, generator)[:, : self.candidates - 2]
        second = zero_plan(self.space, len(mean), self.horizon, device=mean.device)
        best = Best(mean)
        for number in range(self.rounds):
            spread = self._std(number) * half
            drawn = self.space.project(
                mean[:, None] + spread * noise(mean, self.candidates, generator)
            )
            plans = with_known(drawn, mean, second, kept)  # [B, S, H, A]
            kept = kept[:, :0]
            costs = score(cost, self.space, plans)
            best.see(plans, costs)
            weights = self._weights(costs)[:, :, None, None]
            mean = self.space.project((weights * plans.double()).sum(1).to(mean))
            second = best.actions
            best.end_round()
        best.see(mean[:, None], score(cost, self.space, mean[:, None]))
        return best.plan(mean)

    def _std(self, number: int) -> float:
        """The noise of a round, as a share of the half width."""
        if self.min_std is None or self.rounds == 1:
            return self.std
        return self.std * (self.min_std / self.std) ** (number / (self.rounds - 1))

    def _weights(self, costs: Tensor) -> Tensor:
        """[B, S] shares that sum to 1, in double."""
        costs = costs.double()
        above = costs - costs.min(1, keepdim=True).values
        spread = (costs - costs.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        return torch.softmax(-above / (spread.clamp_min(1e-12) * self.temperature), 1)


@dataclass(frozen=True, kw_only=True)
class RandomShooting:
    """Plans drawn uniformly from the space, the cheapest kept: what a search must beat at equal
    candidates.

    Raises ValueError for settings that make no search.
    """

    space: ActionSpace
    horizon: int
    candidates: int = 128
    rounds: int = 6

    def __post_init__(self) -> None:
        check(self.horizon, self.candidates, self.rounds)

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`; the mean is the cheapest plan."""
        mean = first_mean(self.space, self.horizon, start, generator)
        kept = kept_plans(self.space, self.horizon, start, generator)[:, : self.candidates - 2]
        second = zero_plan(self.space, len(mean), self.horizon, device=mean.device)
        best = Best(mean)
        for _ in range(self.rounds):
            drawn = self.space.uniform(noise(mean, self.candidates, generator, uniform=True))
            plans = with_known(drawn, mean, second, kept)  # [B, S, H, A]
            kept = kept[:, :0]
            best.see(plans, score(cost, self.space, plans))
            mean = second = best.actions
            best.end_round()
        return best.plan(mean)


@dataclass(frozen=True, kw_only=True)
class AsProposed:
    """No search: the warm start is the plan, such as a policy's proposal; one evaluation tells its
    cost.

    Raises ValueError for a horizon below 1.
    """

    space: Space
    horizon: int

    def __post_init__(self) -> None:
        check(self.horizon, 2, 1)

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`; without a start, the plan of doing nothing."""
        plan = first_mean(self.space, self.horizon, start, generator)
        if start is None:
            plan = zero_plan(self.space, len(plan), self.horizon, device=plan.device)
        best = Best(plan)
        best.see(plan[:, None], score(cost, self.space, plan[:, None]))
        best.end_round()
        return best.plan(plan)
