"""What names tell: which files are videos and pictures, which are hidden, and which make one
sample.

A stem is a name without its last extension. A key names a sample, as in WebDataset: what stands
before a dot of the name, as a rule the first, but `Track 2.0.mp4` beside `Track 2.0.cls` is of the
sample `Track 2.0`."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable
from pathlib import Path, PurePath

VIDEOS = frozenset(
    [
        ".3g2",
        ".3gp",
        ".asf",
        ".avi",
        ".divx",
        ".f4v",
        ".flv",
        ".gif",
        ".m2t",
        ".m2ts",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpe",
        ".mpeg",
        ".mpg",
        ".mts",
        ".mxf",
        ".ogv",
        ".qt",
        ".ts",
        ".vob",
        ".webm",
        ".wmv",
        ".y4m",
    ]
)
PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
# Folders in which systems keep what they delete, resource forks and thumbnails.
OF_SYSTEMS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))


def is_hidden(way: PurePath) -> bool:
    """Whether a path, as seen from where one looks, leads to what systems hide: `._0.mp4`,
    `.Trash/0.mp4`."""
    return any(
        part in OF_SYSTEMS or (part.startswith(".") and part not in (".", ".."))
        for part in way.parts
    )


def visible(files: Iterable[Path]) -> list[Path]:
    """Those files of a folder that are not hidden."""
    return [file for file in files if not is_hidden(PurePath(file.name))]


def keys(name: str) -> list[str]:
    """What a file's sample may be called, longest first: a/b.c.mp4 gives a/b.c and a/b."""
    folder, slash, base = name.rpartition("/")
    parts = base.split(".")
    return [folder + slash + ".".join(parts[:count]) for count in range(len(parts) - 1, 0, -1)]


def key_of(name: str, companions: Collection[str]) -> str:
    """The sample that a file is of: the longest key that a companion (a class, a caption) has,
    else the first dot's."""
    possible = keys(name)
    return next((key for key in possible if key in companions), possible[-1])


def pass_over_thumbnails(pictures: list[Path], videos: Collection[Path]) -> list[Path]:
    """The pictures of a folder without those that have a video's name; says how many these are."""
    stems = {video.stem for video in videos}
    kept = [picture for picture in pictures if not stems & set(keys(picture.name))]
    if len(kept) < len(pictures):
        first = next(picture for picture in pictures if picture not in kept)
        say_passed_over(len(pictures) - len(kept), first)
    return kept


def say_passed_over(count: int, first: Path) -> None:
    """Warn of pictures that belong to videos."""
    warnings.warn(
        f"{first}: it and {count - 1} others are passed over, pictures beside their videos",
        stacklevel=3,
    )


def natural(path: Path) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts numbers in names by value, 01 before 1."""
    parts = re.split(r"(\d+)", path.name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], path.name
