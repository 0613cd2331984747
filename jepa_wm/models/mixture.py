"""Dynamics for worlds with chance: the next latent as one of K Gaussians, of which a discrete
latent chooses.

... any leading axes, N tokens a frame, D numbers of a token, M of them dynamic, P model width, K
components."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_wm.models.dynamics import StepNoise
from jepa_wm.models.transformer_dynamics import TransformerDynamics
from jepa_wm.models.world_model_settings import MixtureSettings

WINNERS = 0.3  # share of the winners' likelihood in the loss
_LOWEST, _HIGHEST = -7.0, 2.0  # natural logarithms of the spread that a Gaussian may have


class MixturePrediction(NamedTuple):
    """A distribution over the next latent: all its numbers are drawn from the component that is
    chosen for the frame."""

    choice: Tensor  # [..., K] logarithms of the components' probabilities
    mean: Tensor  # [..., K, N, M]
    log_std: Tensor  # [..., K, N, M]

    def joint(self, truth: Tensor) -> Tensor:
        """[..., K] log of (probability of a component times its density at truth [..., N, M])."""
        gap = (truth[..., None, :, :] - self.mean) * (-self.log_std).exp()
        density = -0.5 * gap.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        return self.choice + density.sum((-2, -1))

    def log_likelihood(self, truth: Tensor) -> Tensor:
        """[...] log density of truth [..., N, M], in nats."""
        return self.joint(truth).logsumexp(-1)

    def winners_likelihood(self, truth: Tensor, *, rest: float = 0.1) -> Tensor:
        """[...] log of (probability times density) at truth [..., N, M] of the component that
        comes nearest to it, of which a share `rest` is spread over all components: a bound on the
        likelihood that parts the components (relaxed winner takes all, Rupprecht et al., 2017).
        """
        with torch.no_grad():
            error = (truth[..., None, :, :] - self.mean).square().sum((-2, -1))  # [..., K]
            count = error.shape[-1]
            winner = nn.functional.one_hot(error.argmin(-1), count)
            shares = (1 - rest) * winner + rest / count
        return (shares * self.joint(truth)).sum(-1)

    def of(self, component: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log spread) [..., N, M] of the components numbered [...]."""
        index = component[..., None, None, None].expand(*component.shape, 1, *self.mean.shape[-2:])
        mean, log_std = self.mean.gather(-3, index), self.log_std.gather(-3, index)
        return mean[..., 0, :, :], log_std[..., 0, :, :]

    def likeliest(self) -> Tensor:
        """[..., N, M] the mean of the likeliest component."""
        return self.of(self.choice.argmax(-1))[0]

    def nearest(self, truth: Tensor) -> Tensor:
        """[..., N, M] the mean of the component that most probably produced truth [..., N, M]."""
        return self.of(self.joint(truth).argmax(-1))[0]

    def surprise(self, truth: Tensor) -> Tensor:
        """[] negative log likelihood of truth [..., N, M] a number, with a share of the winners'
        alone: without it one component soon accounts for every future, and the rest, which explain
        nothing, learn nothing."""
        truth, numbers = truth.float(), truth.shape[-2] * truth.shape[-1]
        likelihood = self.log_likelihood(truth).mean()
        if self.choice.shape[-1] > 1:
            winners = self.winners_likelihood(truth).mean()
            likelihood = (1 - WINNERS) * likelihood + WINNERS * winners
        return -likelihood / numbers

    def sample(self, noise: StepNoise) -> Tensor:
        """[..., N, M] what that noise brings, of which the first M numbers a token count."""
        ladder = self.choice.exp().cumsum(-1)[..., :-1]  # K - 1 rungs
        mean, log_std = self.of((noise.choice >= ladder).sum(-1))
        return mean + log_std.exp() * noise.normal[..., : mean.shape[-1]]


class MixtureDynamics(TransformerDynamics):
    """A distribution over the dynamic numbers of the next frame; the static ones are certain."""

    stochastic = True
    settings: MixtureSettings
    head: MixtureHead

    def make_head(self, width: int, dynamic_dim: int) -> MixtureHead:
        return MixtureHead(width, dynamic_dim, self.settings.mixture_components)

    def distribution(self, latents: Tensor, hidden: Tensor) -> MixturePrediction:
        """That of the dynamic numbers one frame after latents [..., N, D] with the transformer's
        output [..., N, P]."""
        return self.head(self._dynamic(latents), hidden)

    def predict(self, latents: Tensor, hidden: Tensor, noise: StepNoise | None = None) -> Tensor:
        prediction = self.distribution(latents, hidden)
        dynamic = prediction.likeliest() if noise is None else prediction.sample(noise)
        return self._with_dynamic(latents, dynamic)

    def head_loss(self, latents: Tensor, hidden: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log likelihood a number. A rollout goes on with the mean of the component
        nearest to the truth: which one it was is given, what follows has to be imagined."""
        prediction, dynamic = self.distribution(latents, hidden), self._dynamic(truth)
        after = self._with_dynamic(latents, prediction.nearest(dynamic))
        return prediction.surprise(dynamic), after

    def head_numbers(self) -> int:
        return 8 * self.head.mixture_components * self.tokens * self.latent_width

    def _dynamic(self, latents: Tensor) -> Tensor:
        return latents[..., : self.latent_width - self.static_dim]

    def _with_dynamic(self, latents: Tensor, dynamic: Tensor) -> Tensor:
        if not self.static_dim:
            return dynamic
        return torch.cat([dynamic, latents[..., -self.static_dim :]], -1)


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
        """The prediction one frame after latents [..., N, M], from the transformer's output hidden
        [..., N, P]."""
        hidden = hidden.float()
        choice = self.choice(hidden.mean(-2)).float().log_softmax(-1)
        change = self.change(hidden).float().unflatten(-1, (self.mixture_components, -1))
        middle, half = (_HIGHEST + _LOWEST) / 2, (_HIGHEST - _LOWEST) / 2
        # Steep, since numbers without chance need a small spread soon.
        log_std = middle + half * torch.tanh(self.spread(hidden).float())
        mean = latents[..., None, :, :].float() + change.movedim(-2, -3)  # [..., K, N, M]
        return MixturePrediction(choice, mean, log_std[..., None, :, :].expand_as(mean))
