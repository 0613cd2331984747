"""The one search: solvers propose plans and learn from their costs, the loop scores them and keeps
the best.

B episodes, S plans of a round, K plans known beforehand, H horizon in model steps, A numbers of a
plan a step, E numbers the model takes a step, R rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

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
        first = first_plan(self.space, len(generator), self.horizon, device=generator[0].device)
        idle = zero_plan(self.space, len(generator), self.horizon, device=first.device)
        if start is None:
            return State(mean=first, best=idle, kept=first[:, None][:, :0])
        inside = self.space.project(start)
        return State(mean=inside[:, 0], best=idle, kept=inside[:, 1:])

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
    like = first_plan(solver.space, len(generator), solver.horizon, device=generator[0].device)
    plans = start[:, None] if start.dim() == 3 else start
    if plans.dim() != 4 or not plans.shape[1] or (len(plans), *plans.shape[2:]) != like.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}; {len(like)} generators, horizon "
            f"{solver.horizon} and the action space ask for {tuple(like.shape)}, or for several "
            "such plans per episode"
        )
    return plans.to(like)


def zero_plan(space: Space, episodes: int, horizon: int, *, device: torch.device) -> Tensor:
    """[B, H, A] the plan of doing nothing, as the space says it."""
    return _held(space.idle_step(), episodes, horizon, device)


def first_plan(space: Space, episodes: int, horizon: int, *, device: torch.device) -> Tensor:
    """[B, H, A] the plan that a search without a warm start begins from."""
    return _held(space.first_step(), episodes, horizon, device)


def _held(step: tuple[float, ...], episodes: int, horizon: int, device: torch.device) -> Tensor:
    return torch.tensor(step, dtype=torch.float32, device=device).repeat(episodes, horizon, 1)
