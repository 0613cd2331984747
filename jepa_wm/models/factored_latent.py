"""A label-free summary of a frame: the few numbers that actions move, and the few that last and
change their effect.

B samples, T frames, n frozen tokens of width E, K principal components, M moving and L lasting
numbers, a numbers of an action."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean
from jepa_wm.core.standardise import ROUNDING, shared_scale
from jepa_wm.models.pooling import LinearInverseDynamics
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


class Summary(nn.Module):
    """Reads one latent token [moving | lasting] off a frame; moving numbers have mean 0 and spread
    1 over the data."""

    shift: Tensor
    scale: Tensor

    def __init__(self, tokens: int, token_width: int, settings: LatentSettings) -> None:
        super().__init__()
        s = settings
        self.components = Components(tokens * token_width, s.components)
        self.places = mlp(s.components, s.moving, s.width, depth=2)
        self.lasting = mlp(s.components, s.lasting, s.width // 2, depth=1) if s.lasting else None
        self.register_buffer("shift", torch.zeros(s.moving))
        self.register_buffer("scale", torch.ones(s.moving))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., 1, M + L] in fp32 from frozen tokens [..., n, E]."""
        components = self.components(tokens)
        parts = [self.moving(components)]
        if self.lasting is not None:
            parts.append(self.lasting(components).float())
        return torch.cat(parts, -1)[..., None, :]

    def moving(self, components: Tensor) -> Tensor:
        """[..., M] fp32 moving numbers of components [..., K]."""
        return (self.places(components).float() - self.shift) / self.scale

    @torch.no_grad()
    def standardise(self, components: Tensor) -> None:
        """Give the moving numbers mean 0 and spread 1 over components [S, K] of the data."""
        moving = self.moving(components)
        self.shift.add_(moving.mean(0) * self.scale)
        self.scale.mul_(shared_scale(moving.std(0)))


class SummaryTraining(nn.Module):
    """What trains the moving numbers without labels; none of it is needed afterwards.

    A frame's components are told from its own moving numbers and from what is seen of the layout
    in another frame of the episode, so that what moves and what lasts part: latent prediction, no
    pixels. The way between two frames is readable from their moving numbers (`LinearInverseDynamics`), which
    makes places of them; where actions do not add up to a way, steps that go on as they were
    (`bend`) do."""

    def __init__(self, summary: Summary, action_size: int, settings: LatentSettings) -> None:
        super().__init__()
        s = settings
        self.weights = {"told": 1.0, "path": s.path, "bend": s.straight}
        self.places = summary.places
        self.layout = mlp(s.components, s.layout, s.width, depth=2)
        self.tell = mlp(s.moving + s.layout, s.components, s.width, depth=3)
        self.path = LinearInverseDynamics(s.moving, action_size) if s.path else None

    def losses(self, frames: Tensor, others: Tensor, way: Tensor) -> dict[str, Tensor]:
        """For components of windows [B, T, K], of other frames of their episodes [B, K], and the
        way to each frame [B, T, a] by the actions."""
        moving = self.places(frames).float()
        layout = self.layout(others).float()[:, None].expand(-1, frames.shape[1], -1)
        told = self.tell(torch.cat([moving, layout], -1)).float()
        losses = {"told": (told - frames).square().mean() / all_mean(frames.square().mean())}
        if self.path is not None:
            losses["path"] = self.path(moving, way)
        if self.weights["bend"]:
            losses["bend"] = bend(moving)
        losses["loss"] = torch.stack(
            [self.weights[name] * value for name, value in losses.items()]
        ).sum()
        return losses


def bend(places: Tensor) -> Tensor:
    """How much the ways through places [B, T, M] bend: 0 where every step is the one before it,
    about 2 where steps have nothing to do with one another. A ratio over the batch, which no scale
    can lower.

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
