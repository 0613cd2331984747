"""The table of trajectory formats, and which of them reads a path.

A new one is a class with `recognises` and `open`, registered in a file of its own; third parties
add theirs by `READERS.register`, or by an entry point of the group `jepa_wm.readers`."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from jepa_wm.core.errors import UserError
from jepa_wm.core.registry import Registry
from jepa_wm.data.readers.source import Source
from jepa_wm.data.samples import visible

# Asked in this order whether they recognise a path, the more particular first.
OWN = {
    "lerobot": "jepa_wm.data.readers.lerobot",
    "minari": "jepa_wm.data.readers.minari",
    "zarr": "jepa_wm.data.readers.zarr_rows",
    "dino_wm": "jepa_wm.data.readers.dino_wm",
    "robomimic": "jepa_wm.data.readers.robomimic",
    "aloha": "jepa_wm.data.readers.aloha",
    "hdf5": "jepa_wm.data.readers.hdf5",
    "npz": "jepa_wm.data.readers.npz",
}


class Reader(Protocol):
    """What is registered for a format."""

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
        raise UserError(f"{path}: no trajectory format is recognised; {_remedy(path)}")
    return READERS.get(name).open(path)


def _remedy(path: Path) -> str:
    """What to name instead: a file of the folder that is of a format, else the format."""
    files = sorted(visible(path.glob("*"))) if path.is_dir() else []
    inside = next((file for file in files if format_of(file)), None)
    if inside:
        return f"it holds {inside.name}: name that"
    return f"name one with --format: {', '.join(formats())}"
