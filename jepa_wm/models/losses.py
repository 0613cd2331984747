"""What keeps features from collapsing beside masked prediction, and what tells whether they have:
temporal contrast, episode contrast, linear inverse dynamics, and collapse metrics.

B clips, T frames, R distant frames, N tokens a frame, D width, A action numbers. None of the
modules is needed after training. Losses are of the whole batch, whichever ranks share it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean, own_rows

PROJECTED = 64  # width in which frames are compared
COLLAPSED_STD = 0.05  # of LayerNorm'd features, whose total spread is 1
# of all directions but the largest: less is what noise and half precision leave
COLLAPSED_BESIDE = 0.02
FEW_DIRECTIONS = 2.0  # effective rank of pictures in which there is little to tell
SAMPLES, SIDE = 512, 32  # frames, and px of pictures, that a rank over frames is taken of


class Contrast(nn.Module):
    """Compares frames by their cosine in a narrow projection, to tell a positive from negatives
    (InfoNCE)."""

    temperature = 0.1

    def __init__(self, width: int, *, projected: int = PROJECTED) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)

    def projected(self, frames: Tensor) -> Tensor:
        """[..., projected] of length 1, of frames [..., D]."""
        return F.normalize(self.project(frames).float(), dim=-1)


class FrameTimes(NamedTuple):
    """When the frames of clips were taken, in any one unit."""

    step: Tensor  # [B, T] which time step of its clip each frame is
    time: Tensor  # [B, T]
    distant: Tensor  # [B, R] of the distant frames


class TemporalContrast(Contrast):
    """Tells a frame's successor from other frames of the same episode.

    They share their layout, so that only what moves can help."""

    def forward(
        self, frames: Tensor, distant: Tensor | None = None, times: FrameTimes | None = None
    ) -> Tensor:
        """The mean loss for frames [B, T, D] of clips.

        The negatives are the clip's other frames or, where they are given, distant frames [B, R,
        D] of the same episode, which near neighbours cannot be confused with. With `times`, frames
        of the clip that do not follow one another are no pair and have no loss, and a distant
        frame that is as near to a frame as its successor is no negative of it."""
        x = self.projected(frames)
        positive = (x[:, :-1] * x[:, 1:]).sum(-1, keepdim=True)  # [B, T-1, 1]
        if distant is None:
            negative = x[:, :-1] @ x.transpose(1, 2)  # [B, T-1, T]
            frame = torch.arange(x.shape[1], device=x.device)
            after = (frame - frame[:-1, None]).expand_as(negative)
            near = (after == 0) | (after == 1)
        else:
            negative = x[:, :-1] @ self.projected(distant).transpose(1, 2)  # [B, T-1, R]
            near = torch.zeros_like(negative, dtype=torch.bool)
            if times is not None:
                gap = (times.distant[:, None] - times.time[:, :-1, None]).abs()
                near = gap <= times.time.diff(dim=1)[..., None]
        scores = torch.cat([positive, negative.masked_fill(near, float("-inf"))], -1)
        scores = scores.flatten(0, 1) / self.temperature
        successor = torch.zeros_like(scores[:, 0], dtype=torch.long)  # the first of each row
        losses = F.cross_entropy(scores, successor, reduction="none")

        # A share of the whole batch's pairs, so that ranks with more of them weigh more.
        pairs = ~near.all(-1)  # [B, T-1]
        if times is not None:
            pairs = pairs & (times.step.diff(dim=1) == 1)
        counted = pairs.flatten().float()
        return (losses * counted).mean() / all_mean(counted.mean()).clamp(min=1e-6)


class PredictiveContrast(Contrast):
    """Tells the frame that followed a prediction from distant frames of the same episode (CPC, van
    den Oord et al., 2018): what is constant in the episode cannot help, what no action and no past
    tells cannot either."""

    def forward(self, foretold: Tensor, after: Tensor, distant: Tensor, near: Tensor) -> Tensor:
        """The mean loss for predictions [B, T, D] of frames [B, T, D] and distant ones [B, R, D];
        those that are `near` [B, T, R] the true one are no negatives of it."""
        x, y = self.projected(foretold), self.projected(after)
        negative = x @ self.projected(distant).transpose(1, 2)  # [B, T, R]
        negative = negative.masked_fill(near, float("-inf"))
        scores = torch.cat([(x * y).sum(-1, keepdim=True), negative], -1) / self.temperature
        return -scores.log_softmax(-1)[..., 0].mean()


class EpisodeContrast(Contrast):
    """Tells a distant frame of the same episode from frames of other episodes.

    What moves has moved on by then, so that only what lasts can help. Were the positive a near
    frame, where the agent is would tell the episodes of a batch apart well enough, and what is
    hard to see of the layout would be lost."""

    def forward(self, frames: Tensor, distant: Tensor, episode: Tensor | None = None) -> Tensor:
        """The mean loss for frames [B, T, D] of B clips and distant ones [B, R, D] of the same
        episodes.

        `episode` [B] int64 numbers them: other clips of a clip's own episode are no negatives;
        without it, each clip is an episode of its own."""
        x, y = self.projected(frames), self.projected(distant)
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

        Where an agent was held up its actions and its displacement differ: large errors count
        linearly. Frames whose displacement is NaN, as no action tells it, do not count."""
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
    x = x.masked_fill(~known, 0)
    mean = x.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return (x - mean).masked_fill(~known, 0)


# ---------------------------------------------------------------- collapse


def collapse_metrics(
    tokens: Tensor, pictures: np.ndarray | None = None
) -> dict[str, float | bool]:
    """`feature_std`, `effective_rank` and `collapsed` of frozen tokens [B, N, D].

    feature_std is the spread across samples at equal position (a part that depends on position
    alone does not count). effective_rank is the smaller of two, both the exponential of the
    entropy of a spectrum (Roy and Vetterli 2007): how many directions of the D tokens use, and how
    many of the N*D frames use. Where in the picture something is counts, as it does for all that
    reads the tokens: a mean over them would hide what moves and does not change. collapsed: hardly
    any spread, or hardly any beside a single direction. A direction that outweighs the others, as
    that of a rod which swings from side to side, lowers the rank and is no collapse while the
    others are there. Of `pictures` [B, h, w, c], where they are given, fewer than two directions
    ask for no more of the features."""
    centred = tokens.float() - tokens.float().mean(0)
    std = centred.square().mean().sqrt().item()
    each = centred.flatten(0, 1)
    spectra = [spectrum(each.T @ each), spectrum(_between(centred))]
    beside = std * min(float(1 - shares.max()) for shares in spectra) ** 0.5
    few = beside < COLLAPSED_BESIDE
    if few and pictures is not None:
        frames = torch.from_numpy(pictures[_spread(len(pictures))]).movedim(-1, 1).float()
        small = F.adaptive_avg_pool2d(frames, SIDE)
        few = spectrum_rank(spectrum(_between(small))) >= FEW_DIRECTIONS
    return {
        "feature_std": std,
        "effective_rank": min(spectrum_rank(shares) for shares in spectra),
        "collapsed": std < COLLAPSED_STD or few,
    }


def _between(x: Tensor) -> Tensor:
    """[R, R] products of samples [B, ...], some of them, centred and flattened: their spectrum is
    that of all numbers, of which there are more."""
    rows = x[torch.from_numpy(_spread(len(x))).to(x.device)].flatten(1)
    rows = rows - rows.mean(0)
    return rows @ rows.T


def _spread(count: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(SAMPLES, count)).astype(np.int64))


def spectrum(products: Tensor) -> Tensor:
    """The share of each direction in the energy; all 0 where there is none."""
    energy = torch.linalg.eigvalsh(products.double()).clamp_min(0)
    return energy / energy.sum().clamp_min(1e-30)


def spectrum_rank(shares: Tensor) -> float:
    return torch.exp(-(shares * shares.clamp_min(1e-30).log()).sum()).item()
