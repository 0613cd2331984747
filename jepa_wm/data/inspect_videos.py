"""What is in a set of videos, which of them cannot be read to their end, and the contact sheet
that shows some of a set."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.core.errors import UserError
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import VideoSet, is_index, read_facts
from jepa_wm.data.videos import find

PICTURES = 24  # on a sheet
FOLDER_FPS = 30.0  # of folders of frames, which state no rate
LISTED = 8  # of the commonest sizes, rates and codecs
SIDE, GAP, LINE = 160, 8, 20  # px: a picture's longer side, between pictures, of a name
ACROSS = 6  # pictures in a row
GROUND, TEXT = (18, 20, 26), (232, 234, 238)
LETTERS = 24  # of a name; a longer one keeps its end


def describe(path: Path, sheet: Path | None) -> dict[str, object]:
    """Counts, rates, sizes and durations of the videos; every header is read, and the first and
    last frame decoded."""
    if is_index(path):
        videos = VideoSet.open(path)
        entries = [videos.entry(i) for i in range(len(videos))]
    else:
        entries = find(path)
    unreadable: dict[str, str] = {}

    def note(video: Path, error: VideoError) -> None:
        unreadable[_name(video, path)] = str(error)

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
        result["seconds"] = {
            "shortest": seconds.min(),
            "median": np.median(seconds),
            "longest": seconds.max(),
            "total": seconds.sum(),
        }

    # The sheet shows the middle of videos at equal distances.
    if sheet is not None:
        listed, pictures = list(readable), {}
        for i in np.linspace(0, len(listed) - 1, min(PICTURES, len(listed))).astype(int):
            video = listed[i].open(fps=FOLDER_FPS)
            middle = np.array([readable[listed[i]].seconds / 2])
            pictures[_name(listed[i].path, path)] = video.at(middle)[0]
            video.close()
        result["sheet"] = contact_sheet(sheet, pictures)
    return {**result, "unreadable": unreadable}


def lines_of(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    lines = [
        f"{result['path']}: {result['videos']} videos, {len(result['unreadable'])} of them "
        "unreadable"
    ]
    if "seconds" in result:
        s = result["seconds"]
        spread = f"{s['shortest']:.2f} to {s['longest']:.2f}, median {s['median']:.2f}"
        lines.append(f"  seconds: {spread}, {s['total'] / 3600:.2f} h in all")
    for name in ("classes", "fps", "sizes", "codecs"):
        if result[name]:
            lines.append(
                f"  {name}: "
                + ", ".join(f"{key} ({count})" for key, count in result[name].items())
            )
    lines += [f"  unreadable: {why}" for why in result["unreadable"].values()]
    return lines + ([f"  contact sheet: {result['sheet']}"] if result.get("sheet") else [])


def _commonest(values: list[str]) -> dict[str, int]:
    counts = Counter(values)
    listed = dict(counts.most_common(LISTED))
    rest = len(values) - sum(listed.values())
    return listed | ({"others": rest} if rest else {})


def _name(video: Path, root: Path) -> str:
    """A video's path as seen from the set."""
    return video.relative_to(root).as_posix() if root in video.parents else video.name


def contact_sheet(path: Path, pictures: Mapping[str, np.ndarray]) -> str:
    """Write a PNG of named pictures [h, w, 3] uint8 of any size; returns its path.

    UserError for a path that is no .png, or when there is nothing to show.
    """
    if path.suffix != ".png":
        raise UserError(f"{path}: the sheet is a PNG; let its name end in .png")
    if not pictures:
        raise UserError(
            f"{path}: no picture could be read, so there is no sheet; see what is broken without "
            "--sheet"
        )

    # As many columns as there are pictures, or a set of two would be mostly ground.
    across = min(ACROSS, len(pictures))
    cell = SIDE + GAP
    size = (across * cell + GAP, math.ceil(len(pictures) / across) * (cell + LINE) + GAP)
    sheet = Image.new("RGB", size, GROUND)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)

    # Pictures of any shape keep it, in the middle of their cell; names lose their beginning, since
    # the ends tell them apart.
    for i, (name, picture) in enumerate(pictures.items()):
        left, top = GAP + i % across * cell, GAP + i // across * (cell + LINE)
        image = Image.fromarray(picture)
        scale = SIDE / max(image.size)
        image = image.resize(
            (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        )
        sheet.paste(image, (left + (SIDE - image.width) // 2, top + (SIDE - image.height) // 2))
        label = name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
        pen.text(
            (left + SIDE / 2, top + SIDE + LINE / 2), label, fill=TEXT, font=font, anchor="mm"
        )

    # Encoded before anything is written: a failure leaves the old sheet as it was.
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
    return str(path)
