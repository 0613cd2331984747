"""HDF5 of flat rows: stable-worldmodel's `ep_len` and `ep_offset`, or D4RL's flags on the last row
of an episode."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError, some
from jepa_wm.data.h5 import open_h5
from jepa_wm.data.hdf5_filters import missing_filter, unwritten_row
from jepa_wm.data.readers.columns import Array, Locked
from jepa_wm.data.readers.source import About, FlatRows, episode_lengths, leave_out, reading
from jepa_wm.data.trajectories import ACTION_KINDS, attribute_text

SUFFIXES = (".h5", ".hdf5")
NOT_ROWS = ("ep_len", "ep_offset", "episode_ends")


def recognises(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def open_source(path: Path) -> Hdf5Rows:
    """The file's rows; data sets in groups are named group/name, and what lies under `metadata` is
    passed over."""
    with reading(path):
        file = open_h5(path)
    arrays = tree_arrays(file)
    lengths = episode_lengths(arrays)
    if lengths is None:
        raise UserError(
            f"{path}: nothing says where episodes end: it needs ep_len, episode_ends, or "
            "terminals and timeouts, or "
            f"the layout of robomimic or ALOHA; it has {some(arrays)}"
        )
    rows = {
        name: array
        for name, array in arrays.items()
        if name not in NOT_ROWS and not name.startswith("metadata")
    }
    offsets = np.asarray(arrays["ep_offset"][:]) if "ep_offset" in arrays else None
    names, units = (
        {
            column: tuple(attribute_text(file.attrs[f"{column}_{kind}"]).split())
            for column in ("action", "state")
            if f"{column}_{kind}" in file.attrs
        }
        for kind in ("names", "units")
    )
    fps = file.attrs.get("fps")
    said = attribute_text(file.attrs.get("action_kind", ""))
    kind = next((kind for kind in ACTION_KINDS if kind == said), None)
    about = About(
        float(fps) if fps else None, names, units, action_kind=kind, attributes=dict(file.attrs)
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
                f"{row - first} on; "
                f"{leave_out(number)}"
            )


def tree_arrays(group: h5py.Group) -> dict[str, Array]:
    """All data sets below a group by their path; text is passed over."""
    found: dict[str, Array] = {}

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and item.dtype.kind in "biuf":
            missing = missing_filter(item)
            found[name] = item if missing is None else Locked(item.shape, item.dtype, missing)

    group.visititems(visit)
    return found
