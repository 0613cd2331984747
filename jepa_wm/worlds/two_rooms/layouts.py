"""Which layouts of two rooms are for training and which are held out: one partition of all pairs
(wall x, door y).

The plane of the pairs is cut into blocks of 5 x 5 px, and every fifth block, a knight's move
apart, is held out, but for the outermost doors: what is held out lies between what training meets,
also where the wall is fixed. Of a held-out block the rim belongs to neither split, so that a
held-out layout is at least 2 px from every training one."""

from __future__ import annotations

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.settings import Section
from jepa_wm.worlds.protocol import Split

BLOCK = 5  # px, side of a block; an axis that is too short for enough of them gets smaller ones
EVERY = 5  # block (i, j) is held out where 2 i + j leaves REMAINDER: one in five, none touching
REMAINDER = 1

WALL_HALF = 1.5  # px, half the wall's thickness


def in_split(layout: np.ndarray, geometry: Geometry, split: Split) -> np.ndarray:
    """[...] bool: whether layouts [..., 2], wall x and door y in pixels, belong to a split.

    By content alone, whatever seed drew them, and the same for a fixed wall as for random ones.
    Blocks of fewer than 3 px have no rim, and a fixed wall has none on its own axis."""
    g = geometry
    i, wall_inside, _ = _block(
        layout[..., 0], g.wall_padding, g.size - 2 * g.wall_padding, blocks=EVERY
    )
    j, door_inside, last = _block(
        layout[..., 1], g.door_padding, g.size - 2 * g.door_padding, blocks=EVERY + 2
    )
    # Without the outermost, five blocks in a row are left, of which one is held out for any wall.
    between = (j > 0) & (j < last) if last > EVERY else True
    held_out = ((2 * i + j) % EVERY == REMAINDER) & between
    if split == "train":
        return ~held_out
    return held_out & door_inside & (wall_inside | (g.fixed_wall is not None))


def check_split(geometry: Geometry) -> None:
    """UserError for a geometry with too few layouts to hold some out."""
    g = geometry
    walls = (
        range(g.wall_padding, g.size - g.wall_padding) if g.fixed_wall is None else (g.fixed_wall,)
    )
    doors = range(g.door_padding, g.size - g.door_padding)
    layouts = np.array([(wall, door) for wall in walls for door in doors]).reshape(-1, 2)
    for split in ("train", "heldout"):
        if not in_split(layouts, g, split).any():
            raise UserError(
                f"world.geometry has {len(layouts)} layouts (wall x, door y), of which none is "
                f"left for the {split} split: lower world.geometry.door_padding or wall_padding, "
                "or set world.geometry.fixed_wall=null"
            )


def _block(
    value: np.ndarray, first: int, count: int, *, blocks: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(block of each place on an axis of `count` places, whether it is inside the block's rim, the
    last block), of at least so many `blocks` where there are so many places."""
    side = min(BLOCK, max(1, count // blocks))
    rim = 1 if side >= 3 else 0
    block = np.floor((value - first) / side).astype(np.int64)
    within = value - first - block * side
    return block, (within >= rim) & (within <= side - 1 - rim), (count - 1) // side


class Geometry(Section):
    """Where walls and doors may be. All lengths in pixels."""

    size: int = 65
    border: int = 5  # the agent stays in [border, size - 1 - border]
    door_half: float = 4.0
    wall_padding: int = 20  # wall x is drawn from [padding, size - padding)
    door_padding: int = 10
    max_step: float = 2.45  # longest move in one step; longer actions are scaled back to it
    action_scale: float = 1.0  # next = position + action_scale * action
    fixed_wall: int | None = None  # a wall that never moves (DINO-WM's setting), else random

    @property
    def low(self) -> float:
        return float(self.border)

    @property
    def high(self) -> float:
        return float(self.size - 1 - self.border)
