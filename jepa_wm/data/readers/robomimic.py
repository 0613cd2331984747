"""HDF5 of robomimic, LIBERO and MimicGen: a group `data/demo_K` an episode, with `actions` and
cameras below `obs`.

Pictures are read as they are stored; those of LIBERO stand upside down.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.data.readers.hdf5 import SUFFIXES, with_pictures
from jepa_wm.data.readers.registry import READERS
from jepa_wm.data.readers.rows import EpisodeArrays, numbered
from jepa_wm.data.readers.source import About, Array, reading
from jepa_wm.data.trajectories import ActionKind

LATER = "next_obs/"  # the observations again, a step on


@READERS.register("robomimic")
class RobomimicReader:
    """A file with groups `data/demo_K`."""

    @staticmethod
    def recognises(path: Path) -> bool:
        if not (path.is_file() and path.suffix.lower() in SUFFIXES):
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
            lengths = np.array([len(file[f"data/{demo}/actions"]) for demo in demos])

        def opened(episode: int) -> dict[str, Array]:
            arrays = with_pictures(file[f"data/{demos[episode]}"])
            return {name: array for name, array in arrays.items() if not name.startswith(LATER)}

        fps, kind = _about(file["data"].attrs.get("env_args"))
        about = About(fps, action_kind=kind, terminated="dones")
        return EpisodeArrays(path, opened, lengths, about=about, numbers=numbers)


def _demos(file: h5py.File) -> list[str]:
    data = file.get("data")
    if not isinstance(data, h5py.Group):
        return []
    return [name for name in data if isinstance(data.get(f"{name}/actions"), h5py.Dataset)]


def _about(text: Any) -> tuple[float | None, ActionKind | None]:
    """(steps a second, what actions are) from `env_args`, the JSON of what the environment was
    made with."""
    try:
        settings = json.loads(text)["env_kwargs"]
        controller = settings.get("controller_configs") or {}
    except (TypeError, ValueError, KeyError, AttributeError):
        return None, None
    rate, delta = settings.get("control_freq"), controller.get("control_delta")
    kind: ActionKind | None = (
        None if not isinstance(delta, bool) else "delta" if delta else "absolute"
    )
    return float(rate) if rate else None, kind
