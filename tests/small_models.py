"""Small models of any kind, for the tests."""

import torch

from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.latent import Latent, LatentShape
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import FactoredLatentSettings
from jepa_wm.models.vit import Encoder
from jepa_wm.models.world_model_settings import (
    DeterministicSettings,
    DistanceSettings,
    DynamicsSettings,
    MixtureSettings,
    WorldModelSettings,
)
from jepa_wm.world_model.world_model import WorldModel

FACTORED = FactoredLatentSettings(dynamic_dim=3, static_dim=2, components=8, width=8)
LATENT, ACTION = 6, 4  # numbers of a token and of an action, of `loud_dynamics`


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
    return dynamics_of(
        dynamics_settings(**sizes), LatentShape(tokens, latent_width - static_dim, static_dim),
        action_size,
    )  # fmt: skip


def dynamics_of(settings: DynamicsSettings, shape: LatentShape, action_size: int):
    """Fresh dynamics of latents of that shape."""
    return settings.make(Latent(*shape), action_size)


def loud_dynamics(*, tokens=4, window=3, depth=2, heads=2, seed=0, **sizes: int):
    """Dynamics with weights far from the small initial ones, so that a leak or an error shows."""
    torch.manual_seed(seed)
    model = small_dynamics(
        tokens=tokens, latent_width=LATENT, action_size=ACTION, width=8 * heads, depth=depth,
        num_heads=heads, context_frames=window, **sizes,
    )  # fmt: skip
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.05 if name.startswith("head") else 0.3)
    return model.eval()


def small_latent_model(latent, *, tokens: int, token_width: int, **sizes: int) -> LatentModel:
    """A latent model of frames of `tokens` tokens of `token_width` numbers and of two actions."""
    settings = WorldModelSettings(
        dynamics=dynamics_settings(**{"width": 16, "depth": 1, "num_heads": 1, **sizes}),
        latent=latent,
        distance=DistanceSettings(groups=2, components=2, width=8),
    )
    return LatentModel(tokens, token_width, 2, settings)


def small_world_model(latent=FACTORED, *, size=12, **sizes: int) -> WorldModel:
    """A world model of frames of `size` px, from a seed."""
    torch.manual_seed(0)
    encoder = Encoder(size, EncoderSettings(patch_size=size // 3, width=16, depth=1, num_heads=1))
    frozen = FrozenEncoder(encoder, size, precision="fp32")
    return WorldModel(frozen, small_latent_model(latent, tokens=9, token_width=16, **sizes))


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    """Whether two models of the same tensors have them equal to the bit."""
    assert a.state_dict().keys() == b.state_dict().keys()
    return all(torch.equal(value, b.state_dict()[name]) for name, value in a.state_dict().items())
