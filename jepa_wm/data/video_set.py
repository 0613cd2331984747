"""A set of videos, looked at, as an index: a few numbers and a name for each, held in memory or
read from a file when needed; what cannot be read is counted and named.

V videos.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import written_whole
from jepa_wm.core.progress import Progress
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.data.video import Facts, VideoError
from jepa_wm.data.videos import Entry

COLUMNS = {
    "seconds": "f4",
    "label": "i4",
    "offset": "i8",
    "size": "i8",
    "name_end": "i8",
}  # of V numbers each
NAMES = "names"  # all names as UTF-8, end to end
TEXTS = ("classes", "unreadable", "why")
CHUNK = 2**16  # rows written at a time


class VideoSet:
    """The readable videos of a set: how long each is, its class, and where it lies.

    Made of entries it looks into every file's header and first frame; `open` opens what `save`
    wrote, and neither its time nor its memory grows with the number of videos. `unreadable` names
    those that are left out; UserError if they are more than the share `max_unreadable`.
    `folder_fps` is the rate of folders of frames."""

    def __init__(
        self, entries: Sequence[Entry], *, max_unreadable: float = 0.01, folder_fps: float = 30.0
    ) -> None:
        self.folder_fps = folder_fps
        self.unreadable = Unreadable(len(entries), max_unreadable)
        facts = read_facts(entries, self.unreadable.add, folder_fps=folder_fps)
        self.classes = sorted({entry.label for entry in facts if entry.label is not None})
        self._root = Path()
        numbers = {label: i for i, label in enumerate(self.classes)}
        self._columns: Mapping[str, np.ndarray | Stored] = {
            "seconds": np.array([fact.seconds for fact in facts.values()], np.float32),
            "label": np.array(
                [-1 if e.label is None else numbers[e.label] for e in facts], np.int32
            ),
            **_where([replace(entry, path=entry.path.absolute()) for entry in facts]),
        }

    @classmethod
    def open(cls, path: Path | str, *, max_unreadable: float = 0.01) -> VideoSet:
        """The set that `save` wrote; names in it are relative to its folder. UserError if it is
        none."""
        path = Path(path)
        if not path.is_file():
            raise UserError(
                f"{path}: no such index of videos; make one with `jepa-wm pack`, or name a folder"
            )

        # What the file holds; its columns are read where they are asked for.
        videos = cls.__new__(cls)
        try:
            with open_h5(path) as file:
                missing = sorted({*COLUMNS, NAMES, *TEXTS} - set(file))
                if missing:
                    raise UserError(
                        f"{path}: is no index of videos, it lacks {', '.join(missing)}"
                    )
                columns = {name: _stored(file[name], path) for name in (*COLUMNS, NAMES)}
                about = dict(file.attrs)
                videos.classes, *broken = (list(file[name].asstr()[:]) for name in TEXTS)
        except OSError as error:
            raise UserError(
                f"{path}: not a readable HDF5 file ({error}); make it again"
            ) from error

        videos._columns, videos._root = columns, path.parent
        videos.folder_fps = float(about["folder_fps"])
        videos.unreadable = Unreadable(int(about["total"]), max_unreadable)
        videos.unreadable.why = dict(zip(map(Path, broken[0]), broken[1], strict=True))
        return videos

    def save(self, path: Path, places: Sequence[Entry] | None = None) -> None:
        """Write the index; it appears whole or not at all. `places` [V] are where the videos lie
        if they were moved, relative to its folder."""
        columns = self._columns if places is None else {**self._columns, **_where(places)}
        bad = self.unreadable
        texts = {
            "classes": self.classes,
            "unreadable": list(map(str, bad.why)),
            "why": list(bad.why.values()),
        }
        write_index(path, columns, texts, folder_fps=self.folder_fps, total=bad.total)

    def entry(self, video: int) -> Entry:
        """Where a video lies, and its class."""
        c = self._columns
        first = int(c["name_end"][video - 1]) if video else 0  # only what this video needs is read
        name = bytes(c[NAMES][first : int(c["name_end"][video])]).decode()
        label, offset = int(c["label"][video]), int(c["offset"][video])
        span = (offset, int(c["size"][video])) if offset >= 0 else None
        return Entry(self._root / name, self.classes[label] if label >= 0 else None, span)

    @property
    def seconds(self) -> np.ndarray:
        """[V] float32."""
        return self._columns["seconds"][:]

    @property
    def labels(self) -> np.ndarray:
        """[V] numbers in `classes`, -1 where a video has none."""
        return self._columns["label"][:]

    def length(self, video: int) -> float:
        """Seconds of one video, without reading those of all."""
        return float(self._columns["seconds"][video])

    def __len__(self) -> int:
        return len(self._columns["seconds"])


class Unreadable:
    """The videos that could not be read: counted, named, and no more of them than
    `max_unreadable`, a share of all."""

    def __init__(self, total: int, max_unreadable: float) -> None:
        self.total, self.max_unreadable = total, max_unreadable
        self.why: dict[Path, str] = {}

    def add(self, path: Path, error: VideoError) -> None:
        """Note one and warn of it; UserError that names them all once they are too many."""
        if path in self.why:
            return
        self.why[path] = str(error)
        if len(self.why) > self.max_unreadable * self.total:
            listed = "\n".join(f"  {why}" for why in self.why.values())
            raise UserError(
                f"{len(self.why)} of {self.total} videos cannot be read, more than "
                f"{self.max_unreadable:.1%} of them:\n"
                f"{listed}\nRepair them, take them out of the set, or allow more with "
                "data.max_unreadable\n"
                "(of `jepa-wm pack`: --unreadable)."
            )
        warnings.warn(f"left out, {len(self.why)} of {self.total} so far: {error}", stacklevel=2)


def read_facts(
    entries: Sequence[Entry],
    note: Callable[[Path, VideoError], None],
    *,
    folder_fps: float,
    to_the_end: bool = False,
) -> dict[Entry, Facts]:
    """Facts of the readable entries; `note` is told of the others. `to_the_end` also decodes the
    last frame of each."""
    facts: dict[Entry, Facts] = {}
    with catching_signals() as stop, Progress("look at videos", len(entries)) as bar:
        for done, entry in enumerate(entries, 1):
            try:
                with closing(entry.open(fps=folder_fps)) as video:
                    facts[entry] = video.facts()
                    if to_the_end:
                        video.at(np.array([facts[entry].seconds]))
            except VideoError as error:
                facts.pop(entry, None)
                note(entry.path, error)
            bar.update(done)
            stop.raise_if_requested()
    return facts


def is_index(path: Path) -> bool:
    """Whether a file is an index of videos."""
    if path.suffix != ".h5" or not h5py.is_hdf5(path):
        return False
    with open_h5(path) as file:
        return {*COLUMNS, NAMES, *TEXTS} <= set(file)


class Stored:
    """A column in a file, read where it is asked for; a mapped one would fill a worker's memory
    with what it met."""

    def __init__(self, path: Path, offset: int, dtype: np.dtype, count: int) -> None:
        self._file = os.open(path, os.O_RDONLY)  # for as long as the process lives
        self._offset, self._dtype, self._count = offset, dtype, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, rows: int | slice) -> np.ndarray:
        """One number, or those of a slice without a step."""
        first, last, _ = (
            rows.indices(self._count) if isinstance(rows, slice) else (rows, rows + 1, 1)
        )
        width = self._dtype.itemsize
        read = os.pread(self._file, max(0, last - first) * width, self._offset + first * width)
        values = np.frombuffer(read, self._dtype)
        return values if isinstance(rows, slice) else values[0]


def _stored(dataset: h5py.Dataset, path: Path) -> np.ndarray | Stored:
    """A data set of `write_index`, not read yet; an empty one has no place in the file."""
    offset = dataset.id.get_offset()
    return dataset[:] if offset is None else Stored(path, offset, dataset.dtype, len(dataset))


def write_index(
    path: Path, columns: Mapping[str, np.ndarray | Stored], texts: Mapping[str, Sequence[str]], *,
    folder_fps: float, total: int,
) -> None:  # fmt: skip
    """Write the columns of a set as unchunked HDF5, readable at any row; the names of its classes,
    and of the videos that are unreadable and why, beside them. `total` counts these too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as temporary, open_h5(temporary, "w") as file:
        for name, kind in {**COLUMNS, NAMES: "u1"}.items():
            stored = file.create_dataset(name, len(columns[name]), kind)
            for first in range(0, len(stored), CHUNK):
                rows = slice(first, first + CHUNK)
                stored[rows] = columns[name][rows]
        file.attrs.update({"folder_fps": folder_fps, "total": total})
        for name in TEXTS:  # data sets: they may be too many for attributes
            file.create_dataset(name, data=list(texts[name]), dtype=h5py.string_dtype())


def _where(entries: Sequence[Entry]) -> dict[str, np.ndarray]:
    """The columns that say where videos lie."""
    encoded = [str(entry.path).encode() for entry in entries]
    spans = np.array([entry.span or (-1, -1) for entry in entries], np.int64).reshape(-1, 2)
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return {
        "offset": spans[:, 0], "size": spans[:, 1], "name_end": ends,
        NAMES: np.frombuffer(b"".join(encoded), np.uint8),
    }  # fmt: skip
