"""DINO-WM folders: `states.pth`, actions as [E, L, A] tensors, and `obses/episode_000.mp4` or
`.pth`.

Its `seq_lengths.pkl` is a pickle and never loaded: an episode is as long as its pictures. L is the
longest episode's length; what stands behind a shorter one's end is padding."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import torch

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import READERS, About, Array, reading
from jepa_wm.data.readers.rows import EpisodeArrays
from jepa_wm.data.video import Video

# Our columns, and the files of their tensors.
TABLES = {
    "state": "states", "action": "actions", "rel_action": "rel_actions",
    "abs_action": "abs_actions", "velocity": "velocities", "door_location": "door_locations",
    "wall_location": "wall_locations",
}  # fmt: skip


@READERS.register("dino_wm")
class DinoWmReader:
    """A folder that holds `states.pth`."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return (path / "states.pth").is_file() or (path / "train/states.pth").is_file()

    @staticmethod
    def open(path: Path) -> EpisodeArrays:
        """The episodes of a folder of tensors; UserError for one that holds a train and a val
        folder of them."""
        if not (path / "states.pth").is_file():
            raise UserError(
                f"{path}: holds several sets; name one of them: {path / 'train'} or {path / 'val'}"
            )
        tables = {
            name: _tensor(path / f"{stem}.pth")
            for name, stem in TABLES.items()
            if (path / f"{stem}.pth").is_file()
        }

        # Every episode has its video, by number.
        videos = sorted((path / "obses").glob("episode_*"), key=_number)
        episodes, numbers = len(tables["state"]), [_number(video) for video in videos]
        if numbers != list(range(episodes)):
            lost = sorted(set(range(episodes)) - set(numbers))
            missing = f"; episode {lost[0]} is the first that is missing" if lost else ""
            raise UserError(
                f"{path}: {episodes} episodes in states.pth but {len(videos)} in obses{missing}; "
                "copy it again"
            )

        def opened(episode: int) -> dict[str, Array]:
            frames = _frames(videos[episode])
            rows = {
                name: table[episode, : frames.shape[0]]
                for name, table in tables.items()
                if table.ndim > 2
            }
            return {"pixels": frames, **rows}

        # A video that cannot be read is told of when its episode is.
        lengths = []
        for video in videos:
            try:
                lengths.append(_frames(video).shape[0])
            except UserError:
                lengths.append(int(tables["state"].shape[1]))
        return EpisodeArrays(path, opened, lengths, about=About())


def _number(video: Path) -> int:
    """Of episode_000.mp4: 0."""
    return int(video.stem.rpartition("_")[2])


class _VideoRows:
    """The frames of an mp4 as rows, counted; at whatever rate they are shown."""

    def __init__(self, path: Path) -> None:
        self.path, self.dtype = path, np.dtype(np.uint8)
        with Video(path) as video:
            facts, self._stamps = video.facts(), video.stamps()
        if len(self._stamps) < facts.frames:
            raise UserError(
                f"{path}: holds {len(self._stamps)} of the {facts.frames} frames it tells of; "
                "copy it again"
            )
        self.shape = (len(self._stamps), facts.height, facts.width, 3)

    def __getitem__(self, rows: slice) -> np.ndarray:
        interval = np.diff(self._stamps).min(initial=1.0)
        with Video(self.path) as video:
            return video.nearest(self._stamps[rows], within=max(interval / 2, 1e-6))


def _frames(path: Path) -> Array:
    return _VideoRows(path) if path.suffix == ".mp4" else _tensor(path)


def _tensor(path: Path) -> np.ndarray:
    """A tensor mapped into memory, not loaded; UserError for anything but plain tensors."""
    try:
        with reading(path):
            tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds more than tensors; save the tensor alone with torch.save"
        ) from error
    if not isinstance(tensor, torch.Tensor):
        raise UserError(
            f"{path}: holds no tensor but a {type(tensor).__name__}; save the tensor alone"
        )
    values: np.ndarray = tensor.numpy()
    return values
