"""Minari data sets in HDF5: a group an episode, with one observation more than there are actions.

Pictures are arrays, or JPEG files as rows of bytes (the default of Minari 0.5.4), decoded as they are read.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.observe.formats.hdf5 import tree_arrays
from jepa_wm.observe.formats.columns import Array
from jepa_wm.observe.formats.source import About, EpisodeArrays, reading
from jepa_wm.observe.h5 import open_h5
from jepa_wm.observe.pictures import read_picture

JPEG = b"\xff\xd8\xff"  # the first bytes of every such file
PLACES = ("data/main_data.hdf5", "main_data.hdf5")


def recognises(path: Path) -> bool:
    return path.name == "main_data.hdf5" or _main_file(path) is not None or (path / "data/metadata.json").exists()


def open_source(path: Path) -> EpisodeArrays:
    """Episodes in the order of their numbers; parts of a dict observation are named observations/part."""
    main = path if path.is_file() else _main_file(path)
    if main is None:
        raise UserError(f"{path}: has no data/main_data.hdf5; of Minari's storages only HDF5 is read: convert it there")
    with reading(main):
        file = open_h5(main)
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
        lengths = np.array([_frames(main, file[name]) for name in names])

    def opened(episode: int) -> dict[str, Array]:
        return _arrays(file[names[episode]])

    return EpisodeArrays(main, opened, lengths, about=About(choices=_choices(main, file)))


def _main_file(path: Path) -> Path | None:
    return next((path / place for place in PLACES if (path / place).exists()), None)


def _frames(path: Path, episode: h5py.Group) -> int:
    """Observations of an episode, the last one included."""
    observations = {name: array for name, array in _arrays(episode).items() if name.startswith("observations")}
    rows = {array.shape[0] for array in observations.values()}
    if len(rows) != 1:
        raise UserError(f"{path}: {episode.name} has observations of {sorted(rows)} rows; they must be equally many")
    return rows.pop()


class _JpegRows:
    """Rows of JPEG bytes as rows of pictures."""

    def __init__(self, files: h5py.Dataset) -> None:
        self._files, self.dtype = files, np.dtype(np.uint8)
        self._name = f"{files.file.filename}, {files.name}"
        self.shape: tuple[int, ...] = (len(files), *_picture(files[0], self._name).shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.stack([_picture(file, self._name) for file in self._files[rows]])


def _picture(file: np.ndarray, name: str) -> np.ndarray:
    return np.asarray(read_picture(io.BytesIO(file.tobytes()), name))


def _arrays(episode: h5py.Group) -> dict[str, Array]:
    """All arrays of an episode by their path, pictures decoded."""
    found = tree_arrays(episode)

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and _holds_jpeg(item):
            found[name] = _JpegRows(item)

    episode.visititems(visit)
    return found


def _holds_jpeg(dataset: h5py.Dataset) -> bool:
    """Files of equal size are a table of bytes, others rows of varying length."""
    varying = h5py.check_vlen_dtype(dataset.dtype) == np.uint8 and dataset.ndim == 1
    table = dataset.dtype == np.uint8 and dataset.ndim == 2
    return (varying or table) and len(dataset) > 0 and bytes(dataset[0][: len(JPEG)]) == JPEG


def _choices(path: Path, file: h5py.File) -> int | None:
    """The size of a discrete action space, which Minari writes as JSON into metadata.json or the file itself."""
    beside = path.with_name("metadata.json")
    text = file.attrs.get("action_space")
    if beside.exists():
        text = json.loads(beside.read_text(encoding="utf-8")).get("action_space", text)
    space = json.loads(text) if isinstance(text, str) else text or {}
    return int(space["n"]) if space.get("type") == "Discrete" else None
