"""Terms of a cost: what imagined latents are priced by (distances to a goal, a state to reach,
reward, disagreement) and what actions are (effort, jerks, linear limits); and their weighted sum.

B episodes, S plans, H horizon, N tokens a frame, D latent width, A action numbers of a model step,
a of one environment action, C limits, M members of an ensemble, R futures of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.settings import Reduction

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


def latent_distance(kind: str) -> Distance:
    """The distance of imagined latents to the goal's latent, averaged over a frame's tokens.

    "l1" is the mean absolute difference (V-JEPA 2-AC), "l2" the mean squared one (DINO-WM,
    JEPA-WMs), "cosine" one minus the cosine of each token with the goal's token at its place. A
    learned distance is a callable of the same kind. Raises ValueError for another name."""
    if kind not in _DISTANCES:
        raise ValueError(f"distance {kind!r} is not known; choose one of {', '.join(_DISTANCES)}")
    return _DISTANCES[kind]


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
        """[B, S]."""
        return over_steps(self.distance(latents, self.goal), mode=self.mode)


@dataclass(frozen=True, kw_only=True)
class ToState:
    """The term of reaching a state, such as the robot's own joints: `read` tells it from imagined
    latents.

    The squared difference to the goal's state, each number in units of `scale`, averaged over the
    numbers."""

    goal: Tensor  # [B, P]
    read: Callable[[Tensor], Tensor]  # latents [B, S, H, N, D] to states [B, S, H, P]
    scale: Tensor | None = None  # [P], such as the spread of each number in the data
    mode: Reduction = "last"

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        gap = self.read(latents) - self.goal[:, None, None]
        gap = gap if self.scale is None else gap / self.scale
        return over_steps(gap.square().mean(-1), mode=self.mode)


@dataclass(frozen=True, kw_only=True)
class Return:
    """Expected discounted reward until the episode ends; give it a negative weight to earn as much
    as possible.

    sum over steps h of discount**h * P(not ended before h) * reward(h), where `ended` is the
    chance that the episode ends in model step h, whose own reward still counts; None: it never
    ends. Raises ValueError for a discount outside 0..1 (0 excluded)."""

    # latents [B, S, H, N, D], actions [B, S, H, A] to [B, S, H]
    reward: Callable[[Tensor, Tensor], Tensor]
    # the same to chances [B, S, H] in 0..1
    ended: Callable[[Tensor, Tensor], Tensor] | None = None
    discount: float = 0.99

    def __post_init__(self) -> None:
        if not 0 < self.discount <= 1:
            raise ValueError(f"discount must lie in 0..1 (0 excluded), got {self.discount}")

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        rewards = self.reward(latents, actions)
        weights = self.discount ** torch.arange(
            rewards.shape[-1], device=rewards.device, dtype=rewards.dtype
        )
        if self.ended is not None:
            on = (1 - self.ended(latents, actions)).cumprod(-1)
            weights = weights * torch.cat([torch.ones_like(on[..., :1]), on[..., :-1]], -1)
        return (weights * rewards).sum(-1)


def disagreement(members: Tensor) -> Tensor:
    """[B, S] how far the futures [M, B, S, H, N, D] of an ensemble are apart: their variance over
    the members, averaged over steps, tokens and numbers. Raises ValueError for fewer than two."""
    if len(members) < 2:
        raise ValueError(f"{len(members)} ensemble members cannot disagree; give at least two")
    return over_steps(members.var(0).mean((-2, -1)), mode="all")


def _l1(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).abs().mean((-2, -1))


def _l2(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).square().mean((-2, -1))


def _cosine(latents: Tensor, goal: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(latents, goal[:, None, None], dim=-1).mean(-1)


_DISTANCES: dict[str, Distance] = {"l1": _l1, "l2": _l2, "cosine": _cosine}


# ---------------------------------------------------------------- of actions


def effort(latents: Tensor, actions: Tensor) -> Tensor:
    """[B, S] the mean squared action: a term against needless motion."""
    return actions.square().mean((-2, -1))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The same where doing nothing is another action than 0: the mean squared difference from
    that.

    `size` is the length a of one environment action, `idle` [a] or [B, a] the one that does
    nothing. Without it that is each plan's own first action: a place to go to, where nobody knows
    yet which place would be to stay."""

    size: int
    idle: Tensor | None = None

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        each = actions.unflatten(-1, (-1, self.size))  # [B, S, H, block, a]
        idle = each[:, :, :1, :1]
        if self.idle is not None:
            idle = self.idle.to(actions).expand(len(actions), -1)[:, None, None, None]
        return (each - idle).square().mean((-3, -2, -1))


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """The mean squared change from one environment action to the next: a term against jerks.

    `size` is the length a of one environment action, `before` the last one taken, [B, a], which
    the plan's first is compared with too. Without it a plan of a single action costs nothing."""

    size: int
    before: Tensor | None = None

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        each = actions.unflatten(-1, (-1, self.size)).flatten(-3, -2)  # [B, S, H*block, a]
        if self.before is not None:
            each = torch.cat(
                [self.before[:, None, None].expand(-1, each.shape[1], 1, -1), each], 2
            )
        change = each.diff(dim=2).square()
        return change.mean((-2, -1)) if change.shape[2] else each.new_zeros(each.shape[:2])


@dataclass(frozen=True, kw_only=True)
class LinearLimits:
    """Limits A x <= b on the action block x of every model step: as a term, how far they are
    exceeded.

    The excess over each limit, summed over limits and averaged over steps: zero inside, so that a
    large enough weight leaves the best allowed plan best. Raises ValueError for limits that are
    not one number of b per row of A."""

    matrix: Tensor  # A [C, A], a row a limit
    bound: Tensor  # b [C]

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2 or self.bound.shape != self.matrix.shape[:1]:
            raise ValueError(
                f"matrix has shape {tuple(self.matrix.shape)} and bound "
                f"{tuple(self.bound.shape)}; give a row of the matrix and a number of the bound "
                "for each limit"
            )

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        return self.excess(actions).sum(-1).mean(-1)

    def excess(self, actions: Tensor) -> Tensor:
        """[..., H, C] by how much actions [..., H, A] exceed each limit. Raises ValueError for
        another width."""
        if actions.shape[-1] != self.matrix.shape[1]:
            raise ValueError(
                f"matrix has {self.matrix.shape[1]} columns for {actions.shape[-1]} action "
                "numbers a step"
            )
        return (actions @ self.matrix.to(actions).T - self.bound.to(actions)).clamp(min=0)
