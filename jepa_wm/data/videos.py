"""Videos found in a folder, in tar shards, or in a manifest: a list of them, with or without their
classes, as people, scripts and spreadsheets write it."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text
from jepa_wm.data.images import ImageSequence
from jepa_wm.data.readers.registry import needs, reading
from jepa_wm.data.samples import (
    PICTURES,
    VIDEOS,
    Span,
    class_names,
    content,
    is_hidden,
    members,
    natural,
    pass_over_thumbnails,
    visible,
)
from jepa_wm.data.video import Facts, Video, VideoError

MANIFESTS = frozenset((".csv", ".tsv", ".txt", ".parquet"))
SEPARATORS = (",", ";", "\t")
LOOKED_AT = 100  # lines
MEANT = "give path,label, and quote names that hold a comma"
CLASSES = "use class folders, or a manifest with path,label"  # the ways to give videos classes

Row = tuple[int, list[str]]  # the number of its line, its fields


class VideoSource(Protocol):
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
    span: Span | None = None

    def open(self, *, fps: float, size: int | None = None) -> VideoSource:
        """Its frames; `fps` is the rate of a folder of frames, which does not state one."""
        source = None if self.span is None else io.BytesIO(self._inside(self.span))
        if self.path.suffix.lower() in PICTURES or (source is None and self.path.is_dir()):
            return ImageSequence(self.path, fps=fps, size=size, source=source)
        return Video(self.path, size=size, source=source)

    def content(self) -> bytes:
        """The bytes of the file."""
        return self.path.read_bytes() if self.span is None else self._inside(self.span)

    def _inside(self, span: Span) -> bytes:
        try:
            return content(self.path, span)
        except OSError as error:
            raise VideoError(
                f"{self.path}: cannot be read ({error}); is its shard still there?"
            ) from error


def find(path: Path | str, *, single_images: bool = False) -> list[Entry]:
    """The videos of a folder or of a manifest, in a fixed order; UserError if there are none.

    In a folder every video file counts, however deep, and every folder of images is one video,
    unless `single_images` makes each image one. The first folder on the way to a video is its
    class, if every video has one."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() in MANIFESTS:
        entries = _manifest(path)
    elif path.is_dir():
        entries = _folder(path, single_images)
    elif path.is_file():
        entries = _in_shard(path) if path.suffix.lower() == ".tar" else [Entry(path)]
    else:
        raise UserError(f"{path}: no such file or folder; check the path")
    if not entries:
        raise UserError(
            f"{path}: holds no video ({' '.join(sorted(VIDEOS))}) and no folder of images"
        )
    return entries


def without_class(entry: Entry) -> str:
    """Where the class of a video was looked for, and how it could have one."""
    if entry.span is None:
        return f"{entry.path} has none; {CLASSES}"
    classes = ", ".join(class_names(entry.path))
    return (
        f"{entry.path} has none: its shard should hold one of {classes}; pack it so, or {CLASSES}"
    )


def _folder(root: Path, single_images: bool) -> list[Entry]:
    """The videos below a folder, class by class where every one lies in a folder of its own."""
    paths: list[Path] = []
    inside: list[Entry] = []

    # Folder by folder: video files, then shards, then the images, each one or all as a video.
    folders = (
        path for path in root.rglob("*") if path.is_dir() and not is_hidden(path.relative_to(root))
    )
    for folder in sorted([root, *folders]):
        files = sorted((file for file in visible(folder.iterdir()) if file.is_file()), key=natural)
        videos = [file for file in files if file.suffix.lower() in VIDEOS]
        pictures = [file for file in files if file.suffix.lower() in PICTURES]
        pictures = pass_over_thumbnails(pictures, videos)
        paths += videos
        for file in files:
            if file.suffix.lower() == ".tar":
                inside += _in_shard(file)
        if pictures:
            paths += pictures if single_images else [folder]

    # The first folder on the way to a video is its class.
    parts = [path.relative_to(root).parts for path in paths]
    classed = bool(parts) and all(len(part) > 1 for part in parts)
    entries = [
        Entry(path, part[0] if classed else None) for path, part in zip(paths, parts, strict=True)
    ]
    return entries + inside


def _in_shard(shard: Path) -> list[Entry]:
    """The videos and images of a tar shard."""
    return [Entry(path, label, span) for path, label, span in members(shard)]


def _manifest(path: Path) -> list[Entry]:
    """Videos and their classes, paths relative to the manifest's folder.

    Lines are `path,label` or `path label`, the label optional; semicolons and tabs separate as
    well where every line has them. A first line that names a column path is a heading: the columns
    path and label count then, wherever they stand. A path with spaces is understood where a
    separator follows it, or where a file of the whole line's name is there; one with commas wants
    quotes. Lines that begin with # and empty ones are passed over. UserError, naming the line, for
    everything else, and for text that is not UTF-8 and has no byte order mark."""
    if path.suffix.lower() == ".parquet":
        return _parquet(path)

    # Fields, apart by what a spreadsheet's own note says, else by what fits.
    text = read_text(path)
    first, _, rest = text.partition("\n")
    note = first.rstrip("\r").lower()
    if note.startswith("sep=") and len(note) == 5:
        rows = _rows(path, "\n" + rest, note[-1])
    else:
        rows = _rows(path, text, _separator(path, text))

    # A heading says where path and label stand.
    heading = [field.lower() for field in rows[0][1]] if rows else []
    if heading in (["path"], ["path", "label"]) or " ".join(heading).split() == ["path", "label"]:
        rows = rows[1:]
    elif "path" in heading:
        label = heading.index("label") if "label" in heading else None
        return [
            _by_heading(path, row, heading.index("path"), label, len(heading)) for row in rows[1:]
        ]

    # Without one, a first line of letters that leads to no file was meant as a heading.
    named = [_by_place(path, row) for row in rows]
    if (
        named
        and not named[0].path.exists()
        and "".join(rows[0][1]).replace("_", "").replace(" ", "").isalpha()
    ):
        raise UserError(
            f"{path}, line {rows[0][0]}: '{rows[0][1][0]}' is no video; call columns path,label "
            "in a heading"
        )
    return named


def _separator(path: Path, text: str) -> str:
    """What stands between path and label: that of the heading, else what every line has once at
    most and leads to most files."""
    fitting = []
    for separator in (SEPARATORS[0], *(sign for sign in SEPARATORS[1:] if sign in text)):
        rows = _rows(path, text, separator, strict=False)
        if rows and "path" in [field.lower() for field in rows[0][1]] and len(rows[0][1]) > 1:
            return separator
        if all(len(fields) <= 2 for _, fields in rows):
            files = sum(_named(path, fields).path.exists() for _, fields in rows[:LOOKED_AT])
            fitting.append((files, separator))
    most = max(fitting, key=lambda fit: fit[0], default=(0, ""))
    return most[1] if most[0] else SEPARATORS[0]


def _rows(path: Path, text: str, separator: str, *, strict: bool = True) -> list[Row]:
    """The lines that say something, their fields without spaces around them and without empty ones
    at the end."""
    rows = []
    reader = csv.reader(
        io.StringIO(text, newline=""), skipinitialspace=separator != "\t", delimiter=separator
    )
    try:
        for fields in reader:
            fields = [field.strip() for field in fields]
            if strict and any("\n" in field or "\r" in field for field in fields):
                raise UserError(
                    f"{path}, line {reader.line_num}: a quote before it is not closed; {MEANT}"
                )
            while fields and not fields[-1]:
                fields.pop()
            if fields and not (
                fields[0].startswith("#") and not (path.parent / fields[0]).exists()
            ):
                rows.append((reader.line_num, fields))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: {error}; {MEANT}") from None
    return rows


def _by_heading(path: Path, row: Row, name: int, label: int | None, count: int) -> Entry:
    number, fields = row
    if len(fields) > count:
        raise UserError(
            f"{path}, line {number}: {len(fields)} fields below {count} in the heading; {MEANT}"
        )
    fields = fields + [""] * (count - len(fields))
    if not fields[name]:
        raise UserError(f"{path}, line {number}: has no path; {MEANT}")
    return Entry(
        path.parent / fields[name], (fields[label] or None) if label is not None else None
    )


def _by_place(path: Path, row: Row) -> Entry:
    number, fields = row
    if len(fields) > 2:
        raise UserError(
            f"{path}, line {number}: {len(fields)} fields instead of path,label; quote commas in "
            "names"
        )
    if not fields[0]:
        raise UserError(f"{path}, line {number}: has no path; {MEANT}")
    return _named(path, fields)


def _named(path: Path, fields: list[str]) -> Entry:
    name, label = fields[0], fields[1] if len(fields) == 2 else None
    if label is None and not (path.parent / name).exists() and len(name.rsplit(maxsplit=1)) == 2:
        name, label = name.rsplit(maxsplit=1)
    return Entry(path.parent / name, label or None)


def _parquet(path: Path) -> list[Entry]:
    """A column `path` and perhaps one `label`."""
    parquet = needs("pyarrow.parquet", extra="lerobot", path=path)
    with reading(path):
        columns = parquet.read_table(path).to_pydict()
    if "path" not in columns:
        raise UserError(
            f"{path}: column 'path' is missing; it has {', '.join(map(repr, columns)) or 'none'}"
        )
    labels = columns.get("label", [None] * len(columns["path"]))
    empty = [row for row, name in enumerate(columns["path"]) if not name]
    if empty:
        raise UserError(f"{path}: row {empty[0]} has no path; take it out")
    texts = [None if x is None or x != x else str(x) for x in labels]  # a missing number is NaN
    named = zip(columns["path"], texts, strict=True)
    return [Entry(path.parent / name, label) for name, label in named]
