"""The factored latent of a frame: a few dynamic numbers, which actions change, and a few static
ones, which are constant in an episode and condition what actions do.

B samples, T frames, n frozen tokens of width E, K principal components, M dynamic and L static
numbers, A numbers of an action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean
from jepa_wm.core.standardise import ROUNDING, shared_scale
from jepa_wm.models.losses import LinearInverseDynamics
from jepa_wm.models.settings import LatentSettings


class Components(nn.Module):
    """The principal components of all tokens of a frame together, each divided by the root of its
    spread."""

    mean: Tensor
    basis: Tensor

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, count))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., K] fp32 components of frozen tokens [..., n, E]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return (tokens.flatten(-2).float() - self.mean) @ self.basis

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Find them in sample frames [S, n, E]. The root is halfway between components as they
        are, of which the first few are all, and whitened ones, of which the last are noise."""
        x = tokens.flatten(1).float()
        self.mean.copy_(x.mean(0))
        x = x - self.mean
        # Of the products of frames with frames: there are fewer frames in the sample than numbers
        # in a frame.
        value, vector = torch.linalg.eigh((x @ x.T).double())
        count = min(self.basis.shape[1], len(x) - 1)
        value, vector = value.flip(0)[:count].float(), vector.flip(1)[:, :count].float()
        # Below the first is the rounding of products in fp32, below the second that of a mean no
        # frame differs from.
        rounding = len(x) * ROUNDING**2 * float(self.mean.double().square().sum())
        kept = value > max(1e-7 * float(value[0]), rounding)
        value, vector = value[kept], vector[:, kept]
        count = len(value)
        self.basis.zero_()
        if not count:
            return
        spread = (value / len(x)).sqrt()
        basis = (x.T @ vector) / value.sqrt() / spread.sqrt()
        self.basis[:, :count] = basis / spread.mean().sqrt()


class FactoredLatent(nn.Module):
    """Reads one latent token [dynamic | static] off a frame; dynamic numbers have mean 0 and spread
    1 over the data."""

    shift: Tensor
    scale: Tensor

    def __init__(self, tokens: int, token_width: int, settings: LatentSettings) -> None:
        super().__init__()
        s = settings
        self.components = Components(tokens * token_width, s.components)
        self.places = mlp(s.components, s.dynamic_dim, s.width, depth=2)
        self.static = (
            mlp(s.components, s.static_dim, s.width // 2, depth=1) if s.static_dim else None
        )
        self.register_buffer("shift", torch.zeros(s.dynamic_dim))
        self.register_buffer("scale", torch.ones(s.dynamic_dim))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., 1, M + L] in fp32 from frozen tokens [..., n, E]."""
        components = self.components(tokens)
        parts = [self.dynamic(components)]
        if self.static is not None:
            parts.append(self.static(components).float())
        return torch.cat(parts, -1)[..., None, :]

    def dynamic(self, components: Tensor) -> Tensor:
        """[..., M] fp32 dynamic numbers of components [..., K]."""
        return (self.places(components).float() - self.shift) / self.scale

    @torch.no_grad()
    def standardise(self, components: Tensor) -> None:
        """Give the dynamic numbers mean 0 and spread 1 over components [S, K] of the data."""
        dynamic = self.dynamic(components)
        self.shift.add_(dynamic.mean(0) * self.scale)
        self.scale.mul_(shared_scale(dynamic.std(0)))


class FactoredLatentTraining(nn.Module):
    """What trains the dynamic numbers without labels; none of it is needed afterwards.

    A frame's components are reconstructed from its own dynamic numbers and a context read off
    another frame of the episode, so that what changes and what is constant part: prediction of
    features, no pixels. The displacement between two frames is linear in their dynamic numbers
    (`LinearInverseDynamics`), which makes places of them; where actions do not add up to a displacement, a
    low curvature of trajectories does."""

    def __init__(self, latent: FactoredLatent, action_size: int, settings: LatentSettings) -> None:
        super().__init__()
        s = settings
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

    def losses(self, frames: Tensor, distant: Tensor, displacement: Tensor) -> dict[str, Tensor]:
        """For components of windows [B, T, K], of other frames of their episodes [B, K], and the
        displacement of each frame [B, T, A] by the actions."""
        dynamic = self.places(frames).float()
        context = self.context(distant).float()[:, None].expand(-1, frames.shape[1], -1)
        guess = self.reconstruct(torch.cat([dynamic, context], -1)).float()
        error = (guess - frames).square().mean()
        losses = {"reconstruction": error / all_mean(frames.square().mean())}
        if self.inverse_dynamics is not None:
            losses["inverse_dynamics"] = self.inverse_dynamics(dynamic, displacement)
        if self.weights["curvature"]:
            losses["curvature"] = curvature(dynamic)
        losses["loss"] = torch.stack(
            [self.weights[name] * value for name, value in losses.items()]
        ).sum()
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
    sizes = [inputs, *[width] * depth]
    layers = [
        part
        for i, o in zip(sizes, sizes[1:], strict=False)
        for part in (nn.Linear(i, o), nn.GELU())
    ]
    return nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
