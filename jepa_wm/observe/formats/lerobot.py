"""LeRobotDataset v2.x and v3: `meta/info.json`, numbers in parquet, cameras in mp4 or as images inside the parquet.

Version 2 has one file an episode; version 3 puts many episodes into one and tells in `meta/episodes` where each lies.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.observe.formats.source import About, Column, leave_out, needs, reading
from jepa_wm.observe.video import Video

TEXT = ("string",)
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


def recognises(path: Path) -> bool:
    return (path / "meta/info.json").is_file()


def open_source(path: Path) -> LeRobot:
    """The data set whose folder holds `meta`; UserError for versions before 2 and for tables that disagree."""
    return LeRobot(path)


@dataclass(frozen=True)
class Place:
    """Where one episode lies."""

    length: int
    fill: dict[str, int]  # what the path templates are filled with for the numbers
    row: int = 0  # of its first frame in the parquet file
    video_fill: dict[str, dict[str, int]] = field(default_factory=dict)  # the same for each camera
    second: dict[str, float] = field(default_factory=dict)  # at which it begins in each camera's file


class LeRobot:
    """The episodes of one data set; parquet and video files are opened when they are read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet = needs("pyarrow.parquet", extra="lerobot", path=path)
        info = _info(path / "meta/info.json")
        version = str(info.get("codebase_version", "")).lstrip("v")
        if version.partition(".")[0] not in ("2", "3"):
            raise UserError(f"{path}: is of version {version or 'unknown'}; convert it to v2.1 or v3.0 with lerobot")
        self._info, self._features = info, info["features"]
        self._places = self._version_2() if version.startswith("2") else self._version_3()
        self.lengths = np.array([place.length for place in self._places], np.int64)
        if not len(self.lengths) or int(self.lengths.sum()) != info.get("total_frames", self.lengths.sum()):
            raise UserError(
                f"{path}: meta/info.json tells of {info.get('total_frames')} frames, the episodes of "
                f"{self.lengths.sum()}; files of meta are missing or old: copy it again"
            )
        self.columns = {
            name: _column(feature)
            for name, feature in self._features.items()
            if feature["dtype"] not in TEXT and name not in BOOKKEEPING
        }
        names = {name: _names(feature) for name, feature in self._features.items()}
        self.about = About(float(info["fps"]), {name: found for name, found in names.items() if found})
        self._file = lru_cache(maxsize=8)(self._opened)
        self._videos: dict[str, Video] = {}

    def read(self, column: str, episode: int, start: int, stop: int) -> np.ndarray:
        if self._features[column]["dtype"] == "video":
            return self._frames(column, episode, start, stop)
        place = self._places[episode]
        file = self.path / self._info["data_path"].format(**place.fill)
        with reading(file):
            found = self._rows(file, "episode_index", place.row + start, place.row + stop)
            ids = _numbers(found)
            if len(ids) < stop - start or (ids != episode).any():
                raise UserError(
                    f"{file}: does not hold the rows of episode {episode} that meta promises; {leave_out(episode)}"
                )
            values = self._rows(file, column, place.row + start, place.row + stop)
            if self._features[column]["dtype"] == "image":
                return np.stack([_image(self.path, entry) for entry in values.to_pylist()])
            return _numbers(values).reshape(stop - start, *self.columns[column].shape)

    def _frames(self, camera: str, episode: int, start: int, stop: int) -> np.ndarray:
        place = self._places[episode]
        fill = place.video_fill.get(camera, place.fill)
        file = self.path / self._info["video_path"].format(video_key=camera, **fill)
        if camera not in self._videos or self._videos[camera].path != file:
            if camera in self._videos:
                self._videos.pop(camera).close()
            self._videos[camera] = Video(file)
        middle = (np.arange(start, stop) + 0.5) / float(self._info["fps"])  # far from the frames before and after
        return self._videos[camera].at(place.second.get(camera, 0.0) + middle)

    def _rows(self, file: Path, column: str, first: int, last: int) -> Any:
        """Rows `first` to `last` of one column, from the row groups that hold them."""
        parquet, ends = self._file(file)
        inside = [g for g in range(len(ends)) if ends[g] > first and (ends[g - 1] if g else 0) < last]
        begin = ends[inside[0] - 1] if inside and inside[0] else 0
        table = parquet.read_row_groups(inside, columns=[column])
        return table.column(column).combine_chunks().slice(first - begin, last - first)

    def _opened(self, file: Path) -> tuple[Any, np.ndarray]:
        if not file.exists():
            raise UserError(f"{file}: is missing; copy the data set again")
        parquet = self._parquet.ParquetFile(file)
        groups = range(parquet.metadata.num_row_groups)
        return parquet, np.cumsum([parquet.metadata.row_group(g).num_rows for g in groups])

    def _version_2(self) -> list[Place]:
        file = self.path / "meta/episodes.jsonl"
        with reading(file):
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        size = int(self._info.get("chunks_size", 1000))
        return [
            Place(int(line["length"]), {"episode_index": index, "episode_chunk": index // size})
            for index, line in enumerate(sorted(lines, key=lambda line: line["episode_index"]))
        ]

    def _version_3(self) -> list[Place]:
        files = sorted((self.path / "meta/episodes").rglob("*.parquet"))
        rows: list[dict[str, Any]] = []
        for file in files:
            with reading(file):
                wanted = [name for name in self._parquet.read_schema(file).names if not name.startswith("stats/")]
                rows += self._parquet.read_table(file, columns=wanted).to_pylist()
        rows.sort(key=lambda row: row["episode_index"])
        cameras = [name for name, feature in self._features.items() if feature["dtype"] == "video"]
        first_row: dict[tuple[int, int], int] = {}
        places = []
        for row in rows:
            where = (row["data/chunk_index"], row["data/file_index"])
            first_row.setdefault(where, row["dataset_from_index"])
            fills = {
                camera: {part: int(row[f"videos/{camera}/{part}"]) for part in ("chunk_index", "file_index")}
                for camera in cameras
            }
            begins = {camera: float(row[f"videos/{camera}/from_timestamp"]) for camera in cameras}
            fill = {"chunk_index": where[0], "file_index": where[1]}
            places.append(Place(int(row["length"]), fill, row["dataset_from_index"] - first_row[where], fills, begins))
        return places


def _info(file: Path) -> dict[str, Any]:
    with reading(file):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    missing = [key for key in ("features", "fps", "data_path") if key not in found]
    if missing:
        raise UserError(f"{file}: lacks {', '.join(missing)}; it is damaged or older than v2: copy or convert it again")
    return found


def _column(feature: dict[str, Any]) -> Column:
    """Pictures are declared as such, with the channels first or last; both are read as [h, w, c]."""
    shape, kind = tuple(feature["shape"]), feature["dtype"]
    if kind not in ("video", "image"):
        return Column(shape, np.dtype(kind), picture=False)
    height, width = shape[1:] if shape[0] in (1, 3) else shape[:2]
    return Column((height, width, 3), np.dtype(np.uint8), picture=True)


def _names(feature: dict[str, Any]) -> tuple[str, ...]:
    """Names of a column's numbers, () where there is not one for each."""
    names = feature.get("names") or ()
    if isinstance(names, dict):
        names = next(iter(names.values()), ())
    return tuple(names) if list(feature["shape"]) == [len(names)] else ()


def _numbers(values: Any) -> np.ndarray:
    """The numbers of an arrow column, its lists flattened."""
    while hasattr(values, "flatten") and "list" in str(values.type):
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _image(root: Path, entry: dict[str, Any]) -> np.ndarray:
    """An image of a parquet cell: its encoded bytes, or the path of a file beside."""
    source = io.BytesIO(entry["bytes"]) if entry.get("bytes") else root / entry["path"]
    return np.asarray(Image.open(source).convert("RGB"))
