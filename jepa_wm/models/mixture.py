"""Dynamics that admit chance: the next latent as one of K Gaussians, of which a discrete latent
chooses.

... any leading axes, N tokens a frame, D numbers of a token that chance may move (no static ones),
P model width, K components, H horizon."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

_LOWEST, _HIGHEST = -7.0, 2.0  # natural logarithms of the spread that a Gaussian may have


class StepNoise(NamedTuple):
    """The noise of a model step, the same for all plans (common random numbers)."""

    choice: Tensor  # [] in 0..1
    normal: Tensor  # [N, D] standard normal


class Noise(NamedTuple):
    """The noise of every step of a future."""

    choice: Tensor  # [H]
    normal: Tensor  # [H, N, D]

    @classmethod
    def seeded(
        cls, seed: int, *, horizon: int, tokens: int, width: int, device: torch.device
    ) -> Noise:
        """The same for the same seed; longer horizons begin with the shorter ones."""
        g = torch.Generator().manual_seed(seed)
        steps = [
            (torch.rand((), generator=g), torch.randn(tokens, width, generator=g))
            for _ in range(horizon)
        ]
        choice, normal = (torch.stack(part).to(device) for part in zip(*steps, strict=True))
        return cls(choice, normal)

    def at(self, step: int) -> StepNoise:
        return StepNoise(self.choice[step], self.normal[step])


class MixturePrediction(NamedTuple):
    """A distribution over the next latent: all its numbers are drawn from the component that is
    chosen for the frame."""

    choice: Tensor  # [..., K] logarithms of the components' probabilities
    mean: Tensor  # [..., K, N, D]
    log_std: Tensor  # [..., K, N, D]

    def joint(self, truth: Tensor) -> Tensor:
        """[..., K] log of (probability of a component times its density at truth [..., N, D])."""
        gap = (truth[..., None, :, :] - self.mean) * (-self.log_std).exp()
        density = -0.5 * gap.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return self.choice + density.sum((-2, -1))

    def log_likelihood(self, truth: Tensor) -> Tensor:
        """[...] log density of truth [..., N, D], in nats."""
        return self.joint(truth).logsumexp(-1)

    def winners_likelihood(self, truth: Tensor, *, rest: float = 0.1) -> Tensor:
        """[...] log of (probability times density) at truth [..., N, D] of the component that comes
        nearest to it, of which a share `rest` is spread over all components.

        A bound on the likelihood that parts the components. Source: relaxed winner takes all
        (Rupprecht et al., 2017)."""
        with torch.no_grad():
            far = (truth[..., None, :, :] - self.mean).square().sum((-2, -1))  # [..., K]
            shares = (1 - rest) * nn.functional.one_hot(
                far.argmin(-1), far.shape[-1]
            ) + rest / far.shape[-1]
        return (shares * self.joint(truth)).sum(-1)

    def of(self, component: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log spread) [..., N, D] of the components numbered [...]."""
        index = component[..., None, None, None].expand(*component.shape, 1, *self.mean.shape[-2:])
        return self.mean.gather(-3, index)[..., 0, :, :], self.log_std.gather(-3, index)[
            ..., 0, :, :
        ]

    def likeliest(self) -> Tensor:
        """[..., N, D] the mean of the likeliest component."""
        return self.of(self.choice.argmax(-1))[0]

    def nearest(self, truth: Tensor) -> Tensor:
        """[..., N, D] the mean of the component that most probably produced truth [..., N, D]."""
        return self.of(self.joint(truth).argmax(-1))[0]

    def sample(self, noise: StepNoise) -> Tensor:
        """[..., N, D] what comes about by that noise, of which the first D numbers a token count."""
        ladder = self.choice.exp().cumsum(-1)[..., :-1]  # K - 1 rungs
        mean, log_std = self.of((noise.choice >= ladder).sum(-1))
        return mean + log_std.exp() * noise.normal[..., : mean.shape[-1]]


class MixtureHead(nn.Module):
    """The head of stochastic dynamics. K = 1 is a Gaussian with a spread of its own for every
    number."""

    def __init__(self, width: int, latent_width: int, mixture_components: int) -> None:
        super().__init__()
        self.mixture_components = mixture_components
        self.choice = nn.Linear(width, mixture_components)
        self.change = nn.Linear(width, mixture_components * latent_width)
        # One for all components: with spreads of their own a single wide one soon explains every
        # future, badly.
        self.spread = nn.Linear(width, latent_width)

    def forward(self, latents: Tensor, hidden: Tensor) -> MixturePrediction:
        """The prediction one frame after latents [..., N, D], from the transformer's output hidden
        [..., N, P]."""
        hidden = hidden.float()
        choice = self.choice(hidden.mean(-2)).float().log_softmax(-1)

        def split(x: Tensor) -> Tensor:  # [..., N, K * D] to [..., K, N, D]
            return x.float().unflatten(-1, (self.mixture_components, -1)).movedim(-2, -3)

        middle, half = (_HIGHEST + _LOWEST) / 2, (_HIGHEST - _LOWEST) / 2
        # Steep, since numbers without chance need a small spread soon.
        log_std = middle + half * torch.tanh(self.spread(hidden).float())
        mean = latents[..., None, :, :].float() + split(self.change(hidden))
        return MixturePrediction(choice, mean, log_std[..., None, :, :].expand_as(mean))
