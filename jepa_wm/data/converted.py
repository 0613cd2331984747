"""What `convert` writes of a view: its columns, their rows a window at a time, and what the file
says of itself; several cameras each in a column of its own, or side by side in one picture.

L frames of an episode, h x w px."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.images import joined_cameras, resized
from jepa_wm.data.quantities import described
from jepa_wm.data.readers.registry import leave_out
from jepa_wm.data.readers.view import View
from jepa_wm.data.trajectories import ActionKind, Columns

WINDOW = 2**26  # bytes of frames read at a time


def columns_of(view: View, size: int | None, episode: int, *, together: bool) -> Columns:
    """The columns of the target, as the first frame of an episode tells; `together`: of all
    cameras one picture, of `size` px."""
    columns: dict[str, tuple[tuple[int, ...], str]] = {}
    for name in view.pictures if not together else ():
        height, width = view.frames(name, episode, 0, 1).shape[1:3]
        columns[name] = ((size or height, size or width, 3), "u1")
    if together:
        assert size is not None, "the command refuses it"
        columns["pixels"] = ((size, size, 3), "u1")
    columns["action"] = ((view.action_size,), "f4")
    if view.state is not None:
        columns["state"] = ((len(view.state_names),), "f4")
    kinds = {"reward": "f4", "terminated": "u1"}
    return columns | {name: ((), kinds[name]) for name in view.pay}


def rows_of(
    view: View, size: int | None, episode: int, columns: Columns, *, together: bool
) -> Iterator[tuple[int, str, np.ndarray]]:
    """(first row, column, values) of all columns of an episode but its actions, frames and states
    a window at a time; UserError where frames are not of the columns' size."""
    for name in view.pay:
        earned = view.earned(name, episode)
        yield 0, name, (earned > 0 if name == "terminated" else earned).astype(columns[name][1])

    sizes = [view.source.columns[name].size for name in view.pictures.values()]
    held = 4 * (sum(sizes) if together else max(sizes))  # bytes a row, of floats
    length, step = int(view.source.lengths[episode]), max(1, WINDOW // held)
    for start in range(0, length, step):
        stop = min(start + step, length)
        if together:
            assert size is not None, "the command refuses it"
            each = [view.frames(name, episode, start, stop) for name in view.pictures]
            yield start, "pixels", joined_cameras(each, size)
        for name in view.pictures if not together else ():
            frames = view.frames(name, episode, start, stop)
            frames = resized(frames, size) if size else frames
            if frames.shape[1:] != columns[name][0]:
                number = view.called(episode)
                raise UserError(
                    f"{view.source.path}: '{name}' is {frames.shape[1:]} in episode {number}, but "
                    f"{columns[name][0]} in the first; make frames equal with --size, or "
                    f"{leave_out(number)}"
                )
            yield start, name, frames
        if view.state is not None:
            yield start, "state", view.states(episode, start, stop)


def about(view: View, kind: ActionKind | None, *, together: bool) -> dict[str, Any]:
    """The attributes of the target; `cameras` are the columns that `pixels` shows, where the
    source has several to choose among."""
    shown, source = list(view.pictures.values()), view.source
    says: dict[str, Any] = {
        "action_kind": kind or source.about.action_kind or "delta",
        "source": source.path.name,
    }
    if sum(column.picture for column in source.columns.values()) > 1:
        says["cameras"] = " ".join(shown if together else shown[:1])
    if source.about.fps:
        says["fps"] = source.about.fps
    if view.state is not None:
        says |= described(view.state_names, view.state_units)
    return says


def refuse_one_camera(view: View, size: int | None) -> None:
    """UserError where cameras cannot be put side by side into a picture of `size` px."""
    count = len(view.pictures)
    if count < 2 or size is None or size % count:
        raise UserError(
            f"--join-cameras {count}: so many of --camera cannot share a picture of --size "
            f"{size or 'none'}; name two or more with --camera, and a --size that is so many "
            "times a whole number"
        )
