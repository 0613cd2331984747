"""Terms of an objective that price imagined latents: distances to a goal, a state to reach,
reward, disagreement.

B episodes, S candidates, H horizon, N tokens a frame, D latent width, A action numbers of a model
step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Distance = Callable[
    [Tensor, Tensor], Tensor
]  # latents [B, S, H, N, D], goal [B, N, D] -> [B, S, H]
Term = Callable[
    [Tensor, Tensor], Tensor
]  # latents [B, S, H, N, D], actions [B, S, H, A] -> [B, S]

Steps = Literal["last", "all", "rising", "discounted"]


def latent_distance(kind: Literal["l1", "l2", "cosine"]) -> Distance:
    """The distance of imagined latents to the goal's latent, averaged over a frame's tokens.

    "l1" is the mean absolute difference (V-JEPA 2-AC), "l2" the mean squared one (DINO-WM,
    JEPA-WMs), "cosine" one minus the cosine of each token with the goal's token at its place. A
    learned metric is a callable of the same kind. Raises ValueError for another name."""
    if kind not in _DISTANCES:
        raise ValueError(f"distance {kind!r} is not known; choose one of {', '.join(_DISTANCES)}")
    return _DISTANCES[kind]


def over_steps(costs: Tensor, *, mode: Steps = "last", discount: float = 0.9) -> Tensor:
    """[B, S] one number per plan from its costs per step [B, S, H].

    "last" takes the final step, "all" the mean, "rising" the mean weighted by the step's number,
    so that a detour may lead away from the goal first and yet arriving early counts, "discounted"
    the mean weighted by discount**step. Raises ValueError for another mode and for a discount
    outside 0..1 (0 excluded)."""
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
        return over_steps(
            self.distance(latents, self.goal), mode=self.mode, discount=self.discount
        )


@dataclass(frozen=True, kw_only=True)
class ToState:
    """The term of reaching a state, such as the robot's own joints: `read` tells it from imagined
    latents.

    The squared difference to the goal's state, each number in units of `scale`, averaged over the
    numbers."""

    goal: Tensor  # [B, P]
    read: Callable[[Tensor], Tensor]  # latents [B, S, H, N, D] to states [B, S, H, P]
    scale: Tensor | None = None  # [P], such as the spread of each number in the data
    mode: Steps = "last"
    discount: float = 0.9

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        gap = self.read(latents) - self.goal[:, None, None]
        gap = gap if self.scale is None else gap / self.scale
        return over_steps(gap.square().mean(-1), mode=self.mode, discount=self.discount)


@dataclass(frozen=True, kw_only=True)
class Return:
    """Expected discounted reward until the episode ends; give it a negative weight to earn as much
    as possible.

    sum over steps h of discount**h * P(not ended before h) * reward(h), where `ended` is the
    chance that the episode ends in model step h, whose own reward still counts; None: it never
    ends. Raises ValueError for a discount outside 0..1 (0 excluded)."""

    reward: Callable[
        [Tensor, Tensor], Tensor
    ]  # latents [B, S, H, N, D], actions [B, S, H, A] to [B, S, H]
    ended: Callable[[Tensor, Tensor], Tensor] | None = (
        None  # the same to chances [B, S, H] in 0..1
    )
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


@dataclass(frozen=True, kw_only=True)
class Disagreement:
    """How far the members of an ensemble are apart: dear with a positive weight, sought with a
    negative one.

    The variance over M members, averaged over a frame's tokens and numbers.
    """

    members: Callable[[Tensor], Tensor]  # actions [B, S, H, A] to futures [M, B, S, H, N, D]
    mode: Steps = "all"
    discount: float = 0.9

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]. Raises ValueError for fewer than two members."""
        futures = self.members(actions)
        if len(futures) < 2:
            raise ValueError(f"{len(futures)} ensemble members cannot disagree; give at least two")
        return over_steps(futures.var(0).mean((-2, -1)), mode=self.mode, discount=self.discount)


def _l1(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).abs().mean((-2, -1))


def _l2(latents: Tensor, goal: Tensor) -> Tensor:
    return (latents - goal[:, None, None]).square().mean((-2, -1))


def _cosine(latents: Tensor, goal: Tensor) -> Tensor:
    return 1 - torch.cosine_similarity(latents, goal[:, None, None], dim=-1).mean(-1)


_DISTANCES: dict[str, Distance] = {"l1": _l1, "l2": _l2, "cosine": _cosine}
