"""Steps to go: a quasimetric on latents, learned from trajectories alone.

B pairs, F flattened latent width, G groups, K components.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.schema import Metric

PACE = 30.0  # how much faster the multiplier may move than a weight does under Adam


class StepsToGo(nn.Module):
    """d(x, y) = mean over groups of max_k relu(u_k(y) - u_k(x)): zero at equality, triangle inequality by form.

    Trained as in quasimetric reinforcement learning (Wang et al. 2023): push all pairs apart while an observed move
    of k model steps may not be longer than k. What remains is the length of the shortest way through what was seen.
    """

    def __init__(self, latent: int, settings: Metric) -> None:
        super().__init__()
        self.settings = settings
        self.net = nn.Sequential(
            nn.Linear(latent, settings.width), nn.LayerNorm(settings.width), nn.GELU(),
            nn.Linear(settings.width, settings.width), nn.GELU(),
            nn.Linear(settings.width, settings.groups * settings.components),
        )  # fmt: skip
        self.raw_multiplier = nn.Parameter(torch.tensor(5.0 / PACE))

    def embed(self, latent: Tensor) -> Tensor:
        """[..., G, K] coordinates of latents [..., F]."""
        return self.net(latent).float().unflatten(-1, (self.settings.groups, self.settings.components))

    def between(self, start: Tensor, goal: Tensor) -> Tensor:
        """[...] model steps from embedded start to embedded goal [..., G, K] (they broadcast)."""
        return (goal - start).clamp(min=0).amax(-1).mean(-1)

    def forward(self, start: Tensor, goal: Tensor) -> Tensor:
        """[...] model steps from latents [..., F] to [..., F]."""
        return self.between(self.embed(start), self.embed(goal))

    def losses(self, latents: Tensor, steps: Tensor, far: Tensor) -> dict[str, Tensor]:
        """Losses for latents [2, B, F] seen `steps` [B] model steps apart, and far [B, F] from anywhere in the
        episode."""
        here, there, away = self.embed(torch.cat([latents.flatten(0, 1), far])).chunk(3)
        local = self.between(here, there)
        excess = (local - steps).clamp(min=0).square().mean() - self.settings.slack**2
        apart = self.between(here, away)
        push = F.softplus(15.0 - apart, beta=0.5).mean()  # less and less for pairs that are far apart already
        multiplier = F.softplus(PACE * self.raw_multiplier)
        # The multiplier climbs while moves are too long and falls when they are not: one optimiser, two directions.
        loss = push + multiplier.detach() * excess - multiplier * excess.detach()
        return {"loss": loss, "push": push, "excess": excess, "multiplier": multiplier, "apart": apart.mean()}
