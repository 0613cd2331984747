"""What every solver shares: the protocol, the plan it returns, and the scoring of candidates.

B episodes, S candidates, K elites or kept plans, H horizon in model steps, A searched numbers a
step, E expanded numbers a step, R rounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from jepa_wm.planning.action_space import Space, first_plan

Cost = Callable[
    [Tensor], Tensor
]  # candidate plans [B, S, H, E] to their costs [B, S], lower is better


@dataclass(frozen=True)
class Plan:
    """The outcome of one search, in the search space; `ActionSpace.expand` makes actions the
    model's."""

    actions: Tensor  # [B, H, A] the cheapest plan seen
    mean: Tensor  # [B, H, A] what the next search starts from
    cost: Tensor  # [B] of `actions`
    trace: Tensor  # [B, R] cheapest cost after each round; the last entry is `cost`
    kept: Tensor | None = (
        None  # [B, K, H, A] further plans that the next search should try, if the solver keeps any
    )


class Solver(Protocol):
    """Searches `horizon` model steps in `space`."""

    @property
    def space(self) -> Space: ...

    @property
    def horizon(self) -> int: ...

    def solve(self, cost: Cost, *, start: Tensor | None, generator: list[torch.Generator]) -> Plan:
        """Plan for B = len(generator) episodes from the warm start [B, H, A], or from
        `first_plan`.

        A start [B, 1 + K, H, A] brings plans to be tried behind the mean. Each episode draws from
        its own generator, so that its plan does not depend on which others share the batch. Raises
        ValueError for costs that are not finite or have the wrong shape."""
        ...


class Best:
    """The cheapest plan seen so far, per episode."""

    def __init__(self, plans: Tensor) -> None:
        self.actions = plans  # [B, H, A]
        self.cost = plans.new_full((len(plans),), torch.inf)  # [B]
        self._trace: list[Tensor] = []

    def see(self, plans: Tensor, costs: Tensor) -> None:
        """Take in candidates [B, S, H, A] with costs [B, S]."""
        least, which = costs.min(1)
        better = least < self.cost
        taken = plans[torch.arange(len(plans), device=plans.device), which]
        self.actions = torch.where(better[:, None, None], taken, self.actions)
        self.cost = torch.where(better, least, self.cost)

    def end_round(self) -> None:
        self._trace.append(self.cost)

    def plan(self, mean: Tensor, kept: Tensor | None = None) -> Plan:
        return Plan(
            self.actions, mean, self.cost, torch.stack([*self._trace[:-1], self.cost], 1), kept
        )


def first_mean(
    space: Space, horizon: int, start: Tensor | None, generator: list[torch.Generator]
) -> Tensor:
    """[B, H, A] the warm start inside the space, without one what the space says to begin from.
    Raises ValueError for one that does not fit."""
    if not generator:
        raise ValueError("generator is empty; give one torch.Generator per episode")
    first = first_plan(space, len(generator), horizon, device=generator[0].device)
    return first if start is None else space.project(checked_start(start, first)[:, 0])


def kept_plans(
    space: Space, horizon: int, start: Tensor | None, generator: list[torch.Generator]
) -> Tensor:
    """[B, K, H, A] the plans a warm start brings beside its mean, inside the space; K may be 0."""
    first = first_plan(space, len(generator), horizon, device=generator[0].device)
    return (
        first[:, None][:, :0]
        if start is None
        else space.project(checked_start(start, first)[:, 1:])
    )


def checked_start(start: Tensor, like: Tensor) -> Tensor:
    """[B, 1 + K, H, A] a warm start with or without plans behind its mean; ValueError if it does
    not fit `like`."""
    plans = start[:, None] if start.dim() == 3 else start
    if plans.dim() != 4 or not plans.shape[1] or (len(plans), *plans.shape[2:]) != like.shape:
        raise ValueError(
            f"start has shape {tuple(start.shape)}; {len(like)} generators, horizon {like.shape[1]} and the action "
            f"space ask for {tuple(like.shape)}, or for several such plans per episode"
        )
    return plans.to(like)


def score(cost: Cost, space: Space, plans: Tensor) -> Tensor:
    """[B, S] float32 costs of plans [B, S, H, A], expanded for the model and checked."""
    costs = cost(space.expand(plans))
    if costs.shape != plans.shape[:2]:
        raise ValueError(
            f"the cost returned shape {tuple(costs.shape)} for {tuple(plans.shape[:2])} candidates"
        )
    finite = torch.isfinite(costs)
    if not bool(finite.all()):
        share = 1 - finite.double().mean().item()
        which = torch.nonzero(~finite.all(1)).flatten()[:5].tolist()
        raise ValueError(
            f"the cost is NaN or infinite for {share:.1%} of {costs.numel()} candidates (first episodes: {which}); "
            "check the goal and the model for NaN, and give forbidden plans a large finite cost"
        )
    return costs.to(plans)


def noise(
    plans: Tensor, count: int, generator: list[torch.Generator], *, uniform: bool = False
) -> Tensor:
    """[B, count, H, A] standard normal (or 0..1 uniform) numbers, each episode's from its own
    generator."""
    draw = torch.rand if uniform else torch.randn
    shape = (count, *plans.shape[1:])
    return torch.stack([draw(shape, generator=g, device=g.device) for g in generator])


def with_known(drawn: Tensor, mean: Tensor, second: Tensor, kept: Tensor | None = None) -> Tensor:
    """[B, S, H, A] the drawn plans; the mean, a second known plan and those kept [B, K, H, A] take
    the first places."""
    known = [mean[:, None], second[:, None], *([] if kept is None else [kept])]
    count = sum(plans.shape[1] for plans in known)
    return torch.cat([*known, drawn[:, count:]], 1)


def cheapest(plans: Tensor, costs: Tensor, count: int) -> Tensor:
    """[B, K, H, A] the `count` cheapest of the plans, cheapest first; ties keep their order."""
    order = costs.argsort(dim=1, stable=True)[:, :count]
    return plans.gather(1, order[:, :, None, None].expand(-1, -1, *plans.shape[2:]))


def refit(elites: Tensor, mean: Tensor, std: Tensor, *, keep: float) -> tuple[Tensor, Tensor]:
    """Mean and spread [B, H, A] of the elites [B, K, H, A], mixed with a share `keep` of the old
    ones."""
    # In double: the batch around an episode must not change its plan by a bit.
    centre = elites.double().mean(1)
    spread = (elites.double() - centre[:, None]).square().mean(1).sqrt()
    return keep * mean + (1 - keep) * centre.to(mean), keep * std + (1 - keep) * spread.to(std)


def check(horizon: int, candidates: int, rounds: int, *, drawn: str = "candidates") -> None:
    """Raises ValueError naming the number that makes no search; `drawn` is what the solver calls
    its candidates."""
    for name, value, least in (
        ("horizon", horizon, 1),
        (drawn, candidates, 2),
        ("rounds", rounds, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")


def check_spread(std: float, min_std: float) -> None:
    """Raises ValueError for a first spread that is not positive, or lies below the last."""
    if not std > 0 or not 0 <= min_std <= std:
        raise ValueError(
            f"std {std}, min_std {min_std}: std must be positive and min_std lie in 0..std"
        )
