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
from jepa_wm.data.convert import action_statistics, add_column_arguments, chosen
from jepa_wm.data.inspect_videos import PICTURES, contact_sheet
from jepa_wm.data.readers.registry import Source, format_of, leave_out, open_trajectories
from jepa_wm.data.readers.view import View
from jepa_wm.data.samples import visible
from jepa_wm.data.video_set import is_index

VIDEOS, FOLDER = "videos", "folder"  # formats that are none of trajectories
UNSAID = "not said whether moves or places to go to (convert --action-kind; moves if not given)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `jepa-wm inspect`."""
    parser.add_argument(
        "path", metavar="PATH", help="trajectories, or a folder or manifest of videos"
    )
    add_column_arguments(parser, VIDEOS)
    parser.add_argument("--sheet", metavar="OUT.png", help="write a contact sheet of frames there")


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """The command: open, read every episode or video, and say what is there.

    Of a folder that is no set itself but holds trajectory files, each is described."""
    path, sheet = Path(arguments.path), Path(arguments.sheet) if arguments.sheet else None
    format = VIDEOS if is_index(path) else arguments.format or format_of(path)
    if format is None and (files := _trajectory_files(path)):
        if sheet is not None:
            raise UserError(f"--sheet: {path} holds {len(files)} sets; name one, {files[0]} say")
        sets = {file.name: _set(open_trajectories(file), format_of(file)) for file in files}
        return {"path": path, "format": FOLDER, "sets": sets}
    if format in (None, VIDEOS):
        return {"path": path, "format": VIDEOS, **inspect_videos.describe(path, sheet)}

    source = open_trajectories(path, arguments.format)
    result = {"path": path, **_set(source, format)}
    try:
        view = View(source, chosen(arguments))
    except UserError as error:  # a set without pictures, say, still has columns to show
        return {**result, "unusable": str(error)}
    return {**result, **_episodes(view, sheet)}


def _trajectory_files(path: Path) -> list[Path]:
    """The files and folders directly in a folder that are trajectories, of any format."""
    inside = sorted(visible(path.glob("*"))) if path.is_dir() else []
    return [file for file in inside if not is_index(file) and format_of(file)]


def _set(source: Source, format: str | None) -> dict[str, object]:
    """Episodes, their lengths, and the columns."""
    # Of columns what the source declares: no frame is read, so a broken one is listed too.
    lengths = source.lengths
    columns: dict[str, object] = {}
    for name, column in sorted(source.columns.items()):
        columns[name] = {
            "shape": list(column.shape),
            "dtype": str(column.dtype),
            "pictures": column.picture,
            **({"locked": column.locked} if column.locked else {}),
        }

    # Plain numbers, lists and texts, since --json prints all of it.
    attributes = sorted(source.about.attributes.items())
    return {
        "format": format,
        "episodes": len(lengths),
        "frames": int(lengths.sum()),
        "length": {
            "shortest": int(lengths.min()),
            "median": float(np.median(lengths)),
            "longest": int(lengths.max()),
        },
        "fps": source.about.fps,
        "attributes": {name: np.asarray(value).tolist() for name, value in attributes},
        "columns": columns,
    }


def _episodes(view: View, sheet: Path | None) -> dict[str, object]:
    """The chosen columns, the action statistics over whole episodes, and the broken ones; their
    last frames are read."""
    actions, broken = [], {}
    count = len(view.source.lengths)
    shown = set(np.linspace(0, count - 1, min(PICTURES, count)).astype(int).tolist())
    pictures: dict[str, np.ndarray] = {}

    # Whatever is wrong with an episode is its own: the others are read all the same.
    with Progress("inspect", count) as bar:
        for e in range(count):
            number = view.called(e)
            try:
                last = _last_frame(view, e)
                actions.append(view.actions(e))
                if e in shown:
                    pictures[f"episode {number}"] = last
            except UserError as error:
                broken[number] = str(error)
            bar.update(e + 1)

    result: dict[str, object] = {
        "used": {**view.pictures, "action": view.action, "state": view.state},
        "channels": {name: view.kind(name) for name in view.pictures},
    }
    if pictures:
        result["image_size"] = list(next(iter(pictures.values())).shape[:2])
    if actions:
        result["action"] = {
            "space": "discrete" if view.discrete else "continuous",
            "kind": view.source.about.action_kind,
            "size": view.action_size,
            **{name: values.tolist() for name, values in action_statistics(actions).items()},
        }
    if sheet is not None:
        result["sheet"] = contact_sheet(sheet, pictures)
    return {**result, "broken": broken}


def _last_frame(view: View, e: int) -> np.ndarray:
    """[h, w, 3] of an episode that was read as far as it tells; UserError where it is broken."""
    last = int(view.source.lengths[e]) - 1
    if last < 0:
        number = view.called(e)
        raise UserError(f"{view.source.path}: episode {number} has no frames; {leave_out(number)}")
    view.actions(e)
    view.check(e)
    frames = [view.frames(name, e, last, last + 1) for name in view.pictures]
    if view.state is not None:
        view.states(e, 0, last + 1)
    return frames[0][0]


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    # A set of videos has no columns, and a folder of sets is not read further than their sizes.
    if result["format"] == VIDEOS:
        return inspect_videos.lines_of(result)
    if result["format"] == FOLDER:
        text = [
            f"{result['path']}: {len(result['sets'])} sets of trajectories; inspect one for more"
        ]
        for name, one in result["sets"].items():
            text += _set_lines(name, one)
        return text

    # After what is used of a set stands what is wrong with it: near the prompt it is noticed.
    text = _set_lines(str(result["path"]), result)
    if "action" in result:
        action = result["action"]
        kind = action["kind"] or UNSAID
        text.append(f"  actions: {action['space']}, {action['size']} numbers, {kind}")
        for name in ("mean", "std", "min", "max"):
            values = " ".join(f"{value:10.4g}" for value in action[f"action_{name}"])
            text.append(f"    {name:>4} {values}")
    text += [f"  cannot be used: {result['unusable']}"] if "unusable" in result else []
    text += [f"  broken, episode {e}: {why}" for e, why in result.get("broken", {}).items()]
    return text + ([f"  contact sheet: {result['sheet']}"] if result.get("sheet") else [])


def _set_lines(name: str, result: dict[str, Any]) -> list[str]:
    """Size, attributes and columns of one set, and which columns are used as what."""
    # Attributes that are lists, such as names of columns, would bury the rest.
    length, fps = result["length"], f", {result['fps']:g} fps" if result["fps"] else ""
    size = f"{result['episodes']} episodes, {result['frames']} frames"
    spread = f"{length['shortest']} to {length['longest']}, median {length['median']:g}"
    text = [f"{name}: {result['format']}, {size}{fps}", f"  frames an episode: {spread}"]
    notes = [
        f"{key} {textwrap.shorten(str(value), 60, placeholder=' ...')}"
        for key, value in result["attributes"].items()
        if not isinstance(value, list)
    ]
    text += [f"  says of itself: {', '.join(notes)}"] if notes else []

    # One line a column: most questions are which of them counts as picture, action or state.
    used = {column: role for role, column in result.get("used", {}).items()}
    channels = result.get("channels", {})
    for key, column in result["columns"].items():
        shape = " x ".join(map(str, column["shape"])) or "one number"
        line = f"  {key}: {shape} {column['dtype']}"
        if key in used:
            line += f"  -> {used[key]}"
        if "locked" in column:
            line += f", {column['locked']}"
        if used.get(key) in channels:
            line += f" ({channels[used[key]]})"
        text.append(line)
    return text
