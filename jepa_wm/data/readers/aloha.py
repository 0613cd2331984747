"""HDF5 of ALOHA, ACT and RDT: a file an episode, with `action`, `observations/qpos` and
`observations/images/CAMERA`.

Pictures are arrays or JPEG files, padded to one length or not. Actions are joint positions to go
to."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.data.readers.hdf5 import SUFFIXES, with_pictures
from jepa_wm.data.readers.registry import READERS
from jepa_wm.data.readers.rows import EpisodeArrays, numbered
from jepa_wm.data.readers.source import About, Array, reading
from jepa_wm.data.samples import visible

# Frames that an episode whose file is damaged counts as: enough to be asked for, and refused by
# number.
UNREAD = 2


@READERS.register("aloha")
class AlohaReader:
    """A folder of files with `action` and `observations`, or one of them."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return any(_is_episode(file) for file in _files(path))

    @staticmethod
    def open(path: Path) -> EpisodeArrays:
        """The episodes of a folder by the numbers in their files' names, or of one file; UserError
        where there is none."""
        files = {file.stem: file for file in _files(path)}
        if not files:
            raise UserError(f"{path}: holds no .hdf5 file; name the folder of the episodes")
        stems, numbers = numbered(list(files))

        # A file is opened when it is read; a broken one is told of then.
        def opened(episode: int) -> dict[str, Array]:
            file = files[stems[episode]]
            with reading(file):
                arrays = with_pictures(open_h5(file))
            if "action" not in arrays:
                raise UserError(f"{file}: has no 'action', as files of ALOHA have; copy it again")
            return arrays

        def length(episode: int) -> int:
            try:
                with reading(files[stems[episode]]), open_h5(files[stems[episode]]) as file:
                    return len(file["action"]) if "action" in file else UNREAD
            except UserError:  # said when the episode is read
                return UNREAD

        lengths = np.array([length(episode) for episode in range(len(stems))])
        return EpisodeArrays(
            path, opened, lengths, about=About(action_kind="absolute"), numbers=numbers
        )


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in visible(path.iterdir()) if file.suffix.lower() in SUFFIXES)
    return [path] if path.is_file() and path.suffix.lower() in SUFFIXES else []


def _is_episode(path: Path) -> bool:
    try:
        with open_h5(path) as file:
            images = (
                isinstance(file.get("observations/images"), h5py.Group)
                or "observations/qpos" in file
            )
            return isinstance(file.get("action"), h5py.Dataset) and images
    except OSError:
        return False
