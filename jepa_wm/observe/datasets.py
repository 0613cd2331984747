"""Where a run's trajectories lie, and what their state columns are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from jepa_wm.core.schema import Config
from jepa_wm.observe.trajectories import Trajectories


def data_folder(run: Path, config: Config) -> Path:
    """The folder of `train.h5` and `heldout.h5`: the one named by observe.path, else the run's own."""
    return Path(config.observe.path) if config.observe.path else run / "collect"


def open_data(run: Path, config: Config, part: Literal["train", "heldout"]) -> Trajectories:
    """The run's training or held-out trajectories; UserError if they are not there."""
    return Trajectories(data_folder(run, config) / f"{part}.h5")


def state_groups(data: Trajectories) -> dict[str, list[int]]:
    """Named groups of state dimensions for probes, from the file's `state_groups`, such as "dot:0,1 wall:2 door:3"."""
    text = str(data.attributes.get("state_groups", ""))
    pairs = (entry.split(":") for entry in text.split())
    return {name: [int(i) for i in ids.split(",")] for name, ids in pairs}


def grouped(names: Sequence[str]) -> str:
    """The `state_groups` text of state names: what stands before the last underscore names the group.

    ("dot_x", "dot_y", "speed") gives "dot:0,1 speed:2"; numbers of one group should be of one unit.
    """
    groups: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name.rpartition("_")[0] or name, []).append(str(i))
    return " ".join(f"{group}:{','.join(ids)}" for group, ids in groups.items())
