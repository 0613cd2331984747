"""What the config asks a search to minimise: the terms of an objective, made for some episodes at
one decision.

B episodes, S candidates, H horizon, N latent tokens of width D, A action numbers of a model step,
a of one action."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.action_terms import Effort, LinearLimits, Smoothness, effort
from jepa_wm.planning.objectives import Objective
from jepa_wm.planning.settings import CostSettings, PlannerSettings
from jepa_wm.planning.terms import Distance, Return, Term, ToGoal, ToState, latent_distance
from jepa_wm.world_model.world_model import WorldModel


@dataclass(frozen=True)
class Scene:
    """Where some episodes stand when a plan is searched."""

    model: WorldModel
    settings: PlannerSettings
    now: Tensor  # [B, N, D] the latest latent
    goal: Tensor | None  # [B, N, D]; None: no goal image was given
    last: Tensor | None  # [B, a] the action taken last
    space: ActionSpace | DiscreteSpace | None = None  # that is searched; None: not known

    def goal_latent(self) -> Tensor:
        """The goal; UserError where there is none."""
        return goal_of(self.settings.cost, self.goal)


def goal_of(settings: CostSettings, goal: Tensor | None) -> Tensor:
    """The goal; UserError where there is none."""
    if goal is None:
        asks = (
            f"planner.cost.objective {settings.objective}"
            if settings.objective != "reward"
            else "a policy toward goals"
        )
        raise UserError(
            f"{asks} needs a goal image: give one to Agent.reset, or plan for reward alone (planner.cost.objective=reward, "
            "planner.mpc.warm_start=false and a solver that searches)"
        )
    return goal


TermOf = Callable[[Scene], Term]  # makes a term for the episodes of a scene


def objective_of(scene: Scene, more: Sequence[tuple[float, TermOf]] = ()) -> Objective:
    """The terms that the settings name, weighted, and `more` of the caller's own."""
    wanted = scene.settings.cost
    terms: list[tuple[float, TermOf]] = [MAIN[wanted.objective]]
    terms += [(wanted.reward * MAIN["reward"][0], earned)] if wanted.reward else []
    terms += [(wanted.state, to_state)] if wanted.state else []
    terms += [(wanted.effort, effortless)] if wanted.effort else []
    terms += [(wanted.smoothness, smooth)] if wanted.smoothness else []
    terms += [(wanted.limits.weight, within_limits)] if wanted.limits else []
    return Objective(tuple((weight, make(scene)) for weight, make in [*terms, *more]))


def check_objective(model: WorldModel, settings: PlannerSettings) -> None:
    """UserError for a term that needs what the model has not."""
    if settings.cost.uncertainty_weight and model.latent.settings.ensemble_size < 2:
        raise UserError(
            f"planner.cost.uncertainty_weight {settings.cost.uncertainty_weight:g} needs models "
            "that can disagree: train with dynamics.ensemble_size of at least 2, or set "
            "planner.cost.uncertainty_weight 0"
        )
    if settings.cost.objective == "temporal" and not model.learned_distance:
        raise UserError(
            "planner.cost.objective temporal is a learned distance, which dynamics.kind vjepa2_ac "
            "has not; set planner.cost.objective=l1"
        )
    if settings.asks_policy:
        model.needed("policy")
    if settings.cost.objective == "reward" or settings.cost.reward:
        model.needed("reward")
    if settings.cost.objective == "state" or settings.cost.state:
        _state_ids(model, settings.cost)
    if (
        settings.cost.limits
        and len(settings.cost.limits.matrix[0]) != model.block // model.latent.settings.frameskip
    ):
        raise UserError(
            f"planner.cost.limits.matrix has rows of {len(settings.cost.limits.matrix[0])} numbers; give one for each of the "
            f"{model.block // model.latent.settings.frameskip} numbers of an environment action"
        )


def to_goal(scene: Scene) -> Term:
    """Distance to the goal image's latent."""
    return ToGoal(
        goal=scene.goal_latent(), distance=_distance(scene), mode=scene.settings.cost.steps
    )


def to_state(scene: Scene) -> Term:
    """Distance to the state that is read from the goal image, in units of each number's spread."""
    ids, model = _state_ids(scene.model, scene.settings.cost), scene.model
    head = model.needed("state").state
    assert head is not None
    goal = model.state(scene.goal_latent())[:, ids]
    return ToState(
        goal=goal,
        read=lambda latents: model.state(latents)[..., ids],
        scale=head.scale[ids],
        mode=scene.settings.cost.steps,
    )


def earned(scene: Scene) -> Term:
    """Expected discounted reward, until the episode ends where a termination head tells the
    chance."""
    model, now = scene.model, scene.now
    heads = model.needed("reward")

    def ended(latents: Tensor, actions: Tensor) -> Tensor:
        return model.ended(now, latents, actions)

    return Return(
        reward=lambda latents, actions: model.reward(now, latents, actions),
        ended=None if heads.termination is None else ended, discount=scene.settings.cost.discount,
    )  # fmt: skip


def effortless(scene: Scene) -> Term:
    """How far actions are from doing nothing: from 0, what the world says, or the last one where
    they are places."""
    space = scene.space
    if isinstance(space, ActionSpace) and space.absolute:
        return Effort(size=space.size, idle=scene.last)
    if space is None or space.idle is None:
        return effort
    idle = space.vectors[space.idle] if isinstance(space, DiscreteSpace) else space.idle
    return Effort(size=space.size, idle=torch.tensor(idle))


def smooth(scene: Scene) -> Term:
    """Change from one environment action to the next."""
    size = scene.model.block // scene.model.latent.settings.frameskip
    return Smoothness(size=size, before=scene.last)


def within_limits(scene: Scene) -> Term:
    """Linear limits on every environment action."""
    limits, frameskip = scene.settings.cost.limits, scene.model.latent.settings.frameskip
    assert limits is not None
    matrix = torch.block_diag(*[torch.tensor(limits.matrix)] * frameskip)
    return LinearLimits(matrix=matrix, bound=torch.tensor(limits.bound * frameskip))


MAIN: dict[str, tuple[float, TermOf]] = {
    "temporal": (1.0, to_goal), "l1": (1.0, to_goal), "l2": (1.0, to_goal), "cosine": (1.0, to_goal),
    "state": (1.0, to_state), "reward": (-1.0, earned),
}  # fmt: skip


def _distance(scene: Scene) -> Distance:
    name = scene.settings.cost.objective
    if name == "l1" or name == "l2" or name == "cosine":
        raw, compared = latent_distance(name), scene.model.compared
        return lambda latents, goal: raw(compared(latents), compared(goal))
    return partial(scene.model.temporal_distance, margin=scene.settings.cost.robust_radius)


def _state_ids(model: WorldModel, settings: CostSettings) -> list[int]:
    """Which numbers of the state head count; UserError for names that it does not have."""
    names = model.needed("state").present.state
    unknown = sorted(set(settings.state_names) - set(names))
    if unknown:
        raise UserError(
            f"planner.cost.state_names {unknown[0]!r} is not known; the state head reads {', '.join(names)}"
        )
    return [names.index(name) for name in settings.state_names or names]
