"""What is in a set of trajectories or videos, and what is broken there (command inspect)."""

from __future__ import annotations

import argparse
import math
import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import written_whole
from jepa_wm.core.progress import Progress
from jepa_wm.data.convert import action_statistics, add_column_arguments, chosen
from jepa_wm.data.readers.registry import Source, format_of, leave_out, open_trajectories
from jepa_wm.data.readers.view import View
from jepa_wm.data.samples import visible
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import VideoSet, is_index, read_facts
from jepa_wm.data.videos import find

VIDEOS, FOLDER = "videos", "folder"  # formats that are none of trajectories
UNSAID = "not said whether moves or places to go to (convert --action-kind; moves if not given)"
FOLDER_FPS = 30.0  # of folders of frames, which state no rate
LISTED = 8  # of the commonest sizes, rates and codecs
PICTURES, ACROSS = 24, 6  # on a sheet, and in a row of it
SIDE, GAP, LINE = 160, 8, 20  # px: a picture's longer side, between pictures, of a name
GROUND, TEXT = (18, 20, 26), (232, 234, 238)
LETTERS = 24  # of a name; a longer one keeps its end


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
    if format is None and path.is_dir():
        inside = sorted(visible(path.glob("*")))
        files = [file for file in inside if not is_index(file) and format_of(file)]
        if files and sheet is not None:
            raise UserError(f"--sheet: {path} holds {len(files)} sets; name one, {files[0]} say")
        if files:
            sets = {file.name: _set(open_trajectories(file), format_of(file)) for file in files}
            return {"path": path, "format": FOLDER, "sets": sets}
    if format in (None, VIDEOS):
        return {"path": path, "format": VIDEOS, **_videos(path, sheet)}

    source = open_trajectories(path, arguments.format)
    result = {"path": path, **_set(source, format)}
    try:
        view = View(source, chosen(arguments))
    except UserError as error:  # a set without pictures, say, still has columns to show
        return {**result, "unusable": str(error)}
    return {**result, **_episodes(view, sheet)}


def _spread(numbers: np.ndarray) -> dict[str, float]:
    """The shortest, median and longest of some lengths."""
    names = ("shortest", "median", "longest")
    return dict(zip(names, np.percentile(numbers, (0, 50, 100)).tolist(), strict=True))


def _set(source: Source, format: str | None) -> dict[str, object]:
    """Episodes, their lengths, and the columns, as the source declares them: no frame is read, so
    a broken one is listed too."""
    columns: dict[str, dict[str, object]] = {}
    for name, column in sorted(source.columns.items()):
        shape, dtype = list(column.shape), str(column.dtype)
        columns[name] = {"shape": shape, "dtype": dtype, "pictures": column.picture}
        if column.locked:
            columns[name]["locked"] = column.locked

    # Plain numbers, lists and texts, since --json prints all of it.
    attributes = sorted(source.about.attributes.items())
    return {
        "format": format,
        "episodes": len(source.lengths),
        "frames": int(source.lengths.sum()),
        "length": _spread(source.lengths),
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
    view.check(e)
    frames = [view.frames(name, e, last, last + 1) for name in view.pictures]
    if view.state is not None:
        view.states(e, 0, last + 1)
    return frames[0][0]


def _videos(path: Path, sheet: Path | None) -> dict[str, object]:
    """Counts, rates, sizes and durations of the videos; every header is read, and the first and
    last frame decoded."""
    if is_index(path):
        videos = VideoSet.open(path)
        entries = [videos.entry(i) for i in range(len(videos))]
    else:
        entries = find(path)
    unreadable: dict[str, str] = {}

    def name_of(video: Path) -> str:
        return video.relative_to(path).as_posix() if path in video.parents else video.name

    def note(video: Path, error: VideoError) -> None:
        unreadable[name_of(video)] = str(error)

    # What the headers say of every video that can be read to its end.
    readable = read_facts(entries, note, folder_fps=FOLDER_FPS, to_the_end=True)
    facts = list(readable.values())
    classes = Counter(entry.label for entry in entries if entry.label is not None)
    result: dict[str, object] = {
        "videos": len(entries),
        "classes": dict(sorted(classes.items())),
        "fps": _commonest([f"{fact.fps:.4g}" for fact in facts]),
        "sizes": _commonest([f"{fact.width} x {fact.height}" for fact in facts]),
        "codecs": _commonest([fact.codec for fact in facts]),
    }
    if facts:
        seconds = np.array([fact.seconds for fact in facts])
        result["seconds"] = {**_spread(seconds), "total": seconds.sum()}

    # The sheet shows the middle of videos at equal distances.
    if sheet is not None:
        listed, pictures = list(readable), {}
        for i in np.linspace(0, len(listed) - 1, min(PICTURES, len(listed))).astype(int):
            video = listed[i].open(fps=FOLDER_FPS)
            middle = np.array([readable[listed[i]].seconds / 2])
            pictures[name_of(listed[i].path)] = video.at(middle)[0]
            video.close()
        result["sheet"] = contact_sheet(sheet, pictures)
    return {**result, "unreadable": unreadable}


def _commonest(values: list[str]) -> dict[str, int]:
    listed = dict(Counter(values).most_common(LISTED))
    rest = len(values) - sum(listed.values())
    return listed | ({"others": rest} if rest else {})


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    # After what is used of a set stands what is wrong with it: near the prompt it is noticed.
    path = result["path"]
    if result["format"] == VIDEOS:
        text = _video_lines(result)
    elif result["format"] == FOLDER:
        text = [f"{path}: {len(result['sets'])} sets of trajectories; inspect one for more"]
        for name, one in result["sets"].items():
            text += _set_lines(name, one)
    else:
        text = _set_lines(str(path), result)
    if "action" in result:
        action = result["action"]
        kind = action["kind"] or UNSAID
        text.append(f"  actions: {action['space']}, {action['size']} numbers, {kind}")
        for name in ("mean", "std", "min", "max"):
            values = " ".join(f"{value:10.4g}" for value in action[f"action_{name}"])
            text.append(f"    {name:>4} {values}")
    text += [f"  cannot be used: {result['unusable']}"] if "unusable" in result else []
    text += [f"  broken, episode {e}: {why}" for e, why in result.get("broken", {}).items()]
    text += [f"  unreadable: {why}" for why in result.get("unreadable", {}).values()]
    return text + ([f"  contact sheet: {result['sheet']}"] if result.get("sheet") else [])


def _video_lines(result: dict[str, Any]) -> list[str]:
    count, broken = result["videos"], len(result["unreadable"])
    text = [f"{result['path']}: {count} videos, {broken} of them unreadable"]
    if "seconds" in result:
        s = result["seconds"]
        spread = f"{s['shortest']:.2f} to {s['longest']:.2f}, median {s['median']:.2f}"
        text.append(f"  seconds: {spread}, {s['total'] / 3600:.2f} h in all")
    for name in ("classes", "fps", "sizes", "codecs"):
        if result[name]:
            counts = ", ".join(f"{key} ({count})" for key, count in result[name].items())
            text.append(f"  {name}: {counts}")
    return text


def _set_lines(name: str, result: dict[str, Any]) -> list[str]:
    """Size, attributes and columns of one set, and which columns are used as what."""
    # Attributes that are lists, such as names of columns, would bury the rest.
    length, fps = result["length"], f", {result['fps']:g} fps" if result["fps"] else ""
    size = f"{result['episodes']} episodes, {result['frames']} frames"
    spread = f"{length['shortest']:.0f} to {length['longest']:.0f}, median {length['median']:g}"
    text = [f"{name}: {result['format']}, {size}{fps}", f"  frames an episode: {spread}"]
    notes = [
        f"{key} {textwrap.shorten(str(value), 60, placeholder=' ...')}"
        for key, value in result["attributes"].items()
        if not isinstance(value, list)
    ]
    text += [f"  says of itself: {', '.join(notes)}"] if notes else []

    # One line a column: most questions are which of them counts as picture, action or state.
    roles = {column: role for role, column in result.get("used", {}).items()}
    for key, column in result["columns"].items():
        shape, role = " x ".join(map(str, column["shape"])) or "one number", roles.get(key)
        line = f"  {key}: {shape} {column['dtype']}"
        line += f"  -> {role}" if role else ""
        line += f", {column['locked']}" if "locked" in column else ""
        if role in result.get("channels", {}):
            line += f" ({result['channels'][role]})"
        text.append(line)
    return text


def contact_sheet(path: Path, pictures: Mapping[str, np.ndarray]) -> str:
    """Write a PNG of named pictures [h, w, 3] uint8 of any size; returns its path. UserError for a
    path that is no .png, or when there is nothing to show."""
    if path.suffix != ".png":
        raise UserError(f"{path}: the sheet is a PNG; let its name end in .png")
    if not pictures:
        raise UserError(
            f"{path}: no picture could be read, so there is no sheet; see what is broken without "
            "--sheet"
        )

    # As many columns as there are pictures, or a set of two would be mostly ground.
    across, cell = min(ACROSS, len(pictures)), SIDE + GAP
    size = (across * cell + GAP, math.ceil(len(pictures) / across) * (cell + LINE) + GAP)
    sheet = Image.new("RGB", size, GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)

    # Pictures keep their shape, in the middle of their cell; names lose their beginning, since the
    # ends tell them apart.
    for i, (name, picture) in enumerate(pictures.items()):
        left, top = GAP + i % across * cell, GAP + i // across * (cell + LINE)
        image = Image.fromarray(picture)
        scale = SIDE / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height))
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        label = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
        place = (left + SIDE / 2, top + SIDE + LINE / 2)
        pen.text(place, label, fill=TEXT, font=font, anchor="mm")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as whole:
        sheet.save(whole)
    return str(path)
