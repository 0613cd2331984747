"""The whole grid from above in numpy: walls, the door, the key, and the agent as a triangle that
points where it looks, all antialiased.

B worlds, g cells a side, h and w canvas height and width, which are equal, K side of a patch of
pixels. Lengths are in pixels, of shapes in units of the shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from jepa_wm.worlds.minigrid.layouts import (
    AGENT,
    CARRIED,
    CLOSED,
    DIRECTION,
    KEY,
    KINDS,
    LATCH,
    LOCKED,
    OPEN,
    QUARTER,
    Env,
    walls,
)

FLOOR, WALL = (24, 26, 38), (84, 150, 190)
RED, YELLOW = (255, 84, 60), (250, 214, 70)
LEAST = 0.1  # of the canvas: the agent is drawn no smaller, where cells are, and then over walls
FINE = 8  # samples of a pixel along each axis

Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]  # x, y within -.5...5 -> bool


def draw_walls(env: Env, grid: int, size: int, layout: np.ndarray) -> np.ndarray:
    """[B, h, w, 3] uint8 empty rooms of layouts [B, L]; of a cell that ends within a pixel the
    colours are mixed."""
    edges = np.arange(size + 1) * grid / size  # of the pixels, in cells
    cells = np.arange(grid)
    reach = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
    share = np.clip(reach, 0, None) * size / grid  # [h, g] of a pixel that lies in a cell
    solid = share @ walls(env, grid, layout).astype(np.float64) @ share.T
    floor, wall = np.array(FLOOR, float), np.array(WALL, float)
    return np.rint(floor + solid[..., None] * (wall - floor)).astype(np.uint8)


def draw_things(env: Env, grid: int, rooms: np.ndarray, state: np.ndarray) -> np.ndarray:
    """[B, h, w, 3] uint8 rooms [B, h, w, 3] with what stands in them in states [B, X]."""
    size = rooms.shape[1]
    cell, kind = size / grid, KINDS[env]
    agent = max(0.9 * cell, LEAST * size)
    canvas = Canvas(rooms, grid)
    if env == "door_key":
        door, latch = state[:, kind.layout], state[:, LATCH]
        for number, leaf in ((OPEN, _opened), (CLOSED, _closed), (LOCKED, _locked)):
            canvas.draw(leaf, cell, YELLOW, door, latch == number)
        canvas.draw(_key, cell, YELLOW, state[:, KEY], state[:, CARRIED] == 0)
    for number, pointed in enumerate(POINTED):
        canvas.draw(pointed, agent, RED, state[:, AGENT], state[:, DIRECTION] == QUARTER * number)
    if env == "door_key":
        canvas.draw(_disc, agent, YELLOW, state[:, AGENT], state[:, CARRIED] == 1)
    return canvas.frames()


class Canvas:
    """Pictures [B, h, w, 3] with a margin, into which shapes are drawn at cells."""

    def __init__(self, rooms: np.ndarray, grid: int) -> None:
        size = rooms.shape[1]
        self.grid, self.size, self.margin = grid, size, size // 4
        self._image = np.pad(rooms, ((0, 0), *((self.margin, self.margin),) * 2, (0, 0)))

    def draw(
        self,
        shape: Shape,
        length: float,
        colour: tuple[int, int, int],
        at: np.ndarray,
        where: np.ndarray,
    ) -> None:
        """One shape of this length in the worlds `where` [B], in the middle of cells `at`
        [B, 2]."""
        worlds = np.nonzero(where)[0]
        if not len(worlds):
            return
        # Only the few pixels that the shape touches are mixed.
        x, y = at[worlds].astype(np.int64).T
        origins, cover = patches(shape, length, self.grid, self.size)
        along = np.arange(cover.shape[-1]) + self.margin
        rows = (origins[y][:, None] + along)[:, :, None]
        columns = (origins[x][:, None] + along)[:, None, :]
        index = (worlds[:, None, None], rows, columns)
        under = self._image[index].astype(np.float32)
        gap = np.array(colour, np.float32) - under
        self._image[index] = np.rint(under + cover[y, x][..., None] * gap).astype(np.uint8)

    def frames(self) -> np.ndarray:
        """[B, h, w, 3] without the margin."""
        inside = slice(self.margin, self.margin + self.size)
        return np.ascontiguousarray(self._image[:, inside, inside])


@lru_cache(maxsize=64)
def patches(shape: Shape, length: float, grid: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(origins [g] of patches along an axis, cover [g, g, K, K] float32): what share of each pixel
    a shape in the middle of cell (y, x) covers."""
    middles = (np.arange(grid) + 0.5) * size / grid
    side = int(np.ceil(length)) + 2
    origins = np.floor(middles - side / 2).astype(np.int64)
    samples = (np.arange(side * FINE) + 0.5) / FINE
    local = (origins[:, None] + samples - middles[:, None]) / length  # [g, K * FINE]
    cover = np.empty((grid, grid, side, side), np.float32)
    for i in range(grid):
        inside = shape(local[None, :, None, :], local[i, None, :, None])  # [1, g, ...]
        inside = np.broadcast_to(inside, (1, grid, side * FINE, side * FINE))
        cover[i] = inside.reshape(grid, side, FINE, side, FINE).mean((2, 4))
    return origins, cover


def _right(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A triangle that points to the right."""
    return np.asarray((x > -0.45) & (2.1 * np.abs(y) < 0.5 - x))


def _down(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _right(y, x)


def _left(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _right(-x, y)


def _up(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return _right(-y, x)


POINTED: tuple[Shape, ...] = (_right, _down, _left, _up)  # by the package's directions


def _disc(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A carried key."""
    return np.asarray(x**2 + y**2 < 0.24**2)


def _key(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A ring, a shaft and two teeth."""
    away = x**2 + (y + 0.2) ** 2
    ring = (away < 0.24**2) & (away > 0.08**2)
    shaft = (np.abs(x) < 0.08) & (y > 0) & (y < 0.45)
    teeth = (x > -0.3) & (x < 0) & ((np.abs(y - 0.2) < 0.05) | (np.abs(y - 0.39) < 0.06))
    return np.asarray(ring | shaft | teeth)


def _square(x: np.ndarray, y: np.ndarray, half: float) -> np.ndarray:
    return np.asarray(np.maximum(np.abs(x), np.abs(y)) < half)


def _locked(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A full square with a keyhole."""
    return _square(x, y, 0.5) & ~_square(x, y, 0.14)


def _closed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A frame with a handle, of which the rest is floor or wall behind."""
    return (_square(x, y, 0.5) & ~_square(x, y, 0.36)) | _square(x - 0.2, y, 0.1)


def _opened(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """A leaf at the cell's upper edge."""
    return _square(x, y, 0.5) & (y < -0.28)
