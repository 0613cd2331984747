"""Regularisers of pretraining beside masked prediction: VICReg's variance and covariance, temporal
contrast, episode contrast, and linear inverse dynamics.

B clips, T frames, R distant frames, D width, A action numbers. None of the modules is needed after
training. Statistics are of the whole batch, whichever ranks share it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean, own_rows

COVARIANCE = 0.04  # weight of the covariance beside the variance, as in VICReg (1 to 25)
PROJECTED = 64  # width in which frames are compared


def variance_covariance(latents: Tensor) -> tuple[Tensor, Tensor]:
    """VICReg's two terms for latents [B, D]: mean shortfall of each standard deviation from 1, and
    mean squared covariance (Bardes et al., 2022)."""
    latents = all_gather(latents)
    x = latents - latents.mean(0)
    std = (x.square().mean(0) + 1e-4).sqrt()
    covariance = (x.T @ x) / (len(x) - 1)
    off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
    return (1 - std).clamp(min=0).mean(), off_diagonal / x.shape[1]


def vicreg(latents: Tensor) -> Tensor:
    """Both terms for latents [B, D] in one number."""
    variance, covariance = variance_covariance(latents)
    return variance + COVARIANCE * covariance


class FrameTimes(NamedTuple):
    """When the frames of clips were taken, in any one unit."""

    step: Tensor  # [B, T] which time step of its clip each frame is
    time: Tensor  # [B, T]
    distant: Tensor  # [B, R] of the distant frames


class TemporalContrast(nn.Module):
    """Tells a frame's successor from other frames of the same episode (InfoNCE).

    They share their layout, so that only what moves can help."""

    def __init__(
        self, width: int, *, projected: int = PROJECTED, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)
        self.temperature = temperature

    def forward(
        self, frames: Tensor, distant: Tensor | None = None, times: FrameTimes | None = None
    ) -> Tensor:
        """The mean loss for frames [B, T, D] of clips.

        The negatives are the clip's other frames or, where they are given, distant frames [B, R,
        D] of the same episode, which near neighbours cannot be confused with. With `times`, frames
        of the clip that do not follow one another are no pair and have no loss, and a distant
        frame that is as near to a frame as its successor is no negative of it."""
        x = F.normalize(self.project(frames).float(), dim=-1)
        pairs = torch.ones(len(x), x.shape[1] - 1, dtype=torch.bool, device=x.device)
        if times is not None:
            pairs = times.step.diff(dim=1) == 1  # [B, T-1]
        if distant is None:
            scores, successor = self._within_clip(x)
        else:
            scores, pairs = self._against_distant(x, distant, times, pairs)
            successor = torch.zeros_like(scores[..., 0], dtype=torch.long)
        losses = F.cross_entropy(scores.flatten(0, -2), successor.flatten(), reduction="none")

        # A share of the whole batch's pairs, so that ranks with more of them weigh more.
        counted = pairs.flatten().float()
        return (losses * counted).mean() / all_mean(counted.mean()).clamp(min=1e-6)

    def _within_clip(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(scores [B, T-1, T], which of them is the successor's [B, T-1])."""
        batch, frames = x.shape[:2]
        scores = x[:, :-1] @ x.transpose(1, 2) / self.temperature
        itself = torch.eye(frames - 1, frames, dtype=torch.bool, device=x.device)
        scores = scores.masked_fill(itself, float("-inf"))
        return scores, torch.arange(1, frames, device=x.device).expand(batch, -1)

    def _against_distant(
        self, x: Tensor, distant: Tensor, times: FrameTimes | None, pairs: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(scores [B, T-1, 1+R], the successor's first; the pairs that have a negative)."""
        y = F.normalize(self.project(distant).float(), dim=-1)
        positive = (x[:, :-1] * x[:, 1:]).sum(-1, keepdim=True)  # [B, T-1, 1]
        negative = x[:, :-1] @ y.transpose(1, 2)  # [B, T-1, R]
        if times is not None:
            gap = (times.distant[:, None] - times.time[:, :-1, None]).abs()
            near = gap <= times.time.diff(dim=1)[..., None]
            negative = negative.masked_fill(near, float("-inf"))
            pairs = pairs & ~near.all(-1)
        return torch.cat([positive, negative], -1) / self.temperature, pairs


class EpisodeContrast(nn.Module):
    """Tells a distant frame of the same episode from frames of other episodes (InfoNCE).

    What moves has moved on by then, so that only what lasts can help. Were the positive a near
    frame, where the agent is would tell the episodes of a batch apart well enough, and what is
    hard to see of the layout would be lost."""

    def __init__(
        self, width: int, *, projected: int = PROJECTED, temperature: float = 0.1
    ) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)
        self.temperature = temperature

    def forward(self, frames: Tensor, distant: Tensor, episode: Tensor | None = None) -> Tensor:
        """The mean loss for frames [B, T, D] of B clips and distant ones [B, R, D] of the same
        episodes.

        `episode` [B] int64 numbers them: other clips of a clip's own episode are no negatives;
        without it, each clip is an episode of its own."""
        x, y = (F.normalize(self.project(tokens).float(), dim=-1) for tokens in (frames, distant))
        # Against the distant frames of the whole batch, also of the clips that other ranks have.
        scores = torch.einsum("btf,crf->trbc", x, all_gather(y)) / self.temperature
        own = own_rows(len(x)).to(x.device)
        if episode is not None:
            same = episode[:, None] == all_gather(episode)  # [B, clips of all ranks]
            same[torch.arange(len(x), device=x.device), own] = False
            scores = scores.masked_fill(same, float("-inf"))
        positive = own.expand(scores.shape[:3])
        return F.cross_entropy(scores.flatten(0, -2), positive.flatten())


class LinearInverseDynamics(nn.Module):
    """Reads the displacement of an agent from its frames: supervised by actions.

    A linear map of a frame, in which the difference of two frames of an episode shall be the sum
    of the actions between them (dead reckoning), or the difference of the places they name. Being
    linear it gives a direction from the first step, where an inverse-dynamics network (Agrawal et
    al. 2016; PLDM) has to find a position in both frames first. Where actions are neither
    (torques, say) their sum tells less; the weight should then be small."""

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, action_size)

    def forward(self, frames: Tensor, displacement: Tensor) -> Tensor:
        """The mean error for frames [B, T, D] and the displacement [B, T, A] of each by the
        actions, as a share of what a constant would have: 1 is nothing learned, 0 is all.

        Where an agent went in front of a wall its actions and its displacement differ: large
        errors count linearly. Frames whose displacement is NaN, as no action tells it, do not
        count."""
        known = displacement.isfinite().all(-1, keepdim=True)  # [B, T, 1]
        prediction = _centred(self.read(frames).float(), known)
        target = _centred(displacement.float(), known)
        # In units of the batch's root mean square over the frames that count.
        share = all_mean(known.float().mean()).clamp(min=1e-6)
        target = target / (all_mean(target.square().mean((0, 1))) / share).sqrt().clamp(min=1e-12)
        error = F.smooth_l1_loss(prediction, target, beta=0.2)
        of_a_constant = F.smooth_l1_loss(torch.zeros_like(target), target, beta=0.2)
        return error / all_mean(of_a_constant).clamp(min=1e-6)


def _centred(x: Tensor, known: Tensor) -> Tensor:
    """x [B, T, A] less the mean over the known [B, T, 1] frames of its clip; 0 in the others."""
    x = torch.where(known, x, torch.zeros_like(x))
    mean = x.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, x - mean, torch.zeros_like(x))
