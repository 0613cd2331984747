"""What is in a set of videos, and which of them cannot be read to their end."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.data.contact_sheet import contact_sheet
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import VideoSet, is_index
from jepa_wm.data.videos import find, look

PICTURES = 24  # on a sheet
FOLDER_FPS = 30.0  # said of folders of frames, which state no rate
LISTED = 8  # of the commonest sizes, rates and codecs


def looked_through(path: Path, sheet: Path | None) -> dict[str, object]:
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

    found = look(entries, note, folder_fps=FOLDER_FPS, to_the_end=True)
    facts = list(found.values())
    result: dict[str, object] = {
        "videos": len(entries),
        "classes": dict(
            sorted(Counter(entry.label for entry in entries if entry.label is not None).items())
        ),
        "fps": _commonest([f"{fact.fps:.4g}" for fact in facts]),
        "sizes": _commonest([f"{fact.width} x {fact.height}" for fact in facts]),
        "codecs": _commonest([fact.codec for fact in facts]),
    }
    if facts:
        seconds = np.array([fact.seconds for fact in facts])
        spread = {
            "shortest": seconds.min(),
            "median": np.median(seconds),
            "longest": seconds.max(),
        }
        result["seconds"] = {**spread, "total": seconds.sum()}
    if sheet is not None:
        shown = [
            list(found)[i]
            for i in np.linspace(0, len(found) - 1, min(PICTURES, len(found))).astype(int)
        ]
        pictures = {}
        for entry in shown:
            video = entry.open(fps=FOLDER_FPS)
            pictures[_name(entry.path, path)] = video.at(np.array([found[entry].seconds / 2]))[0]
            video.close()
        result["sheet"] = contact_sheet(sheet, pictures)
    return {**result, "unreadable": unreadable}


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    told = [
        f"{result['path']}: {result['videos']} videos, {len(result['unreadable'])} of them "
        "unreadable"
    ]
    if "seconds" in result:
        s = result["seconds"]
        spread = f"{s['shortest']:.2f} to {s['longest']:.2f}, median {s['median']:.2f}"
        told.append(f"  seconds: {spread}, {s['total'] / 3600:.2f} h in all")
    for name in ("classes", "fps", "sizes", "codecs"):
        if result[name]:
            told.append(
                f"  {name}: "
                + ", ".join(f"{key} ({count})" for key, count in result[name].items())
            )
    told += [f"  unreadable: {why}" for why in result["unreadable"].values()]
    return told + ([f"  contact sheet: {result['sheet']}"] if result.get("sheet") else [])


def _commonest(values: list[str]) -> dict[str, int]:
    counts = Counter(values)
    told = dict(counts.most_common(LISTED))
    rest = len(values) - sum(told.values())
    return told | ({"others": rest} if rest else {})


def _name(video: Path, root: Path) -> str:
    """A video's path as seen from the set."""
    return video.relative_to(root).as_posix() if root in video.parents else video.name
