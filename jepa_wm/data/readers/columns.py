"""What every row of a set has: arrays to read it from, and which of them hold pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from jepa_wm.core.errors import UserError

MOST_CHANNELS = 16  # that frames stacked in one picture may have if they are no multiple of three


class Array(Protocol):
    """What HDF5 data sets, zarr arrays, memory maps and streamed members of an archive have in
    common."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> Any: ...
    def __getitem__(self, rows: slice, /) -> Any: ...


@dataclass(frozen=True)
class Locked:
    """An array that is there, but cannot be read before something is installed."""

    shape: tuple[int, ...]
    dtype: np.dtype
    locked: str  # how it is stored, and what to install

    def __getitem__(self, rows: slice, /) -> Any:
        raise UserError(self.locked)


@dataclass(frozen=True)
class Column:
    """One kind of number or picture that every row has."""

    shape: tuple[int, ...]  # of one row
    dtype: np.dtype
    picture: bool
    locked: str | None = None  # why it cannot be read here, and what to install

    @classmethod
    def of(cls, array: Array) -> Column:
        """The column of an array [n, ...]; pictures are told from numbers by their shape."""
        shape, dtype = tuple(array.shape[1:]), np.dtype(array.dtype)
        sides = sorted(shape)
        locked = getattr(array, "locked", None)
        frames = len(shape) == 3 and sides[1] >= 8 and sides[0] in (shape[0], shape[2])
        coloured = frames and (sides[0] in (1, 3, 4) or sides[0] % 3 == 0)
        stacked = (
            frames and dtype == np.uint8 and sides[0] < sides[1] and sides[0] <= MOST_CHANNELS
        )
        grey = len(shape) == 2 and dtype == np.uint8 and sides[0] >= 16
        apart = (
            len(shape) == 4 and dtype == np.uint8 and shape[3] in (1, 3) and min(shape[1:3]) >= 8
        )  # k frames each
        return cls(
            shape,
            dtype,
            coloured or stacked or grey or (apart and shape[0] <= MOST_CHANNELS),
            locked,
        )
