"""Solvers that draw plans: cross-entropy method, iCEM, MPPI, random shooting; and the policy
alone, which draws none.

B episodes, S plans of a round, K elites, H horizon in model steps, A numbers of a plan a step, G
choices a model step among n, A = G * n where actions are discrete. Spreads are shares of the
action box's half width. In every round the mean is one plan; doing nothing is one in the first
round, the best plan so far in all later ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Generic, TypeVar

import torch
from torch import Tensor

from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace, Space
from jepa_wm.planning.search import Generators, Solver, State, cheapest, noise
from jepa_wm.planning.settings import CEM, ICEM, MPPI, Policy, RandomShooting, Sampling

Settings = TypeVar("Settings", bound=Sampling)


@dataclass(frozen=True, kw_only=True)
class Spread(State):
    """A mean with the spread around it."""

    std: Tensor  # [B, H, A]


class Sampler(Solver, Generic[Settings]):
    """What solvers of continuous actions share that draw `num_samples` plans a round."""

    def __init__(self, settings: Settings, space: Space, horizon: int) -> None:
        super().__init__(space, horizon)
        self.settings, self.iterations = settings, settings.iterations
        self.box = continuous(space, settings.name)

    def around(self, state: State, std: Tensor, drawn: Tensor) -> Tensor:
        """[B, S, H, A] plans inside the space from standard normal numbers [B, S, H, A]."""
        return self.box.project(state.mean[:, None] + std * drawn)


class CEMSolver(Sampler[CEM]):
    """Draw from a Gaussian, keep the elites, refit mean and spread of every number to them."""

    def begin(self, start: Tensor | None, generator: Generators) -> Spread:
        state = super().begin(start, generator)
        return with_spread(state, self.settings.std, self.box)

    def propose(self, state: State, generator: Generators) -> Tensor:
        assert isinstance(state, Spread)
        drawn = noise(state.mean, self.settings.num_samples, generator)
        return self.around(state, state.std[:, None], drawn)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        elites = cheapest(plans, costs, self.settings.elites)
        return refit(state, elites, self.settings, self.box)


class ICEMSolver(Sampler[ICEM]):
    """As CEM, with noise of the spectrum 1 / f**noise_beta over the horizon. A share of the elites
    competes again in the next round and, shifted in time, in the next search. Round i draws
    num_samples / population_decay**i plans, never fewer than twice the elites."""

    def begin(self, start: Tensor | None, generator: Generators) -> Spread:
        state = super().begin(start, generator)
        return with_spread(state, self.settings.std, self.box)

    def propose(self, state: State, generator: Generators) -> Tensor:
        assert isinstance(state, Spread)
        white = noise(state.mean, self.population(state.round), generator)  # [B, S, H, A]
        mixed = coloured(self.horizon, self.settings.noise_beta).to(white)
        # One by one: the same bits in any batch.
        drawn = torch.stack([mixed @ each for each in white])
        return self.around(state, state.std[:, None], drawn)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        elites = cheapest(plans, costs, self.settings.elites)
        count = round(self.settings.keep_elites * self.settings.elites)
        return replace(refit(state, elites, self.settings, self.box), kept=elites[:, :count])

    def population(self, number: int) -> int:
        """S of round `number`, counted from 0."""
        settings = self.settings
        least = 2 * settings.elites
        return max(int(settings.num_samples * settings.population_decay**-number), least)


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


def continuous(space: Space, name: str) -> ActionSpace:
    """The space, where its actions are continuous; ValueError where solver `name` cannot search
    it."""
    if isinstance(space, DiscreteSpace):
        raise ValueError(
            f"planner.solver {name} searches continuous actions; set planner.solver.name=cem for "
            "discrete ones"
        )
    assert isinstance(space, ActionSpace)
    return space


def with_spread(state: State, std: float, box: ActionSpace) -> Spread:
    """The state with a spread around its mean, as a share of the box's half width."""
    spread = (std * box.half_width(state.mean)).expand_as(state.mean)
    return Spread(**vars(state), std=spread)


def refit(state: State, elites: Tensor, settings: CEM | ICEM, box: ActionSpace) -> Spread:
    """Mean and spread of the elites [B, K, H, A], mixed with a share `momentum` of the old ones,
    and never below `min_std`."""
    assert isinstance(state, Spread)
    old, mean = settings.momentum, state.mean
    # In double: the batch around an episode must not change its plan by a bit.
    centre = elites.double().mean(1)
    spread = (elites.double() - centre[:, None]).square().mean(1).sqrt()
    std = old * state.std + (1 - old) * spread.to(mean)
    least = settings.min_std * box.half_width(mean)
    return replace(state, mean=old * mean + (1 - old) * centre.to(mean), std=std.maximum(least))


def coloured(horizon: int, beta: float) -> Tensor:
    """[H, H] turns white noise over the horizon into noise of spectrum 1 / f**beta, of unit spread
    at every step.

    The constant part gets the power of the lowest frequency. Source: J. Timmer, M. Koenig, A&A 300
    (1995)."""
    frequency = torch.fft.rfftfreq(horizon, dtype=torch.float64).clamp_min(1 / horizon)
    spectrum = torch.fft.rfft(torch.eye(horizon, dtype=torch.float64), dim=0)
    mixed = torch.fft.irfft(spectrum * frequency[:, None] ** (-beta / 2), n=horizon, dim=0)
    return (mixed / mixed.square().sum(1, keepdim=True).sqrt()).float()
