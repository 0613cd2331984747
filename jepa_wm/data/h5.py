"""Opening HDF5 files, also on disks without file locks, which the HDF5 library asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import h5py

from jepa_wm.core.lock import NO_LOCKS, tell_of_no_locks


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
