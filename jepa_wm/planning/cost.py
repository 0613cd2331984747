"""What a search minimises: plans are imagined in pieces that fit into memory, and priced by the
terms that the config names and by those of the caller.

B episodes, b episodes of a piece, S plans, C frames of context, H horizon, N latent tokens of
width D, A action numbers of a model step, a of one environment action."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning import terms
from jepa_wm.planning.action_space import Space
from jepa_wm.planning.near_far import difference_bytes
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel, wants_gradient

MB = 2**20


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
                "(planner.cost.objective=reward, planner.mpc.warm_start=null and a solver that "
                "searches)"
            )
        return self.goal


CostTerm = Callable[[PlanningContext], terms.Term]  # makes a term for the episodes of a context


class PlanningCost:
    """The cost of plans at one decision, and all that a solver sees of the world model.

    `extra_costs` are weighted terms of the caller's own. A plan's cost depends on no other
    plan."""

    def __init__(
        self, context: PlanningContext, *, extra_costs: Sequence[tuple[float, CostTerm]] = ()
    ) -> None:
        self.context, self.extra_costs = context, extra_costs
        self._objectives: dict[tuple[int, int], terms.Objective] = {}  # of episodes, first to last

    def __call__(self, plans: Tensor) -> Tensor:
        """[B, S] costs of plans [B, S, H, A], where the plans are; with a gradient where they want
        one."""
        model, settings = self.context.model, self.context.settings
        most = plans_at_once(model, settings, gradients=wants_gradient(plans))
        return in_chunks(self._price, plans.to(model.device), most=most).to(plans.device)

    def _price(self, plans: Tensor, rows: slice) -> Tensor:
        """[b, S] costs of plans [b, S, H, A] of these episodes, imagined together."""
        context, settings = self.context.of(rows), self.context.settings
        futures = context.model.futures(
            context.latents, context.past, plans,
            truncate=settings.mpc.truncate, num_futures=settings.cost.num_futures,
        )  # fmt: skip
        # What a term reads of the goal is read once for all rounds of the search.
        key = (rows.start, rows.stop)
        if key not in self._objectives:
            self._objectives[key] = objective_of(context, self.extra_costs)
        weight = settings.cost.uncertainty_weight
        return terms.expected_cost(
            futures, plans, self._objectives[key], uncertainty_weight=weight
        )


def objective_of(
    context: PlanningContext, extra_costs: Sequence[tuple[float, CostTerm]] = ()
) -> terms.Objective:
    """The terms that the settings name, weighted, and the caller's own."""
    cost = context.settings.cost
    main: dict[str, tuple[float, CostTerm]] = {
        "state": (1, terms.to_state),
        "reward": (-1, terms.earned),
    }
    beside: list[tuple[float, CostTerm]] = [
        (-cost.reward, terms.earned),
        (cost.state, terms.to_state),
        (cost.proprio, terms.to_proprio),
        (cost.effort, terms.effortless),
        (cost.smoothness, terms.smooth),
        (cost.limits.weight if cost.limits else 0, terms.within_limits),
    ]
    named = [main.get(cost.objective, (1, terms.to_goal)), *(term for term in beside if term[0])]
    return terms.Objective(
        tuple((weight, make(context)) for weight, make in [*named, *extra_costs])
    )


def check_cost(model: WorldModel, settings: PlannerSettings) -> None:
    """UserError for a term that needs what the model has not, and for a memory bound below one
    plan."""
    cost = settings.cost
    if cost.uncertainty_weight and len(model.latent_model.ensemble) < 2:
        raise UserError(
            f"planner.cost.uncertainty_weight {cost.uncertainty_weight:g} needs models that can "
            "disagree: train with dynamics.ensemble_size of at least 2, or set "
            "planner.cost.uncertainty_weight 0"
        )
    if cost.objective in ("temporal", "near_far") and model.latent_model.distance is None:
        raise UserError(
            f"planner.cost.objective {cost.objective} is a learned distance, which this model "
            "was trained without (distance: null); set planner.cost.objective=l1"
        )
    # Heads that were not trained are named before anything is planned.
    if settings.policy is not None:
        model.needed_policy(settings.policy)
    if cost.objective == "reward" or cost.reward:
        model.needed("reward")
    if cost.objective == "state" or cost.state:
        terms.state_ids(model, cost)
    if cost.proprio and model.latent.proprio is None:
        raise UserError(
            f"planner.cost.proprio {cost.proprio:g} needs a model that reads proprioception: "
            "train with latent.proprio, or set planner.cost.proprio=0"
        )
    size = model.block // model.frameskip
    if cost.limits and len(cost.limits.matrix[0]) != size:
        raise UserError(
            f"planner.cost.limits.matrix has rows of {len(cost.limits.matrix[0])} numbers; give "
            f"one for each of the {size} numbers of an environment action"
        )
    plans_at_once(model, settings, gradients=settings.solver.needs_gradient)


# ---------------------------------------------------------------- plans in pieces


def plans_at_once(model: WorldModel, settings: PlannerSettings, *, gradients: bool) -> int:
    """How many plans, episodes x samples, planner.mpc.memory_mb allows to be imagined together."""
    cost, mpc = settings.cost, settings.mpc
    each, fixed = model.plan_bytes(
        mpc.horizon,
        gradients=gradients,
        num_futures=cost.num_futures,
        robust_radius=cost.robust_radius,
    )
    if cost.objective == "near_far":
        each += difference_bytes(model, mpc.horizon, gradients=gradients)
    return plans_within(mpc.memory_mb, each, fixed)


def plans_within(memory_mb: float, plan_bytes: int, fixed_bytes: int = 0) -> int:
    """How many plans fit into the bound when each takes `plan_bytes` beside what is fixed. Raises
    UserError when not a single one does."""
    fit = (int(memory_mb * MB) - fixed_bytes) // plan_bytes
    if fit < 1:
        raise UserError(
            f"planner.mpc.memory_mb {memory_mb:g} is below one plan, which takes about "
            f"{(plan_bytes + fixed_bytes) / MB:.1f} MB; raise planner.mpc.memory_mb, shorten "
            "planner.mpc.horizon, or take a model with fewer latent tokens or a smaller width"
        )
    return fit


def in_chunks(price: Callable[[Tensor, slice], Tensor], plans: Tensor, *, most: int) -> Tensor:
    """[B, S] what `price` says of plans [B, S, H, A], given at most `most` of them at a time, with
    the slice of the episodes that they are of.

    Whole episodes go together as long as they fit; else one episode's plans are cut into equal
    pieces. Gradients are then computed piece by piece as well: a piece's graph is gone before the
    next piece is imagined."""
    episodes, samples = plans.shape[:2]
    if episodes * samples <= most:
        return price(plans, slice(0, episodes))
    if wants_gradient(plans):
        price = partial(_with_slope, price)
    costs = []
    for rows in _pieces(episodes, max(1, most // samples)):
        each = most // (rows.stop - rows.start)
        parts = [price(plans[rows, part], rows) for part in _pieces(samples, each)]
        costs.append(torch.cat(parts, 1))
    return torch.cat(costs)


def _pieces(count: int, most: int) -> Iterator[slice]:
    """Slices of 0..count, as few as can be, of nearly equal size."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(count * i // pieces, count * (i + 1) // pieces)


def _with_slope(price: Callable[[Tensor, slice], Tensor], plans: Tensor, rows: slice) -> Tensor:
    """[b, S] costs whose gradient is known already and costs no graph: a straight line through
    each plan."""
    leaf = plans.detach().requires_grad_()
    costs = price(leaf, rows)
    if not costs.requires_grad:
        return costs
    (slope,) = torch.autograd.grad(costs.sum(), leaf)
    return costs.detach() + ((plans - leaf.detach()) * slope).sum((-2, -1))
