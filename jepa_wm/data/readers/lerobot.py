"""LeRobotDataset v2.x and v3: `meta/info.json`, numbers in parquet, cameras in mp4 or as images
inside the parquet.

Version 2 has one file an episode; version 3 puts many episodes into one and tells in
`meta/episodes` where each lies."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.images import read_picture
from jepa_wm.data.readers import lerobot_meta as meta
from jepa_wm.data.readers.lerobot_meta import Place
from jepa_wm.data.readers.registry import READERS, About, leave_out, needs, reading
from jepa_wm.data.video import Video, VideoError

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True)
class Table:
    """An open parquet file, and where in it episodes lie."""

    file: Any
    ends: np.ndarray  # [G] rows up to the end of each row group
    spans: dict[int, tuple[int, int]]  # number: first row and how many
    scattered: frozenset[int]  # numbers whose rows are not together, or not in order of frames


@READERS.register("lerobot")
class LeRobot:
    """The episodes of one data set, known by their episode_index; parquet and video files are
    opened when read. UserError for versions before 2 and for tables that disagree."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "meta/info.json").is_file()

    @classmethod
    def open(cls, path: Path) -> LeRobot:
        return cls(path)

    def __init__(self, path: Path) -> None:
        self.path = path

        # What the set is, and where its episodes lie.
        self._parquet = needs("pyarrow.parquet", extra="lerobot", path=path)
        info = meta.read_info(path / "meta/info.json")
        version = str(info.get("codebase_version", "")).lstrip("v")
        if version.partition(".")[0] not in ("2", "3"):
            raise UserError(
                f"{path}: is of version {version or 'unknown'}; convert it to v2.1 or v3.0 with "
                "lerobot"
            )
        self._info, self._fps = info, float(info["fps"])
        if version.startswith("2"):
            self._places = meta.places_2(path, info)
        else:
            self._places = meta.places_3(path, info, self._parquet)
        self.lengths = np.array([place.length for place in self._places], np.int64)
        self.numbers = np.array([place.number for place in self._places], np.int64)
        frames = int(self.lengths.sum())
        if not frames or frames != info.get("total_frames", frames):
            raise UserError(
                f"{path}: meta/info.json tells of {info.get('total_frames')} frames, the episodes "
                f"of {frames}; files of meta are missing or old: copy it again, or correct "
                "total_frames there if these are all the episodes"
            )

        # The columns, and the files that are open.
        self.columns = meta.columns(info, without=BOOKKEEPING)
        features = info["features"].items()
        names = {name: meta.number_names(feature) for name, feature in features}
        self.about = About(self._fps, names)
        self._file = lru_cache(maxsize=8)(self._opened)
        self._stamps = lru_cache(maxsize=64)(_stamps)
        self._videos: dict[str, Video] = {}

    def read(self, column: str, episode: int, start: int, stop: int) -> np.ndarray:
        kind, place = self._info["features"][column]["dtype"], self._places[episode]
        if kind == "video":
            return self._frames(column, place, start, stop)
        values = self._rows(place, column, start, stop)
        with reading(self._data_file(place)):
            if kind == "image":
                try:
                    return np.stack(
                        [_image(self.path, entry, f"'{column}'") for entry in values.to_pylist()]
                    )
                except VideoError as error:
                    raise self._blamed(place, f"{self._data_file(place)}: {error}") from error
            return _numbers(values).reshape(stop - start, *self.columns[column].shape)

    def check(self, column: str, episode: int) -> None:
        """UserError where the film of a camera has no frame for a row of the episode; nothing is
        decoded."""
        if self._info["features"][column]["dtype"] != "video":
            return

        # A late first row, of a film that holds other episodes too, would take theirs.
        place = self._places[episode]
        seconds = self._promised(column, place, 0, place.length)
        late = seconds[0] - place.second.get(column, seconds[0]) if place.length else 0.0
        if late >= 1 / self._fps:
            raise self._blamed(
                place,
                f"{self._data_file(place)}: its first timestamp is {late:.3f} s instead of 0",
            )

        # Every row needs a frame within half an interval: the one before or the one after it.
        try:
            stamps = self._stamps(self._film(column, place))
        except VideoError as error:
            raise self._blamed(place, error) from error
        stamps = np.concatenate([[-np.inf], stamps, [np.inf]])
        after = np.searchsorted(stamps, seconds)
        distance = np.minimum(seconds - stamps[after - 1], stamps[after] - seconds)
        lost = np.flatnonzero(distance >= 0.5 / self._fps)
        if len(lost):
            fault = f"has no frame near {seconds[lost[0]]:.3f} s, where row {lost[0]} should be"
            raise self._blamed(
                place, f"{self._film(column, place)}: {fault}; in all {len(lost)} rows have none"
            )

    def _frames(self, camera: str, place: Place, start: int, stop: int) -> np.ndarray:
        file, seconds = self._film(camera, place), self._promised(camera, place, start, stop)
        try:
            if camera in self._videos and self._videos[camera].path != file:
                self._videos.pop(camera).close()
            if camera not in self._videos:
                self._videos[camera] = Video(file)
            return self._videos[camera].nearest(seconds, within=0.5 / self._fps)
        except VideoError as error:
            raise self._blamed(place, error) from error

    def _promised(self, camera: str, place: Place, start: int, stop: int) -> np.ndarray:
        """[stop - start] seconds of a camera's file at which rows of an episode should be."""
        begin = place.second.get(camera, 0.0)
        if not np.isfinite(begin):
            raise self._blamed(
                place, f"{self.path}/meta does not say where it begins in the film of '{camera}'"
            )
        if camera in place.shared:
            film, second = self._film(camera, place), place.shared[camera]
            raise self._blamed(
                place, f"{self.path}/meta has it and episode {second} in one stretch of {film}"
            )
        # As lerobot does it, by the time of each row; a row number would tell the same at a steady
        # rate only.
        if "timestamp" in self._table_of(place).file.schema_arrow.names:
            rows = self._rows(place, "timestamp", start, stop)
            times = _numbers(rows).reshape(-1).astype(np.float64)
            if not np.isfinite(times).all():
                raise self._blamed(
                    place, f"{self._data_file(place)}: a timestamp is missing or no number"
                )
            return begin + times
        return begin + np.arange(start, stop) / self._fps

    def _blamed(self, place: Place, why: object) -> UserError:
        return UserError(f"episode {place.number}: {why}; {leave_out(place.number)}")

    def _data_file(self, place: Place) -> Path:
        return self.path / str(self._info["data_path"]).format(**place.fill)

    def _film(self, camera: str, place: Place) -> Path:
        fill = place.video_fill.get(camera, place.fill)
        return self.path / str(self._info["video_path"]).format(video_key=camera, **fill)

    def _rows(self, place: Place, column: str, start: int, stop: int) -> Any:
        """Rows `start` to `stop` of an episode's column, from the row groups that hold them."""
        file, table = self._data_file(place), self._table_of(place)
        with reading(file):
            first, count = table.spans.get(place.number, (0, 0))
            if count != place.length:
                raise self._blamed(
                    place, f"{file} holds {count} rows of the {place.length} that meta promises"
                )
            if place.number in table.scattered:
                raise self._blamed(
                    place, f"{file}: its rows are not together in the order of frame_index"
                )
            if column not in table.file.schema_arrow.names:
                raise self._blamed(place, f"{file} has no column '{column}'")

            # Only the row groups that overlap.
            first, last = first + start, first + stop
            begins = np.append(0, table.ends)[:-1]
            inside = np.flatnonzero((table.ends > first) & (begins < last)).tolist()
            begin = int(begins[inside[0]]) if inside else 0
            rows = table.file.read_row_groups(inside, columns=[column])
            return rows.column(column).combine_chunks().slice(first - begin, last - first)

    def _table_of(self, place: Place) -> Table:
        file = self._data_file(place)
        if not file.exists():
            raise self._blamed(place, f"{file} is missing: copy the data set again")
        with reading(file):
            return self._file(file)

    def _opened(self, file: Path) -> Table:
        parquet = self._parquet.ParquetFile(file)
        groups = range(parquet.metadata.num_row_groups)
        ends = np.cumsum([parquet.metadata.row_group(g).num_rows for g in groups])
        names = {"episode_index", "frame_index"} & set(parquet.schema_arrow.names)
        if "episode_index" not in names:
            raise UserError(
                f"{file}: has no column 'episode_index', so nothing says whose rows these are; "
                "copy it again"
            )

        # Where each episode's rows begin, and how many there are.
        table = parquet.read(columns=list(names))
        index = {name: _numbers(table.column(name).combine_chunks()).ravel() for name in names}
        ids = index["episode_index"].astype(np.int64)
        numbers, first, count = np.unique(ids, return_index=True, return_counts=True)
        spans = {int(e): (int(at), int(n)) for e, at, n in zip(numbers, first, count, strict=True)}

        # Rows of another episode between them, or frames out of order.
        order = index.get("frame_index", np.arange(len(ids)))
        scattered = set()
        for e, (at, n) in spans.items():
            if (ids[at : at + n] != e).any() or (np.diff(order[at : at + n]) <= 0).any():
                scattered.add(e)
        return Table(parquet, ends, spans, frozenset(scattered))


def _stamps(file: Path) -> np.ndarray:
    with Video(file) as video:
        return video.stamps()


def _numbers(values: Any) -> np.ndarray:
    """The numbers of an arrow column, its lists flattened."""
    while hasattr(values, "flatten") and "list" in str(values.type):
        values = values.flatten()
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _image(root: Path, entry: dict[str, Any] | None, name: str) -> np.ndarray:
    """An image of a parquet cell: its encoded bytes, or the path of a file beside; `name` is what
    errors call it."""
    if not entry or not (entry.get("bytes") or entry.get("path")):
        raise VideoError(f"{name}: a picture is missing")
    source = io.BytesIO(entry["bytes"]) if entry.get("bytes") else root / entry["path"]
    return np.asarray(read_picture(source, name))
