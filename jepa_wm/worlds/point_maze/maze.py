"""The mazes of Gymnasium-Robotics' PointMaze: their maps and physics, shortest ways through them,
and what they look like from above.

B positions, R rows and C columns of the map, N free cells, K gates (the middles of the edges that
two free cells share), h and w frame height and width, which are equal. Positions are (x, y) in m,
x to the right, y up, the middle of the map at (0, 0); a cell is 1 m wide. In pictures x and y are
in pixels, y down."""

from __future__ import annotations

import io
from contextlib import redirect_stderr
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jepa_wm.core.errors import UserError

Name = Literal["u", "medium", "large"]
MAPS: dict[Name, str] = {"u": "U_MAZE", "medium": "MEDIUM_MAZE", "large": "LARGE_MAZE"}
# What PointMazeEnv of the package sets: a cell's side, and the height of walls in cells.
SCALING, HEIGHT = 1.0, 0.4

INSET = 0.35  # m, places are drawn so far from the middle of their cell: the ball touches no wall
BEYOND = 0.25  # m behind a gate, where whoever passes it aims at
INSIDE = 0.499  # m, from the middle of a cell to where its edge is still inside
SIDES = np.array([(-1, 0), (1, 0), (0, -1), (0, 1)])  # rows and columns to a cell's neighbours

FLOOR, WALL, BALL = (24, 26, 38), (84, 150, 190), (255, 120, 60)
BORDER = 0.5  # m of the outermost walls that are shown
BALL_RADIUS, LEAST_RADIUS = 0.2, 1.5  # m, as the package draws it, and px, to be visible at all
FINE = 8  # samples along each side of a pixel, for smooth edges of walls


class Maze:
    """One map, with the shortest ways through its free cells and a picture of it."""

    def __init__(self, name: Name) -> None:
        self.map = getattr(_package()[0], MAPS[name])
        self.free = np.array(self.map) == 0  # [R, C]
        self.cells = np.argwhere(self.free)  # [N, 2] row and column
        self._number = np.full(self.free.shape, -1)  # [R, C] of each free cell
        self._number[self.free] = np.arange(len(self.cells))
        self._find_gates()

    def _find_gates(self) -> None:
        """Gates, those of each cell, and the ways between all of them."""
        beside = self.cells[:, None] + SIDES  # [N, 4, 2]
        neighbours = self._number[beside[..., 0], beside[..., 1]]  # [N, 4], -1: wall
        self.beside = np.zeros((len(self.cells),) * 2, bool)  # [N, N] whether cells share an edge
        cell, side = np.nonzero(neighbours >= 0)
        self.beside[cell, neighbours[cell, side]] = True
        # A gate belongs to two cells; a wall's, number K, lies infinitely far.
        pairs = np.argwhere(np.triu(self.beside))  # [K, 2]
        count = len(pairs)
        number = np.full(self.beside.shape, count)
        number[pairs[:, 0], pairs[:, 1]] = number[pairs[:, 1], pairs[:, 0]] = np.arange(count)
        self._gates = np.full(neighbours.shape, count)  # [N, 4]
        self._gates[cell, side] = number[cell, neighbours[cell, side]]
        middles = self.middle(self.cells)
        self._middle = np.full((count + 1, 2), np.inf)  # [K + 1, 2]
        self._middle[:count] = middles[pairs].mean(1)

        # Within a cell ways are straight; between gates they are the shortest there are.
        self._between = np.full((count + 1, count + 1), np.inf)
        for gates in self._gates:
            own = gates[gates < count]
            apart = self._middle[own, None] - self._middle[own]
            self._between[np.ix_(own, own)] = np.linalg.norm(apart, axis=-1)
        _shorten(self._between)

    @cached_property
    def cell_steps(self) -> np.ndarray:
        """[N, N] how many cells each cell is from each other, from one to a neighbour."""
        steps = np.where(self.beside, 1.0, np.inf)
        np.fill_diagonal(steps, 0)
        _shorten(steps)
        return steps

    def middle(self, cells: np.ndarray) -> np.ndarray:
        """[..., 2] positions of the middles of cells, row and column [..., 2]."""
        rows, columns = self.free.shape
        x = cells[..., 1] + 0.5 - columns / 2
        return np.stack([x, rows / 2 - 0.5 - cells[..., 0]], -1)

    def cell(self, position: np.ndarray) -> np.ndarray:
        """[...] numbers of the free cells of positions [..., 2], -1 where there is none."""
        rows, columns = self.free.shape
        row = np.floor(rows / 2 - position[..., 1]).astype(int)
        column = np.floor(position[..., 0] + columns / 2).astype(int)
        inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        held: np.ndarray = self._number[np.where(inside, row, 0), np.where(inside, column, 0)]
        return held

    def nearest_free(self, position: np.ndarray) -> np.ndarray:
        """[B, 2] the places in free cells that are nearest to positions [B, 2]."""
        middles = self.middle(self.cells)  # [N, 2]
        inside = np.clip(position[:, None], middles - INSIDE, middles + INSIDE)  # [B, N, 2]
        nearest = np.linalg.norm(inside - position[:, None], axis=2).argmin(1)
        places: np.ndarray = inside[np.arange(len(position)), nearest].astype(np.float32)
        return places

    def place(self, r: np.random.Generator, cell: int) -> np.ndarray:
        """[2] a place in a cell, uniform where the ball touches no wall."""
        return self.middle(self.cells[cell]) + r.uniform(-INSET, INSET, 2)

    def way(self, position: np.ndarray, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """([B, 2] next waypoints, [B] lengths in m) of the ways from positions to goals [B, 2].

        A way is straight within two neighbouring cells, and leads through the middles of their
        edges where there are more. Raises ValueError for what lies in a wall."""
        here, there = self.cell(position), self.cell(goal)
        if (here < 0).any() or (there < 0).any():
            raise ValueError("a way leads from a free cell to a free cell, not into a wall")

        # The best of all pairs of a gate out of this cell and a gate into that of the goal.
        first, last = self._gates[here], self._gates[there]  # [B, 4]
        before = np.linalg.norm(self._middle[first] - position[:, None], axis=2)
        after = np.linalg.norm(self._middle[last] - goal[:, None], axis=2)
        between = self._between[first[:, :, None], last[:, None]]
        lengths = before[:, :, None] + between + after[:, None]  # [B, 4, 4]
        rows, best = np.arange(len(here)), lengths.reshape(len(here), -1).argmin(1)
        gate = self._middle[first[rows, best // 4]]
        length = lengths.reshape(len(here), -1)[rows, best]

        # At the gate itself there is nothing to walk to any more: aim behind it.
        outward = SIDES[best // 4][:, ::-1] * (1, -1)
        straight = (here == there) | self.beside[here, there]
        waypoint = np.where(straight[:, None], goal, gate + BEYOND * outward)
        length = np.where(straight, np.linalg.norm(goal - position, axis=1), length)
        return waypoint.astype(np.float32), length.astype(np.float32)

    # ------------------------------------------------------------ pictures

    def pixels_per_metre(self, size: int) -> float:
        """In a picture of `size` px."""
        return size / (max(self.free.shape) - 2 + 2 * BORDER)

    def to_pixels(self, position: np.ndarray, size: int) -> np.ndarray:
        """[..., 2] where positions [..., 2] lie in a picture of `size` px: x, y down, the middle
        of a pixel at its whole number."""
        down = position * (1.0, -1.0)
        pixels: np.ndarray = size / 2 - 0.5 + self.pixels_per_metre(size) * down
        return pixels

    @lru_cache(maxsize=4)  # noqa: B019  (mazes are few and live as long as the program)
    def background(self, size: int) -> np.ndarray:
        """[h, w, 3] float32: floor and walls, which also fill what lies outside the map."""
        along = ((np.arange(size * FINE) + 0.5) / FINE - size / 2) / self.pixels_per_metre(size)
        grid = np.stack(np.meshgrid(along, -along), -1)
        clear = (self.cell(grid) >= 0).reshape(size, FINE, size, FINE).mean((1, 3))[..., None]
        return (clear * np.array(FLOOR) + (1 - clear) * np.array(WALL)).astype(np.float32)

    def draw(self, position: np.ndarray, size: int) -> np.ndarray:
        """[B, h, w, 3] uint8: the maze from above with its ball at positions [B, 2]."""
        ground = self.background(size)
        frames = np.repeat(np.rint(ground).astype(np.uint8)[None], len(position), 0)
        radius = max(BALL_RADIUS * self.pixels_per_metre(size), LEAST_RADIUS)
        centre = self.to_pixels(position.astype(np.float64), size)  # [B, 2]

        # Only the pixels around the ball change; their share of it falls off over a pixel.
        reach = int(np.ceil(radius)) + 1
        corner = np.clip(np.rint(centre).astype(int) - reach, 0, size - 2 * reach - 1)
        patch = corner[:, None] + np.arange(2 * reach + 1)[:, None]  # [B, side, 2] x and y
        dx, dy = np.moveaxis(patch - centre[:, None], 2, 0)
        away = np.hypot(dx[:, None], dy[:, :, None])  # [B, side, side]
        share = np.clip(radius + 0.5 - away, 0, 1)[..., None]
        xs, ys = patch[:, None, :, 0], patch[:, :, None, 1]
        mixed = ground[ys, xs] * (1 - share) + share * np.array(BALL)
        frames[np.arange(len(position))[:, None, None], ys, xs] = np.rint(mixed)
        return frames


@lru_cache
def maze_of(name: Name) -> Maze:
    """The maze of this name; UserError where the package is missing."""
    return Maze(name)


@lru_cache
def physics_of(name: Name) -> Any:
    """The MuJoCo model of this maze, built by the package from its own map and assets."""
    maps, maze, mujoco = _package()
    asset = Path(maze.__file__).parents[1] / "assets" / "point" / "point.xml"
    # It hands over a file in the folder for temporary ones, which it never removes.
    _, file = maze.Maze.make_maze(str(asset), getattr(maps, MAPS[name]), SCALING, HEIGHT)
    try:
        return mujoco.MjModel.from_xml_path(file)
    finally:
        Path(file).unlink()


def _package() -> tuple[Any, Any, Any]:
    """(the package's maps, its mazes, MuJoCo)."""
    try:
        with redirect_stderr(io.StringIO()):  # it greets with news of robot hands
            from gymnasium_robotics.envs.maze import maps, maze_v4
        import mujoco
    except ImportError as error:
        raise UserError(
            f"world.name point_maze needs Gymnasium-Robotics and MuJoCo ({error}): pip install "
            "'jepa-wm[mazes]'"
        ) from error
    return maps, maze_v4, mujoco


def _shorten(ways: np.ndarray) -> None:
    """Make one-step lengths [n, n] the lengths of the shortest ways, in place (Floyd, 1962)."""
    for via in range(len(ways)):
        np.minimum(ways, ways[:, via, None] + ways[via], out=ways)
