"""Minari data sets in HDF5: a group an episode, with one observation more than there are actions.

Pictures are arrays, or JPEG files as rows of bytes (the default of Minari 0.5.4), decoded as they
are read."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.data.readers.hdf5 import with_pictures
from jepa_wm.data.readers.registry import READERS
from jepa_wm.data.readers.rows import EpisodeArrays
from jepa_wm.data.readers.source import About, Array, reading

PLACES = ("data/main_data.hdf5", "main_data.hdf5")


@READERS.register("minari")
class MinariReader:
    """`main_data.hdf5`, or a folder with it."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return (
            path.name == "main_data.hdf5"
            or _main_file(path) is not None
            or (path / "data/metadata.json").exists()
        )

    @staticmethod
    def open(path: Path) -> EpisodeArrays:
        """Episodes in the order of their numbers; parts of a dict observation are named
        observations/part."""
        main = path if path.is_file() else _main_file(path)
        if main is None:
            raise UserError(
                f"{path}: has no data/main_data.hdf5; of Minari's storages only HDF5 is read: "
                "convert it there"
            )
        with reading(main):
            file = open_h5(main)
            names = {int(name[8:]): name for name in file if name.startswith("episode_")}
            numbers = sorted(names)
            lengths = np.array([_frames(main, file[names[number]]) for number in numbers])
        about = About(choices=_choices(main, file))

        def opened(episode: int) -> dict[str, Array]:
            return with_pictures(file[names[numbers[episode]]])

        return EpisodeArrays(main, opened, lengths, about=about, numbers=np.array(numbers))


def _main_file(path: Path) -> Path | None:
    return next((path / place for place in PLACES if (path / place).exists()), None)


def _frames(path: Path, episode: h5py.Group) -> int:
    """Observations of an episode, the last one included."""
    rows: set[int] = set()

    def visit(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset) and item.shape and name.startswith("observations"):
            rows.add(int(item.shape[0]))

    episode.visititems(visit)
    if len(rows) != 1:
        raise UserError(
            f"{path}: {episode.name} has observations of {sorted(rows)} rows; they must be "
            "equally many"
        )
    return rows.pop()


def _choices(path: Path, file: h5py.File) -> int | None:
    """The size of a discrete action space, which Minari writes as JSON into metadata.json or the
    file itself."""
    beside = path.with_name("metadata.json")
    text = file.attrs.get("action_space")
    if beside.exists():
        text = json.loads(read_text(beside)).get("action_space", text)
    space = json.loads(text) if isinstance(text, str) else text or {}
    return int(space["n"]) if space.get("type") == "Discrete" else None
