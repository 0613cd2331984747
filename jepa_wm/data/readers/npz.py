"""NumPy archives: one .npz of flat rows or of [E, L, ...] arrays, or a folder of one .npz an
episode.

Flat rows need a table of ends (`episode_ends`, `ep_len`, or OGBench's `terminals`); without one an
archive is one episode. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import mapped
from jepa_wm.data.readers.registry import READERS, About, Column, Source, reading
from jepa_wm.data.readers.rows import TABLES, EpisodeArrays, FlatRows, episode_lengths, numbered
from jepa_wm.data.samples import is_hidden, visible

ACTIONS = ("action", "actions")


@READERS.register("npz")
class NpzReader:
    """An archive, or a folder of archives."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return path.suffix == ".npz" or (path.is_dir() and any(visible(path.glob("*.npz"))))

    @staticmethod
    def open(path: Path) -> Source:
        if path.is_dir():
            stems, numbers = numbered([file.stem for file in visible(path.glob("*.npz"))])
            files = [path / f"{stem}.npz" for stem in stems]
            lengths = [_rows(archive(file)) for file in files]
            about = _about(archive(files[0]))
            return EpisodeArrays(
                path, lambda e: archive(files[e]), lengths, about=about, numbers=numbers
            )
        arrays = archive(path)

        # Flat rows with a table of ends, arrays [E, L, ...], or one episode.
        ends = episode_lengths(arrays)
        if ends is not None:
            flat = {name: array for name, array in arrays.items() if name not in TABLES}
            return FlatRows(path, flat, ends)
        together = _episodes_by_frames(arrays)
        if together is not None:
            flat = {
                name: array.merged()
                for name, array in arrays.items()
                if array.shape[:2] == together
            }
            return FlatRows(path, flat, np.full(*together))
        length = _rows(arrays)
        rows = {
            name: array
            for name, array in arrays.items()
            if array.shape and array.shape[0] in (length, length - 1)
        }
        return EpisodeArrays(path, lambda e: rows, [length], about=_about(rows))


def archive(path: Path) -> dict[str, Member]:
    """The arrays of an .npz by name, none of them loaded; UserError for a damaged archive or a
    pickled array."""
    with reading(path):
        file = ZipFile(path)
        members = [
            Member(path, file, name)
            for name in file.namelist()
            if name.endswith(".npy") and not is_hidden(Path(name))
        ]
    return {member.name: member for member in members if member.dtype.kind in "biuf"}


class Member:
    """One array of an archive, read by rows.

    Stored members are memory-mapped. Compressed ones are a stream: rows are cheap in rising order,
    and going back means to decompress from the beginning."""

    def __init__(self, path: Path, file: ZipFile, entry: str) -> None:
        self.path, self.name = path, entry.removesuffix(".npy")
        self._file, self._entry = file, entry

        # The header of NumPy's own format, then the numbers.
        self._stream = file.open(entry)
        version = np.lib.format.read_magic(self._stream)
        if version == (1, 0):
            header = np.lib.format.read_array_header_1_0(self._stream)
        else:
            header = np.lib.format.read_array_header_2_0(self._stream)
        self.shape, fortran, self.dtype = header
        self._start = self._stream.tell()
        if fortran and len(self.shape) > 1:
            raise UserError(
                f"{path}: '{self.name}' is stored column by column; save np.ascontiguousarray of "
                "it"
            )
        self._map = self._mapped() if file.getinfo(entry).compress_type == ZIP_STORED else None

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        stop = max(start, stop)
        if self._map is not None:
            return self._map[start:stop]
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._stream.seek(self._start + start * row_bytes)
        data = self._stream.read((stop - start) * row_bytes)
        if len(data) < (stop - start) * row_bytes:
            raise EOFError(f"'{self.name}' ends before row {stop}")
        return np.frombuffer(data, self.dtype).reshape(stop - start, *self.shape[1:])

    def merged(self) -> Member:
        """The same numbers with the first two axes as one."""
        flat = Member(self.path, self._file, self._entry)
        flat.shape = (self.shape[0] * self.shape[1], *self.shape[2:])
        if flat._map is not None:
            flat._map = flat._map.reshape(flat.shape)
        return flat

    def _mapped(self) -> np.ndarray | None:
        if not self.shape or not np.prod(self.shape) or self.dtype.hasobject:
            return None
        with open(self.path, "rb") as file:
            # Of the member's own header of 30 bytes: the lengths of its name and extra field.
            header = self._file.getinfo(self._entry).header_offset
            file.seek(header + 26)
            name, extra = np.frombuffer(file.read(4), "<u2").astype(int)
        offset = header + 30 + name + extra + self._start
        return mapped(self.path, self.dtype, self.shape, offset)


def _rows(arrays: dict[str, Member]) -> int:
    """How many frames an archive of one episode has: the rows of its pictures, else of its longest
    array."""
    pictures = [
        array.shape[0] for array in arrays.values() if array.shape and Column.of(array).picture
    ]
    rows = pictures or [array.shape[0] for array in arrays.values() if array.shape]
    return max(rows, default=0)


def _about(arrays: dict[str, Member]) -> About:
    """A replay buffer of dm_env steps (it has `discount`) keeps each action beside what it led to,
    behind zeros."""
    action = next((arrays[name] for name in ACTIONS if name in arrays), None)
    return About(arriving="discount" in arrays and action is not None and not np.any(action[0:1]))


def _episodes_by_frames(arrays: dict[str, Member]) -> tuple[int, int] | None:
    """(E, L) if the arrays are [E, L, ...]: pictures have five axes then, or actions three."""
    for name, array in arrays.items():
        if len(array.shape) == 5 or (len(array.shape) == 3 and name in ACTIONS):
            return array.shape[0], array.shape[1]
    return None
