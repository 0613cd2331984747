"""Receding horizon: plan, hand out the first model steps, start the next search from what is left
of the plan.

B episodes, H horizon in model steps, A searched numbers a step, E expanded numbers a step, K
executed model steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace, first_plan, zero_plan
from jepa_wm.planning.search import Cost, Plan, Solver


class RecedingHorizon:
    """Plans decision after decision for a batch of episodes, each with its own generator and warm
    start.

    `execute` model steps are handed out per decision; the mean of the search and the plans that it
    kept, shifted by as many, start the next one, their free ends filled with their last step
    ("repeat") or with doing nothing ("zero"), which is the last step again where actions are
    places. `last` is the latest plan. Raises ValueError for an `execute` outside 1..horizon."""

    def __init__(
        self, solver: Solver, *, execute: int = 1, fill: Literal["repeat", "zero"] = "repeat"
    ) -> None:
        if not 1 <= execute <= solver.horizon:
            raise ValueError(f"execute must lie in 1..horizon ({solver.horizon}), got {execute}")
        if fill not in ("repeat", "zero"):
            raise ValueError(f"fill {fill!r} is not known; choose repeat or zero")
        self.solver, self.execute, self.fill = solver, execute, fill
        self.last: Plan | None = None
        self._start: Tensor | None = None  # [B, H, A] or [B, 1 + kept, H, A]
        self._generators: list[torch.Generator] = []

    def reset(self, seeds: Sequence[int], *, device: torch.device) -> None:
        """Begin one new episode per seed; what an episode draws depends on its own seed alone."""
        self._generators = [torch.Generator(device).manual_seed(int(seed)) for seed in seeds]
        self.last = self._start = None

    def plan(
        self, cost: Cost, *, proposal: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """[B, K, E] the model steps to take now, for the cost of plans [B, S, H, E] from where the
        episodes are.

        The search starts from a proposal [B, H, A] where there is one; what is left of the plan
        before is then tried beside it, and a `known` plan [B, H, A] too. Raises RuntimeError
        before the first `reset`."""
        if not self._generators:
            raise RuntimeError(
                "RecedingHorizon.plan before reset; call reset with one seed per episode"
            )
        start = self._start
        if proposal is not None:
            before = (
                proposal[:, None][:, :0]
                if start is None
                else start.view(len(start), -1, *proposal.shape[1:])
            )
            start = torch.cat([proposal[:, None], before], 1)
        if known is not None:
            device, space = self._generators[0].device, self.solver.space
            first = (
                first_plan(space, len(known), self.solver.horizon, device=device)
                if start is None
                else start
            )
            first = first.view(len(known), -1, *known.shape[1:])
            start = torch.cat([first[:, :1], known[:, None], first[:, 1:]], 1)
        self.last = self.solver.solve(cost, start=start, generator=self._generators)
        mean, kept = self.last.mean, self.last.kept
        self._start = self._shifted(mean if kept is None else torch.cat([mean[:, None], kept], 1))
        return self.solver.space.expand(self.last.actions[:, : self.execute])

    def _shifted(self, plans: Tensor) -> Tensor:
        """[..., H, A] what is left of plans once the executed steps are taken."""
        space = self.solver.space
        if self.fill == "repeat" or (isinstance(space, ActionSpace) and space.absolute):
            end = plans[..., -1:, :].expand(*plans.shape[:-2], self.execute, -1)
        else:
            zero = zero_plan(space, 1, self.execute, device=plans.device)[0]
            end = zero.expand(*plans.shape[:-2], -1, -1)
        return torch.cat([plans[..., self.execute :, :], end], -2)
