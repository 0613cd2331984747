"""HDF5 with a group or a file of its own for each episode: Minari; robomimic, LIBERO and MimicGen;
ALOHA, ACT and RDT.

Pictures are arrays or image files, decoded as they are read; they are shown as they are stored,
those of LIBERO upside down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.data.readers.hdf5 import SUFFIXES, with_pictures
from jepa_wm.data.readers.registry import READERS, About, Array, reading
from jepa_wm.data.readers.rows import EpisodeArrays, numbered
from jepa_wm.data.samples import visible
from jepa_wm.data.trajectories import ActionKind

MINARI = ("data/main_data.hdf5", "main_data.hdf5")  # where it lies in a folder
LATER = "next_obs/"  # robomimic: the observations again, a step on
# Frames that an episode of ALOHA whose file is damaged counts as: enough to be asked for, and
# refused by number.
UNREAD = 2


@READERS.register("minari")
class MinariReader:
    """`main_data.hdf5`, or a folder with it: a group an episode, with one observation more than
    there are actions."""

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
            names, numbers = numbered([name for name in file if name.startswith("episode_")])
            lengths = [file[name].visititems(_observations) or 0 for name in names]

        # The size of a discrete action space is JSON in metadata.json or in the file itself.
        beside, text = main.with_name("metadata.json"), file.attrs.get("action_space")
        if beside.exists():
            text = json.loads(read_text(beside)).get("action_space", text)
        space = json.loads(text) if isinstance(text, str) else text or {}
        about = About(choices=int(space["n"]) if space.get("type") == "Discrete" else None)

        def opened(episode: int) -> dict[str, Array]:
            return with_pictures(file[names[episode]])

        return EpisodeArrays(main, opened, lengths, about=about, numbers=numbers)


def _main_file(path: Path) -> Path | None:
    return next((path / place for place in MINARI if (path / place).exists()), None)


def _observations(name: str, item: object) -> int | None:
    """Rows of an array of observations, the last one included; None for anything else."""
    if isinstance(item, h5py.Dataset) and item.shape and name.startswith("observations"):
        return int(item.shape[0])
    return None


@READERS.register("robomimic")
class RobomimicReader:
    """A file with a group `data/demo_K` an episode, with `actions` and cameras below `obs`."""

    @staticmethod
    def recognises(path: Path) -> bool:
        if not _is_hdf5(path):
            return False
        try:
            with open_h5(path) as file:
                return bool(_demos(file))
        except OSError:
            return False

    @staticmethod
    def open(path: Path) -> EpisodeArrays:
        """Episodes by the number of their demo; UserError for a file without
        `data/demo_K/actions`."""
        with reading(path):
            file = open_h5(path)
            demos = _demos(file)
            if not demos:
                raise UserError(
                    f"{path}: has no data/demo_0/actions or the like; it is not of robomimic"
                )
            demos, numbers = numbered(demos)
            lengths = [len(file[f"data/{demo}/actions"]) for demo in demos]

        def opened(episode: int) -> dict[str, Array]:
            arrays = with_pictures(file[f"data/{demos[episode]}"])
            return {name: array for name, array in arrays.items() if not name.startswith(LATER)}

        fps, kind = _rate_and_kind(file["data"].attrs.get("env_args"))
        about = About(fps, action_kind=kind, terminated="dones")
        return EpisodeArrays(path, opened, lengths, about=about, numbers=numbers)


def _demos(file: h5py.File) -> list[str]:
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        return []
    return [name for name in data if isinstance(data.get(f"{name}/actions"), h5py.Dataset)]


def _rate_and_kind(text: Any) -> tuple[float | None, ActionKind | None]:
    """(steps a second, what actions are) from `env_args`, the JSON of what the environment was
    made with."""
    try:
        settings = json.loads(text)["env_kwargs"]
        controller = settings.get("controller_configs") or {}
    except (TypeError, ValueError, KeyError, AttributeError):
        return None, None
    rate, kind = settings.get("control_freq"), controller.get("control_delta")
    kinds: dict[bool, ActionKind] = {True: "delta", False: "absolute"}
    return float(rate) if rate else None, kinds[kind] if isinstance(kind, bool) else None


@READERS.register("aloha")
class AlohaReader:
    """A folder of files, or one of them, an episode each, with `action`, `observations/qpos` and
    `observations/images/CAMERA`. Actions are joint positions to go to."""

    @staticmethod
    def recognises(path: Path) -> bool:
        return any(_is_aloha(file) for file in _files(path))

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

        lengths = []
        for stem in stems:
            try:
                with reading(files[stem]), open_h5(files[stem]) as file:
                    lengths.append(len(file["action"]) if "action" in file else UNREAD)
            except UserError:  # said when the episode is read
                lengths.append(UNREAD)
        about = About(action_kind="absolute")
        return EpisodeArrays(path, opened, lengths, about=about, numbers=numbers)


def _is_hdf5(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def _files(path: Path) -> list[Path]:
    inside = visible(path.iterdir()) if path.is_dir() else [path]
    return sorted(file for file in inside if _is_hdf5(file))


def _is_aloha(path: Path) -> bool:
    try:
        with open_h5(path) as file:
            images = isinstance(file.get("observations/images"), h5py.Group)
            arms = images or "observations/qpos" in file
            return isinstance(file.get("action"), h5py.Dataset) and arms
    except OSError:
        return False
