"""What a search minimises: plans are imagined in pieces that fit into memory, and priced by the
terms that the config names and by those of the caller.

B episodes, b episodes of a piece, S plans, C frames of context, H horizon, N latent tokens of
width D, A action numbers of a model step, a of one action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.action_space import Space
from jepa_wm.planning.chunks import in_chunks, plans_within, wants_gradient
from jepa_wm.planning.settings import CostSettings, PlannerSettings
from jepa_wm.planning.terms import (
    Distance,
    Effort,
    LinearLimits,
    Objective,
    Return,
    Smoothness,
    Term,
    ToGoal,
    ToState,
    effort,
    expected_cost,
    latent_distance,
)
from jepa_wm.world_model.world_model import WorldModel


@dataclass(frozen=True, kw_only=True)
class PlanningContext:
    """Where episodes stand when plans are searched."""

    model: WorldModel
    settings: PlannerSettings
    latents: Tensor  # [B, C, N, D] of the latest frames
    past: Tensor  # [B, C-1, A] the blocks of actions between them
    goal: Tensor | None = None  # [B, N, D]; None: no goal image was given
    last_action: Tensor | None = None  # [B, a] taken last
    space: Space | None = None  # that is searched; None: not known

    @property
    def now(self) -> Tensor:
        """[B, N, D] the latest latent."""
        return self.latents[:, -1]

    @property
    def action_dim(self) -> int:
        """a: numbers of one environment action."""
        return self.model.block // self.model.frameskip

    def of(self, rows: slice) -> PlanningContext:
        """The same of these episodes alone."""
        return replace(
            self,
            latents=self.latents[rows],
            past=self.past[rows],
            goal=None if self.goal is None else self.goal[rows],
            last_action=None if self.last_action is None else self.last_action[rows],
        )

    def goal_latent(self) -> Tensor:
        """[B, N, D] the goal; UserError where there is none."""
        if self.goal is None:
            objective = self.settings.cost.objective
            named = f"planner.cost.objective {objective}"
            raise UserError(
                f"{named if objective != 'reward' else 'a policy toward goals'} needs a goal "
                "image: give one to Agent.reset, or plan for reward alone "
                "(planner.cost.objective=reward, planner.mpc.warm_start=false and a solver that "
                "searches)"
            )
        return self.goal


CostTerm = Callable[[PlanningContext], Term]  # makes a term for the episodes of a context


class PlanningCost:
    """The cost of plans at one decision, and all that a solver sees of the world model.

    `extra_costs` are weighted terms of the caller's own; `at_once` is what `plans_at_once` says of
    the model. A plan's cost depends on no other plan."""

    def __init__(
        self,
        context: PlanningContext,
        *,
        at_once: tuple[int, int],
        extra_costs: Sequence[tuple[float, CostTerm]] = (),
    ) -> None:
        self.context, self.extra_costs, self.at_once = context, extra_costs, at_once
        self._objectives: dict[tuple[int, int], Objective] = {}  # of episodes, first to last

    def __call__(self, plans: Tensor) -> Tensor:
        """[B, S] costs of plans [B, S, H, A], where the plans are; with a gradient where they want
        one."""
        there = plans.to(self.context.model.device)
        most = self.at_once[1 if wants_gradient(plans) else 0]
        return in_chunks(self._price, there, most=most).to(plans.device)

    def _price(self, plans: Tensor, rows: slice) -> Tensor:
        """[b, S] costs of plans [b, S, H, A] of these episodes, imagined together."""
        context, settings = self.context.of(rows), self.context.settings
        futures = context.model.futures(
            context.latents, context.past, plans,
            truncate=settings.mpc.truncate, num_futures=settings.cost.num_futures,
        )  # fmt: skip
        key = (rows.start, rows.stop)
        if key not in self._objectives:
            self._objectives[key] = objective_of(context, self.extra_costs)
        weight = settings.cost.uncertainty_weight
        return expected_cost(futures, plans, self._objectives[key], uncertainty_weight=weight)


def objective_of(
    context: PlanningContext, extra_costs: Sequence[tuple[float, CostTerm]] = ()
) -> Objective:
    """The terms that the settings name, weighted, and the caller's own."""
    cost = context.settings.cost
    main: dict[str, tuple[float, CostTerm]] = {"state": (1, to_state), "reward": (-1, earned)}
    beside: list[tuple[float, CostTerm]] = [
        (-cost.reward, earned),
        (cost.state, to_state),
        (cost.effort, effortless),
        (cost.smoothness, smooth),
        (cost.limits.weight if cost.limits else 0, within_limits),
    ]
    terms = [main.get(cost.objective, (1, to_goal))]
    terms += [(weight, make) for weight, make in beside if weight]
    return Objective(tuple((weight, make(context)) for weight, make in [*terms, *extra_costs]))


def check_cost(model: WorldModel, settings: PlannerSettings) -> None:
    """UserError for a term that needs what the model has not."""
    cost = settings.cost
    if cost.uncertainty_weight and len(model.latent_model.ensemble) < 2:
        raise UserError(
            f"planner.cost.uncertainty_weight {cost.uncertainty_weight:g} needs models that can "
            "disagree: train with dynamics.ensemble_size of at least 2, or set "
            "planner.cost.uncertainty_weight 0"
        )
    if cost.objective == "temporal" and model.latent_model.distance is None:
        raise UserError(
            "planner.cost.objective temporal is a learned distance, which this model was trained "
            "without (distance: null); set planner.cost.objective=l1"
        )
    # Heads that were not trained are named before anything is planned.
    if settings.asks_policy:
        model.needed("policy")
    if cost.objective == "reward" or cost.reward:
        model.needed("reward")
    if cost.objective == "state" or cost.state:
        _state_ids(model, cost)
    size = model.block // model.frameskip
    if cost.limits and len(cost.limits.matrix[0]) != size:
        raise UserError(
            f"planner.cost.limits.matrix has rows of {len(cost.limits.matrix[0])} numbers; give "
            f"one for each of the {size} numbers of an environment action"
        )


def plans_at_once(model: WorldModel, settings: PlannerSettings) -> tuple[int, int]:
    """How many plans, episodes x samples, planner.mpc.memory_mb allows to be imagined together:
    without gradients, and with them where the solver needs them."""
    cost, memory_mb = settings.cost, settings.mpc.memory_mb
    size = partial(
        model.plan_bytes,
        settings.mpc.horizon,
        num_futures=cost.num_futures,
        robust_radius=cost.robust_radius,
    )
    plain = plans_within(memory_mb, *size())
    if not settings.solver.needs_gradient:
        return plain, plain
    return plain, plans_within(memory_mb, *size(gradients=True))


# ---------------------------------------------------------------- terms that the config names


def to_goal(context: PlanningContext) -> Term:
    """Distance to the goal image's latent."""
    return ToGoal(
        goal=context.goal_latent(), distance=_distance(context), mode=context.settings.cost.steps
    )


def to_state(context: PlanningContext) -> Term:
    """Distance to the state that is read from the goal image, in units of each number's spread."""
    model, cost = context.model, context.settings.cost
    ids, head = _state_ids(model, cost), model.needed("state").state
    assert head is not None
    return ToState(
        goal=model.state(context.goal_latent())[:, ids],
        read=lambda latents: model.state(latents)[..., ids],
        scale=head.scale[ids],
        mode=cost.steps,
    )


def earned(context: PlanningContext) -> Term:
    """Expected discounted reward, until the episode ends where a termination head tells the
    chance."""
    model, heads = context.model, context.model.needed("reward")
    return Return(
        reward=partial(model.reward, context.now),
        ended=None if heads.termination is None else partial(model.ended, context.now),
        discount=context.settings.cost.discount,
    )


def effortless(context: PlanningContext) -> Term:
    """How far actions are from doing nothing: from 0, what the world says, or the last one where
    they are places."""
    space = context.space
    if space is None:
        return effort
    idle = space.staying(context.last_action)
    # Before the first of actions that are places, each plan's own first one is where it stays.
    return effort if idle is None and not space.absolute else Effort(size=space.size, idle=idle)


def smooth(context: PlanningContext) -> Term:
    """Change from one environment action to the next."""
    return Smoothness(size=context.action_dim, before=context.last_action)


def within_limits(context: PlanningContext) -> Term:
    """Linear limits on every environment action."""
    limits, frameskip = context.settings.cost.limits, context.model.frameskip
    assert limits is not None
    matrix = torch.block_diag(*[torch.tensor(limits.matrix)] * frameskip)
    return LinearLimits(matrix=matrix, bound=torch.tensor(limits.bound * frameskip))


def _distance(context: PlanningContext) -> Distance:
    model, cost = context.model, context.settings.cost
    if cost.objective == "temporal":
        return partial(model.temporal_distance, robust_radius=cost.robust_radius)
    raw, compared = latent_distance(cost.objective), model.compared
    return lambda latents, goal: raw(compared(latents), compared(goal))


def _state_ids(model: WorldModel, cost: CostSettings) -> list[int]:
    """Which numbers of the state head count; UserError for names that it does not have."""
    names = model.needed("state").present.state
    unknown = sorted(set(cost.state_names) - set(names))
    if unknown:
        raise UserError(
            f"planner.cost.state_names {unknown[0]!r} is not known; the state head reads "
            f"{', '.join(names)}"
        )
    return [names.index(name) for name in cost.state_names or names]
