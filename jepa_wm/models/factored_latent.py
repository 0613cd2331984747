"""The factored latent of a frame: a few dynamic numbers, which actions change, and a few static
ones, which are constant in an episode and condition how they change.

B samples, T frames, n frozen tokens of width E, K principal components, M dynamic and L static
numbers, A numbers of an action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean
from jepa_wm.core.scaling import shared_scale
from jepa_wm.models.latent import Components, Latent, LatentBatch, LatentTraining
from jepa_wm.models.losses import LinearInverseDynamics
from jepa_wm.models.world_model_settings import FactoredLatentSettings


class FactoredLatent(Latent):
    """One token [dynamic | static] read off a frame's principal components; the dynamic numbers
    have mean 0 and spread 1 over the data."""

    fitted = True
    held = True
    shift: Tensor
    scale: Tensor

    def __init__(self, tokens: int, token_width: int, settings: FactoredLatentSettings) -> None:
        super().__init__(1, settings.dynamic_dim, settings.static_dim)
        s = self.settings = settings
        self.static_frames = s.static_frames
        self.components = Components(tokens * token_width, s.components)
        self.places = mlp(s.components, s.dynamic_dim, s.width, depth=2)
        if s.static_dim:
            self.static = nn.Sequential(
                mlp(s.components, s.static_dim, s.width // 2, depth=1), nn.Unflatten(-1, (1, -1))
            )
        self.register_buffer("shift", torch.zeros(s.dynamic_dim))
        self.register_buffer("scale", torch.ones(s.dynamic_dim))

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., K] the principal components of frozen tokens [..., n, E]."""
        return self.components(tokens)

    def dynamic(self, compressed: Tensor) -> Tensor:
        """[..., 1, M] fp32 dynamic numbers of components [..., K]."""
        return ((self.places(compressed).float() - self.shift) / self.scale)[..., None, :]

    def fit(self, tokens: Tensor) -> None:
        """Find the principal components in frozen tokens [S, n, E] of sample frames."""
        self.components.fit(tokens)

    def training_of(self, action_size: int) -> FactoredLatentTraining:
        """What trains the dynamic numbers; the static ones are trained with the dynamics."""
        return FactoredLatentTraining(self, action_size)

    @torch.no_grad()
    def standardise(self, compressed: Tensor) -> None:
        """Give the dynamic numbers mean 0 and spread 1 over components [S, K] of the data."""
        dynamic = self.dynamic(compressed)[:, 0]
        self.shift.add_(dynamic.mean(0) * self.scale)
        self.scale.mul_(shared_scale(dynamic.std(0)))


class FactoredLatentTraining(LatentTraining):
    """What trains the dynamic numbers without labels.

    A frame's components are reconstructed from its own dynamic numbers and a context read off
    another frame of the episode, so that what changes and what is constant part: prediction of
    features, no pixels. The displacement between two frames is linear in their dynamic numbers
    (`LinearInverseDynamics`), which makes places of them; where actions do not add up to a
    displacement, a low curvature of trajectories does."""

    def __init__(self, latent: FactoredLatent, action_size: int) -> None:
        super().__init__()
        s = latent.settings
        self.weights = {
            "reconstruction": 1.0,
            "inverse_dynamics": s.inverse_dynamics,
            "curvature": s.straightening,
        }
        self.places = latent.places
        self.context = mlp(s.components, s.context_dim, s.width, depth=2)
        self.reconstruct = mlp(s.dynamic_dim + s.context_dim, s.components, s.width, depth=3)
        self.inverse_dynamics = (
            LinearInverseDynamics(s.dynamic_dim, action_size) if s.inverse_dynamics else None
        )

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """`loss` and its parts, for components of windows [B, T, K] and of distant frames
        [B, K]."""
        frames = batch.frames
        dynamic = self.places(frames).float()
        context = self.context(batch.distant).float()[:, None].expand(-1, frames.shape[1], -1)
        guess = self.reconstruct(torch.cat([dynamic, context], -1)).float()
        error = (guess - frames).square().mean()
        losses = {"reconstruction": error / all_mean(frames.square().mean())}
        if self.inverse_dynamics is not None:
            losses["inverse_dynamics"] = self.inverse_dynamics(dynamic, batch.displacement)
        if self.weights["curvature"]:
            losses["curvature"] = curvature(dynamic)
        weighted = [self.weights[name] * value for name, value in losses.items()]
        losses["loss"] = torch.stack(weighted).sum()
        return losses


def curvature(places: Tensor) -> Tensor:
    """How much trajectories through places [B, T, M] bend: 0 where every step is the one before
    it, about 2 where steps have nothing to do with one another. A ratio over the batch, which no
    scale can lower.

    Source: perceptual straightening of natural videos (Henaff et al., 2019).
    """
    steps = all_gather(places).diff(dim=1)
    return steps.diff(dim=1).square().mean() / steps.square().mean().clamp(min=1e-8)


def mlp(inputs: int, outputs: int, width: int, *, depth: int) -> nn.Sequential:
    """`depth` hidden layers of `width` with GELU between linear ones."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.GELU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
