"""What a trajectory format offers to the rest of the library: episodes of columns, and what is
said of them.

E episodes, L frames of one, N rows of all. Row t of an episode holds what was seen at t and the
action taken there; the last action leads nowhere."""

from __future__ import annotations

import importlib
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import ActionKind

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


@dataclass(frozen=True)
class About:
    """What a format says beside the rows."""

    fps: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a column's numbers
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a column's numbers
    choices: int | None = None  # how many discrete actions there are
    action_kind: ActionKind | None = (
        None  # whether actions are moves or places to go to; None: it does not say
    )
    attributes: Mapping[str, object] = field(
        default_factory=dict
    )  # whatever else a file of our own says
    terminated: str | None = None  # the column of ends for good, where it has no usual name
    arriving: bool = False  # row t holds the action that led to t instead of the one taken there


class Source(Protocol):
    """Trajectories on disk in some format; nothing but small tables is in memory."""

    path: Path
    lengths: np.ndarray  # [E] frames in each episode
    numbers: (
        np.ndarray
    )  # [E] what each is called in the set, rising; readers are asked by place, users by number
    columns: dict[str, Column]
    about: About

    def read(self, column: str, episode: int, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the episode at a place [stop - start, ...]; UserError if they
        are not there."""
        ...


@runtime_checkable
class Checked(Source, Protocol):
    """A source that can tell of rows that are missing without reading them all."""

    def check(self, column: str, episode: int) -> None:
        """UserError if a row that the episode at a place is said to have is missing from a
        column."""
        ...


def leave_out(number: int) -> str:
    """The remedy for one broken episode, by what it is called in the set."""
    return f"repair it, or leave it out with --without {number}"


def needs(module: str, *, extra: str, path: Path) -> Any:
    """The module of an optional dependency; UserError with the command that installs it if it is
    not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"{path}: reading it needs {module}; pip install 'jepa-wm[{extra}]'"
        ) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever a damaged file makes a library raise becomes a UserError with the file's name."""
    try:
        yield
    except UserError:
        raise
    except NotImplementedError as error:
        raise UserError(
            f"{path}: is compressed in a way that cannot be read here ({error}); store it again"
        ) from error
    except (OSError, EOFError, ValueError, RuntimeError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); it is damaged or cut short: copy it again"
        ) from error
