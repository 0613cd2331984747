"""Solvers of continuous actions: cross-entropy method, iCEM, MPPI, random shooting, descent along
the gradient; and the policy alone, which draws nothing.

B episodes, S plans of a round, K elites, H horizon in model steps, A numbers of a plan a step.
Spreads are shares of the action box's half width. In every round the mean is one plan; doing
nothing is one in the first round, the best plan so far in all later ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from jepa_wm.planning.action_space import Space
from jepa_wm.planning.search import Generators, Solver, State, cheapest, noise
from jepa_wm.planning.settings import CEM, ICEM, MPPI, Gradient, Policy, RandomShooting, Sampling

Settings = TypeVar("Settings", bound=Sampling)
Refitting = TypeVar("Refitting", CEM, ICEM)


class Sampler(Solver, Generic[Settings]):
    """What solvers of continuous actions share that draw `num_samples` plans a round."""

    def __init__(self, settings: Settings, space: Space, horizon: int) -> None:
        super().__init__(space, horizon)
        self.settings, self.iterations = settings, settings.iterations
        self.box = space.box(settings.name)

    def around(self, state: State, std: Tensor, drawn: Tensor) -> Tensor:
        """[B, S, H, A] plans inside the space from standard normal numbers [B, S, H, A]."""
        return self.box.project(state.mean[:, None] + std * drawn)


@dataclass(frozen=True, kw_only=True)
class Spread(State):
    """A mean with the spread around it."""

    std: Tensor  # [B, H, A]


class CEMSolver(Sampler[Refitting]):
    """Draw from a Gaussian, keep the elites, refit mean and spread of every number to them."""

    def begin(self, start: Tensor | None, generator: Generators) -> Spread:
        state = super().begin(start, generator)
        std = self.settings.std * self.box.half_width(state.mean)
        return Spread(**vars(state), std=std.expand_as(state.mean))

    def propose(self, state: State, generator: Generators) -> Tensor:
        assert isinstance(state, Spread)
        return self.around(state, state.std[:, None], self.drawn(state, generator))

    def drawn(self, state: State, generator: Generators) -> Tensor:
        """[B, S, H, A] standard normal numbers."""
        return noise(state.mean, self.settings.num_samples, generator)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        return self.refit(state, cheapest(plans, costs, self.settings.elites))

    def refit(self, state: State, elites: Tensor) -> Spread:
        """Mean and spread of the elites [B, K, H, A], mixed with a share `momentum` of the old
        ones, and never below `min_std`."""
        assert isinstance(state, Spread)
        old, mean = self.settings.momentum, state.mean
        # In double: the batch around an episode must not change its plan by a bit.
        centre = elites.double().mean(1)
        spread = (elites.double() - centre[:, None]).square().mean(1).sqrt()
        std = old * state.std + (1 - old) * spread.to(mean)
        least = self.settings.min_std * self.box.half_width(mean)
        return replace(
            state, mean=old * mean + (1 - old) * centre.to(mean), std=std.maximum(least)
        )


class ICEMSolver(CEMSolver[ICEM]):
    """As CEM, with noise of the spectrum 1 / f**noise_beta over the horizon. A share of the elites
    competes again in the next round and, shifted in time, in the next search. Round i draws
    num_samples / population_decay**i plans, never fewer than twice the elites."""

    def drawn(self, state: State, generator: Generators) -> Tensor:
        white = noise(state.mean, self.population(state.round), generator)  # [B, S, H, A]
        mixed = coloured(self.horizon, self.settings.noise_beta).to(white)
        # One by one: the same bits in any batch.
        return torch.stack([mixed @ each for each in white])

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        elites = cheapest(plans, costs, self.settings.elites)
        count = round(self.settings.keep_elites * self.settings.elites)
        return replace(self.refit(state, elites), kept=elites[:, :count])

    def population(self, number: int) -> int:
        """S of round `number`, counted from 0."""
        settings = self.settings
        least = 2 * settings.elites
        return max(int(settings.num_samples * settings.population_decay**-number), least)


def coloured(horizon: int, beta: float) -> Tensor:
    """[H, H] turns white noise over the horizon into noise of spectrum 1 / f**beta, of unit spread
    at every step.

    The constant part gets the power of the lowest frequency. Source: J. Timmer, M. Koenig, A&A 300
    (1995)."""
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp_min(1 / horizon)
    spectrum = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64), dim=0)
    mixed = torch.fft.irfft(spectrum * frequency[:, None] ** (-beta / 2), n=horizon, dim=0)
    return (mixed / mixed.square().sum(1, keepdim=True).sqrt()).float()


class MPPISolver(Sampler[MPPI]):
    """The mean moves to the plans' average, weighted by softmax of their costs.

    Costs are taken in units of their own spread within the round, so `temperature` has no unit.
    The noise falls from `std` to `min_std` over the rounds."""

    def propose(self, state: State, generator: Generators) -> Tensor:
        spread = self.std(state.round) * self.box.half_width(state.mean)
        return self.around(state, spread, noise(state.mean, self.settings.num_samples, generator))

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        weights = self.weights(costs)[:, :, None, None]
        mean = (weights * plans.double()).sum(1).to(state.mean)
        return replace(state, mean=self.box.project(mean))

    def std(self, number: int) -> float:
        """The noise of round `number`, counted from 0, as a share of the half width."""
        first, last = self.settings.std, self.settings.min_std
        if self.iterations == 1:
            return first
        return first * (last / first) ** (number / (self.iterations - 1))

    def weights(self, costs: Tensor) -> Tensor:
        """[B, S] shares that sum to 1, in double, of costs [B, S]."""
        costs = costs.double()
        above = costs - costs.min(1, keepdim=True).values
        spread = (costs - costs.mean(1, keepdim=True)).square().mean(1, keepdim=True).sqrt()
        return torch.softmax(-above / (spread.clamp_min(1e-12) * self.settings.temperature), 1)


class RandomSolver(Sampler[RandomShooting]):
    """Plans drawn evenly from the space; the mean is the cheapest so far."""

    def propose(self, state: State, generator: Generators) -> Tensor:
        drawn = noise(state.mean, self.settings.num_samples, generator, uniform=True)
        return self.box.uniform(drawn)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        return replace(state, mean=state.best)

    def last(self, state: State) -> None:
        return None


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
        self.box = space.box(settings.name)

    def begin(self, start: Tensor | None, generator: Generators) -> Descent:
        state, settings = super().begin(start, generator), self.settings
        drawn = noise(state.mean, settings.num_samples, generator)
        spread = settings.std * self.box.half_width(state.mean)
        around = self.box.project(state.mean[:, None] + spread * drawn)
        known = super().known(state)
        plans = torch.cat([known, around[:, known.shape[1] :]], 1)[:, : settings.num_samples]
        step = torch.zeros_like(plans, requires_grad=True)
        adam = torch.optim.Adam([step], lr=settings.lr)
        return Descent(**vars(state), plans=plans, step=step, adam=adam)

    def known(self, state: State) -> Tensor:
        """None: every plan goes on from where it is."""
        return state.kept[:, :0]

    def propose(self, state: State, generator: Generators) -> Tensor:
        assert isinstance(state, Descent)
        if not state.round:
            return state.plans
        step, fading = state.step, self.settings.noise * (1 - state.round / self.iterations)
        if fading:
            step = step + fading * noise(state.mean, self.settings.num_samples, generator)
        return self._moved(state, step)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        """Raises ValueError for a cost without gradient, or with one that is not finite."""
        assert isinstance(state, Descent)
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


class PolicySolver(Solver):
    """The warm start is the plan, such as a policy's; one evaluation tells its cost. Without one
    the plan is to do nothing."""

    def __init__(self, settings: Policy, space: Space, horizon: int) -> None:
        super().__init__(space, horizon)

    def begin(self, start: Tensor | None, generator: Generators) -> State:
        state = super().begin(start, generator)
        return replace(state, mean=state.best) if start is None else state

    def known(self, state: State) -> Tensor:
        return state.mean[:, None]

    def propose(self, state: State, generator: Generators) -> Tensor:
        return state.mean[:, None]

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        return state

    def last(self, state: State) -> None:
        return None
