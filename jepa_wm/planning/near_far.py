"""Both distances to a goal in one: the temporal one far from it, the latent's own within one plan
of it.

B episodes, S plans, H horizon, N tokens a frame, D latent width."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jepa_wm.planning.cost import PlanningContext
    from jepa_wm.planning.terms import Distance
    from jepa_wm.world_model.world_model import WorldModel

SOFTNESS = 1 / 6  # of the reach: the scale of the sigmoid by which one distance replaces the other
LEAST_STEPS = 1.0  # model steps that a goal counts as away at least, where units are compared
# Of a dynamic number, whose spread is about 1. Differences far below it hardly count, so that the
# distance is smooth at the goal too.
LEAST_DIFFERENCE = 0.01


@dataclass(frozen=True, kw_only=True)
class NearFar:
    """weight * far + (1 - weight) * scale * near. Weight and scale are those of a decision, the
    same for all of its plans."""

    far: Distance  # the temporal one
    near: Distance  # the latent's own
    weight: Tensor  # [B] in 0..1: 1 far from the goal, 0 near it
    scale: Tensor  # [B] model steps that the latent's own distance counts by

    def __call__(self, latents: Tensor, goal: Tensor) -> Tensor:
        """[B, S, H] model steps (fast steps where the temporal distance was fitted to paths) from
        latents [B, S, H, N, D] to goal [B, N, D]."""
        weight, scale = (each[:, None, None] for each in (self.weight, self.scale))
        near = scale * self.near(latents, goal)
        return weight * self.far(latents, goal) + (1 - weight) * near


@torch.no_grad()
def near_far(context: PlanningContext, far: Distance) -> NearFar:
    """The two for one decision, `far` being the temporal distance.

    The weight is sigmoid((distance - reach) / softness) of the temporal distance from where the
    episode stands to its goal; the reach is one plan, planner.mpc.horizon steps at full speed. The
    scale makes both distances agree where the episode stands. UserError without a goal."""
    now, goal = context.now[:, None, None], context.goal_latent()
    near = partial(dynamic_difference, context.model)
    # How far it is, whatever the worst reading within a radius says.
    away = context.model.distance(now, goal, kind="temporal")[:, 0, 0]
    reach = float(context.settings.mpc.horizon)
    return NearFar(
        far=far,
        near=near,
        weight=torch.sigmoid((away - reach) / (SOFTNESS * reach)),
        scale=far(now, goal)[:, 0, 0].clamp(min=LEAST_STEPS) / near(now, goal)[:, 0, 0],
    )


def dynamic_difference(model: WorldModel, latents: Tensor, goal: Tensor) -> Tensor:
    """[B, S, H] the root mean square difference of the dynamic numbers of latents [B, S, H, N, D]
    and goal [B, N, D]; never below LEAST_DIFFERENCE. Static numbers, the map and proprioception,
    which a goal need not carry, have no part."""
    latent = model.latent
    at, to = (latent.compared(each)[..., : latent.visual_dim] for each in (latents, goal))
    squared = (at - to[:, None, None]).square().mean((-2, -1))
    return (squared + LEAST_DIFFERENCE**2).sqrt()


def difference_bytes(model: WorldModel, horizon: int, *, gradients: bool) -> int:
    """Bytes that `dynamic_difference` takes for one plan: the difference and its square, and what
    was cut out for it where gradients keep that."""
    latent = model.latent
    return 4 * horizon * latent.tokens * latent.visual_dim * (3 if gradients else 2)
