"""Manifests: lists of videos, with or without their classes, as people, scripts and spreadsheets
write them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text
from jepa_wm.data.readers.source import needs, reading

SUFFIXES = frozenset((".csv", ".tsv", ".txt", ".parquet"))
SEPARATORS = (",", ";", "\t")
LOOKED_AT = 100  # lines
MEANT = "give path,label, and quote names that hold a comma"

Row = tuple[int, list[str]]  # the number of its line, its fields
Named = tuple[Path, str | None]  # a video and its class


def read_manifest(path: Path) -> list[Named]:
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
        and not named[0][0].exists()
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
            files = sum(_named(path, fields)[0].exists() for _, fields in rows[:LOOKED_AT])
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


def _by_heading(path: Path, row: Row, name: int, label: int | None, count: int) -> Named:
    number, fields = row
    if len(fields) > count:
        raise UserError(
            f"{path}, line {number}: {len(fields)} fields below {count} in the heading; {MEANT}"
        )
    fields = fields + [""] * (count - len(fields))
    if not fields[name]:
        raise UserError(f"{path}, line {number}: has no path; {MEANT}")
    return path.parent / fields[name], (fields[label] or None) if label is not None else None


def _by_place(path: Path, row: Row) -> Named:
    number, fields = row
    if len(fields) > 2:
        raise UserError(
            f"{path}, line {number}: {len(fields)} fields instead of path,label; quote commas in "
            "names"
        )
    if not fields[0]:
        raise UserError(f"{path}, line {number}: has no path; {MEANT}")
    return _named(path, fields)


def _named(path: Path, fields: list[str]) -> Named:
    name, label = fields[0], fields[1] if len(fields) == 2 else None
    if label is None and not (path.parent / name).exists() and len(name.rsplit(maxsplit=1)) == 2:
        name, label = name.rsplit(maxsplit=1)
    return path.parent / name, label or None


def _parquet(path: Path) -> list[Named]:
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
    return [
        (
            path.parent / name,
            None if label is None or label != label else str(label),
        )  # a missing number is NaN
        for name, label in zip(columns["path"], labels, strict=True)
    ]
