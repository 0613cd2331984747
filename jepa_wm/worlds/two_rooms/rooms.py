"""Two rooms as they may be: where walls and doors are, which layouts are for training and which
are held out, and what they look like, with distractions that carry nothing about the task.

One partition of all pairs (wall x, door y): their plane is cut into blocks of 5 x 5 px, and every
fifth block, a knight's move apart, is held out, but for the outermost doors: what is held out lies
between what training meets, also where the wall is fixed. Of a held-out block the rim belongs to
neither split, so that a held-out layout is at least 2 px from every training one.

B worlds, h and w canvas height and width, which are equal, W waves. Levels are standard deviations
in units where an image spans -1..1."""

from __future__ import annotations

from typing import Literal

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.settings import Section
from jepa_wm.worlds.world import Split

BLOCK = 5  # px, side of a block; an axis that is too short for enough of them gets smaller ones
EVERY = 5  # block (i, j) is held out where 2 i + j leaves REMAINDER: one in five, none touching
REMAINDER = 1

WALL_HALF = 1.5  # px, half the wall's thickness

WAVES = 6  # plane waves summed into one blotch pattern

AGENT_SIGMA = 1.3  # px, standard deviation of the rendered agent
RenderStyle = Literal["colour", "ebjepa"]
STYLES: dict[str, tuple[tuple[float, ...], ...]] = {  # colours of background, wall and agent
    "colour": ((24, 26, 38), (84, 150, 190), (255, 120, 60)),
    # EB-JEPA's two channels as red and green
    "ebjepa": ((0, 0, 0), (0, 255, 0), (255, np.nan, np.nan)),
}


class Canvas(Section):
    """What all worlds of rooms have: a square with a border, doors and an agent's speed. All
    lengths in pixels."""

    size: int = 65
    border: int = 5  # the agent stays in [border, size - 1 - border]
    door_half: float = 4.0
    max_step: float = 2.45  # longest move in one step; longer actions are scaled back to it
    action_scale: float = 1.0  # next = position + action_scale * action

    @property
    def low(self) -> float:
        return float(self.border)

    @property
    def high(self) -> float:
        return float(self.size - 1 - self.border)


class Geometry(Canvas):
    """Where walls and doors may be. All lengths in pixels."""

    wall_padding: int = 20  # wall x is drawn from [padding, size - padding)
    door_padding: int = 10
    fixed_wall: int | None = None  # a wall that never moves (DINO-WM's setting), else random


class NoiseLevels(Section):
    """How strong each distraction is, in units where an image spans -1..1; all zero means a clean
    world."""

    brightness: float = 0.0  # per-frame gain is 1 + brightness * normal
    pixel: float = 0.0  # standard deviation, independent for each pixel and channel
    blotches: float = 0.0  # standard deviation of the low-frequency coloured pattern
    wavelength: tuple[float, float] = (16.0, 64.0)  # px, range of the waves in the pattern
    drift: float = 0.2  # rad per step, spread of each wave's steady motion
    phase_noise: float = 0.7  # rad per step, random part of each wave's motion

    @property
    def any(self) -> bool:
        return self.brightness > 0 or self.pixel > 0 or self.blotches > 0


def in_split(layout: np.ndarray, geometry: Geometry, split: Split) -> np.ndarray:
    """[...] bool: whether layouts [..., 2], wall x and door y in pixels, belong to a split.

    By content alone, whatever seed drew them, and the same for a fixed wall as for random ones.
    Blocks of fewer than 3 px have no rim, and a fixed wall has none on its own axis."""
    g = geometry
    i, wall_inside, _ = block_of(
        layout[..., 0], g.wall_padding, g.size - 2 * g.wall_padding, blocks=EVERY
    )
    j, door_inside, last = block_of(
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


def block_of(
    value: np.ndarray, first: int, count: int, *, blocks: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """(block of each place on an axis of `count` places, whether it is inside the block's rim, the
    last block), of at least so many `blocks` where there are so many places."""
    side = min(BLOCK, max(1, count // blocks))
    rim = 1 if side >= 3 else 0
    block = np.floor((value - first) / side).astype(np.int64)
    within = value - first - block * side
    return block, (within >= rim) & (within <= side - 1 - rim), (count - 1) // side


def draw_rooms(
    geometry: Geometry, wall_x: np.ndarray, door_y: np.ndarray, style: RenderStyle
) -> np.ndarray:
    """[B, h, w, 3] uint8 empty rooms with walls at `wall_x` and doors at `door_y` [B]."""
    return painted(geometry, upright_wall(geometry, wall_x, door_y[:, None]), style)


def upright_wall(geometry: Canvas, wall_x: np.ndarray, door_y: np.ndarray) -> np.ndarray:
    """[B, h, w] bool: where walls are at `wall_x` [B] with n doors each at `door_y` [B, n]."""
    axis = np.arange(geometry.size)
    wall = np.abs(axis[None] - wall_x[:, None]) <= WALL_HALF
    door = (np.abs(axis - door_y[..., None]) <= geometry.door_half).any(1)
    return wall[:, None, :] & ~door[:, :, None]


def painted(geometry: Canvas, walls: np.ndarray, style: RenderStyle) -> np.ndarray:
    """[B, h, w, 3] uint8 empty rooms with these walls [B, h, w] and the border."""
    background, wall_colour, _ = STYLES[style]
    axis = np.arange(geometry.size)
    outside = (axis < geometry.border) | (axis > geometry.size - 1 - geometry.border)
    solid = walls | outside[None, :, None] | outside[None, None, :]
    return np.where(
        solid[..., None], np.array(wall_colour, np.uint8), np.array(background, np.uint8)
    )


def draw_agents(rooms: np.ndarray, agent: np.ndarray, style: RenderStyle) -> np.ndarray:
    """[B, h, w, 3] uint8 rooms with an agent in each, at `agent` [B, 2]."""
    return draw_dots(rooms, agent, STYLES[style][2])


def draw_dots(rooms: np.ndarray, at: np.ndarray, rgb: tuple[float, ...]) -> np.ndarray:
    """[B, h, w, 3] uint8 rooms with a dot of one colour in each, at `at` [B, 2]."""
    axis = np.arange(rooms.shape[1], dtype=np.float32)
    bell_x = np.exp(-((axis - at[:, :1]) ** 2) / (2 * AGENT_SIGMA**2))
    bell_y = np.exp(-((axis - at[:, 1:]) ** 2) / (2 * AGENT_SIGMA**2))
    colour = np.array(rgb, np.float32)
    image = rooms.copy()
    for b in range(len(at)):  # only the few pixels that the dot touches are mixed
        rows, cols = np.nonzero(bell_y[b] > 1e-3)[0], np.nonzero(bell_x[b] > 1e-3)[0]
        patch = (slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1))
        alpha = np.outer(bell_y[b, patch[0]], bell_x[b, patch[1]])[..., None]
        under = image[b][patch].astype(np.float32)
        gap = np.where(np.isnan(colour), 0, colour - under)  # nan: that channel knows no agent
        image[b][patch] = np.rint(under + alpha * gap).astype(np.uint8)
    return image


class Distraction:
    """The distraction of a batch of worlds: seeded per world, advanced once per step, applied to
    rendered frames."""

    def __init__(self, levels: NoiseLevels, size: int, seeds: np.ndarray) -> None:
        self.levels, self.size = levels, size
        if not levels.any:
            return
        # What drifts and what flickers draw apart, so that rendering twice does not change where
        # blotches go.
        self._flicker = [np.random.default_rng([int(seed), 1]) for seed in seeds]
        self._generators = [np.random.default_rng([int(seed), 4]) for seed in seeds]
        low, high = levels.wavelength
        draws = [r.random((WAVES, 3)) for r in self._generators]
        u = np.array(draws, np.float32)  # [B, W, 3]
        angle, length = u[..., 0] * np.pi * 2, low * (high / low) ** u[..., 1]
        self._frequency = (
            2 * np.pi / length[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        )  # [B, W, 2]
        self._phase = u[..., 2] * np.pi * 2  # [B, W]
        colour = np.array([r.standard_normal((WAVES, 3)) for r in self._generators], np.float32)
        # One wave has variance 1/2: scale so that the pattern's standard deviation over space and
        # channels is 1.
        self._colour = colour / np.sqrt(
            (colour**2).sum(1, keepdims=True).mean(2, keepdims=True) / 2
        )
        self._drift = (
            np.array([r.standard_normal(WAVES) for r in self._generators], np.float32)
            * levels.drift
        )

    def advance(self) -> None:
        """One step of drift."""
        if self.levels.any:
            shake = np.array([r.standard_normal(WAVES) for r in self._generators], np.float32)
            self._phase = self._phase + self._drift + self.levels.phase_noise * shake

    def apply(self, frames: np.ndarray) -> np.ndarray:
        """[B, h, w, 3] uint8 frames with brightness, blotches and pixel noise; a new draw at every
        call."""
        if not self.levels.any:
            return frames
        out = frames.astype(np.float32)
        for b, generator in enumerate(self._flicker):
            image = out[b]  # span 0..255, so a level of 1 is 127.5
            image *= 1 + self.levels.brightness * generator.standard_normal(dtype=np.float32)
            image += (127.5 * self.levels.blotches) * self._blotches(b)
            image += (127.5 * self.levels.pixel) * generator.standard_normal(
                image.shape, dtype=np.float32
            )
        return np.clip(out, 0, 255).astype(np.uint8)

    def _blotches(self, b: int) -> np.ndarray:
        """[h, w, 3] pattern of world b, by cos(u + v) = cos u cos v - sin u sin v: two thin matrix
        products."""
        axis = np.arange(self.size, dtype=np.float32)
        along_x = self._frequency[b, :, :1] * axis + self._phase[b][:, None]  # [W, w]
        along_y = self._frequency[b, :, 1:] * axis
        left = np.concatenate([np.cos(along_y), -np.sin(along_y)]).T.astype(np.float32)  # [h, 2W]
        right = np.concatenate([np.cos(along_x), np.sin(along_x)]).astype(np.float32)  # [2W, w]
        colour = np.concatenate([self._colour[b], self._colour[b]])  # [2W, 3]
        basis = (right[:, :, None] * colour[:, None, :]).reshape(2 * WAVES, -1)  # [2W, w*3]
        return (left @ basis).reshape(self.size, self.size, 3)
