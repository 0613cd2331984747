"""Dynamics of your own: an MLP on one latent and one block of actions. `dynamics.name=markov`"""

from typing import Literal

import torch
from torch import nn

from jepa_wm import register
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.world_model_settings import DynamicsSettings


class Markov(Dynamics):
    def __init__(self, width, action_size):
        super().__init__(action_size)
        sizes = width + action_size, 64
        self.net = nn.Sequential(nn.Linear(*sizes), nn.GELU(), nn.Linear(64, width))

    def step(self, latents, actions, cache, noise=None):  # [B, N, D], [B, A] to [B, N, D]
        actions = actions[:, None].expand(-1, latents.shape[1], -1)
        return latents + self.net(torch.cat([latents, actions], -1))

    def loss(self, latents, actions, *, rollout):  # [B, T, N, D], [B, T-1, A]
        future = self.rollout_one(latents[:, :1], actions[:, :0], actions)
        return {"loss": (future - latents[:, 1:]).square().mean()}

    def bytes_per_plan(self, horizon, *, gradients=False, precision="fp32"):
        return 4096 * horizon, 0


@register("dynamics", "markov")
class MarkovSettings(DynamicsSettings):
    name: Literal["markov"] = "markov"

    def make(self, latent, action_size):
        return Markov(latent.shape.width, action_size)
