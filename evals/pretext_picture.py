"""What the picture of the pretext task shows: clips, and for each predicted token the real patch
whose target is nearest.

B clips, T time steps, g tokens on a side of a frame, N = g * g, M target tokens, G kinds of
target, D numbers of a target of one kind, P px a side of a patch, px = g * P a side of a frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa_wm.evals.pretext_tokens import squared_distances
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.targets import kinds_of
from jepa_wm.report.pretext import PretextClip

SHOWN = 3  # clips, at least one for each mask type


@dataclass
class _Shown:
    """A clip that is shown, with the nearest patches so far."""

    row: int  # in its batch
    mask: int  # number of the mask type
    ids: Tensor  # [M] tokens that are predicted
    in_view: Tensor  # [K] tokens of the context
    guess: Tensor  # [M, G*D]
    error: Tensor  # [M, G] in units of the constant's mean error
    patches: Tensor  # [T*N, P, P, 3] of its own
    nearest: Tensor  # [M, P, P, 3]
    distance: Tensor  # [M] squared, of the target of the nearest


class ShownClips:
    """The first clips of a batch under one mask type after another.

    A predicted token is shown as the patch of the other clips, of this batch and of all that
    follow, whose whole target is nearest: of all kinds, and at the same place, since targets are
    centred there."""

    def __init__(
        self,
        model: JEPA,
        batch: Batch,
        predicted: Sequence[Tensor],
        measured: Sequence[Mapping[str, Tensor]],
    ) -> None:
        """Of each mask what is predicted [B, M, G, D], and what `measure` made of that."""
        self.model, self._own = model, batch
        patches, clips = _patches(model, batch.clip), len(batch.clip)
        self.shown = []
        for row in range(min(max(SHOWN, len(batch.masks)), clips)):
            number = row % len(batch.masks)
            mask, columns = batch.masks[number], measured[number]
            unit = columns["constant"].mean(0).clamp(min=1e-12)  # [G]
            ids, guess = mask.target_ids[row], predicted[number][row].flatten(1)
            self.shown.append(
                _Shown(
                    row=row,
                    mask=number,
                    ids=ids,
                    in_view=mask.context_ids[row],
                    guess=guess,
                    error=columns["error"].unflatten(0, (clips, -1))[row] / unit,
                    patches=patches[row],
                    nearest=patches[row, ids],
                    distance=torch.full_like(guess[:, 0], torch.inf),
                )
            )

    def compare(self, batch: Batch, targets: Tensor) -> None:
        """Look for nearer patches in a batch with targets [B, T*N, G, D]."""
        places = self.model.encoder.tokens_per_frame
        by_place = targets.flatten(2).unflatten(1, (-1, places)).flatten(0, 1)  # [B*T, N, G*D]
        patches = _patches(self.model, batch.clip).unflatten(1, (-1, places)).flatten(0, 1)
        for clip in self.shown:
            for place in range(places):
                at = (clip.ids % places == place).nonzero()[:, 0]  # [m]
                distance = squared_distances(clip.guess[at], by_place[:, place])
                if batch is self._own:  # nothing of the clip itself
                    distance.unflatten(1, (len(targets), -1))[:, clip.row] = torch.inf
                least, which = distance.min(1)
                nearer = least < clip.distance[at]
                clip.distance[at[nearer]] = least[nearer]
                clip.nearest[at[nearer]] = patches[which[nearer], place]

    def clips(self) -> list[PretextClip]:
        """What is known of them by now, as the picture takes it."""
        shown = []
        for clip in self.shown:
            errors = {
                kind: self._on_grid(clip, clip.ids, clip.error[:, g], np.nan)
                for g, kind in enumerate(kinds_of(self.model.settings))
            }
            seen = self._on_grid(clip, clip.in_view, torch.ones(len(clip.in_view)), 0) > 0
            predicted = clip.patches.index_copy(0, clip.ids, clip.nearest)
            shown.append(
                PretextClip(
                    mask=clip.mask + 1,
                    frames=_frames(clip.patches, self.model),
                    predicted=_frames(predicted, self.model),
                    in_view=seen,
                    error=errors,
                )
            )
        return shown

    def _on_grid(self, clip: _Shown, ids: Tensor, values: Tensor, fill: float) -> np.ndarray:
        """[T, g, g] values [n] at token numbers ids [n], the rest filled."""
        grid = torch.full((len(clip.patches),), float(fill)).index_copy(0, ids.cpu(), values.cpu())
        side = self.model.encoder.grid
        return grid.view(-1, side, side).numpy()


def _patches(model: JEPA, clip: Tensor) -> Tensor:
    """[B, T*N, P, P, 3] uint8 of clips in -1..1, of a tubelet its first frame; frames of other
    than three channels are shown by their mean as grey."""
    first = clip[:, :: model.encoder.tubelet_size]  # [B, T, C, px, px]
    if first.shape[2] != 3:
        first = first.mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    size = model.encoder.patch_size
    cut = first.movedim(2, -1).unflatten(3, (-1, size)).unflatten(2, (-1, size))
    cut = cut.transpose(3, 4).flatten(1, 3)  # from [B, T, g, P, g, P, 3]
    return cut.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def _frames(patches: Tensor, model: JEPA) -> np.ndarray:
    """[T, px, px, 3] of patches [T*N, P, P, 3]."""
    grid = model.encoder.grid
    placed = patches.unflatten(0, (-1, grid, grid)).transpose(2, 3)  # [T, g, P, g, P, 3]
    return placed.flatten(3, 4).flatten(1, 2).cpu().numpy()
