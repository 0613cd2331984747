"""DINO-WM folders: `states.pth`, actions as [E, L, a] tensors, and `obses/episode_000.mp4` or `.pth`.

Its `seq_lengths.pkl` is a pickle and never loaded: an episode is as long as its pictures. L is the longest episode's
length; what stands behind a shorter one's end is padding.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from jepa_wm.core.errors import UserError
from jepa_wm.observe.formats.source import About, Array, EpisodeArrays, reading
from jepa_wm.observe.video import Video

TABLES = {"state": "states", "action": "actions", "rel_action": "rel_actions", "abs_action": "abs_actions"}
MORE = {"velocity": "velocities", "door_location": "door_locations", "wall_location": "wall_locations"}


def recognises(path: Path) -> bool:
    return (path / "states.pth").is_file() or (path / "train/states.pth").is_file()


def open_source(path: Path) -> EpisodeArrays:
    """The episodes of a folder of tensors; UserError for one that holds a train and a val folder of them."""
    if not (path / "states.pth").is_file():
        raise UserError(f"{path}: holds several sets; name one of them: {path / 'train'} or {path / 'val'}")
    tables = {
        name: _tensor(path / f"{stem}.pth").numpy()
        for name, stem in {**TABLES, **MORE}.items()
        if (path / f"{stem}.pth").is_file()
    }
    videos = sorted((path / "obses").glob("episode_*"), key=lambda file: int(file.stem.rpartition("_")[2]))
    episodes = len(tables["state"])
    if len(videos) != episodes:
        raise UserError(f"{path}: {episodes} episodes in states.pth but {len(videos)} in obses; copy it again")

    def opened(episode: int) -> dict[str, Array]:
        frames = _frames(videos[episode])
        length = frames.shape[0]
        numbers = {name: table[episode, :length] for name, table in tables.items() if table.ndim > 2}
        return {"pixels": frames, **numbers}

    lengths = [_frames(video).shape[0] for video in videos]
    return EpisodeArrays(path, opened, np.array(lengths), about=About())


class _VideoRows:
    """The frames of an mp4 as rows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with Video(path) as video:
            facts = video.facts()
        self.fps, self.dtype = facts.fps, np.dtype(np.uint8)
        self.shape = (facts.frames, facts.height, facts.width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        with Video(self.path) as video:
            return video.at((np.arange(*rows.indices(self.shape[0])) + 0.5) / self.fps)


def _frames(path: Path) -> Array:
    frames: Array = _VideoRows(path) if path.suffix == ".mp4" else _tensor(path).numpy()
    return frames


def _tensor(path: Path) -> torch.Tensor:
    """A tensor mapped into memory, not loaded; UserError for anything but plain tensors."""
    try:
        with reading(path):
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than tensors; save the tensor alone with torch.save") from error
    if not isinstance(found, torch.Tensor):
        raise UserError(f"{path}: holds no tensor but a {type(found).__name__}; save the tensor alone")
    return found
