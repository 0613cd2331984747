"""The formats there are. A new one is a file here with `recognises` and `open_source`, and a line
below."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Protocol

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.source import Source
from jepa_wm.data.samples import visible

# name -> module; asked in this order whether they recognise a path, the more particular first
FORMATS = {
    "lerobot": "jepa_wm.data.readers.lerobot",
    "minari": "jepa_wm.data.readers.minari",
    "zarr": "jepa_wm.data.readers.zarr_rows",
    "dino_wm": "jepa_wm.data.readers.dino_wm",
    "robomimic": "jepa_wm.data.readers.robomimic",
    "aloha": "jepa_wm.data.readers.aloha",
    "hdf5": "jepa_wm.data.readers.hdf5",
    "npz": "jepa_wm.data.readers.npz",
}


class Format(Protocol):
    """What a module of this package offers."""

    def recognises(self, path: Path) -> bool:
        """Whether the files look like this format; looks at names alone, those in HDF5 files
        included."""
        ...

    def open_source(self, path: Path) -> Source:
        """The trajectories; UserError naming the file and the remedy if they cannot be read."""
        ...


def format_of(path: Path) -> str | None:
    """The name of the format a path looks like, None for none."""
    return next((name for name in FORMATS if _module(name).recognises(path)), None)


def open_source(path: Path | str, format: str | None = None) -> Source:
    """The trajectories at `path`; their format is recognised from the files unless it is named."""
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if format is not None and format not in FORMATS:
        raise UserError(f"--format {format}: is none of {', '.join(FORMATS)}")
    name = format or format_of(path)
    if name is None:
        inside = (
            next((file for file in sorted(visible(path.glob("*"))) if format_of(file)), None)
            if path.is_dir()
            else None
        )
        remedy = (
            f"it holds {inside.name}: name that"
            if inside
            else f"name one with --format: {', '.join(FORMATS)}"
        )
        raise UserError(f"{path}: no trajectory format is recognised; {remedy}")
    return _module(name).open_source(path)


def _module(name: str) -> Format:
    module: Format = importlib.import_module(FORMATS[name])
    return module
