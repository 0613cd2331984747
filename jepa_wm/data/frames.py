"""Frames made another size; h x w px, c channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames [n, h, w, c] as [n, size, size, c], antialiased; the whole picture, so its
    aspect may change."""
    if frames.shape[1:3] == (size, size):
        return frames
    flat = antialiased(torch.from_numpy(frames.astype(np.float32)).movedim(-1, 1), size)
    return flat.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous().numpy()


def antialiased(frames: Tensor, size: int) -> Tensor:
    """float frames [n, c, h, w] as [n, c, size, size], the whole picture."""
    return torch.nn.functional.interpolate(
        frames, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
