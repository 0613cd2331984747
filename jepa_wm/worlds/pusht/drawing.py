"""What gym-pusht looks like, drawn by numpy with smooth edges: white board, gray walls, the goal
as a light green T, the block as a gray T, the agent as a blue disc.

B worlds, h and w frame height and width, which are equal, k side of the square of pixels that a
body is drawn in. Colours and outlines are those of the package."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from jepa_wm.worlds.pusht.board import (
    BAR,
    CENTRE,
    GOAL_POSE,
    RADIUS,
    REACH,
    SIDE,
    STEM,
    WALL_HALF,
    WALLS,
)

WHITE, WALL, GOAL = (255, 255, 255), (211, 211, 211), (144, 238, 144)
EDGE, BLOCK = (119, 136, 153), (143, 163, 184)  # of the T
RIM, AGENT = (65, 105, 225), (78, 126, 255)  # of the disc
OUTLINE, RIM_WIDTH = 2.0, 4.0  # px: half the T's outline, and the disc's rim


def draw(pose: np.ndarray, size: int) -> np.ndarray:
    """[B, h, w, 3] uint8 boards of `size` px with agent x, agent y, block x, block y and block
    angle as in `pose` [B, 5]."""
    pixel, pad = SIDE / size, _side(REACH, size)
    frames = np.repeat(_ground(size, pad)[None], len(pose), 0)
    # The block, in the order of its layers: the outline reaches to both sides of its edges.
    centre = np.array([_centre(*row[2:]) for row in pose.tolist()]).reshape(-1, 2)
    patch, x, y = _patch(centre, REACH, size)
    bar, stem = _tee(x, y, pose[:, 2:])
    cover = _cover(np.minimum(bar, stem) - OUTLINE, pixel)
    _paint(frames, patch, cover, EDGE)
    cover = np.maximum(_cover(bar + OUTLINE, pixel), _cover(stem + OUTLINE, pixel))
    _paint(frames, patch, cover, BLOCK)
    # The agent on top.
    patch, x, y = _patch(pose[:, :2].astype(np.float64), RADIUS, size)
    x, y = x - pose[:, 0, None, None], y - pose[:, 1, None, None]
    apart = np.sqrt(x * x + y * y) - np.float32(RADIUS)
    _paint(frames, patch, _cover(apart, pixel), RIM)
    _paint(frames, patch, _cover(apart + RIM_WIDTH, pixel), AGENT)
    return frames[:, pad:-pad, pad:-pad].copy()


@cache
def _ground(size: int, pad: int) -> np.ndarray:
    """[h + 2 pad, w + 2 pad, 3] uint8: what never changes, with a margin around."""
    pixel = SIDE / size
    frames = np.full((1, size + 2 * pad, size + 2 * pad, 3), WHITE, np.uint8)
    whole = (np.arange(1), np.full(1, pad), np.full(1, pad), size)
    x, y = (axis[None].astype(np.float32) for axis in np.meshgrid(*2 * [_places(size)]))
    low, high = WALLS
    box = np.maximum(np.maximum(low - x, x - high), np.maximum(low - y, y - high))
    wall = _cover(box - WALL_HALF, pixel) - _cover(box + WALL_HALF, pixel)
    _paint(frames, whole, wall, WALL)
    bar, stem = _tee(x, y, np.array([GOAL_POSE], np.float32))
    _paint(frames, whole, _cover(np.minimum(bar, stem), pixel), GOAL)
    return frames[0]


def _places(size: int) -> np.ndarray:
    """[w] where on the board the middles of pixels lie, as cv2.resize has them."""
    return (np.arange(size) + 0.5) * (SIDE / size) - 0.5


def _side(radius: float, size: int) -> int:
    """Pixels across a body that reaches as far as `radius`, its outline and smooth edges
    included."""
    return math.ceil(2 * (radius + OUTLINE) * size / SIDE) + 3


def _centre(x: float, y: float, angle: float) -> tuple[float, float]:
    """The centre of mass of a block."""
    return x - CENTRE * math.sin(angle), y + CENTRE * math.cos(angle)


Patch = tuple[np.ndarray, np.ndarray, np.ndarray, int]  # worlds, first row and column [B], side


def _patch(centre: np.ndarray, radius: float, size: int) -> tuple[Patch, np.ndarray, np.ndarray]:
    """The squares of pixels around centres [B, 2], and where on the board the middles of their
    pixels lie: x [B, 1, k] and y [B, k, 1]."""
    k, pad = _side(radius, size), _side(REACH, size)
    middle = np.floor((centre + 0.5) * (size / SIDE)).astype(np.int64)
    # A body far outside would leave the margin.
    first = np.clip(middle - k // 2, -pad, size + pad - k)
    at = ((first[:, :, None] + np.arange(k) + 0.5) * (SIDE / size) - 0.5).astype(np.float32)
    patch = (np.arange(len(centre)), first[:, 1] + pad, first[:, 0] + pad, k)
    return patch, at[:, 0, None, :], at[:, 1, :, None]


def _tee(x: np.ndarray, y: np.ndarray, pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, k, k] distances of points to the bars and to the stems of blocks at poses [B, 3],
    negative inside."""
    turn = np.array([(math.cos(a), math.sin(a)) for a in pose[:, 2].tolist()], np.float32)
    cos, sin = turn.reshape(-1, 2).T[:, :, None, None]
    x, y = x - pose[:, 0, None, None], y - pose[:, 1, None, None]
    along, down = x * cos + y * sin, y * cos - x * sin
    return _box(along, down, BAR), _box(along, down, STEM)


def _box(x: np.ndarray, y: np.ndarray, sides: tuple[float, float, float, float]) -> np.ndarray:
    left, top, right, bottom = (np.float32(side) for side in sides)
    across = np.abs(x - (left + right) / 2) - (right - left) / 2
    along = np.abs(y - (top + bottom) / 2) - (bottom - top) / 2
    outside_x, outside_y = np.maximum(across, 0), np.maximum(along, 0)
    outside = np.sqrt(outside_x * outside_x + outside_y * outside_y)
    return outside + np.minimum(np.maximum(across, along), 0)


def _cover(distance: np.ndarray, pixel: float) -> np.ndarray:
    """The share of pixels that a shape covers whose edge is at these distances."""
    share: np.ndarray = np.clip(np.float32(0.5) - distance * np.float32(1 / pixel), 0, 1)
    return share


def _paint(
    frames: np.ndarray, patch: Patch, cover: np.ndarray, colour: tuple[int, int, int]
) -> None:
    """Lay a colour over patches of frames, as far as they are covered [B, k, k]."""
    worlds, row, column, k = patch
    side = np.arange(k)
    at = (worlds[:, None, None], row[:, None, None] + side[:, None], column[:, None, None] + side)
    under = frames[at].astype(np.float32)
    over = np.array(colour, np.float32) - under
    frames[at] = (under + cover[..., None] * over + np.float32(0.5)).astype(np.uint8)
