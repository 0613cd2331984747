"""Solvers that follow the cost's gradient: Adam on many plans at once, alone or after a search.

B episodes, S restarts, H horizon in model steps, A searched numbers a step, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace, Space, zero_plan
from jepa_wm.planning.search import (
    Best,
    Cost,
    Plan,
    Solver,
    check,
    first_mean,
    kept_plans,
    noise,
    score,
    with_known,
)


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """Adam on the plans themselves, from many starts in one batch, each step projected into the
    space.

    Restarts are the warm start, the plan of doing nothing, plans kept from before, and draws
    around the warm start of spread `std`. `lr`, `std` and `noise` are shares of the box's half
    width; noise is added after every step and falls to none at the last, so that a plan may leave
    a shallow basin. The cost is called with gradients enabled. Raises ValueError for settings that
    make no search. Source: D. Kingma, J. Ba, ICLR 2015; gradient planning as in UPN (Srinivas et
    al. 2018) and DINO-WM."""

    space: ActionSpace
    horizon: int
    restarts: int = 16
    rounds: int = 20
    lr: float = 0.1
    std: float = 0.5
    noise: float = 0.0

    def __post_init__(self) -> None:
        check(self.horizon, self.restarts, self.rounds, drawn="restarts")
        if not self.lr > 0 or not self.std > 0 or not self.noise >= 0:
            raise ValueError(
                f"lr {self.lr}, std {self.std}, noise {self.noise}: lr and std must be positive, noise at least 0"
            )

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`; the mean is the cheapest plan. Raises ValueError for a cost without
        gradient."""
        mean = first_mean(self.space, self.horizon, start, generator)  # [B, H, A]
        half = self.space.half_width(mean)  # [A]
        kept = kept_plans(self.space, self.horizon, start, generator)[:, : self.restarts - 2]
        drawn = self.space.project(
            mean[:, None] + self.std * half * noise(mean, self.restarts, generator)
        )
        nothing = zero_plan(self.space, len(mean), self.horizon, device=mean.device)
        plans = with_known(drawn, mean, nothing, kept)  # [B, S, H, A]
        # Adam moves `step`, in half widths from the plans inside the space, so that one lr serves
        # every action number.
        step = torch.zeros_like(plans, requires_grad=True)
        adam = torch.optim.Adam([step], lr=self.lr)
        best = Best(mean)
        for number in range(self.rounds):
            costs, step.grad = self._slope(cost, plans, step, half)
            best.see(plans, costs)
            adam.step()
            fading = self.noise * (1 - (number + 1) / self.rounds)
            shaken = step + fading * noise(mean, self.restarts, generator) if fading else step
            plans = self.space.project(plans + shaken * half)
            step.zero_()
            best.end_round()
        best.see(plans, score(cost, self.space, plans))
        return best.plan(best.actions)

    def _slope(
        self, cost: Cost, plans: Tensor, step: Tensor, half: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Costs [B, S] and their gradient with respect to the steps [B, S, H, A]."""
        with torch.enable_grad():
            costs = score(cost, self.space, plans + step * half)
            if not costs.requires_grad:
                raise ValueError(
                    "the cost gives no gradient (it runs under no_grad, or in a simulator); use a solver that only "
                    "compares costs, such as cem"
                )
            (slope,) = torch.autograd.grad(costs.sum(), step)
        if not bool(torch.isfinite(slope).all()):
            raise ValueError(
                "the gradient of the cost is NaN or infinite; shorten the horizon or cut the gradient (truncate)"
            )
        return costs.detach(), slope


@dataclass(frozen=True)
class InTurn:
    """One solver, then a second that starts from the first one's cheapest plan and mean, such as
    CEM then gradient.

    Raises ValueError if they search different spaces or horizons.
    """

    first: Solver
    second: Solver

    def __post_init__(self) -> None:
        if self.first.space != self.second.space or self.first.horizon != self.second.horizon:
            raise ValueError(
                f"the solvers differ in space or horizon ({self.first.horizon}, {self.second.horizon}); give both the "
                "same"
            )

    @property
    def space(self) -> Space:
        return self.first.space

    @property
    def horizon(self) -> int:
        return self.first.horizon

    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`; the trace holds the rounds of both, the plan is the cheaper of the
        two."""
        one = self.first.solve(cost, start=start, generator=generator)
        two = self.second.solve(
            cost, start=torch.stack([one.actions, one.mean], 1), generator=generator
        )
        # The second saw the first one's plan, but maybe in another batch, whose rounding may
        # differ.
        better = (two.cost < one.cost)[:, None, None]
        return Plan(
            torch.where(better, two.actions, one.actions),
            torch.where(better, two.mean, one.mean),
            torch.minimum(two.cost, one.cost),
            torch.cat([one.trace, torch.minimum(two.trace, one.cost[:, None])], 1),
            one.kept,
        )
