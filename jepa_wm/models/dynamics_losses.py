"""What dynamics are trained on: each next latent from the true ones before it, and whole windows
imagined.

B batch, T frames, N tokens a frame, D latent width, A action numbers between two frames.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.mixture import MixtureHead, MixturePrediction

WINNERS = 0.3  # share of the winners' likelihood


def forced_loss(model: Dynamics, latents: Tensor, acts: Tensor) -> Tensor:
    """Mean squared error of the next latents from true latents [B, T, N, D] and scaled actions [B,
    T-1, A]; negative log likelihood a number for dynamics with a mixture head."""
    if isinstance(model.head, MixtureHead):
        return _surprise(model.prediction(latents[:, :-1], acts), model.dynamic_of(latents[:, 1:]))
    return (model(latents[:, :-1], acts) - latents[:, 1:]).square().mean()


def rollout_loss(model: Dynamics, latents: Tensor, acts: Tensor, *, context: int = 1) -> Tensor:
    """The same where only the first `context` frames are true and every other one is imagined from
    those before.

    Of a mixture, the imagined latent is each time the mean of the component nearest to the truth:
    which one it was is given, what follows from it has to be imagined."""
    known = context - 1
    cache, latent, losses = (
        model.cache_of(latents[:, :known], acts[:, :known]),
        latents[:, known:context],
        [],
    )
    for t in range(known, acts.shape[1]):
        truth = latents[:, t + 1 : t + 2]
        hidden = model.hidden(latent, acts[:, t : t + 1], cache=cache, start=t)
        if isinstance(model.head, MixtureHead):
            prediction, dynamic = model.prediction_of(latent, hidden), model.dynamic_of(truth)
            losses.append(_surprise(prediction, dynamic))
            latent = model.moved(latent, prediction.nearest(dynamic))
        else:
            latent = model.arrive(latent, hidden, None)
            losses.append((latent - truth).square().mean())
    return torch.stack(losses).mean()


def _surprise(prediction: MixturePrediction, truth: Tensor) -> Tensor:
    """Negative log likelihood a number, with a share of the winners' alone: without it one
    component soon accounts for every future, and the rest, which explain nothing, learn nothing."""
    truth, numbers = truth.float(), truth.shape[-2] * truth.shape[-1]
    likelihood = prediction.log_likelihood(truth).mean()
    if prediction.choice.shape[-1] > 1:
        likelihood = (1 - WINNERS) * likelihood + WINNERS * prediction.winners_likelihood(
            truth
        ).mean()
    return -likelihood / numbers
