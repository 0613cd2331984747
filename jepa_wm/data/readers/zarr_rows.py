"""Zarr groups of diffusion policy: flat rows under `data`, and `meta/episode_ends`; version 2 or
3, folder or zip."""

from __future__ import annotations

import contextlib
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import READERS, Array, Locked, needs, reading
from jepa_wm.data.readers.rows import FlatRows

MARKS = (".zgroup", "zarr.json")
# what tells of an array, and the key of its type there
ARRAYS = {".zarray": "dtype", "zarr.json": "data_type"}
# Codecs by the start of their names, and the packages that have them.
PACKAGES = {"imagecodecs": "imagecodecs", "zfpy": "numcodecs[zfpy]", "pcodec": "numcodecs[pcodec]"}


@READERS.register("zarr")
class ZarrReader:
    """A zarr group, a folder or a zip file."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.name.endswith(".zarr.zip") or (
            path.is_dir() and any((path / mark).exists() for mark in MARKS)
        )

    @staticmethod
    def open(path: Path) -> FlatRows:
        """The rows; UserError if chunks of the pictures are missing, which zarr would show as
        black.

        A column in a codec that is not installed is there, but locked.
        """
        zarr = needs("zarr", extra="zarr", path=path)
        store = zarr.storage.ZipStore(path, mode="r") if path.suffix == ".zip" else str(path)
        with contextlib.suppress(ImportError):  # zarr knows its codecs only once it is told to
            importlib.import_module("imagecodecs.numcodecs").register_codecs(verbose=False)
        with reading(path):
            group = zarr.open_group(store, mode="r", use_consolidated=False)
            if "meta/episode_ends" not in group:
                raise UserError(
                    f"{path}: meta/episode_ends is missing, so nothing says where episodes end; "
                    "copy it again"
                )
            lengths = np.diff(group["meta/episode_ends"][:], prepend=0)
            prefix = "data/" if "data" in group else ""
            arrays = {
                name: _array(group, f"{prefix}{name}", about)
                for name, about in _tables(path, prefix)
            }
            numbers = {name: array for name, array in arrays.items() if array.dtype.kind in "biuf"}
            rows = FlatRows(path, numbers, lengths)
            # zarr leaves out chunks of zeros and reads missing ones as zeros. Numbers are often
            # zero; a chunk of black pictures is rather one that was lost.
            for name, column in rows.columns.items():
                if not column.picture or column.locked is not None:
                    continue
                array: Any = arrays[name]
                missing = array.nchunks - array.nchunks_initialized
                if missing:
                    raise UserError(
                        f"{path}: {missing} of {array.nchunks} chunks of '{name}' are missing; "
                        "copy it again, or write black ones too (write_empty_chunks)"
                    )
        return rows


def _array(group: Any, name: str, about: dict[str, Any]) -> Array:
    """The array, or a locked one where its codec is not there to open it with."""
    # zarr reports a codec that is not registered as either error, and its name in the text alone.
    try:
        array: Array = group[name]
        return array
    except (ValueError, ImportError) as error:
        codec = re.search(r"codec[^']*'+([^']+)'", str(error), re.IGNORECASE)
        if codec is None and not isinstance(error, ImportError):
            raise
        named = codec[1] if codec else str(error)

        # Shape and type stand in the metadata, whose keys differ between zarr 2 and 3.
        install = "install the package that registers it with zarr"
        for start, package in PACKAGES.items():
            if named.startswith(start):
                install = f"pip install '{package}'"
        dtype = np.dtype(next(about[key] for key in ARRAYS.values() if key in about))
        why = f"is stored by the codec '{named}', which is not installed: {install}"
        return Locked(tuple(about["shape"]), dtype, why)


def _tables(path: Path, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, what its metadata say) of each array of the group, opened or not."""
    if path.suffix == ".zip":
        with ZipFile(path) as archive:
            texts = {
                name: archive.read(name)
                for name in sorted(archive.namelist())
                if Path(name).name in ARRAYS
            }
    else:
        files = [file for mark in ARRAYS for file in (path / prefix).glob(f"*/{mark}")]
        texts = {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(files)}
    for place, text in texts.items():
        folder, _, _ = place.removeprefix(prefix).rpartition("/")
        about = json.loads(text)
        if place.startswith(prefix) and folder and "/" not in folder and "shape" in about:
            yield folder, about
