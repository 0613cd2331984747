"""Videos found in a folder, a manifest or tar shards, looked at, and what cannot be read counted
and named."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.data.images import ImageSequence
from jepa_wm.data.manifest import SUFFIXES as MANIFESTS
from jepa_wm.data.manifest import read_manifest
from jepa_wm.data.samples import (
    PICTURES,
    VIDEOS,
    Span,
    class_names,
    content,
    is_hidden,
    members,
    natural,
    pass_over_thumbnails,
    visible,
)
from jepa_wm.data.video import Facts, Video, VideoError

CLASSES = "use class folders, or a manifest with path,label"  # the ways to give videos classes


class VideoSource(Protocol):
    """What a video file, a folder of frames and a single image have in common."""

    def facts(self) -> Facts: ...
    def at(self, seconds: np.ndarray) -> np.ndarray: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Entry:
    """One video file, folder of frames, or image; `label` is the name of its class.

    With a `span` it lies in a tar file, which its path leads into: SHARD.tar/NAME.
    """

    path: Path
    label: str | None = None
    span: Span | None = None

    def open(self, *, fps: float, size: int | None = None) -> VideoSource:
        """Its frames; `fps` is the rate of a folder of frames, which does not state one."""
        source = None if self.span is None else io.BytesIO(self._inside(self.span))
        if self.path.suffix.lower() in PICTURES or (source is None and self.path.is_dir()):
            return ImageSequence(self.path, fps=fps, size=size, source=source)
        return Video(self.path, size=size, source=source)

    def content(self) -> bytes:
        """The bytes of the file."""
        return self.path.read_bytes() if self.span is None else self._inside(self.span)

    def _inside(self, span: Span) -> bytes:
        try:
            return content(self.path, span)
        except OSError as error:
            raise VideoError(
                f"{self.path}: cannot be read ({error}); is its shard still there?"
            ) from error


def find(path: Path | str, *, single_images: bool = False) -> list[Entry]:
    """The videos of a folder or of a manifest, in a fixed order; UserError if there are none.

    In a folder every video file counts, however deep, and every folder of images is one video,
    unless `single_images` makes each image one. The first folder on the way to a video is its
    class, if every video has one."""
    path = Path(path)
    if path.is_file() and path.suffix.lower() in MANIFESTS:
        entries = [Entry(video, label) for video, label in read_manifest(path)]
    elif path.is_dir():
        entries = _folder(path, single_images)
    elif path.is_file():
        entries = list(_in_shard(path)) if path.suffix.lower() == ".tar" else [Entry(path)]
    else:
        raise UserError(f"{path}: no such file or folder; check the path")
    if not entries:
        raise UserError(
            f"{path}: holds no video ({' '.join(sorted(VIDEOS))}) and no folder of images"
        )
    return entries


def without_class(entry: Entry) -> str:
    """Where the class of a video was looked for, and how it could have one."""
    if entry.span is None:
        return f"{entry.path} has none; {CLASSES}"
    classes = ", ".join(class_names(entry.path))
    return (
        f"{entry.path} has none: its shard should hold one of {classes}; pack it so, or {CLASSES}"
    )


class Unreadable:
    """The videos that could not be read: counted, named, and no more of them than
    `max_unreadable`, a share of all."""

    def __init__(self, total: int, max_unreadable: float) -> None:
        self.total, self.max_unreadable = total, max_unreadable
        self.why: dict[Path, str] = {}

    def add(self, path: Path, error: VideoError) -> None:
        """Note one and warn of it; UserError that names them all once they are too many."""
        if path in self.why:
            return
        self.why[path] = str(error)
        if len(self.why) > self.max_unreadable * self.total:
            listed = "\n".join(f"  {why}" for why in self.why.values())
            raise UserError(
                f"{len(self.why)} of {self.total} videos cannot be read, more than "
                f"{self.max_unreadable:.1%} of them:\n"
                f"{listed}\nRepair them, take them out of the set, or allow more with "
                "data.max_unreadable\n"
                "(of `jepa-wm pack`: --unreadable)."
            )
        warnings.warn(f"left out, {len(self.why)} of {self.total} so far: {error}", stacklevel=2)


def read_facts(
    entries: Sequence[Entry],
    note: Callable[[Path, VideoError], None],
    *,
    folder_fps: float,
    to_the_end: bool = False,
) -> dict[Entry, Facts]:
    """Facts of the readable entries; `note` is told of the others. `to_the_end` also decodes the
    last frame of each."""
    facts: dict[Entry, Facts] = {}
    with catching_signals() as stop, Progress("look at videos", len(entries)) as bar:
        for done, entry in enumerate(entries, 1):
            try:
                video = entry.open(fps=folder_fps)
                facts[entry] = video.facts()
                if to_the_end:
                    video.at(np.array([facts[entry].seconds]))
                video.close()
            except VideoError as error:
                facts.pop(entry, None)
                note(entry.path, error)
            bar.update(done)
            stop.raise_if_requested()
    return facts


def _folder(root: Path, single_images: bool) -> list[Entry]:
    """The videos below a folder, class by class where every one lies in a folder of its own."""
    paths: list[Path] = []
    inside: list[Entry] = []

    # Folder by folder: video files, then shards, then the images, each one or all as a video.
    folders = (
        path for path in root.rglob("*") if path.is_dir() and not is_hidden(path.relative_to(root))
    )
    for folder in sorted([root, *folders]):
        files = sorted((file for file in visible(folder.iterdir()) if file.is_file()), key=natural)
        videos = [file for file in files if file.suffix.lower() in VIDEOS]
        pictures = [file for file in files if file.suffix.lower() in PICTURES]
        if videos:
            pictures = pass_over_thumbnails(pictures, videos)
        paths += videos
        for file in files:
            if file.suffix.lower() == ".tar":
                inside += _in_shard(file)
        if pictures:
            paths += pictures if single_images else [folder]

    # The first folder on the way to a video is its class.
    parts = [path.relative_to(root).parts for path in paths]
    classed = bool(parts) and all(len(part) > 1 for part in parts)
    entries = [
        Entry(path, part[0] if classed else None) for path, part in zip(paths, parts, strict=True)
    ]
    return entries + inside


def _in_shard(shard: Path) -> Iterator[Entry]:
    """The videos and images of a tar shard."""
    for path, label, span in members(shard):
        yield Entry(path, label, span)
