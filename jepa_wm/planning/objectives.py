"""Objectives: what an imagined future costs, as weighted terms over imagined latents and actions.

B episodes, S candidates, H horizon, N tokens a frame, D latent width, A action numbers of a model
step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.planning.terms import Disagreement, Term


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


def imagined_cost(
    imagine: Callable[[Tensor], Tensor], objective: Term
) -> Callable[[Tensor], Tensor]:
    """The callable a solver minimises: `imagine` turns plans [B, S, H, A] into latents, the
    objective prices both."""
    return lambda actions: objective(imagine(actions), actions)


def expected_cost(
    imagine: Callable[[Tensor], Tensor], objective: Term, *, doubt: float = 0.0
) -> Callable[[Tensor], Tensor]:
    """The same where `imagine` gives several futures [M, R, B, S, H, N, D] of each plan: the mean
    of their costs, plus `doubt` times the disagreement of the M members, each averaged over its R
    draws."""

    def cost(actions: Tensor) -> Tensor:
        futures = imagine(actions)
        costs = torch.stack([objective(future, actions) for future in futures.flatten(0, 1)]).mean(
            0
        )
        if doubt:
            costs = costs + doubt * Disagreement(members=lambda _: futures.mean(1))(
                futures[0, 0], actions
            )
        return costs

    return cost
