"""A set of videos as an index: a few numbers and a name for each, held in memory or mapped from a file.

V videos.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.observe.trajectories import mapped
from jepa_wm.observe.videos import Entry, Unreadable, look

COLUMNS = {"seconds": "f4", "label": "i4", "offset": "i8", "size": "i8", "name_end": "i8"}  # of V numbers each
NAMES = "names"  # all names as UTF-8, end to end
TEXTS = ("classes", "unreadable", "why")
CHUNK = 2**16  # rows written at a time


class VideoSet:
    """The readable videos of a set: how long each is, its class, and where it lies.

    Made of entries it looks into every file's header and first frame; `open` maps what `save` wrote, and neither its
    time nor its memory grows with the number of videos. `unreadable` names those that are left out; UserError if they
    are more than the share `ceiling`. `folder_fps` is the rate of folders of frames.
    """

    def __init__(self, entries: Sequence[Entry], *, ceiling: float = 0.01, folder_fps: float = 30.0) -> None:
        self.folder_fps = folder_fps
        self.unreadable = Unreadable(len(entries), ceiling)
        found = look(entries, self.unreadable.add, folder_fps=folder_fps)
        self.classes = sorted({entry.label for entry in found if entry.label is not None})
        self._root = Path()
        numbers = {label: i for i, label in enumerate(self.classes)}
        blob, ends = _joined(str(entry.path.absolute()) for entry in found)
        spans = [entry.span or (-1, -1) for entry in found]
        self._columns: Mapping[str, np.ndarray] = {
            "seconds": np.array([facts.seconds for facts in found.values()], np.float32),
            "label": np.array([-1 if e.label is None else numbers[e.label] for e in found], np.int32),
            "offset": np.array([span[0] for span in spans], np.int64),
            "size": np.array([span[1] for span in spans], np.int64),
            "name_end": ends,
            NAMES: blob,
        }

    @classmethod
    def open(cls, path: Path | str, *, ceiling: float = 0.01) -> VideoSet:
        """The set that `save` wrote; names in it are relative to its folder. UserError if it is none."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such index of videos; make one with `jepa-wm pack`, or name a folder")
        videos = cls.__new__(cls)
        try:
            with h5py.File(path, "r") as file:
                missing = sorted({*COLUMNS, NAMES, *TEXTS} - set(file))
                if missing:
                    raise UserError(f"{path}: is no index of videos, it lacks {', '.join(missing)}")
                columns = {name: mapped(file[name], path) for name in (*COLUMNS, NAMES)}
                about = dict(file.attrs)
                videos.classes, *broken = (list(file[name].asstr()[:]) for name in TEXTS)
        except OSError as error:
            raise UserError(f"{path}: not a readable HDF5 file ({error}); make it again") from error
        videos._columns, videos._root = columns, path.parent
        videos.folder_fps = float(about["folder_fps"])
        videos.unreadable = Unreadable(int(about["total"]), ceiling)
        videos.unreadable.why = dict(zip(map(Path, broken[0]), broken[1], strict=True))
        return videos

    def save(self, path: Path) -> None:
        """Write the index; it appears whole or not at all."""
        bad = self.unreadable
        texts = {"classes": self.classes, "unreadable": list(map(str, bad.why)), "why": list(bad.why.values())}
        write_index(path, self._columns, texts, folder_fps=self.folder_fps, total=bad.total)

    def entry(self, video: int) -> Entry:
        """Where a video lies, and its class."""
        c = self._columns
        first = int(c["name_end"][video - 1]) if video else 0
        name = bytes(c[NAMES][first : int(c["name_end"][video])]).decode()
        label, offset = int(c["label"][video]), int(c["offset"][video])
        span = (offset, int(c["size"][video])) if offset >= 0 else None
        return Entry(self._root / name, self.classes[label] if label >= 0 else None, span)

    @property
    def seconds(self) -> np.ndarray:
        """[V] float32."""
        return self._columns["seconds"]

    @property
    def labels(self) -> np.ndarray:
        """[V] numbers in `classes`, -1 where a video has none."""
        return self._columns["label"]

    def __len__(self) -> int:
        return len(self.seconds)


def write_index(
    path: Path, columns: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[str]], *, folder_fps: float, total: int
) -> None:
    """Write the columns of a set as unchunked HDF5, which can be mapped; the names of its classes, and of the videos
    that are unreadable and why, beside them. `total` counts these too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    with h5py.File(partial, "w") as file:
        for name, kind in {**COLUMNS, NAMES: "u1"}.items():
            stored = file.create_dataset(name, columns[name].shape, kind)
            for rows in _slices(len(columns[name])):
                stored[rows] = columns[name][rows]
        file.attrs.update({"folder_fps": folder_fps, "total": total})
        for name in TEXTS:  # data sets: they may be too many for attributes
            file.create_dataset(name, data=list(texts[name]), dtype=h5py.string_dtype())
    partial.replace(path)


def _slices(count: int) -> Iterator[slice]:
    return (slice(first, first + CHUNK) for first in range(0, count, CHUNK))


def _joined(names: Iterable[str]) -> tuple[np.ndarray, np.ndarray]:
    """(all names as UTF-8 bytes, end to end; where each ends)."""
    encoded = [name.encode() for name in names]
    ends = np.cumsum([len(name) for name in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), np.uint8), ends
