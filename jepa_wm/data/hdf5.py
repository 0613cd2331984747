"""HDF5 files: opened also on disks without file locks, which the HDF5 library asks for; and what a
data set in them lacks, a filter that it needs to be read with, or rows that were never written."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Literal

import h5py

from jepa_wm.core.files import NO_LOCKS, tell_of_no_locks

# Registered filters that the package hdf5plugin has: bzip2, blosc, LZ4, bitshuffle, ZFP,
# Zstandard, SZ, FCIDECOMP, SZ3, blosc2, SPERR. Those of HDF5 itself have numbers below 256.
PLUGIN = {307, 32001, 32004, 32008, 32013, 32015, 32017, 32018, 32024, 32026, 32028}


def open_h5(path: Path | str, mode: Literal["r", "w"] = "r") -> h5py.File:
    """The file, opened without a lock where its disk has none; raises what h5py raises else."""
    try:
        return h5py.File(path, mode)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        if mode == "w":
            tell_of_no_locks(Path(path))
        return h5py.File(path, mode, locking=False)


def missing_filter(dataset: h5py.Dataset) -> str | None:
    """What to install to read a data set, None where nothing is missing; hdf5plugin is used where
    it is there."""
    stored = dataset.id.get_create_plist()
    filters = [stored.get_filter(i) for i in range(stored.get_nfilters())]
    if all(h5py.h5z.filter_avail(number) for number, *_ in filters):
        return None
    with contextlib.suppress(ImportError):
        importlib.import_module("hdf5plugin")
    for number, _, _, name in filters:
        if not h5py.h5z.filter_avail(number):
            remedy = "install its plugin, see HDF5_PLUGIN_PATH"
            if number in PLUGIN:
                remedy = "pip install hdf5plugin"
            called = name.decode("utf-8", "replace").split(";")[0] or "without a name"
            return (
                f"is stored by the HDF5 filter {number} ({called}), which is not installed: "
                f"{remedy}"
            )
    return None


def unwritten_row(dataset: h5py.Dataset, start: int, stop: int) -> int | None:
    """The first of some rows that was never written, though the data set has room for it and shows
    0; None if all are.

    A recorder that makes room beforehand and is killed leaves such rows.
    """
    if start >= stop or not dataset.size or dataset.is_virtual or dataset.external:
        return None
    if dataset.chunks is None:
        return None if dataset.id.get_storage_size() else start
    step, rest = dataset.chunks[0], (0,) * (dataset.ndim - 1)
    for row in range(start // step * step, stop, step):
        if dataset.id.get_chunk_info_by_coord((row, *rest)).byte_offset is None:
            return max(row, start)
    return None
