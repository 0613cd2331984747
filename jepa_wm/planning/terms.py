"""Terms of a cost, each beside what makes it for a config: what imagined latents are priced by,
what actions are, and their weighted sum.

B episodes, S plans, H horizon, N tokens a frame, D latent width, A action numbers of a model step,
a of one environment action, C limits, M members of an ensemble, R futures of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.cost_settings import CostSettings, Reduction
from jepa_wm.planning.near_far import near_far

if TYPE_CHECKING:
    from jepa_wm.planning.cost import PlanningContext
    from jepa_wm.world_model.world_model import WorldModel

# latents [B, S, H, N, D], goal [B, N, D] -> [B, S, H]
Distance = Callable[[Tensor, Tensor], Tensor]
# latents [B, S, H, N, D], actions [B, S, H, A] -> [B, S]
Term = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; a reward is a term with negative weight."""

    terms: tuple[tuple[float, Term], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an objective needs at least one (weight, term)")

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S] the cost of imagined latents [B, S, H, N, D] under actions [B, S, H, A]."""
        parts = [weight * term(latents, actions) for weight, term in self.terms]
        return torch.stack(parts).sum(0)


def expected_cost(
    futures: Tensor, actions: Tensor, objective: Term, *, uncertainty_weight: float = 0.0
) -> Tensor:
    """[B, S] the mean cost of several futures [M, R, B, S, H, N, D] of each plan [B, S, H, A],
    plus the weighted disagreement of the M members, each averaged over its R futures."""
    each = [objective(future, actions) for future in futures.flatten(0, 1)]
    costs = torch.stack(each).mean(0)
    if uncertainty_weight:
        costs = costs + uncertainty_weight * disagreement(futures.mean(1))
    return costs


# ---------------------------------------------------------------- of imagined latents


def over_steps(costs: Tensor, *, mode: Reduction = "last") -> Tensor:
    """[B, S] one number per plan from its costs per step [B, S, H].

    "last" takes the final step, "all" the mean, "rising" the mean weighted by the step's number,
    so that a detour may lead away from the goal first and yet arriving early counts. Raises
    ValueError for another mode."""
    if mode == "last":
        return costs[..., -1]
    if mode == "all":
        return costs.mean(-1)
    if mode != "rising":
        raise ValueError(f"steps {mode!r} is not known; choose last, all or rising")
    weights = torch.arange(1, costs.shape[-1] + 1, device=costs.device, dtype=costs.dtype)
    return (costs * weights).sum(-1) / weights.sum()


@dataclass(frozen=True, kw_only=True)
class ToGoal:
    """The term of goal reaching: a distance to the goal's latent, reduced over the steps."""

    goal: Tensor  # [B, N, D]
    distance: Distance
    mode: Reduction = "last"

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        return over_steps(self.distance(latents, self.goal), mode=self.mode)


def to_goal(context: PlanningContext) -> Term:
    """Distance to the goal image's latent, the one that the objective names."""
    cost = context.settings.cost
    both = cost.objective == "near_far"
    kind, radius = "temporal" if both else cost.objective, cost.robust_radius
    distance: Distance = partial(context.model.distance, kind=kind, robust_radius=radius)
    if both:
        distance = near_far(context, distance)
    return ToGoal(goal=context.goal_latent(), distance=distance, mode=cost.steps)


@dataclass(frozen=True, kw_only=True)
class ToState:
    """The term of reaching a state, such as the robot's own joints: the squared difference to it,
    each number in units of `scale`, averaged over the numbers. `read` tells the state from
    imagined latents."""

    goal: Tensor  # [B, P]
    read: Callable[[Tensor], Tensor]  # latents [B, S, H, N, D] to states [B, S, H, P]
    scale: Tensor | float = 1.0  # [P], such as the spread of each number in the data
    mode: Reduction = "last"

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        gap = (self.read(latents) - self.goal[:, None, None]) / self.scale
        return over_steps(gap.square().mean(-1), mode=self.mode)


def to_state(context: PlanningContext) -> Term:
    """Distance to the state that is read from the goal image, in units of each number's spread."""
    model, cost = context.model, context.settings.cost
    ids, head = state_ids(model, cost), model.needed("state").state
    assert head is not None
    return ToState(
        goal=model.state(context.goal_latent())[:, ids],
        read=lambda latents: model.state(latents)[..., ids],
        scale=head.scale[ids],
        mode=cost.steps,
    )


def to_proprio(context: PlanningContext) -> Term:
    """Distance to the goal's proprioception, in units of each number's spread, an angle counting
    as one number; UserError where the goal carries none."""
    proprio, cost = context.model.latent.proprio, context.settings.cost
    assert proprio is not None, "check_cost refuses it"
    goal = proprio.of(context.goal_latent())
    if bool(goal.isnan().any()):
        names = ", ".join(context.model.latent_model.settings.latent.proprio)
        raise UserError(
            f"planner.cost.proprio {cost.proprio:g} compares {names} with the goal's, and the "
            "goal is an image alone: give Agent.reset goal_proprio=..., or set "
            "planner.cost.proprio=0"
        )
    return ToState(goal=goal, read=proprio.of, scale=proprio.spread, mode=cost.steps)


def state_ids(model: WorldModel, cost: CostSettings) -> list[int]:
    """Which numbers of the state head count; UserError for names that it does not have."""
    names = model.needed("state").present.state
    unknown = sorted(set(cost.state_names) - set(names))
    if unknown:
        raise UserError(
            f"planner.cost.state_names {unknown[0]!r} is not known; the state head reads "
            f"{', '.join(names)}"
        )
    return [names.index(name) for name in cost.state_names or names]


@dataclass(frozen=True, kw_only=True)
class Return:
    """Expected discounted reward until the episode ends; give it a negative weight to earn as much
    as possible.

    sum over steps h of discount**h * P(not ended before h) * reward(h), where `ended` is the
    chance that the episode ends in model step h, whose own reward still counts; None: it never
    ends."""

    # latents [B, S, H, N, D], actions [B, S, H, A] to [B, S, H]
    reward: Callable[[Tensor, Tensor], Tensor]
    # the same to chances [B, S, H] in 0..1
    ended: Callable[[Tensor, Tensor], Tensor] | None = None
    discount: float = 0.99  # in 0..1, 0 excluded

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        rewards = self.reward(latents, actions)
        steps = torch.arange(rewards.shape[-1], device=rewards.device, dtype=rewards.dtype)
        weights = self.discount**steps
        if self.ended is not None:
            on = (1 - self.ended(latents, actions)).cumprod(-1)
            weights = weights * torch.cat([torch.ones_like(on[..., :1]), on[..., :-1]], -1)
        return (weights * rewards).sum(-1)


def earned(context: PlanningContext) -> Term:
    """Expected discounted reward, until the episode ends where a termination head tells the
    chance."""
    model, heads = context.model, context.model.needed("reward")
    return Return(
        reward=partial(model.reward, context.now),
        ended=None if heads.termination is None else partial(model.ended, context.now),
        discount=context.settings.cost.discount,
    )


def disagreement(members: Tensor) -> Tensor:
    """[B, S] how far the futures [M, B, S, H, N, D] of an ensemble are apart: their variance over
    the members, averaged over steps, tokens and numbers. Raises ValueError for fewer than two."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} ensemble members cannot disagree; give at least two")
    return members.var(0).mean((-2, -1)).mean(-1)


# ---------------------------------------------------------------- of actions


def effort(latents: Tensor, actions: Tensor) -> Tensor:
    """[B, S] the mean squared action: a term against needless motion."""
    return actions.square().mean((-2, -1))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The same where doing nothing is another action than 0: the mean squared difference from
    that. Without an `idle` one that is each plan's own first action: a place to go to, where
    nobody knows yet which place would be to stay."""

    size: int  # a
    idle: Tensor | None = None  # [a] or [B, a] the action that does nothing

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        each = actions.unflatten(-1, (-1, self.size))  # [B, S, H, block, a]
        idle = each[:, :, :1, :1]
        if self.idle is not None:
            idle = self.idle.to(actions).expand(len(actions), -1)[:, None, None, None]
        return (each - idle).square().mean((-3, -2, -1))


def effortless(context: PlanningContext) -> Term:
    """How far actions are from doing nothing: from 0, what the world says, or the last one where
    they are places."""
    space = context.space
    if space is None:
        return effort
    idle = space.staying(context.last_action)
    # Before the first of actions that are places, each plan's own first one is where it stays.
    return effort if idle is None and not space.absolute else Effort(size=space.size, idle=idle)


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """The mean squared change from one environment action to the next, a term against jerks; 0 for
    a single action that none came before."""

    size: int  # a
    before: Tensor | None = None  # [B, a] taken last, which the plan's first is compared with too

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        each = actions.unflatten(-1, (-1, self.size)).flatten(-3, -2)  # [B, S, H*block, a]
        if self.before is not None:
            before = self.before[:, None, None].expand(-1, each.shape[1], 1, -1)
            each = torch.cat([before, each], 2)
        change = each.diff(dim=2).square()
        return change.mean((-2, -1)) if change.shape[2] else each.new_zeros(each.shape[:2])


def smooth(context: PlanningContext) -> Term:
    """Change from one environment action to the next, the last one taken included."""
    return Smoothness(size=context.action_dim, before=context.last_action)


@dataclass(frozen=True, kw_only=True)
class LinearLimits:
    """Limits A x <= b on the action block x of every model step: as a term, how far they are
    exceeded, summed over limits and averaged over steps. Zero inside, so that a large enough
    weight leaves the best allowed plan best."""

    matrix: Tensor  # A [C, A], a row a limit
    bound: Tensor  # b [C]

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        excess = actions @ self.matrix.to(actions).T - self.bound.to(actions)  # [B, S, H, C]
        return excess.clamp(min=0).sum(-1).mean(-1)


def within_limits(context: PlanningContext) -> Term:
    """Linear limits on every environment action."""
    limits, frameskip = context.settings.cost.limits, context.model.frameskip
    assert limits is not None
    matrix = torch.block_diag(*[torch.tensor(limits.matrix)] * frameskip)
    return LinearLimits(matrix=matrix, bound=torch.tensor(limits.bound * frameskip))
