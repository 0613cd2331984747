"""The one search: solvers propose plans and learn from their costs, the loop scores them and keeps
the best. Receding horizon: hand out the first model steps, search on from what is left.

B episodes, S plans of a round, K plans known beforehand, H horizon in model steps, A numbers of a
plan a step, E numbers the model takes a step, R rounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jepa_wm.planning.action_space import Space

Cost = Callable[[Tensor], Tensor]  # plans [B, S, H, E] to their costs [B, S], lower is better
Generators = list[torch.Generator]  # one an episode


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a search stands; solvers that remember more add to it."""

    mean: Tensor  # [B, H, A] what is drawn around
    best: Tensor  # [B, H, A] the cheapest plan so far; before the first round, doing nothing
    kept: Tensor  # [B, K, H, A] further plans to be tried; K may be 0
    round: int = 0


class Solver:
    """Searches plans of `horizon` model steps in `space`, in `iterations` rounds.

    A solver of one's own says what it proposes and what it makes of the costs; the rest has
    defaults. Each episode draws from its own generator, so that its plan does not depend on which
    others share the batch."""

    iterations = 1
    needs_gradient = False  # whether the costs lead back to the plans, for torch.autograd.grad
    refiner: Solver | None = None  # searches on from the plan and the mean of this one

    def __init__(self, space: Space, horizon: int) -> None:
        if horizon < 1:
            raise ValueError(f"horizon must be at least 1, got {horizon}")
        self.space, self.horizon = space, horizon

    def begin(self, start: Tensor | None, generator: Generators) -> State:
        """The state before the first round, from a warm start [B, 1 + K, H, A], a mean and plans
        to be tried beside it; without one, from where the space says."""
        first = self.held(self.space.first_step(), generator)
        idle = self.held(self.space.idle_step(), generator)
        if start is None:
            return State(mean=first, best=idle, kept=first[:, None][:, :0])
        inside = self.space.project(start)
        return State(mean=inside[:, 0], best=idle, kept=inside[:, 1:])

    def held(self, step: tuple[float, ...], generator: Generators) -> Tensor:
        """[B, H, A] the plan of one model step [A], again and again."""
        one = torch.tensor(step, dtype=torch.float32, device=generator[0].device)
        return one.repeat(len(generator), self.horizon, 1)

    def propose(self, state: State, generator: Generators) -> Tensor:
        """[B, S, H, A] the plans of a round."""
        raise NotImplementedError

    def known(self, state: State) -> Tensor:
        """[B, K, H, A] plans that take the first places among the proposed."""
        return torch.cat([state.mean[:, None], state.best[:, None], state.kept], 1)

    def update(self, state: State, plans: Tensor, costs: Tensor) -> State:
        """The state once plans [B, S, H, A] are known to cost [B, S]; `state.best` and
        `state.round` count them already, and what was kept is gone."""
        raise NotImplementedError

    def last(self, state: State) -> Tensor | None:
        """[B, S, H, A] what is scored once more after all rounds, without gradient; None: nothing
        is."""
        return state.mean[:, None]

    def next_mean(self, state: State) -> Tensor:
        """[B, H, A] what the next search starts from, once `state.best` counts all."""
        return state.mean


@dataclass(frozen=True)
class Plan:
    """The outcome of one search, as the space has plans; its `expand` makes them the model's."""

    actions: Tensor  # [B, H, A] the cheapest plan met
    mean: Tensor  # [B, H, A] what the next search starts from
    cost: Tensor  # [B] of `actions`
    trace: Tensor  # [B, R] cheapest cost after each round; the last entry is `cost`
    kept: Tensor  # [B, K, H, A] further plans that the next search should try; K may be 0


@torch.no_grad()
def search(
    solver: Solver, cost: Cost, *, start: Tensor | None = None, generator: Generators
) -> Plan:
    """Plans of B = len(generator) episodes from a warm start [B, H, A], or from the space's own.

    A start [B, 1 + K, H, A] brings plans to be tried behind the mean. Raises ValueError for a
    start of another shape, and for costs that are not finite or have the wrong shape."""
    state = solver.begin(_checked(start, solver, generator), generator)
    none_kept = state.kept[:, :0]
    best = torch.full_like(state.mean[:, 0, 0], torch.inf)  # [B]
    trace: list[Tensor] = []
    for number in range(solver.iterations):
        # Sample, with what is known beforehand in the first places.
        known, drawn = solver.known(state), solver.propose(state, generator)
        plans = torch.cat([known, drawn[:, known.shape[1] :]], 1)[:, : drawn.shape[1]]
        # Score, and keep the cheapest.
        with torch.set_grad_enabled(solver.needs_gradient):
            plans = plans.requires_grad_(solver.needs_gradient)
            costs = score(cost, solver.space, plans)
        plan, best = _cheaper(state.best, best, plans.detach(), costs.detach())
        trace.append(best)
        # Learn.
        state = replace(state, best=plan, kept=none_kept, round=number + 1)
        state = solver.update(state, plans, costs)
    # What the last round led to is scored too.
    last = solver.last(state)
    if last is not None:
        plan, best = _cheaper(state.best, best, last, score(cost, solver.space, last))
        state = replace(state, best=plan)
    mean, trace[-1] = solver.next_mean(state), best
    made = Plan(state.best, mean, best, torch.stack(trace, 1), state.kept)
    return made if solver.refiner is None else _refined(made, solver.refiner, cost, generator)


def _refined(first: Plan, refiner: Solver, cost: Cost, generator: Generators) -> Plan:
    """The cheaper of a plan and of what a second search makes of it; the trace is of both."""
    start = torch.stack([first.actions, first.mean], 1)
    second = search(refiner, cost, start=start, generator=generator)
    # The second met the first one's plan, but maybe in another batch, whose rounding may differ.
    better = (second.cost < first.cost)[:, None, None]
    later = torch.minimum(second.trace, first.cost[:, None])
    return Plan(
        torch.where(better, second.actions, first.actions),
        torch.where(better, second.mean, first.mean),
        torch.minimum(second.cost, first.cost),
        torch.cat([first.trace, later], 1),
        first.kept,
    )


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
            left = proposal[:, None][:, :0] if start is None else start
            start = torch.cat([proposal[:, None], left], 1)
        if known is None:
            return start
        if start is None:
            space = self.solver.space
            start = self.solver.held(space.first_step(), self._generators)[:, None]
        return torch.cat([start[:, :1], known[:, None], start[:, 1:]], 1)


def score(cost: Cost, space: Space, plans: Tensor) -> Tensor:
    """[B, S] float32 costs of plans [B, S, H, A], expanded for the model and checked."""
    costs = cost(space.to_model(plans))
    if costs.shape != plans.shape[:2]:
        raise ValueError(
            f"the cost returned shape {tuple(costs.shape)} for {tuple(plans.shape[:2])} plans"
        )
    finite = torch.isfinite(costs)
    if not bool(finite.all()):
        share = 1 - finite.double().mean().item()
        which = torch.nonzero(~finite.all(1)).flatten()[:5].tolist()
        raise ValueError(
            f"the cost is NaN or infinite for {share:.1%} of {costs.numel()} plans (first "
            f"episodes: {which}); check the goal and the model for NaN, and give forbidden plans "
            "a large finite cost"
        )
    return costs.to(plans)


def noise(plans: Tensor, count: int, generator: Generators, *, uniform: bool = False) -> Tensor:
    """[B, count, H, A] standard normal (or 0..1 uniform) numbers of the size of plans [B, H, A],
    each episode's from its own generator."""
    draw = torch.rand if uniform else torch.randn
    shape = (count, *plans.shape[1:])
    return torch.stack([draw(shape, generator=g, device=g.device) for g in generator])


def cheapest(plans: Tensor, costs: Tensor, count: int) -> Tensor:
    """[B, count, H, A] the cheapest of the plans, cheapest first; ties keep their order."""
    order = costs.argsort(dim=1, stable=True)[:, :count]
    return plans.gather(1, order[:, :, None, None].expand(-1, -1, *plans.shape[2:]))


def _cheaper(best: Tensor, cost: Tensor, plans: Tensor, costs: Tensor) -> tuple[Tensor, Tensor]:
    """(the cheapest plans [B, H, A], their costs [B]) of the best so far and of plans [B, S, H,
    A]."""
    least, which = costs.min(1)
    taken = plans[torch.arange(len(plans), device=plans.device), which]
    better = least < cost
    return torch.where(better[:, None, None], taken, best), torch.where(better, least, cost)


def _checked(start: Tensor | None, solver: Solver, generator: Generators) -> Tensor | None:
    """[B, 1 + K, H, A] a warm start with or without plans behind its mean."""
    if not generator:
        raise ValueError("generator is empty; give one torch.Generator per episode")
    if start is None:
        return None
    like = solver.held(solver.space.first_step(), generator)
    plans = start[:, None] if start.dim() == 3 else start
    if plans.dim() != 4 or not plans.shape[1] or (len(plans), *plans.shape[2:]) != like.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}; {len(like)} generators, horizon "
            f"{solver.horizon} and the action space ask for {tuple(like.shape)}, or for several "
            "such plans per episode"
        )
    return plans.to(like)
