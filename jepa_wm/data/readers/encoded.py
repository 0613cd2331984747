"""Pictures stored in HDF5 as rows of JPEG or PNG files, as rows of pictures; decoded as they are
read."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.hdf5_filters import unwritten_row
from jepa_wm.data.images import read_picture
from jepa_wm.data.readers.columns import Array, Column, Locked
from jepa_wm.data.readers.hdf5 import tree_arrays

MAGIC = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of JPEG and of PNG files


class EncodedRows:
    """Rows of image files as rows of pictures; what pads a file to the length of others is passed
    over."""

    def __init__(self, files: h5py.Dataset) -> None:
        self._files, self.dtype = files, np.dtype(np.uint8)
        self.shape: tuple[int, ...] = (len(files), *self._picture(0, files[0]).shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        first = rows.indices(len(self._files))[0]
        return np.stack(
            [self._picture(first + i, file) for i, file in enumerate(self._files[rows])]
        )

    def _picture(self, row: int, file: Any) -> np.ndarray:
        content = _bytes(file)
        if not content.startswith(MAGIC):
            where = Path(self._files.file.filename)
            raise UserError(
                f"{where}: row {row} of '{self._files.name}' is no picture; it was cut short: "
                "copy it again"
            )
        return np.asarray(
            read_picture(io.BytesIO(content), f"{self._files.file.filename}, {self._files.name}")
        )


def with_pictures(group: h5py.Group) -> dict[str, Array]:
    """All arrays below a group by their path, as `tree_arrays`, files of pictures decoded."""
    found = tree_arrays(group)
    for name, array in found.items():
        if (
            isinstance(array, h5py.Dataset)
            and Column.of(array).picture
            and unwritten_row(array, 0, len(array)) is not None
        ):
            found[name] = Locked(array.shape, array.dtype, "was never written to its end")

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and _holds_pictures(item):
            found[name] = EncodedRows(item)

    group.visititems(visit)
    return found


def _holds_pictures(dataset: h5py.Dataset) -> bool:
    """Files of equal or padded length are a table of bytes or byte strings, others rows of varying
    length."""
    varying = h5py.check_vlen_dtype(dataset.dtype) == np.uint8 and dataset.ndim == 1
    table = dataset.dtype == np.uint8 and dataset.ndim == 2
    strings = (
        dataset.dtype.kind in "SO"
        and dataset.ndim == 1
        and (dataset.dtype.kind == "S" or _is_bytes(dataset))
    )
    return (
        (varying or table or strings) and len(dataset) > 0 and _bytes(dataset[0]).startswith(MAGIC)
    )


def _is_bytes(dataset: h5py.Dataset) -> bool:
    return h5py.check_string_dtype(dataset.dtype) is not None


def _bytes(file: Any) -> bytes:
    return bytes(file.tobytes()) if isinstance(file, np.ndarray) else bytes(file)
