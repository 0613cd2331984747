"""Receding horizon: plan, hand out the first model steps, start the next search from what is left
of the plan.

B episodes, S plans, H horizon in model steps, A numbers of a plan a step, E numbers the model
takes a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from jepa_wm.planning.search import Cost, Plan, Solver, first_plan, search


class RecedingHorizon:
    """Plans decision after decision for a batch of episodes, each with its own generator and warm
    start.

    `execute` model steps are handed out per decision; the mean of the search and the plans that it
    kept, shifted by as many and held at their last step, start the next one. `last` is the latest
    plan. Raises ValueError for an `execute` outside 1..horizon."""

    def __init__(self, solver: Solver, *, execute: int = 1) -> None:
        if not 1 <= execute <= solver.horizon:
            raise ValueError(f"execute must lie in 1..horizon ({solver.horizon}), got {execute}")
        self.solver, self.execute = solver, execute
        self.last: Plan | None = None
        self._left: Tensor | None = None  # [B, 1 + K, H, A] of the latest mean and plans kept
        self._generators: list[torch.Generator] = []

    def reset(self, seeds: Sequence[int], *, device: torch.device) -> None:
        """Begin one new episode per seed; what an episode draws depends on its own seed alone."""
        self._generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]
        self.last = self._left = None

    def plan(
        self, cost: Cost, *, proposal: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """[B, execute, E] the model steps to take now, for the cost of plans [B, S, H, E] from
        where the episodes are.

        The search starts from a proposal [B, H, A] where there is one; what is left of the plan
        before is then tried beside it, and a `known` plan [B, H, A] too. Raises RuntimeError
        before the first `reset`."""
        if not self._generators:
            raise RuntimeError(
                "RecedingHorizon.plan before reset; call reset with one seed per episode"
            )
        start = self._start(proposal, known)
        self.last = search(self.solver, cost, start=start, generator=self._generators)
        # Of all that the next search is to begin with, the steps that are executed now are over.
        plans = torch.cat([self.last.mean[:, None], self.last.kept], 1)
        end = plans[..., -1:, :].expand(*plans.shape[:-2], self.execute, -1)
        self._left = torch.cat([plans[..., self.execute :, :], end], -2)
        return self.solver.space.to_model(self.last.actions[:, : self.execute])

    def _start(self, proposal: Tensor | None, known: Tensor | None) -> Tensor | None:
        """[B, 1 + K, H, A] what a search begins with: a mean, and plans to be tried beside it;
        None: the space's own beginning."""
        start = self._left
        if proposal is not None:
            first = proposal[:, None]
            start = first if start is None else torch.cat([first, start], 1)
        if known is None:
            return start
        if start is None:
            device = self._generators[0].device
            start = first_plan(self.solver.space, len(known), self.solver.horizon, device=device)[
                :, None
            ]
        return torch.cat([start[:, :1], known[:, None], start[:, 1:]], 1)
