"""Frames made another size, and cut at random; h x w px, c channels, B clips, T frames, S side in px."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.schema import Crop


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames [n, h, w, c] as [n, size, size, c], antialiased; the whole picture, so its aspect may change."""
    if frames.shape[1:3] == (size, size):
        return frames
    flat = antialiased(torch.from_numpy(frames.astype(np.float32)).movedim(-1, 1), size)
    return flat.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous().numpy()


def antialiased(frames: Tensor, size: int) -> Tensor:
    """float frames [n, c, h, w] as [n, c, size, size], the whole picture."""
    return torch.nn.functional.interpolate(frames, (size, size), mode="bilinear", antialias=True, align_corners=False)


def draw_crops(batch: int, generator: torch.Generator) -> Tensor:
    """[5, B] random numbers in 0..1 that `random_crops` of so many clips stand on."""
    return torch.rand((5, batch), generator=generator)


def random_crops(frames: Tensor, crop: Crop, size: int, u: Tensor) -> Tensor:
    """float [B, T, c, S, S] in -1..1 of uint8 clips [B, T, h, w, c]: of each a part of random area, aspect and place,
    half of them mirrored if asked; the same for all frames of a clip. `u` [5, B] are the numbers of `draw_crops`.

    The usual random resized crop: area and aspect (width / height, evenly in its logarithm) are those of `crop`; sides
    that do not fit are cut to the frame.
    """
    height, width = frames.shape[2:4]
    area = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[0]) * height * width
    low, high = torch.tensor(crop.aspect).log()
    aspect = (low + (high - low) * u[1]).exp()
    wide = (area * aspect).sqrt().round().long().clamp(1, width)
    tall = (area / aspect).sqrt().round().long().clamp(1, height)
    left, top = (u[2] * (width - wide + 1)).long(), (u[3] * (height - tall + 1)).long()
    mirrored = (u[4] < 0.5) & crop.flip
    clips = []
    for b, clip in enumerate(frames.movedim(-1, 2)):  # [T, c, h, w]
        part = clip[..., top[b] : top[b] + tall[b], left[b] : left[b] + wide[b]]
        part = antialiased(part.float(), size)
        clips.append(part.flip(-1) if mirrored[b] else part)
    return torch.stack(clips).div_(127.5).sub_(1.0)
