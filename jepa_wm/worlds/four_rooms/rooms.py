"""Four rooms as they may be: a cross of walls with a door in each arm, which layouts are held out,
where walls stop an agent, and the ways from room to room.

Rooms and doors are numbered clockwise: rooms top left, top right, bottom right, bottom left; door
d, of the top, right, bottom and left arm, leads from room d to the next.

One partition of all layouts: each axis of the four door places is cut into blocks of at most 4 px,
and every fifth block of the four axes is held out, no two of them next to each other. Of a
held-out block the rim belongs to neither split, so that in some door a held-out layout is at least
2 px from every training one.

B worlds. Positions are (x, y) in pixels."""

from __future__ import annotations

import numpy as np
from pydantic import model_validator

from jepa_wm.worlds.two_rooms.agents import between_jambs, stopped
from jepa_wm.worlds.two_rooms.rooms import (
    EVERY,
    REMAINDER,
    WALL_HALF,
    Canvas,
    block_of,
    painted,
    upright_wall,
)
from jepa_wm.worlds.world import Split

DOORS = ("top_door_y", "right_door_x", "bottom_door_y", "left_door_x")
UPRIGHT = np.array([True, False, True, False])  # [4] whether a door is in the upright wall
BLOCKS = 4  # in each of the four axes, at least, where there are so many places
STRIDES = np.array([1, 2, 3, 4])  # blocks that differ by 1 in one axis are not both held out


class FourGeometry(Canvas):
    """Where doors may be; the walls cross in the middle. All lengths in pixels."""

    door_padding: int = 5  # of wall on either side of the middle of a door, at least

    @property
    def cross(self) -> int:
        """Where the walls cross, x and y."""
        return self.size // 2

    @property
    def door_places(self) -> tuple[np.ndarray, np.ndarray]:
        """([4], [4]) the first and the last place of each door, whole numbers."""
        arm = self.cross - 2, self.cross + 2  # the pixels next to the crossing
        near = self.border + self.door_padding, arm[0] - self.door_padding
        far = arm[1] + self.door_padding, self.size - 1 - self.border - self.door_padding
        first, last = np.array([near, far, far, near]).T
        return first, last

    @model_validator(mode="after")
    def _doors_fit(self) -> FourGeometry:
        if self.door_padding <= self.door_half:
            raise ValueError(
                f"door_padding {self.door_padding} must be more than door_half "
                f"{self.door_half:g}, or doors meet border and crossing"
            )
        first, last = self.door_places
        if (last <= first).any():
            raise ValueError(
                f"door_padding {self.door_padding} leaves a door no two places in the arms of a "
                f"canvas of size {self.size}; lower it or raise size"
            )
        return self


def in_split(layout: np.ndarray, geometry: FourGeometry, split: Split) -> np.ndarray:
    """[...] bool: whether layouts [..., 4], a place for each door, belong to a split. By content
    alone, whatever seed drew them."""
    total = np.zeros(layout.shape[:-1], np.int64)
    inside = np.ones(layout.shape[:-1], bool)
    first, last = geometry.door_places
    for door in range(4):
        count = int(last[door] - first[door]) + 1
        block, clear, _ = block_of(layout[..., door], int(first[door]), count, blocks=BLOCKS)
        total += STRIDES[door] * block
        inside &= clear
    held_out = total % EVERY == REMAINDER
    return ~held_out if split == "train" else held_out & inside


def draw_four(geometry: FourGeometry, doors: np.ndarray) -> np.ndarray:
    """[B, h, w, 3] uint8 empty rooms with doors at `doors` [B, 4]."""
    cross = np.full(len(doors), geometry.cross)
    upright = upright_wall(geometry, cross, doors[:, UPRIGHT])
    level = upright_wall(geometry, cross, doors[:, ~UPRIGHT]).transpose(0, 2, 1)
    return painted(geometry, upright | level, "colour")


def slide(
    agent: np.ndarray, move: np.ndarray, geometry: FourGeometry, doors: np.ndarray
) -> np.ndarray:
    """[B, 2] where short moves of agents [B, 2] among doors [B, 4] end: x first, then y; what a
    wall forbids is cut off and the rest goes on along it."""
    g, cross = geometry, float(geometry.cross)
    top, right, bottom, left = doors.T
    # Across the upright wall, or between the jambs of a door of the level one.
    x, y = agent.T
    low, high = (np.abs(y - door) <= g.door_half for door in (top, bottom))
    new_x = stopped(x, np.clip(x + move[:, 0], g.low, g.high), cross, low | high)
    new_x = between_jambs(new_x, y, cross, np.where(x > cross, right, left), g.door_half)
    # The same of y, from where x is now.
    low, high = (np.abs(new_x - door) <= g.door_half for door in (left, right))
    new_y = stopped(y, np.clip(y + move[:, 1], g.low, g.high), cross, low | high)
    new_y = between_jambs(new_y, new_x, cross, np.where(y > cross, bottom, top), g.door_half)
    return np.stack([new_x, new_y], 1).astype(np.float32)


def room_of(position: np.ndarray, geometry: FourGeometry) -> np.ndarray:
    """[...] the number of the room of positions [..., 2]; a door is halved between its rooms."""
    right, below = np.moveaxis(position > geometry.cross, -1, 0)
    return np.where(below, np.where(right, 2, 3), np.where(right, 1, 0))


def room_bounds(room: np.ndarray, geometry: FourGeometry) -> tuple[np.ndarray, np.ndarray]:
    """([..., 2], [..., 2]) the lowest and the highest position in each of these rooms [...]."""
    g = geometry
    beyond = np.stack([(room == 1) | (room == 2), room >= 2], -1)  # right of, below the crossing
    return (
        np.where(beyond, g.cross + WALL_HALF, g.low),
        np.where(beyond, g.high, g.cross - WALL_HALF),
    )


def door_middles(doors: np.ndarray, geometry: FourGeometry) -> np.ndarray:
    """[B, 4, 2] positions of the middles of doors [B, 4]."""
    cross = np.full_like(doors, geometry.cross)
    return np.stack([np.where(UPRIGHT, cross, doors), np.where(UPRIGHT, doors, cross)], -1)


def ways(
    agent: np.ndarray, goal: np.ndarray, doors: np.ndarray, geometry: FourGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """([2, B], [2, B]) lengths of the ways clockwise and back from agents to goals [B, 2],
    straight from door to door, and the number of the first door of each, -1 in the goal's room."""
    middles, rows = door_middles(doors, geometry), np.arange(len(agent))
    here, there = room_of(agent, geometry), room_of(goal, geometry)
    lengths, firsts = [], []
    for turn in (1, -1):
        count = (turn * (there - here)) % 4  # doors on this way
        at, length = agent, np.zeros(len(agent), np.float32)
        for number in range(3):
            # Clockwise a room is left through the door of its number, back through that before.
            door = (here + (number if turn == 1 else -1 - number)) % 4
            onto = np.where((number < count)[:, None], middles[rows, door], at)
            length = length + np.linalg.norm(onto - at, axis=1)
            at = onto
        lengths.append(length + np.linalg.norm(goal - at, axis=1))
        firsts.append(np.where(count > 0, (here if turn == 1 else here - 1) % 4, -1))
    return np.stack(lengths).astype(np.float32), np.stack(firsts)


def way_to_go(
    agent: np.ndarray, goal: np.ndarray, doors: np.ndarray, geometry: FourGeometry
) -> np.ndarray:
    """[B] float32 length in pixels of the shortest way from agents to goals [B, 2], through the
    middles of doors [B, 4] where any are on it."""
    shortest: np.ndarray = ways(agent, goal, doors, geometry)[0].min(0)
    return shortest


def next_stop(
    agent: np.ndarray, goal: np.ndarray, doors: np.ndarray, geometry: FourGeometry
) -> np.ndarray:
    """[B, 2] where to walk straight to on the shortest way from agents to goals [B, 2]: just
    behind the next door, or the goal itself. An agent that is in a door leaves it first, as jambs
    would hold it."""
    lengths, firsts = ways(agent, goal, doors, geometry)
    door = firsts[lengths.argmin(0), np.arange(len(agent))]
    middles, cross = door_middles(doors, geometry), geometry.cross
    # The door that an agent is in: of the wall whose faces it is between, on the near arm.
    in_upright, in_level = np.moveaxis(np.abs(agent - cross) < WALL_HALF, -1, 0)
    own = np.where(agent[:, 1] > cross, 2, 0)
    own = np.where(in_level, np.where(agent[:, 0] > cross, 1, 3), own)
    inside = in_upright | in_level
    through = (door >= 0) & (~inside | (own == door))
    stop = np.where(through, door, own)
    # Its mouth on the far side for who goes through, on the near side for who leaves it.
    normal = np.where(UPRIGHT[stop][:, None], [1.0, 0.0], [0.0, 1.0])  # [B, 2]
    side = np.where((agent > cross)[np.arange(len(agent)), np.where(UPRIGHT[stop], 0, 1)], 1, -1)
    side = np.where(through, -side, side)
    mouth = middles[np.arange(len(agent)), stop] + (side * (WALL_HALF + 0.5))[:, None] * normal
    return np.where((through | inside)[:, None], mouth, goal).astype(np.float32)
