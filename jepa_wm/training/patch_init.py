"""A patch embedding that starts from the data: directions in which patches of frames are whitened,
or whitened and weighted by how well the next frame tells them.

In pixels nearly all variance is brightness; what is small and moves has a thousandth of it, and a
random projection drowns it. n patches of P pixel numbers, D width."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import Progress
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.moments import LaggedMoments
from jepa_wm.training.samples import BatchReader

PATCHES = 2**19  # pairs of patches that are read, about
DECODED = 2**17  # the same of videos, where each batch takes as long as a training step
CLIPS = 32  # read at once, at most
FIRST = 2**39  # step whose batch is the first: none that training draws
# Variance, of pixels in -1..1, beside which directions count: 4 levels of 8 bits, squared. Smaller
# ones, such as the rounding of soft edges, are not blown up to the size of what is seen.
ROUNDING = 1e-3
FLOOR = 0.01  # variance of what no frame tells, beside the best told


def init_patches(model: JEPA, reader: BatchReader, seed: int) -> None:
    """Set the patch embedding of both encoders from the data, as jepa.patch_init asks; UserError
    where nothing in the data tells how."""
    if model.settings.patch_init == "normal":
        return
    # Rank 0 reads, the others get the same numbers.
    values = _embedding(model, reader, seed) if dist().first else (torch.empty(0),) * 2
    weight, bias = dist().broadcast(values)
    for encoder in (model.encoder, model.target):
        with torch.no_grad():
            encoder.embed.weight.copy_(weight)
            encoder.embed.bias.copy_(bias)


def _embedding(model: JEPA, reader: BatchReader, seed: int) -> tuple[Tensor, Tensor]:
    """(weight [D, P], bias [D])."""
    of_next = model.settings.patch_init == "predictive"
    width, size = model.encoder.embed.weight.shape
    moments = LaggedMoments(size)
    rows = slice(0, min(CLIPS, reader.source.batch.clips))
    per_clip = reader.data.num_frames // model.encoder.tubelet_size - of_next
    per_batch = rows.stop * per_clip * model.encoder.tokens_per_frame
    batches = -(-(DECODED if reader.source.decodes else PATCHES) // per_batch)
    with Progress("patches of the data", batches) as bar:
        for i in range(batches):
            moments.add(*_pairs(model, reader.read(FIRST + i, rows), of_next))
            bar.update(i + 1)
    if not moments.count or not moments.covariance.any():
        raise UserError(
            f"jepa.patch_init {model.settings.patch_init}: no patch of the clips that were read "
            "differs from distant frames of its episode, by which it could be told what moves; "
            "set jepa.min_gap lower, jepa.patch_init=whitening or normal, or give longer episodes "
            "or videos"
        )

    # The strongest directions, turned at random so that all channels are alike, at unit mean
    # square.
    directions = predictive(moments) if of_next else moments.whitening()  # [P, P]
    directions = directions[:, : min(width, size)]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(width, directions.shape[1], generator=generator, dtype=torch.double)
    weight = torch.linalg.qr(drawn).Q @ directions.T
    scale = (weight @ moments.covariance * weight).sum().div(width).sqrt()
    weight = weight / scale.clamp(min=1e-12)
    return weight.float(), -(weight @ moments.mean).float()


def predictive(moments: LaggedMoments) -> Tensor:
    """[P, P] directions of patches as columns, those that one frame tells of the next, each of a
    variance of that correlation times the spread of the pattern in pixels: halfway between pixels
    as they are, where what is small and moves drowns in brightness, and whitened ones, where it
    is no more than its soft edges."""
    correlation, directions = moments.predictable(ROUNDING)
    # Of n pairs of white noise the correlations fill a semicircle of this radius (Wigner).
    by_chance = (2 * len(correlation) / moments.count) ** 0.5
    spread = (moments.covariance @ directions).norm(dim=0)
    strength = correlation.where(correlation > by_chance, 0) * spread
    variances = strength.clamp(min=FLOOR * float(strength.max().clamp(min=1e-6)))
    order = variances.argsort(descending=True)
    return (directions * variances.sqrt())[:, order]


@torch.no_grad()
def _pairs(model: JEPA, batch: Batch, predictive: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(patches [n, P], what may be told of them [n, P], and a frame later [n, P])."""
    encoder = model.encoder
    per_frame = encoder.tokens_per_frame
    patches = encoder.patches(batch.clip).unflatten(1, (-1, per_frame)).cpu()  # [B, T, N, P]
    if not predictive:
        flat = patches.flatten(0, 2)
        centred = flat - flat.mean(0)
        return flat, centred, centred

    # Less what lasts in the episode. Each side of a pair has distant frames of its own, or their
    # noise would be told: where one was drawn twice it counts once, and a clip that has no two is
    # left out.
    frames = batch.distant.shape[1]
    distant = encoder.patches(model.images(batch.distant)).cpu().unflatten(0, (-1, frames))
    kept, of_now, of_next = [], [], []
    assert batch.time is not None
    for row, times in enumerate(batch.time[:, -frames:].tolist()):
        distinct = [times.index(time) for time in dict.fromkeys(times)]
        if len(distinct) > 1:
            kept.append(row)
            of_now.append(distant[row, distinct[0::2]].mean(0))
            of_next.append(distant[row, distinct[1::2]].mean(0))
    if not kept:
        return (patches[:0].flatten(0, 2),) * 3
    now, following = patches[kept, :-1], patches[kept, 1:]
    residuals = now - torch.stack(of_now)[:, None], following - torch.stack(of_next)[:, None]
    return now.flatten(0, 2), residuals[0].flatten(0, 2), residuals[1].flatten(0, 2)
