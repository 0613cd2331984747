"""What a LeRobotDataset says of itself: where each episode lies (v2: a file each; v3:
`meta/episodes`), features."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text
from jepa_wm.data.readers.registry import Column, reading
from jepa_wm.data.samples import visible

PICTURES = ("video", "image")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where one episode lies."""

    number: int  # its episode_index
    length: int
    fill: dict[str, int]  # what the path templates are filled with for the numbers
    video_fill: dict[str, dict[str, int]] = field(default_factory=dict)  # the same for each camera
    # at which second it begins in each camera's file
    second: dict[str, float] = field(default_factory=dict)
    # by camera: an episode whose part of the film overlaps
    shared: dict[str, int] = field(default_factory=dict)


def read_info(file: Path) -> dict[str, Any]:
    """`meta/info.json`; UserError where it lacks what a reader needs."""
    with reading(file):
        info: dict[str, Any] = json.loads(read_text(file))
        if not isinstance(info, dict):
            info = {}
    missing = [key for key in ("features", "fps", "data_path") if not info.get(key)]
    if missing:
        raise UserError(
            f"{file}: lacks {', '.join(missing)}; it is damaged or older than v2: copy or "
            "convert it again"
        )
    info["features"] = {
        name: feature for name, feature in info["features"].items() if isinstance(feature, dict)
    }
    return info


def places_2(path: Path, info: Mapping[str, Any]) -> list[Place]:
    """The episodes of version 2 by number; UserError for one that is told of twice."""
    file = path / "meta/episodes.jsonl"
    with reading(file):
        lines = [json.loads(line) for line in read_text(file).split("\n") if line.strip()]
        size = int(info.get("chunks_size", 1000))
        numbers = [(int(line["episode_index"]), int(line["length"])) for line in lines]
    places = []
    for number, length in numbers:
        fill = {"episode_index": number, "episode_chunk": number // size}
        places.append(Place(number, length, fill))
    return _by_number(file, places)


def places_3(path: Path, info: Mapping[str, Any], parquet: Any) -> list[Place]:
    """The episodes of version 3 by number, from tables that the module `parquet` reads."""
    cameras = [
        name for name, feature in info["features"].items() if feature.get("dtype") == "video"
    ]
    needed = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for camera in cameras:
        for part in ("chunk_index", "file_index", "from_timestamp"):
            needed.append(f"videos/{camera}/{part}")

    # Rows of all tables, each with all of the columns, statistics apart.
    places = []
    for file in sorted(visible((path / "meta/episodes").rglob("*.parquet"))):
        with reading(file):
            names = parquet.read_schema(file).names
            names = [name for name in names if not name.startswith("stats/")]
            rows = parquet.read_table(file, columns=names).to_pylist()
        for row in rows:
            missing = [key for key in needed if key not in row]
            if missing:
                raise UserError(
                    f"{file}: has no column '{missing[0]}'; it was cut short or is not of v3: "
                    "copy it again"
                )
            places.append(_place(row, cameras))
    return _by_number(path / "meta/episodes", _with_overlaps(places, float(info["fps"])))


def _place(row: Row, cameras: list[str]) -> Place:
    parts = ("chunk_index", "file_index")
    fill = {part: _whole(row[f"data/{part}"]) for part in parts}
    place = Place(int(row["episode_index"]), int(row["length"]), fill)
    for camera in cameras:
        film, second = f"videos/{camera}", row[f"videos/{camera}/from_timestamp"]
        place.video_fill[camera] = {part: _whole(row[f"{film}/{part}"]) for part in parts}
        place.second[camera] = float("nan") if second is None else float(second)
    return place


def _whole(number: float | None) -> int:
    """-1, the number of a file that is not there, where there is none."""
    return -1 if number is None or number != number else int(number)


def _with_overlaps(places: list[Place], fps: float) -> list[Place]:
    """The same, each with the episodes whose stretch of a film lies over its own by half a frame
    or more."""
    stretches: dict[tuple[str, int, int], list[tuple[float, Place]]] = {}
    for place in places:
        for camera, second in place.second.items():
            file = place.video_fill[camera]
            stretches.setdefault((camera, file["chunk_index"], file["file_index"]), []).append(
                (second, place)
            )
    for (camera, *_), inside in stretches.items():
        inside.sort(key=lambda entry: entry[0])
        end, last = float("-inf"), None
        for second, place in inside:
            if last is not None and second < end - 0.5 / fps:
                place.shared[camera] = last.number
                last.shared.setdefault(camera, place.number)
            if second + place.length / fps > end:
                end, last = second + place.length / fps, place
    return places


def _by_number(file: Path, places: list[Place]) -> list[Place]:
    places = sorted(places, key=lambda place: place.number)
    for place, following in zip(places, places[1:], strict=False):
        if place.number == following.number:
            raise UserError(f"{file}: tells of episode {place.number} twice; keep one of the two")
    return places


def columns(info: Mapping[str, Any], *, without: tuple[str, ...]) -> dict[str, Column]:
    """The features that are numbers or pictures; text, and whatever numpy has no numbers for, is
    passed over."""
    readable: dict[str, Column] = {}
    for name, feature in info["features"].items():
        column = None if name in without else _column(feature)
        if column is not None:
            readable[name] = column
    return readable


def _column(feature: Mapping[str, Any]) -> Column | None:
    """Pictures are declared as such, with the channels first or last; both are read as [h, w,
    c]."""
    shape, kind = tuple(feature.get("shape") or ()), feature.get("dtype")
    if kind in PICTURES and len(shape) == 3:
        height, width = shape[1:] if shape[0] < min(shape[1:]) else shape[:2]
        return Column((height, width, 3), np.dtype(np.uint8), picture=True)
    try:
        dtype = np.dtype(str(kind))
    except TypeError:
        return None
    return Column(shape, dtype, picture=False) if dtype.kind in "biuf" else None


def number_names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a column's numbers, () where there is not one for each."""
    names = feature.get("names") or ()
    if isinstance(names, dict):
        names = next(iter(names.values()), ())
    return tuple(map(str, names)) if list(feature.get("shape") or ()) == [len(names)] else ()
