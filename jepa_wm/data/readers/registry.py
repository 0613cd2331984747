"""What a trajectory format offers, episodes of columns and what is said of them; the table of
formats, and which of them reads a path.

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
from jepa_wm.core.registry import Registry
from jepa_wm.data.samples import visible
from jepa_wm.data.trajectories import ActionKind

MOST_CHANNELS = 16  # that frames stacked in one picture may have if they are no multiple of three

# Asked in this order whether they recognise a path, the more particular first.
OWN = {
    "lerobot": "jepa_wm.data.readers.lerobot",
    "minari": "jepa_wm.data.readers.hdf5_episodes",
    "zarr": "jepa_wm.data.readers.zarr_rows",
    "dino_wm": "jepa_wm.data.readers.dino_wm",
    "robomimic": "jepa_wm.data.readers.hdf5_episodes",
    "aloha": "jepa_wm.data.readers.hdf5_episodes",
    "hdf5": "jepa_wm.data.readers.hdf5",
    "npz": "jepa_wm.data.readers.npz",
}


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
        sides, whole_bytes, picture = sorted(shape), dtype == np.uint8, False
        if len(shape) == 2:  # grey
            picture = whole_bytes and sides[0] >= 16
        elif len(shape) == 3 and sides[1] >= 8 and sides[0] in (shape[0], shape[2]):
            # Colours, first or last, or frames stacked over time.
            stacked = whole_bytes and sides[0] < sides[1] and sides[0] <= MOST_CHANNELS
            picture = sides[0] in (1, 3, 4) or sides[0] % 3 == 0 or stacked
        elif len(shape) == 4:  # frames of 1 or 3 channels each
            few = shape[0] <= MOST_CHANNELS and shape[3] in (1, 3)
            picture = whole_bytes and few and min(shape[1:3]) >= 8
        return cls(shape, dtype, picture, getattr(array, "locked", None))

    @property
    def size(self) -> int:
        """Numbers of one row."""
        return int(np.prod(self.shape))


@dataclass(frozen=True)
class About:
    """What a format says beside the rows."""

    fps: float | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a column's numbers
    units: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of a column's numbers
    choices: int | None = None  # how many discrete actions there are
    # whether actions are moves or places to go to; None: it does not say
    action_kind: ActionKind | None = None
    # whatever else a file of our own says
    attributes: Mapping[str, object] = field(default_factory=dict)
    terminated: str | None = None  # the column of ends for good, where it has no usual name
    arriving: bool = False  # row t holds the action that led to t instead of the one taken there


class Source(Protocol):
    """Trajectories on disk in some format; nothing but small tables is in memory."""

    path: Path
    lengths: np.ndarray  # [E] frames in each episode
    # [E] what each is called in the set, rising; readers are asked by place, users by number
    numbers: np.ndarray
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


class Reader(Protocol):
    """What is registered for a format, here or by the entry points `jepa_wm.readers` of others."""

    @staticmethod
    def recognises(path: Path) -> bool:
        """Whether the files look like this format; looks at names alone, those in HDF5 files
        included."""
        ...

    @staticmethod
    def open(path: Path) -> Source:
        """The trajectories; UserError naming the file and the remedy if they cannot be read."""
        ...


READERS: Registry[type[Reader]] = Registry("readers", "trajectory format", OWN)


def formats() -> list[str]:
    """The names of all formats in the order in which they are asked: those of others first, which
    may be more particular than `hdf5` or `npz`."""
    return [*(name for name in READERS.names() if name not in OWN), *OWN]


def format_of(path: Path) -> str | None:
    """The name of the format a path looks like, None for none."""
    return next((name for name in formats() if READERS.get(name).recognises(path)), None)


def open_trajectories(path: Path | str, format: str | None = None) -> Source:
    """The trajectories at `path`; their format is recognised from the files unless it is named.

    UserError for a path that is not there and for one of no format that is known."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if format is not None and format not in READERS:
        raise UserError(f"--format {format}: is none of {', '.join(formats())}")
    name = format or format_of(path)
    if name is None:
        # A file of the folder that is of a format, else the format itself.
        files = sorted(visible(path.glob("*"))) if path.is_dir() else []
        inside = next((file.name for file in files if format_of(file)), None)
        remedy = f"name one with --format: {', '.join(formats())}"
        if inside:
            remedy = f"it holds {inside}: name that"
        raise UserError(f"{path}: no trajectory format is recognised; {remedy}")
    return READERS.get(name).open(path)


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
