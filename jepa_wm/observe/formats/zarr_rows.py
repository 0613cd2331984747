"""Zarr groups of diffusion policy: flat rows under `data`, and `meta/episode_ends`; version 2 or 3, folder or zip."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.observe.formats.source import FlatRows, needs, reading

MARKS = (".zgroup", "zarr.json")


def recognises(path: Path) -> bool:
    return path.name.endswith(".zarr.zip") or (path.is_dir() and any((path / mark).exists() for mark in MARKS))


def open_source(path: Path) -> FlatRows:
    """The rows; UserError if chunks of the pictures are missing, which zarr would show as black."""
    zarr = needs("zarr", extra="zarr", path=path)
    store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else str(path)
    with reading(path):
        group = zarr.open_group(store, mode="r")
        if "meta/episode_ends" not in group:
            raise UserError(f"{path}: meta/episode_ends is missing, so nothing says where episodes end; copy it again")
        lengths = np.diff(group["meta/episode_ends"][:], prepend=0)
        data = group.get("data", group)
        rows = FlatRows(path, {name: array for name, array in data.arrays() if array.dtype.kind in "biuf"}, lengths)
        for name, column in rows.columns.items():
            there, whole = data[name].nchunks_initialized, data[name].nchunks
            if column.picture and there < whole:
                raise UserError(f"{path}: {whole - there} of {whole} chunks of '{name}' are missing; copy it again")
    return rows
