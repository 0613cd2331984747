"""How places move: what of it the frame before and the actions tell, and the directions of tokens
whose places move so, which keypoints start from.

B windows, T frames, R distant frames, N tokens of width D, P points, K directions."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.models.latent import LatentBatch
from jepa_wm.models.moments import LaggedMoments
from jepa_wm.models.pooling import Keypoints, token_places

STILL = 1e-8  # variance of places, in pictures squared, up to which a point stands still
CANDIDATES = 16  # directions of tokens, each with both signs, that points may start from
GAINS = (1.0, 2.0, 4.0)  # score of a token one standard deviation along a direction
FLOOR = 1e-3  # variance of tokens, beside that of all directions, that counts as none
TOLD = 0.25  # share of a place's variance in an episode that is told, from which on points start


def share_told(batches: Iterable[LatentBatch], places: Callable[[Tensor], Tensor]) -> Tensor:
    """[P] the share of each point's variance within an episode that a linear map of all points a
    frame before and of the actions since tells; 1 is all, 0 none, as of what stands still but for
    its noise. `places` gives points [..., 2 P] of compressed frames."""
    inputs, after, within = [], [], []
    for batch in batches:
        at = places(batch.frames).double().cpu()  # [B, T, 2 P]
        ones = torch.ones_like(at[:, 1:, :1])
        known = [at[:, :-1], batch.actions.double().cpu(), ones]
        inputs.append(torch.cat(known, -1).flatten(0, 1))
        after.append(at[:, 1:].flatten(0, 1))
        # Two frames of an episode differ by twice its variance, one from itself by nothing.
        apart = batch.gap[:, 1:, 0].cpu() > 0
        far = places(batch.distant[:, :1]).double().cpu()
        within.append((at[:, 1:] - far)[apart].square() / 2)
    x, y, differing = torch.cat(inputs), torch.cat(after), torch.cat(within)
    freedom = len(x) - x.shape[1]  # what is left of as many numbers as are fitted is no error
    if freedom <= 0 or not len(differing) or not y.isfinite().all():
        return torch.zeros(y.shape[1] // 2)
    left = (y - x @ torch.linalg.lstsq(x, y, driver="gelsd").solution).square().sum(0) / freedom
    left, variance = (each.unflatten(0, (-1, 2)).sum(1) for each in (left, differing.mean(0)))
    shares = 1 - left / variance.clamp(min=STILL)
    return shares.where(variance > STILL, 0).clamp(min=0).float()


def start_points(
    places: Keypoints, batches: Iterable[LatentBatch], judges: Iterable[LatentBatch]
) -> int:
    """Have points look for the directions of tokens in which a frame tells of the next, as far as
    the places of what lies there are told in other batches, the `judges`; returns how many such
    directions there are.

    A thing that is small beside what is random about a picture hardly moves points that look at
    random, and whether these ever find it is luck. Without what lasts in an episode, it is often
    what a frame tells of the tokens around each place a step later."""
    moments = token_moments(batches, places)
    if moments is None or not moments.covariance.isfinite().all() or not moments.covariance.any():
        return 0
    directions = moments.predictable(FLOOR * float(moments.covariance.trace()))[1].flip(1)
    towards = directions[:, :CANDIDATES].T.float()  # [K, D]
    # In units of what is seen, what lasts included.
    towards = towards / moments.spread(towards).clamp(min=1e-6)[:, None]

    # Both signs, since a thing may score high or low, at each gain: what is drowned asks for a
    # high one, of soft things it reads one token. The best gain of each counts.
    signed = torch.cat([towards, -towards])
    every = torch.cat([gain * signed for gain in GAINS]).to(places.place.device)
    mean = moments.mean.float().to(places.place.device)
    follow = share_told(judges, lambda tokens: places.sought(tokens, every, mean))
    best, gain = follow.unflatten(0, (len(GAINS), -1)).max(0)
    order = best.argsort(descending=True)
    order = order[best[order] >= TOLD]
    chosen = gain[order] * len(signed) + order
    places.start_at(every[chosen.to(every.device)], mean)
    return len(order)


@torch.no_grad()
def token_moments(batches: Iterable[LatentBatch], places: Keypoints) -> LaggedMoments | None:
    """Of normed tokens without what lasts in the episode, beside the mean of those a step later at
    the place and around it; None where no episode has frames apart enough to tell what lasts."""
    moments = None
    for batch in batches:
        # Each side of a pair has distant frames of its own, neither drawn twice nor in the window,
        # or their noise would be told.
        shares = distant_shares(batch.gap)  # [B, 2, R]
        kept = shares.sum(2).gt(0).all(1)
        if not kept.any():
            continue
        frames, distant = (places.norm(x[kept].float()) for x in (batch.frames, batch.distant))
        constant = torch.einsum("bsr,brnd->sbnd", shares[kept], distant)[:, :, None]
        now, after = frames[:, :-1] - constant[0], frames[:, 1:] - constant[1]  # [B, T-1, N, D]
        maps = after.flatten(0, 1).transpose(1, 2)
        maps = maps.unflatten(2, (-1, token_places(after.shape[2])[1]))
        around = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
        around = around.flatten(2).transpose(1, 2).unflatten(0, now.shape[:2])
        moments = moments or LaggedMoments(frames.shape[-1])
        moments.add(*(x.flatten(0, -2) for x in (frames[:, :-1], now, after, around)))
    return moments


def distant_shares(gap: Tensor) -> Tensor:
    """[B, 2, R] shares of the distant frames in two means that have no frame in common and none
    of the window, by their gaps [B, T, R] from its frames; all 0 where there is none for one."""
    counts = (gap > 0).all(1)  # [B, R]
    # Two as far from every frame of a window, which are at least two, are the same frame.
    same = (gap[:, :, :, None] == gap[:, :, None]).all(1).tril(-1)  # [B, R, R]
    counts = counts & ~same.any(2)
    side = torch.arange(gap.shape[2], device=gap.device) % 2
    shares = torch.stack([counts & (side == each) for each in (0, 1)], 1).float()
    return shares / shares.sum(2, keepdim=True).clamp(min=1)
