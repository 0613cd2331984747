"""Which tokens are seen and which are guessed: multi-block 3-D masks and hidden frames, as batched
tensor operations.

B clips, T time steps, g grid side, N = T*g*g tokens, K context tokens, M target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.models.settings import BlockMask


@dataclass(frozen=True)
class Masked:
    """What one mask type leaves of a batch: token numbers of context [B, K] and targets [B, M],
    and the time steps full_frames [B, V] where whole frames are in view and nothing else is."""

    context_ids: Tensor
    target_ids: Tensor
    full_frames: Tensor | None

    def of(self, rows: slice) -> Masked:
        """The same for some of the samples."""
        return Masked(
            self.context_ids[rows],
            self.target_ids[rows],
            None if self.full_frames is None else self.full_frames[rows],
        )

    def to(self, device: torch.device) -> Masked:
        """The same on another device."""
        shown = None if self.full_frames is None else self.full_frames.to(device)
        return Masked(self.context_ids.to(device), self.target_ids.to(device), shown)


def draw_mask(
    kind: BlockMask, batch: int, time: int, grid: int, generator: torch.Generator
) -> Tensor:
    """[B, T*g*g] bool: True where hidden. Every sample draws its own boxes."""
    shape = (batch, kind.num_blocks)
    scale, aspect, length = (
        low + (high - low) * torch.rand(shape, generator=generator)
        for low, high in (kind.spatial_scale, kind.aspect_ratio, kind.temporal_scale)
    )
    area = scale * grid * grid
    tall = (area * aspect).sqrt().round().clamp(1, grid)
    wide = (
        (area / tall).round().clamp(1, grid)
    )  # from the rounded height, so that scale 1 is the whole frame
    long = (length * time).round().clamp(1, time)
    inside = None
    for size, extent in ((long, time), (tall, grid), (wide, grid)):
        start = (torch.rand(shape, generator=generator) * (extent - size + 1)).floor()[..., None]
        axis = torch.arange(extent)
        on_axis = (axis >= start) & (axis < start + size[..., None])  # [B, blocks, extent]
        inside = (
            on_axis
            if inside is None
            else inside[..., None] & on_axis.view(*shape, *[1] * (inside.dim() - 2), -1)
        )
    assert inside is not None
    hidden = inside.any(1).flatten(1)
    least = max(1, int(kind.min_context_ratio * hidden.shape[1]))
    missing = (least - (~hidden).sum(1, keepdim=True)).clamp(min=0)
    key = torch.rand(hidden.shape, generator=generator)
    rank = (key + ~hidden).argsort(1).argsort(1)  # hidden tokens come first, in random order
    return hidden & (rank >= missing)


def split(hidden: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Token numbers (context [B, K], target [B, M]), sorted, from hidden [B, N].

    K and M are the batch's smallest counts; which tokens are left out of a sample that has more is
    drawn at random, never by position, so no part of the clip is dropped systematically."""
    key = torch.rand(hidden.shape, generator=generator)
    seen = int((~hidden).sum(1).min())
    context = (key + hidden).argsort(1)[:, :seen].sort(1).values
    target = (key + ~hidden).argsort(1)[:, : int(hidden.sum(1).min())].sort(1).values
    return context, target
