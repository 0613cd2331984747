"""Videos found in a folder, a manifest or tar shards, looked at, and what cannot be read counted and named."""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.observe import shards, stills
from jepa_wm.observe.formats.source import needs, reading
from jepa_wm.observe.video import Facts, Video, VideoError

SUFFIXES = frozenset((".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ogv", ".wmv", ".flv", ".gif"))
MANIFESTS = frozenset((".csv", ".txt", ".parquet"))


class Footage(Protocol):
    """What a video file, a folder of frames and a single image have in common."""

    def facts(self) -> Facts: ...
    def at(self, seconds: np.ndarray) -> np.ndarray: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One video file, folder of frames, or image; `label` is the name of its class.

    With a `span` it lies in a tar file, which its path leads into: SHARD.tar/NAME.
    """

    path: Path
    label: str | None = None
    span: shards.Span | None = None

    def open(self, *, fps: float, size: int | None = None) -> Footage:
        """Its frames; `fps` is the rate of a folder of frames, which does not state one."""
        source = None if self.span is None else io.BytesIO(self._inside(self.span))
        if self.path.suffix.lower() in stills.SUFFIXES or (source is None and self.path.is_dir()):
            return stills.Stills(self.path, fps=fps, size=size, source=source)
        return Video(self.path, size=size, source=source)

    def content(self) -> bytes:
        """The bytes of the file."""
        return self.path.read_bytes() if self.span is None else self._inside(self.span)

    def _inside(self, span: shards.Span) -> bytes:
        try:
            return shards.content(self.path, span)
        except OSError as error:
            raise VideoError(f"{self.path}: cannot be read ({error}); is its shard still there?") from error


def find(path: Path | str, *, single_images: bool = False) -> list[Entry]:
    """The videos of a folder or of a manifest, in a fixed order; UserError if there are none.

    In a folder every video file counts, however deep, and every folder of images is one video, unless
    `single_images` makes each image one. The first folder on the way to a video is its class, if every video has one.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in MANIFESTS:
        entries = _parquet(path) if path.suffix.lower() == ".parquet" else _manifest(path)
    elif path.is_dir():
        entries = _folder(path, single_images)
    elif path.is_file():
        entries = list(_in_shard(path)) if path.suffix == ".tar" else [Entry(path)]
    else:
        raise UserError(f"{path}: no such file or folder; check the path")
    if not entries:
        raise UserError(f"{path}: holds no video ({' '.join(sorted(SUFFIXES))}) and no folder of images")
    return entries


class Unreadable:
    """The videos that could not be read: counted, named, and no more of them than `ceiling`, a share of all."""

    def __init__(self, total: int, ceiling: float) -> None:
        self.total, self.ceiling = total, ceiling
        self.why: dict[Path, str] = {}

    def add(self, path: Path, error: VideoError) -> None:
        """Note one and warn of it; UserError that names them all once they are too many."""
        if path in self.why:
            return
        self.why[path] = str(error)
        if len(self.why) > self.ceiling * self.total:
            listed = "\n".join(f"  {why}" for why in self.why.values())
            raise UserError(
                f"{len(self.why)} of {self.total} videos cannot be read, more than {self.ceiling:.1%} of them:\n"
                f"{listed}\nRepair them, take them out of the set, or allow more with `ceiling`."
            )
        warnings.warn(f"left out, {len(self.why)} of {self.total} so far: {error}", stacklevel=2)


def look(
    entries: Sequence[Entry],
    note: Callable[[Path, VideoError], None],
    *,
    folder_fps: float,
    to_the_end: bool = False,
) -> dict[Entry, Facts]:
    """Facts of the readable entries; `note` is told of the others. `to_the_end` also decodes the last frame of each."""
    found = {}
    with catching_signals() as stop, Progress("look at videos", len(entries)) as bar:
        for done, entry in enumerate(entries, 1):
            try:
                footage = entry.open(fps=folder_fps)
                found[entry] = footage.facts()
                if to_the_end:
                    footage.at(np.array([found[entry].seconds]))
                footage.close()
            except VideoError as error:
                found.pop(entry, None)
                note(entry.path, error)
            bar.update(done)
            stop.raise_if_requested()
    return found


def _folder(root: Path, single_images: bool) -> list[Entry]:
    found: list[Path] = []
    inside: list[Entry] = []
    for folder in sorted([root, *(path for path in root.rglob("*") if path.is_dir())]):
        files = sorted((file for file in folder.iterdir() if file.is_file()), key=stills.natural)
        found += [file for file in files if file.suffix.lower() in SUFFIXES]
        inside += [entry for file in files if file.suffix == ".tar" for entry in _in_shard(file)]
        pictures = [file for file in files if file.suffix.lower() in stills.SUFFIXES]
        if pictures:
            found += pictures if single_images else [folder]
    ways = [path.relative_to(root).parts for path in found]
    classed = bool(ways) and all(len(way) > 1 for way in ways)
    return [Entry(path, way[0] if classed else None) for path, way in zip(found, ways, strict=True)] + inside


def _in_shard(shard: Path) -> Iterator[Entry]:
    """The videos and images of a tar shard."""
    for path, label, span in shards.members(shard, SUFFIXES | stills.SUFFIXES):
        yield Entry(path, label, span)


def _parquet(path: Path) -> list[Entry]:
    """A manifest with a column `path` and perhaps one `label`; paths are relative to the manifest's folder."""
    parquet = needs("pyarrow.parquet", extra="lerobot", path=path)
    with reading(path):
        columns = parquet.read_table(path).to_pydict()
    if "path" not in columns:
        raise UserError(f"{path}: column 'path' is missing; it has {', '.join(map(repr, columns)) or 'none'}")
    labels = columns.get("label", [None] * len(columns["path"]))
    empty = [row for row, name in enumerate(columns["path"]) if not name]
    if empty:
        raise UserError(f"{path}: row {empty[0]} has no path; take it out")
    return [
        Entry(path.parent / name, None if label is None else str(label))
        for name, label in zip(columns["path"], labels, strict=True)
    ]


def _manifest(path: Path) -> list[Entry]:
    """Lines `path,label` or `path label`, the label optional, paths relative to the manifest's folder.

    A first line `path,label` is a heading. A path with spaces is understood where a comma follows it, or where a file
    of the whole line's name is there; one with commas wants quotes.
    """
    entries = []
    with open(path, encoding="utf-8", newline="") as file:
        for number, words in enumerate(csv.reader(file, skipinitialspace=True), 1):
            if not words or words[0].lstrip().startswith("#") or (number == 1 and words[0].strip() == "path"):
                continue
            if len(words) > 2:
                raise UserError(
                    f"{path}, line {number}: {len(words)} fields instead of path,label; quote commas in names"
                )
            if not words[0].strip():
                raise UserError(f"{path}, line {number}: has no path; give path,label")
            name, label = words[0].strip(), words[1].strip() if len(words) == 2 else None
            if label is None and not (path.parent / name).exists() and len(name.rsplit(maxsplit=1)) == 2:
                name, label = name.rsplit(maxsplit=1)
            entries.append(Entry(path.parent / name, label or None))
    return entries
