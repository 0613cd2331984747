"""iCEM: the cross-entropy method with coloured noise, kept elites and a population that shrinks.

B episodes, S candidates, K elites, H horizon in model steps, A searched numbers a step, R rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace, zero_plan
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
class ICEM:
    """Cross-entropy method for few candidates: plans that vary smoothly, and elites that are not
    thrown away.

    A share `kept` of the elites competes again in the next round and, shifted in time, in the next
    search. Round i draws candidates / shrink**i plans, never fewer than twice the elites. Noise
    has the spectrum 1 / f**colour over the horizon: 0 white, 2 Brownian. Otherwise as CEM. Raises
    ValueError for settings that make no search. Source: C. Pinneri et al., Sample-efficient
    Cross-Entropy Method for Real-time Planning, CoRL 2020."""

    space: ActionSpace
    horizon: int
    candidates: int = 128
    rounds: int = 6
    elites: int = 16
    std: float = 0.7
    min_std: float = 0.05
    momentum: float = 0.1
    colour: float = 2.0
    shrink: float = 1.25
    kept: float = 0.3

    def __post_init__(self) -> None:
        check(self.horizon, self.candidates, self.rounds)
        check_spread(self.std, self.min_std)
        if not 2 <= self.elites <= self.candidates // 2:
            raise ValueError(
                f"elites must lie in 2..candidates/2 ({self.candidates // 2}) for iCEM, whose population shrinks to "
                f"twice the elites, got {self.elites}; lower elites or draw more"
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in 0..1 (1 excluded), got {self.momentum}")
        if not self.shrink >= 1 or not self.colour >= 0 or not 0 <= self.kept <= 1:
            raise ValueError(
                f"shrink {self.shrink}, colour {self.colour}, kept {self.kept}: shrink must be at least 1, colour at "
                "least 0, and kept lie in 0..1"
            )

    @torch.no_grad()
    def solve(
        self, cost: Cost, *, start: Tensor | None = None, generator: list[torch.Generator]
    ) -> Plan:
        """See `Solver.solve`; the plan keeps elites for the next search."""
        mean = first_mean(self.space, self.horizon, start, generator)  # [B, H, A]
        half = self.space.half_width(mean)  # [A]
        std = (self.std * half).expand_as(mean)
        filter_ = colour_filter(self.horizon, self.colour).to(mean)
        share = round(self.kept * self.elites)
        kept = kept_plans(self.space, self.horizon, start, generator)[
            :, : self.candidates - 2
        ]  # [B, K, H, A]
        second = zero_plan(self.space, len(mean), self.horizon, device=mean.device)
        best = Best(mean)
        for number in range(self.rounds):
            white = noise(mean, self.population(number), generator)  # [B, S, H, A]
            coloured = torch.stack(
                [filter_ @ each for each in white]
            )  # one by one: the same bits in any batch
            drawn = self.space.project(mean[:, None] + std[:, None] * coloured)
            plans = with_known(drawn, mean, second, kept)
            costs = score(cost, self.space, plans)
            best.see(plans, costs)
            elites = cheapest(plans, costs, self.elites)
            mean, std = refit(elites, mean, std, keep=self.momentum)
            std = std.maximum(self.min_std * half)
            second, kept = best.actions, elites[:, :share]
            best.end_round()
        best.see(mean[:, None], score(cost, self.space, mean[:, None]))
        return best.plan(mean, kept)

    def population(self, number: int) -> int:
        """S of round `number`."""
        return max(int(self.candidates * self.shrink**-number), 2 * self.elites)


def colour_filter(horizon: int, colour: float) -> Tensor:
    """[H, H] turns white noise over the horizon into noise of spectrum 1 / f**colour, of unit
    spread at every step.

    The constant part gets the power of the lowest frequency. Source: J. Timmer, M. Koenig, A&A 300
    (1995)."""
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp_min(1 / horizon)
    spectrum = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64), dim=0)
    mixed = torch.fft.irfft(spectrum * frequency[:, None] ** (-colour / 2), n=horizon, dim=0)
    return (mixed / mixed.square().sum(1, keepdim=True).sqrt()).float()
