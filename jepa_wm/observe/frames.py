"""Frames made another size."""

from __future__ import annotations

import numpy as np
import torch


def resized(frames: np.ndarray, size: int) -> np.ndarray:
    """uint8 frames [n, h, w, c] as [n, size, size, c], antialiased; the whole picture, so its aspect may change."""
    if frames.shape[1:3] == (size, size):
        return frames
    flat = torch.from_numpy(frames.astype(np.float32)).movedim(-1, 1)
    flat = torch.nn.functional.interpolate(flat, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return flat.round_().clamp_(0, 255).to(torch.uint8).movedim(1, -1).contiguous().numpy()
