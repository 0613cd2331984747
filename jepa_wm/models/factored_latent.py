"""The factored latent: a few dynamic and static numbers read off the principal components of a
frame's frozen tokens.

B windows, T frames, R distant frames, n frozen tokens of width E, M dynamic numbers, K principal
components, a numbers of an action, A of a block of them between two frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean
from jepa_wm.models.blocks import mlp
from jepa_wm.models.latent import CompactLatent, LatentBatch, LatentTraining
from jepa_wm.models.latent_settings import FactoredLatentSettings
from jepa_wm.models.losses import LinearInverseDynamics
from jepa_wm.models.pooling import Components


class FactoredLatent(CompactLatent):
    """A few numbers read off a frame's principal components."""

    fitted = True
    held = True

    def __init__(self, tokens: int, token_width: int, settings: FactoredLatentSettings) -> None:
        super().__init__(settings.dynamic_dim, settings.static_dim)
        s = self.settings = settings
        self.static_frames = s.static_frames
        self.components = Components(tokens * token_width, s.components)
        self.places = mlp(s.components, s.dynamic_dim, s.width, depth=2)
        if s.static_dim:
            self.static = nn.Sequential(
                mlp(s.components, s.static_dim, s.width // 2, depth=1), nn.Unflatten(-1, (1, -1))
            )

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., K] the principal components of frozen tokens [..., n, E]."""
        return self.components(tokens)

    def fit(self, tokens: Tensor) -> None:
        self.components.fit(tokens)

    def training_of(self, action_size: int, block: int) -> FactoredLatentTraining:
        return FactoredLatentTraining(self, action_size)


class FactoredLatentTraining(LatentTraining):
    """What trains the dynamic numbers without labels; the static ones are trained with the
    dynamics.

    A frame's components are reconstructed from its own dynamic numbers and a context read off
    another frame of the episode, so that what changes and what is constant part: prediction of
    features, no pixels. The displacement between two frames is linear in their dynamic numbers
    (`LinearInverseDynamics`), which makes places of them; where actions do not add up to a
    displacement, a low curvature of trajectories does."""

    def __init__(self, latent: FactoredLatent, action_size: int) -> None:
        super().__init__()
        s = self.settings = latent.settings
        self.places = latent.places
        self.context = mlp(s.components, s.context_dim, s.width, depth=2)
        self.reconstruct = mlp(s.dynamic_dim + s.context_dim, s.components, s.width, depth=3)
        self.inverse_dynamics = (
            LinearInverseDynamics(s.dynamic_dim, action_size) if s.inverse_dynamics else None
        )

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """`loss` and its parts, for components of windows [B, T, K] and of a distant frame each
        [B, 1, K]."""
        frames, weights = batch.frames, self.settings
        dynamic = self.places(frames).float()
        context = self.context(batch.distant).float().expand(-1, frames.shape[1], -1)
        prediction = self.reconstruct(torch.cat([dynamic, context], -1)).float()
        error = (prediction - frames).square().mean()
        losses = {"reconstruction": error / all_mean(frames.square().mean())}
        loss = losses["reconstruction"]
        # What makes places of the dynamic numbers.
        if self.inverse_dynamics is not None:
            losses["inverse_dynamics"] = self.inverse_dynamics(dynamic, batch.displacement)
            loss = loss + weights.inverse_dynamics * losses["inverse_dynamics"]
        if weights.straightening:
            losses["curvature"] = curvature(dynamic)
            loss = loss + weights.straightening * losses["curvature"]
        return losses | {"loss": loss}


def curvature(places: Tensor) -> Tensor:
    """How much trajectories through places [B, T, M] bend: 0 where every step is the one before
    it, about 2 where steps have nothing to do with one another. A ratio over the batch, which no
    scale can lower.

    Source: perceptual straightening of natural videos (Henaff et al., 2019).
    """
    steps = all_gather(places).diff(dim=1)
    return steps.diff(dim=1).square().mean() / steps.square().mean().clamp(min=1e-8)
