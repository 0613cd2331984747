"""Minari data sets in HDF5: a group an episode, with one observation more than there are actions."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.observe.formats.hdf5 import tree_arrays
from jepa_wm.observe.formats.source import About, Array, EpisodeArrays, reading

PLACES = ("data/main_data.hdf5", "main_data.hdf5")


def recognises(path: Path) -> bool:
    return path.name == "main_data.hdf5" or _main_file(path) is not None or (path / "data/metadata.json").exists()


def open_source(path: Path) -> EpisodeArrays:
    """Episodes in the order of their numbers; parts of a dict observation are named observations/part."""
    main = path if path.is_file() else _main_file(path)
    if main is None:
        raise UserError(f"{path}: has no data/main_data.hdf5; of Minari's storages only HDF5 is read: convert it there")
    with reading(main):
        file = h5py.File(main, "r")
        names = sorted((name for name in file if name.startswith("episode_")), key=lambda name: int(name[8:]))
        lengths = np.array([_frames(main, file[name]) for name in names])

    def opened(episode: int) -> dict[str, Array]:
        return tree_arrays(file[names[episode]])

    return EpisodeArrays(main, opened, lengths, about=About(choices=_choices(main, file)))


def _main_file(path: Path) -> Path | None:
    return next((path / place for place in PLACES if (path / place).exists()), None)


def _frames(path: Path, episode: h5py.Group) -> int:
    """Observations of an episode, the last one included."""
    observations = {name: array for name, array in tree_arrays(episode).items() if name.startswith("observations")}
    rows = {array.shape[0] for array in observations.values()}
    if len(rows) != 1:
        raise UserError(f"{path}: {episode.name} has observations of {sorted(rows)} rows; they must be equally many")
    return rows.pop()


def _choices(path: Path, file: h5py.File) -> int | None:
    """The size of a discrete action space, which Minari writes as JSON into metadata.json or the file itself."""
    beside = path.with_name("metadata.json")
    text = file.attrs.get("action_space")
    if beside.exists():
        text = json.loads(beside.read_text(encoding="utf-8")).get("action_space", text)
    space = json.loads(text) if isinstance(text, str) else text or {}
    return int(space["n"]) if space.get("type") == "Discrete" else None
