"""Where a run's trajectories lie, and what their state numbers are."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import Quantities, groups_of, units_of
from jepa_wm.data.quantities import grouped as grouped
from jepa_wm.data.trajectories import Trajectories, attribute_text


def data_folder(run: Path, path: str | None) -> Path:
    """The folder of `train.h5` and `heldout.h5`: `path`, as data.path names it, else the run's
    own."""
    return Path(path) if path else run / "collect"


def open_data(run: Path, path: str | None, part: Literal["train", "heldout"]) -> Trajectories:
    """The run's training or held-out trajectories; UserError if they are not there."""
    return Trajectories(data_folder(run, path) / f"{part}.h5")


def quantities(data: Trajectories) -> Quantities:
    """The groups of the file's state numbers, from its attribute `state_groups`, such as
    "agent:0,1 wall:2 door:3", and their units from `state_units`, such as "px px px px"; UserError
    where these do not fit."""
    text = {
        name: attribute_text(data.attributes.get(name, ""))
        for name in ("state_groups", "state_units")
    }
    if "state" not in data or not text["state_groups"]:
        return Quantities()
    try:
        groups = groups_of(text["state_groups"], data.state_size)
        return Quantities(groups, units_of(groups, text["state_units"], data.state_size))
    except UserError as error:
        raise UserError(f"{data.path}: {error}") from None


def state_groups(data: Trajectories) -> dict[str, list[int]]:
    """Named groups of state dimensions for probes."""
    return {name: list(ids) for name, ids in quantities(data).groups.items()}


def state_units(data: Trajectories) -> dict[str, str]:
    """The unit of each group, "" where none is known."""
    known = quantities(data)
    return {name: known.unit(name) for name in known.groups}


def check_same_state(train: Trajectories, heldout: Trajectories) -> None:
    """UserError where held-out states have other numbers than those of training."""
    if train.state_size != heldout.state_size:
        raise UserError(
            f"{heldout.path}: the state has {heldout.state_size} numbers, in {train.path} "
            f"{train.state_size}; "
            "convert or collect both parts alike"
        )
