"""Which tokens are context and which are predicted: multi-block 3-D masks and hidden frames, as
batched tensor operations without a model.

B clips, T time steps (tubelets, where they are longer than a frame), g tokens on a side of a
frame, N = g*g tokens a time step, K context tokens, M target tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from jepa_wm.models.encoder_settings import BlockMask, FrameMask, JepaSettings


@dataclass(frozen=True)
class TokenMask:
    """What one mask type leaves of a batch: token numbers of context [B, K] and targets [B, M];
    the time steps full_frames [B, V] where whole frames are in view and nothing else is; and in
    image mode the one time step [B] that context and targets are of."""

    context_ids: Tensor
    target_ids: Tensor
    full_frames: Tensor | None = None
    image: Tensor | None = None

    def of(self, rows: slice) -> TokenMask:
        """The same for some of the samples."""
        return self._each(lambda ids: ids[rows])

    def to(self, device: torch.device) -> TokenMask:
        """The same on another device."""
        return self._each(lambda ids: ids.to(device))

    def _each(self, change: Callable[[Tensor], Tensor]) -> TokenMask:
        return TokenMask(
            change(self.context_ids),
            change(self.target_ids),
            None if self.full_frames is None else change(self.full_frames),
            None if self.image is None else change(self.image),
        )


def draw_masks(
    settings: JepaSettings, shape: tuple[int, int, int], generator: torch.Generator
) -> list[TokenMask]:
    """A mask for each mask type, for a `shape` of (B clips, T time steps, g tokens on a side)."""
    masks = []
    for kind in settings.masks:
        if isinstance(kind, BlockMask) and kind.image:
            in_view, hidden = draw_image(kind, shape, generator)
            context_ids, target_ids = split_tokens(hidden, generator, in_view)
            step = context_ids[:, 0] // shape[2] ** 2
            masks.append(TokenMask(context_ids, target_ids, image=step))
            continue
        if isinstance(kind, FrameMask):
            hidden = draw_frames(kind, shape, generator)
        else:
            hidden = draw_hidden(kind, shape, generator)
        context_ids, target_ids = split_tokens(hidden, generator)
        masks.append(TokenMask(context_ids, target_ids, full_frames(hidden, shape[1])))
    return masks


def draw_hidden(
    kind: BlockMask, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """[B, T*N] bool: True where hidden. Every sample draws its own boxes."""
    batch, time, grid = shape
    boxes = (batch, kind.num_blocks)
    scale, aspect, length = (
        low + (high - low) * torch.rand(boxes, generator=generator)
        for low, high in (kind.spatial_scale, kind.aspect_ratio, kind.temporal_scale)
    )
    # Sizes in tokens; the width from the rounded height, so that scale 1 is the whole frame.
    area = scale * grid * grid
    tall = (area * aspect).sqrt().round().clamp(1, grid)
    wide = (area / tall).round().clamp(1, grid)
    long = (length * time).round().clamp(1, time)

    # A token is in a box if it is within it on every axis.
    axes = []
    for size, extent in ((long, time), (tall, grid), (wide, grid)):
        start = (torch.rand(boxes, generator=generator) * (extent - size + 1)).floor()[..., None]
        place = torch.arange(extent)
        axes.append((place >= start) & (place < start + size[..., None]))  # [B, blocks, extent]
    in_time, in_rows, in_columns = axes
    inside = in_time[..., None, None] & in_rows[..., None, :, None] & in_columns[:, :, None, None]
    hidden = inside.any(1).flatten(1)  # [B, T*N]

    # Where boxes cover too much, hidden tokens are shown again in random order.
    least = max(1, int(kind.min_context_ratio * hidden.shape[1]))
    missing = (least - (~hidden).sum(1, keepdim=True)).clamp(min=0)
    key = torch.rand(hidden.shape, generator=generator)
    rank = (key + ~hidden).argsort(1).argsort(1)  # hidden tokens come first
    return hidden & (rank >= missing)


def draw_frames(
    kind: FrameMask, shape: tuple[int, int, int], generator: torch.Generator
) -> Tensor:
    """[B, T*N] bool: True in `kind.frames` time steps that do not adjoin, neither first nor
    last."""
    batch, time, grid = shape
    # As many places as there are without the step in view that follows each hidden one; their
    # order then makes room for it.
    places = time - 1 - kind.frames
    drawn = torch.rand((batch, places), generator=generator).argsort(1)[:, : kind.frames]
    hidden_steps = drawn.sort(1).values + 1 + torch.arange(kind.frames)  # [B, H]
    hidden = torch.zeros(batch, time, dtype=torch.bool).scatter_(1, hidden_steps, value=True)
    return hidden.repeat_interleave(grid * grid, 1)


def draw_image(
    kind: BlockMask, shape: tuple[int, int, int], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(in view, hidden), each [B, T*N] bool, within one time step of each clip, drawn at random;
    the others are neither."""
    batch, time, grid = shape
    hidden = draw_hidden(kind, (batch, 1, grid), generator)[:, None]  # [B, 1, N]
    shown = torch.randint(time, (batch, 1), generator=generator) == torch.arange(time)  # [B, T]
    return (shown[..., None] & ~hidden).flatten(1), (shown[..., None] & hidden).flatten(1)


def split_tokens(
    hidden: Tensor, generator: torch.Generator, in_view: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token numbers (context [B, K], targets [B, M]), sorted, from hidden [B, T*N] and what is
    in_view [B, T*N], if not given all others.

    K and M are the batch's smallest counts; which tokens are left out of a sample that has more is
    drawn at random, never by position, so no part of the clip is dropped systematically."""
    in_view = ~hidden if in_view is None else in_view
    key = torch.rand(hidden.shape, generator=generator)
    return _least(in_view, key), _least(hidden, key)


def _least(present: Tensor, key: Tensor) -> Tensor:
    """Sorted token numbers [B, K] of those present [B, T*N], as many as the sample with the fewest
    has; of more, those with the lowest keys [B, T*N]."""
    counts = present.sum(1)
    fewest = int(counts.min())
    if bool((counts == fewest).all()):  # nothing to leave out, nor to sort for it
        return present.nonzero()[:, 1].view(len(present), fewest)
    return (key + ~present).argsort(1)[:, :fewest].sort(1).values


def full_frames(hidden: Tensor, steps: int) -> Tensor | None:
    """[B, V] time steps that hidden [B, T*N] leaves wholly in view, if nothing else is in view and
    V is the same for all samples and at least two; else None."""
    per_frame = hidden.unflatten(1, (steps, -1))
    in_view = ~per_frame.any(-1)
    count = in_view.sum(1)
    if (per_frame.all(-1) != ~in_view).any() or count[0] < 2 or (count != count[0]).any():
        return None
    return in_view.nonzero()[:, 1].view(len(hidden), -1)
