"""A latent of your own: the mean of a frame's tokens, by random directions.
`latent={name: pooled, dynamic_dim: 6}`"""

from typing import Literal

import torch

from jepa_wm import register
from jepa_wm.models.latent import Latent
from jepa_wm.models.latent_settings import LatentSettings


class PooledLatent(Latent):
    def __init__(self, token_width, dynamic_dim):
        super().__init__(1, dynamic_dim)
        directions = torch.randn(token_width, dynamic_dim) / token_width**0.5
        self.register_buffer("directions", directions)

    def dynamic(self, compressed):  # [..., n, E] frozen tokens to [..., 1, M]
        return compressed.mean(-2, keepdim=True) @ self.directions


@register("latents", "pooled")
class PooledSettings(LatentSettings):
    name: Literal["pooled"] = "pooled"
    dynamic_dim: int = 6

    def make(self, tokens, token_width):
        return PooledLatent(token_width, self.dynamic_dim)
