"""The solver that follows the cost's gradient: Adam on many plans at once.

B episodes, S plans improved side by side, H horizon in model steps, A numbers of a plan a step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from jepa_wm.planning.action_space import Space
from jepa_wm.planning.search import Generators, Solver, State, noise
from jepa_wm.planning.settings import Gradient
from jepa_wm.planning.solvers import continuous


@dataclass(frozen=True, kw_only=True)
class Descent(State):
    """Plans on their way down. Adam moves `step`, in half widths from the plans inside the space,
    so that one lr serves every action number."""

    plans: Tensor  # [B, S, H, A] as they were scored
    step: Tensor  # [B, S, H, A] what Adam moved, from there on
    adam: torch.optim.Adam


class GradientSolver(Solver):
    """Adam on the plans themselves, each step projected into the space.

    The plans begin at the warm start, at doing nothing, at plans kept from before, and at draws
    around the warm start. Noise is added after every step and falls to none at the last, so that a
    plan may leave a shallow basin. Costs need a gradient."""

    needs_gradient = True

    def __init__(self, settings: Gradient, space: Space, horizon: int) -> None:
        super().__init__(space, horizon)
        self.settings, self.iterations = settings, settings.iterations
        self.box = continuous(space, settings.name)

    def propose(self, state: State, generator: Generators) -> Tensor:
        settings, half = self.settings, self.box.half_width(state.mean)
        if not isinstance(state, Descent):
            drawn = noise(state.mean, settings.num_samples, generator)
            return self.box.project(state.mean[:, None] + settings.std * half * drawn)
        fading = settings.noise * (1 - state.round / self.iterations)
        if not fading:
            return self._moved(state, state.step)
        return self._moved(
            state, state.step + fading * noise(state.mean, settings.num_samples, generator)
        )

    def known(self, state: State) -> Tensor:
        """Of the first round alone; later every plan goes on from where it is."""
        return state.kept[:, :0] if isinstance(state, Descent) else super().known(state)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        """Raises ValueError for a cost without gradient, or with one that is not finite."""
        if not isinstance(state, Descent):
            step = torch.zeros_like(plans, requires_grad=True)
            adam = torch.optim.Adam([step], lr=self.settings.lr)
            state = Descent(**vars(state), plans=plans, step=step, adam=adam)
        # Each step begins where the one before led, and Adam remembers how they went.
        state.step.zero_()
        state.step.grad = self._slope(plans, costs) * self.box.half_width(state.mean)
        state.adam.step()
        return replace(state, plans=plans.detach())

    def last(self, state: State) -> Tensor:
        assert isinstance(state, Descent)
        return self._moved(state, state.step)

    def next_mean(self, state: State) -> Tensor:
        return state.best

    def _moved(self, state: Descent, step: Tensor) -> Tensor:
        return self.box.project(state.plans + step * self.box.half_width(state.mean))

    def _slope(self, plans: Tensor, costs: Tensor) -> Tensor:
        """[B, S, H, A] by how much each number of a plan makes its cost grow."""
        if not costs.requires_grad:
            raise ValueError(
                "the cost gives no gradient (it runs under no_grad, or in a simulator); use a "
                "solver that only compares costs, such as cem"
            )
        (slope,) = torch.autograd.grad(costs, plans, torch.ones_like(costs))
        if not bool(torch.isfinite(slope).all()):
            raise ValueError(
                "the gradient of the cost is NaN or infinite; shorten the horizon or cut the "
                "gradient (planner.mpc.truncate)"
            )
        return slope
