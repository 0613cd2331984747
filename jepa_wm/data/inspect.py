"""What is in a set of trajectories or videos, and what is broken there (command inspect)."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import Progress
from jepa_wm.data import inspect_videos
from jepa_wm.data.contact_sheet import contact_sheet
from jepa_wm.data.convert import action_statistics
from jepa_wm.data.readers.choice import add_column_arguments, chosen
from jepa_wm.data.readers.registry import format_of, open_source
from jepa_wm.data.readers.source import Source, leave_out
from jepa_wm.data.readers.view import View
from jepa_wm.data.video_set import is_index

PICTURES = 24  # on a sheet
VIDEOS = "videos"  # the format that is none of trajectories


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `jepa-wm inspect`."""
    parser.add_argument(
        "path", metavar="PATH", help="trajectories, or a folder or manifest of videos"
    )
    add_column_arguments(parser, more_formats=(VIDEOS,))
    parser.add_argument("--sheet", metavar="OUT.png", help="write a contact sheet of frames there")


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """The command: open, look at every episode, tell."""
    path, sheet = Path(arguments.path), Path(arguments.sheet) if arguments.sheet else None
    if is_index(path) or (arguments.format or format_of(path) or VIDEOS) == VIDEOS:
        return {"path": path, "format": VIDEOS, **inspect_videos.looked_through(path, sheet)}
    source = open_source(path, arguments.format)
    result = {"path": path, "format": arguments.format or format_of(path), **table(source)}
    try:
        view = View(source, chosen(arguments))
    except UserError as error:  # a set without pictures, say, still has columns to show
        return {**result, "unusable": str(error)}
    return {**result, **looked_through(view, sheet)}


def table(source: Source) -> dict[str, object]:
    """Episodes, their lengths, and the columns."""
    lengths = source.lengths
    return {
        "episodes": len(lengths),
        "frames": int(lengths.sum()),
        "length": {
            "shortest": int(lengths.min()),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
        "fps": source.about.fps,
        "attributes": {
            name: np.asarray(value).tolist()
            for name, value in sorted(source.about.attributes.items())
        },
        "columns": {
            name: {
                "shape": list(column.shape),
                "dtype": str(column.dtype),
                "pictures": column.picture,
                **({"locked": column.locked} if column.locked else {}),
            }
            for name, column in sorted(source.columns.items())
        },
    }


def looked_through(view: View, sheet: Path | None) -> dict[str, object]:
    """The chosen columns, the action statistics over whole episodes, and the broken ones; their
    end frames are read."""
    actions, broken = [], {}
    episodes = len(view.source.lengths)
    shown = set(np.linspace(0, episodes - 1, min(PICTURES, episodes)).astype(int).tolist())
    pictures: dict[str, np.ndarray] = {}
    with Progress("inspect", episodes) as bar:
        for e in range(episodes):
            number = view.called(e)
            try:
                last = int(view.source.lengths[e]) - 1
                if last < 0:
                    raise UserError(
                        f"{view.source.path}: episode {number} has no frames; {leave_out(number)}"
                    )
                actions.append(view.actions(e))
                view.check(e)
                ends = [view.frames(name, e, last, last + 1) for name in view.pictures]
                if view.state is not None:
                    view.states(e, 0, last + 1)
                if e in shown:
                    pictures[f"episode {number}"] = ends[0][0]
            except UserError as error:
                broken[number] = str(error)
            bar.update(e + 1)
    result: dict[str, object] = {
        "used": {**view.pictures, "action": view.action, "state": view.state}
    }
    result["channels"] = {name: view.kind(name) for name in view.pictures}
    if pictures:
        result["image_size"] = list(next(iter(pictures.values())).shape[:2])
    if actions:
        numbers = {name: values.tolist() for name, values in action_statistics(actions).items()}
        space, means = "discrete" if view.discrete else "continuous", view.source.about.action_kind
        result["action"] = {"space": space, "kind": means, "size": view.action_size, **numbers}
    if sheet is not None:
        result["sheet"] = contact_sheet(sheet, pictures)
    return {**result, "broken": broken}


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    if result["format"] == VIDEOS:
        return inspect_videos.lines(result)
    length, fps = result["length"], f", {result['fps']:g} fps" if result["fps"] else ""
    told = [
        f"{result['path']}: {result['format']}, {result['episodes']} episodes, "
        f"{result['frames']} frames{fps}",
        f"  frames an episode: {length['shortest']} to {length['longest']}, median "
        f"{length['median']:g}",
    ]
    used = {theirs: ours for ours, theirs in result.get("used", {}).items()}
    notes = [
        f"{name} {textwrap.shorten(str(value), 60, placeholder=' ...')}"
        for name, value in result["attributes"].items()
        if not isinstance(value, list)
    ]
    told += [f"  says of itself: {', '.join(notes)}"] if notes else []
    for name, column in result["columns"].items():
        part = f"  -> {used[name]}" if name in used else ""
        part += f", {column['locked']}" if "locked" in column else ""
        part += (
            f" ({result['channels'][used[name]]})"
            if used.get(name) in result.get("channels", {})
            else ""
        )
        told.append(
            f"  {name}: {' x '.join(map(str, column['shape'])) or 'one number'} "
            f"{column['dtype']}{part}"
        )
    if "action" in result:
        about = result["action"]
        kind = (
            about["kind"]
            or "not said whether moves or places to go to (convert --action-kind; moves if not given)"
        )
        told.append(f"  actions: {about['space']}, {about['size']} numbers, {kind}")
        for name in ("mean", "std", "min", "max"):
            told.append(
                f"    {name:>4} " + " ".join(f"{value:10.4g}" for value in about[f"action_{name}"])
            )
    told += [f"  cannot be used: {result['unusable']}"] if "unusable" in result else []
    told += [f"  broken, episode {e}: {why}" for e, why in result.get("broken", {}).items()]
    return told + ([f"  contact sheet: {result['sheet']}"] if result.get("sheet") else [])
