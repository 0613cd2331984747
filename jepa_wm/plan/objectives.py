"""Objectives: what an imagined future costs, as weighted terms over imagined latents and actions.

B episodes, S candidates, H horizon, N tokens a frame, D latent width, A action numbers of a model step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Distance = Callable[[Tensor, Tensor], Tensor]  # latents [B, S, H, N, D], goal [B, N, D] -> [B, S, H]
Term = Callable[[Tensor, Tensor], Tensor]  # latents [B, S, H, N, D], actions [B, S, H, A] -> [B, S]

Steps = Literal["last", "all", "rising", "discounted"]


def latent_distance(kind: Literal["l1", "l2", "cosine"]) -> Distance:
    """The distance of imagined latents to the goal's latent, averaged over a frame's tokens.

    "l1" is the mean absolute difference (V-JEPA 2-AC), "l2" the mean squared one (DINO-WM, JEPA-WMs), "cosine" one
    minus the cosine of each token with the goal's token at its place. A learned metric is a callable of the same kind.
    Raises ValueError for another name.
    """
    if kind not in _DISTANCES:
        raise ValueError(f"distance {kind!r} is not known; choose one of {', '.join(_DISTANCES)}")
    return _DISTANCES[kind]


def over_steps(costs: Tensor, *, mode: Steps = "last", discount: float = 0.9) -> Tensor:
    """[B, S] one number per plan from its costs per step [B, S, H].

    "last" takes the final step, "all" the mean, "rising" the mean weighted by the step's number, so that a detour may
    lead away from the goal first and yet arriving early counts, "discounted" the mean weighted by discount**step.
    Raises ValueError for another mode and for a discount outside 0..1 (0 excluded).
    """
    if mode == "last":
        return costs[..., -1]
    if mode == "all":
        return costs.mean(-1)
    if mode == "rising":
        weights = torch.arange(1, costs.shape[-1] + 1, device=costs.device, dtype=costs.dtype)
        return (costs * weights).sum(-1) / weights.sum()
    if mode != "discounted":
        raise ValueError(f"steps {mode!r} is not known; choose last, all, rising or discounted")
    if not 0 < discount <= 1:
        raise ValueError(f"discount must lie in 0..1 (0 excluded), got {discount}")
    weights = discount ** torch.arange(costs.shape[-1], device=costs.device, dtype=costs.dtype)
    return (costs * weights).sum(-1) / weights.sum()


@dataclass(frozen=True, kw_only=True)
class ToGoal:
    """The term of goal reaching: a distance to the goal's latent, reduced over the steps."""

    goal: Tensor  # [B, N, D]
    distance: Distance
    mode: Steps = "last"
    discount: float = 0.9

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        return over_steps(self.distance(latents, self.goal), mode=self.mode, discount=self.discount)


def effort(latents: Tensor, actions: Tensor) -> Tensor:
    """[B, S] the mean squared action: a term against needless motion."""
    return actions.square().mean((-2, -1))


@dataclass(frozen=True)
class Objective:
    """A weighted sum of terms; a reward is a term with negative weight."""

    terms: tuple[tuple[float, Term], ...]

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S] the cost of imagined latents [B, S, H, N, D] under actions [B, S, H, A]."""
        parts = [weight * term(latents, actions) for weight, term in self.terms]
        return torch.stack(parts).sum(0)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("an objective needs at least one (weight, term)")


def imagined_cost(imagine: Callable[[Tensor], Tensor], objective: Term) -> Callable[[Tensor], Tensor]:
    """The callable a solver minimises: `imagine` turns plans [B, S, H, A] into latents, the objective prices both."""
    return lambda actions: objective(imagine(actions), actions)


def _l1(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).abs().mean((-2, -1))


def _l2(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).square().mean((-2, -1))


def _cosine(latents: Tensor, goal: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(latents, goal[:, None, None], dim=-1).mean(-1)


_DISTANCES: dict[str, Distance] = {"l1": _l1, "l2": _l2, "cosine": _cosine}
