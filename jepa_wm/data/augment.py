"""Random views of frames: cut, mirrored, in another light; h x w px, c channels, B clips, T
frames, S side in px."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from jepa_wm.data.images import antialiased
from jepa_wm.data.settings import AugmentSettings


def draw_augmentation(batch: int, generator: torch.Generator) -> Tensor:
    """[9, B] random numbers in 0..1 that `augment` of so many clips stand on."""
    return torch.rand((9, batch), generator=generator)


def augment(frames: Tensor, crop: AugmentSettings, size: int, u: Tensor) -> Tensor:
    """float [B, T, c, S, S] in -1..1 of uint8 clips [B, T, h, w, c]: of each a part of random
    area, aspect and place, half of them mirrored if asked, in a random light; the same for all
    frames of a clip. `u` [9, B] are the numbers of `draw_augmentation`.

    The usual random resized crop: area and aspect (width / height, evenly in its logarithm) are
    those of `crop`; sides that do not fit are cut to the frame. The light as in SimCLR (Chen et
    al., 2020): factors of brightness, contrast and saturation within 1 - jitter..1 + jitter, and a
    turn of the hue by at most a quarter of that."""
    height, width = frames.shape[2:4]
    area = (crop.scale[0] + (crop.scale[1] - crop.scale[0]) * u[0]) * height * width
    low, high = torch.tensor(crop.aspect_ratio).log()
    aspect = (low + (high - low) * u[1]).exp()
    wide = (area * aspect).sqrt().round().long().clamp(1, width)
    tall = (area / aspect).sqrt().round().long().clamp(1, height)
    left, top = (u[2] * (width - wide + 1)).long(), (u[3] * (height - tall + 1)).long()
    mirrored = (u[4] < 0.5) & crop.horizontal_flip
    light = crop.color_jitter * (2 * u[5:] - 1)
    views = []
    for b, clip in enumerate(frames.movedim(-1, 2)):  # [T, c, h, w]
        part = clip[..., top[b] : top[b] + tall[b], left[b] : left[b] + wide[b]]
        part = antialiased(part.float(), size)
        part = part.flip(-1) if mirrored[b] else part
        views.append(_relit(part, *light[:, b].tolist()) if crop.color_jitter else part)
    return torch.stack(views).div_(127.5).sub_(1.0)


def _relit(
    frames: Tensor, brightness: float, contrast: float, saturation: float, hue: float
) -> Tensor:
    """float frames [T, 3, S, S] in 0..255, each factor given by how far it is from 1, the hue in
    turns times 4."""
    x = tv.adjust_brightness(frames / 255, 1 + brightness)
    x = tv.adjust_contrast(x, 1 + contrast)
    x = tv.adjust_saturation(x, 1 + saturation)
    return tv.adjust_hue(x, hue / 4) * 255
