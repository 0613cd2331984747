"""Distances between latents: a quasimetric learned from trajectories alone, and what needs no
learning.

B pairs or episodes, T frames, F flattened latent width, G groups, K components, N tokens of width
D."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.precision import exact
from jepa_wm.core.scaling import shared_scale
from jepa_wm.models.blocks import mlp
from jepa_wm.models.token_map import MapField
from jepa_wm.models.world_model_settings import DistanceSettings


class TemporalDistance(nn.Module):
    """d(x, y) = mean over groups of max_k relu(u_k(y) - u_k(x)): zero at equality, triangle
    inequality by form.

    The form is the asymmetric part of a metric residual network (Liu et al. 2023). With a field it
    holds between places of one layout. It is fitted to what passed between two frames of an
    episode by an asymmetric squared error (expectile regression, as in implicit Q-learning,
    Kostrikov et al. 2022)."""

    centre: Tensor
    spread: Tensor

    def __init__(
        self, latent: int, settings: DistanceSettings, *, field: MapField | None = None,
        around: int = 0,
    ) -> None:  # fmt: skip
        """Of `latent` numbers, the last `around` of which are read off what the field makes of a
        latent's map."""
        super().__init__()
        self.settings, self.field = settings, field
        self.own = latent - around
        # Without normalised layers: those round off the edge at an obstacle, where the distance
        # leaps.
        self.net = mlp(latent, settings.groups * settings.components, settings.width, depth=3)
        self.register_buffer("centre", torch.zeros(latent))
        self.register_buffer("spread", torch.ones(latent))

    @torch.no_grad()
    def standardise(self, latents: Tensor) -> None:
        """Have the net see every number of a latent with mean 0 and spread 1 over latents [B, F];
        one that hardly varies beside the others stays near 0, and what the field says is left as
        it is."""
        own = latents[:, : self.own]
        self.centre[: self.own] = own.mean(0)
        self.spread[: self.own] = shared_scale(own.std(0))

    def embed(self, latent: Tensor) -> Tensor:
        """[..., G, K] coordinates of latents [..., F]."""
        with exact(latent.device):
            coordinates = self.net((latent.float() - self.centre) / self.spread)
        return coordinates.unflatten(-1, (self.settings.groups, self.settings.components))

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """[...] model steps, or fast steps where it was fitted to paths, from embedded start to
        embedded goal [..., G, K] (they broadcast)."""
        return (goal - start).clamp(min=0).amax(-1).mean(-1)

    def forward(self, start: Tensor, goal: Tensor) -> Tensor:
        """The same from latents [..., F] to [..., F]."""
        return self.between(self.embed(start), self.embed(goal))

    def losses(self, latents: Tensor, passed: Tensor) -> dict[str, Tensor]:
        """Losses for latents [B, T, F] of frames of episodes, in the order of time, and what had
        passed when each was met, [B, T]: of every pair that an episode has. A pair is met on ways
        of many lengths; the expectile leans toward the shortest."""
        at, pairs = self.embed(latents), []
        # By slices: where many rows are gathered from one, gradients add up in any order.
        for i in range(passed.shape[1] - 1):
            distance = self.between(at[:, i : i + 1], at[:, i + 1 :])
            pairs.append(distance - (passed[:, i + 1 :] - passed[:, i : i + 1]))
        excess = torch.cat(pairs, 1)
        share = self.settings.expectile
        loss = (torch.where(excess > 0, 1 - share, share) * excess.square()).mean()
        return {"loss": loss, "steps_error": excess.detach().abs().mean()}


def latent_distance(latents: Tensor, goal: Tensor, *, kind: str) -> Tensor:
    """[B, ...] how far latents [B, ..., N, D] are from a goal's [B, N, D], averaged over a frame's
    tokens.

    "l1" is the mean absolute difference (V-JEPA 2-AC), "l2" the mean squared one (DINO-WM,
    JEPA-WMs), "cosine" one minus the cosine of each token with the goal's token at its place.
    Raises ValueError for another name."""
    goal = goal.view(len(goal), *[1] * (latents.dim() - 3), *goal.shape[1:])
    if kind == "l1":
        return (latents - goal).abs().mean((-2, -1))
    if kind == "l2":
        return (latents - goal).square().mean((-2, -1))
    if kind == "cosine":
        return 1 - torch.cosine_similarity(latents, goal, dim=-1).mean(-1)
    raise ValueError(f"distance {kind!r} is not known; choose one of l1, l2, cosine")
