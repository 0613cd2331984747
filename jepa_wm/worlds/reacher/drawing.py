"""The arm of two links as a picture, seen from above as dm_control's fixed camera does, drawn from
its two joint angles.

B worlds, h and w frame height and width, which are equal. Places are (x, y) in metres, x to the
right and y up, the shoulder in the middle."""

from __future__ import annotations

import numpy as np

# of both links: from the shoulder to the wrist and on to the middle of the finger, m
LINK = 0.12
HALF = 0.27  # m, from the middle of the picture to its edge: the whole arm stretched out and air
LINK_RADIUS, FINGER_RADIUS = 0.012, 0.02  # m; a fifth more and twice as much as the simulator's
BACKGROUND = (24, 26, 38)
UPPER, LOWER, FINGER = (84, 150, 190), (150, 190, 90), (255, 120, 60)


def places(angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """([B, 2] wrist, [B, 2] finger) in metres, of the angles [B, 2] of shoulder and wrist in
    rad."""
    first, both = angles[:, 0], angles[:, 0] + angles[:, 1]
    wrist = LINK * np.stack([np.cos(first), np.sin(first)], 1)
    return wrist, wrist + LINK * np.stack([np.cos(both), np.sin(both)], 1)


def draw_arms(angles: np.ndarray, size: int) -> np.ndarray:
    """[B, h, w, 3] uint8 of arms at angles [B, 2] in rad, on `size` px a side."""
    wrist, finger = places(angles.astype(np.float64))
    scale = size / (2 * HALF)  # px a metre
    # Everything below is in pixels, the middle of a pixel at its whole number; rows go down.
    shoulder = np.full((1, 2), (size - 1) / 2, np.float32)
    wrist, finger = (
        (shoulder + scale * place * (1, -1)).astype(np.float32) for place in (wrist, finger)
    )

    # From the bottom up: a part covers what lies below it by its share of each pixel.
    parts = (
        (UPPER, _distance(np.broadcast_to(shoulder, wrist.shape), wrist, size), LINK_RADIUS),
        (LOWER, _distance(wrist, finger, size), LINK_RADIUS),
        (FINGER, _distance(finger, finger, size), FINGER_RADIUS),
    )
    image = np.empty((len(angles), 3, size, size), np.float32)
    image[:] = np.array(BACKGROUND, np.float32)[:, None, None]
    for colour, distance, radius in parts:
        share = np.clip(scale * radius + 0.5 - distance, 0, 1)[:, None]
        image += share * (np.array(colour, np.float32)[:, None, None] - image)
    return np.ascontiguousarray(np.rint(image).astype(np.uint8).transpose(0, 2, 3, 1))


def _distance(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """[B, h, w] px from the middle of each pixel to the line from `start` [B, 2] to `end`
    [B, 2]."""
    axis = np.arange(size, dtype=np.float32)
    x, y = axis - start[:, :1], axis - start[:, 1:]  # [B, w], [B, h]
    along = end - start
    square = np.maximum((along**2).sum(1), np.float32(1e-12))[:, None]
    # The share of the way at which the line comes nearest, of x and of y, which add up.
    share_x, share_y = along[:, :1] * x / square, along[:, 1:] * y / square
    share = np.clip(share_x[:, None, :] + share_y[:, :, None], 0, 1)
    gap_x = x[:, None, :] - share * along[:, 0, None, None]
    gap_y = y[:, :, None] - share * along[:, 1, None, None]
    return np.sqrt(gap_x * gap_x + gap_y * gap_y)
