"""HDF5 of flat rows: stable-worldmodel's `ep_len` and `ep_offset`, or D4RL's flags on the last row
of an episode."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jepa_wm.core.errors import UserError, listed
from jepa_wm.data.hdf5 import missing_filter, open_h5, unwritten_row
from jepa_wm.data.images import read_picture
from jepa_wm.data.readers.registry import READERS, About, Array, Column, Locked, leave_out, reading
from jepa_wm.data.readers.rows import TABLES, FlatRows, episode_lengths
from jepa_wm.data.trajectories import ACTION_KINDS, attribute_text

SUFFIXES = (".h5", ".hdf5")
MAGIC = (b"\xff\xd8\xff", b"\x89PNG")  # the first bytes of JPEG and of PNG files


@READERS.register("hdf5")
class Hdf5Reader:
    """Any other HDF5 file."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.is_file() and path.suffix.lower() in SUFFIXES

    @staticmethod
    def open(path: Path) -> Hdf5Rows:
        """The file's rows; data sets in groups are named group/name, and what lies under
        `metadata` is passed over."""
        with reading(path):
            file = open_h5(path)
        arrays = tree_arrays(file)
        lengths = episode_lengths(arrays)
        if lengths is None:
            raise UserError(
                f"{path}: nothing says where episodes end: it needs ep_len, episode_ends, or "
                "terminals and timeouts, or the layout of robomimic or ALOHA; it has "
                f"{listed(arrays)}"
            )
        rows = {
            name: array
            for name, array in arrays.items()
            if name not in TABLES and not name.startswith("metadata")
        }
        offsets = np.asarray(arrays["ep_offset"][:]) if "ep_offset" in arrays else None

        # What a file of our own says of itself.
        text = {name: attribute_text(value) for name, value in file.attrs.items()}
        fps, kind = file.attrs.get("fps"), text.get("action_kind")
        about = About(
            float(fps) if fps else None,
            names={"state": tuple(text.get("state_names", "").split())},
            units={"state": tuple(text.get("state_units", "").split())},
            action_kind=next((known for known in ACTION_KINDS if known == kind), None),
            attributes=dict(file.attrs),
        )
        return Hdf5Rows(path, rows, lengths, offsets=offsets, about=about)


class Hdf5Rows(FlatRows):
    """Flat rows of an HDF5 file."""

    def check(self, column: str, episode: int) -> None:
        """UserError where a row of the episode was never written."""
        first, array = int(self.offsets[episode]), self._arrays[column]
        stop = first + int(self.lengths[episode])
        row = unwritten_row(array, first, stop) if isinstance(array, h5py.Dataset) else None
        if row is not None:
            number = int(self.numbers[episode])
            raise UserError(
                f"{self.path}: '{column}' of episode {number} was never written from its row "
                f"{row - first} on; {leave_out(number)}"
            )


def tree_arrays(group: h5py.Group) -> dict[str, Array]:
    """All data sets below a group by their path; text is passed over."""
    arrays: dict[str, Array] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf":
            missing = missing_filter(item)
            arrays[name] = item if missing is None else Locked(item.shape, item.dtype, missing)

    group.visititems(visit)
    return arrays


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
        content, file_name = _bytes(file), self._files.file.filename
        if not content.startswith(MAGIC):
            raise UserError(
                f"{file_name}: row {row} of '{self._files.name}' is no picture; it was cut short: "
                "copy it again"
            )
        name = f"{file_name}, {self._files.name}"
        return np.asarray(read_picture(io.BytesIO(content), name))


def with_pictures(group: h5py.Group) -> dict[str, Array]:
    """All arrays below a group by their path, as `tree_arrays`, files of pictures decoded."""
    arrays = tree_arrays(group)
    for name, array in arrays.items():
        if not isinstance(array, h5py.Dataset) or not Column.of(array).picture:
            continue
        if unwritten_row(array, 0, len(array)) is not None:
            arrays[name] = Locked(array.shape, array.dtype, "was never written to its end")

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and _holds_pictures(item):
            arrays[name] = EncodedRows(item)

    group.visititems(visit)
    return arrays


def _holds_pictures(dataset: h5py.Dataset) -> bool:
    """Files of equal or padded length are a table of bytes or byte strings, others rows of varying
    length."""
    kind = dataset.dtype
    if dataset.ndim == 2:
        fits = kind == np.uint8
    else:
        text = kind.kind == "S" or h5py.check_string_dtype(kind) is not None
        fits = dataset.ndim == 1 and (text or h5py.check_vlen_dtype(kind) == np.uint8)
    return bool(fits and len(dataset) and _bytes(dataset[0]).startswith(MAGIC))


def _bytes(file: Any) -> bytes:
    return bytes(file.tobytes()) if isinstance(file, np.ndarray) else bytes(file)
