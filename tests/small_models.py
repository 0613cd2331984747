"""Small latent models of any kind, for the tests."""

from jepa_wm.models.latent import LatentShape
from jepa_wm.models.world_model_settings import (
    DeterministicSettings,
    DynamicsSettings,
    MixtureSettings,
)


def dynamics_settings(mixture_components: int = 0, **sizes: int) -> DynamicsSettings:
    """Settings of dynamics with so many components; 0: of deterministic ones."""
    if mixture_components:
        return MixtureSettings(mixture_components=mixture_components, **sizes)
    return DeterministicSettings(**sizes)


def small_dynamics(
    *, tokens: int, latent_width: int, action_size: int, static_dim: int = 0, **sizes: int
):
    """Dynamics of latents of `tokens` tokens of `latent_width` numbers, `static_dim` of them
    static."""
    settings = dynamics_settings(**sizes)
    shape = LatentShape(tokens, latent_width - static_dim, static_dim)
    return settings.make(type("Shaped", (), {"shape": shape})(), action_size)
