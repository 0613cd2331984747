"""Layouts of MiniGrid's FourRooms and DoorKey: the numbers of a state, the walls that they tell,
and which layouts are for training and which are held out.

B worlds, X state numbers, L of a layout, g cells a side. Cells are (x, y), x to the right, y down,
counted from 0 in the upper left corner, which is wall; images and grids have y first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa_wm.worlds.world import Split

Env = Literal["four_rooms", "door_key"]

# The package's numbers: of directions (right, down, left, up), of actions, of what a door is.
STEPS = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE = range(7)
OPEN, CLOSED, LOCKED = range(3)
QUARTER = 90.0  # deg, between one direction and the next

# Columns of a state; those of the key and the door are of DoorKey alone.
AGENT, DIRECTION, KEY, CARRIED, LATCH = slice(0, 2), 2, slice(3, 5), 5, 6

EVERY = 5  # one layout in five is held out


@dataclass(frozen=True)
class Kind:
    """What the numbers of one environment are."""

    state_names: tuple[str, ...]
    state_units: tuple[str, ...]
    layout: slice  # of the state
    actions: tuple[int, ...]  # the package's numbers of the choices; the last does nothing
    grid: int  # cells a side, as the package has it


KINDS: dict[Env, Kind] = {
    "four_rooms": Kind(
        # The gap of the wall between the two upper rooms is told by its y, of that between the
        # left ones by its x, and so on.
        ("agent_x", "agent_y", "direction", "gap_upper", "gap_left", "gap_right", "gap_lower"),
        ("cells", "cells", "deg", *("cells",) * 4),
        slice(3, 7),
        (LEFT, RIGHT, FORWARD, DONE),
        19,
    ),
    "door_key": Kind(
        # A carried key is where the agent is. The latch: 0 open, 1 closed, 2 locked.
        ("agent_x", "agent_y", "direction", "key_x", "key_y", "carried", "latch")
        + ("door_x", "door_y"),
        ("cells", "cells", "deg", "cells", "cells", "", "", "cells", "cells"),
        slice(7, 9),
        (LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE, DONE),
        8,
    ),
}


def in_split(env: Env, layout: np.ndarray, split: Split) -> np.ndarray:
    """[...] bool: whether layouts [..., L] belong to a split, by content alone, whatever seed drew
    them.

    The numbers of a layout are added up, each times its place or, of two, the first twice; one sum
    in five is held out. Layouts that differ by one cell are never held out both."""
    weights = (2, 1) if env == "door_key" else (1, 2, 3, 4)
    total = (np.asarray(layout) @ np.array(weights)).astype(np.int64)
    held_out = total % EVERY == 2
    return np.asarray(held_out if split == "heldout" else ~held_out)


def walls(env: Env, grid: int, layout: np.ndarray) -> np.ndarray:
    """[B, g, g] bool: where walls are, for layouts [B, L]; the door's cell is none."""
    solid = np.zeros((len(layout), grid, grid), bool)
    solid[:, [0, -1]] = solid[:, :, [0, -1]] = True
    rows, numbers = np.arange(len(layout)), layout.astype(np.int64).T
    if env == "door_key":
        x, y = numbers
        solid[rows, :, x] = True
        solid[rows, y, x] = False
        return solid
    middle = grid // 2
    solid[:, middle] = solid[:, :, middle] = True
    upper, left, right, lower = numbers
    for y, x in ((upper, middle), (middle, left), (middle, right), (lower, middle)):
        solid[rows, y, x] = False
    return solid


def wrong(env: Env, grid: int, state: np.ndarray) -> str | None:
    """Why states [B, X] are none of worlds of this size, None where they are; what stands inside a
    wall or a closed door is none either."""
    kind, middle = KINDS[env], grid // 2
    if not np.isfinite(state).all() or (state != np.rint(state)).any():
        return "all numbers of a state are whole"
    # Numbers in their ranges, so that the walls can be drawn.
    high = np.full(len(kind.state_names), grid - 2.0)
    low = np.ones_like(high)
    low[DIRECTION], high[DIRECTION] = 0, 3 * QUARTER
    if env == "door_key":
        low[[CARRIED, LATCH]], high[[CARRIED, LATCH]] = 0, (1, LOCKED)
        low[kind.layout], high[kind.layout] = (2, 1), (grid - 3, grid - 2)
    else:
        low[kind.layout], high[kind.layout] = (1, 1, middle + 1, middle + 1), (
            middle - 1, middle - 1, grid - 2, grid - 2,
        )  # fmt: skip
    outside = ((state < low) | (state > high)).any(0)
    if outside.any():
        i = int(outside.argmax())
        return f"{kind.state_names[i]} must be in {low[i]:g}..{high[i]:g}"
    if (state[:, DIRECTION] % QUARTER).any():
        return "direction must be 0, 90, 180 or 270 deg"
    # Nothing stands in anything else.
    free, rows = ~walls(env, grid, state[:, kind.layout]), np.arange(len(state))
    x, y = state[:, AGENT].astype(np.int64).T
    if env == "four_rooms":
        return None if free[rows, y, x].all() else "agent_x, agent_y must not be a wall"
    door, shut = state[:, kind.layout], state[:, LATCH] != OPEN
    held, together = state[:, CARRIED] == 1, (state[:, KEY] == state[:, AGENT]).all(1)
    key_x, key_y = state[:, KEY].astype(np.int64).T
    key_at_door = (state[:, KEY] == door).all(1) & ~held
    if not free[rows, y, x].all() or (shut & (state[:, AGENT] == door).all(1)).any():
        return "agent_x, agent_y must not be a wall or a shut door"
    if not free[rows, key_y, key_x].all() or key_at_door.any() or (held != together).any():
        return "key_x, key_y must be a free cell, and the agent's own where carried is 1"
    return None
