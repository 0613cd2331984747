"""Packs videos and images into WebDataset shards with an index beside them (command pack).

FOLDER/000000.tar, ... have members NNNNNNNNN.mp4 (or what the file was) and NNNNNNNNN.cls, the
name of its class; FOLDER/index.h5 is what `data.videos` takes: any sample is found at once."""

from __future__ import annotations

import argparse
import io
import tarfile
from pathlib import Path
from typing import Any

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import written_whole
from jepa_wm.core.progress import Progress
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import Entry, find


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `jepa-wm pack`."""
    parser.add_argument("source", metavar="SOURCE", help="a folder or manifest of videos")
    parser.add_argument("into", metavar="FOLDER", help="where the shards go; must be new or empty")
    parser.add_argument(
        "--images", action="store_true", help="pack every image as a video that stands still"
    )
    parser.add_argument(
        "--shard-mb", type=float, default=256, metavar="MB", help="size at which a shard is full"
    )
    parser.add_argument(
        "--unreadable", type=float, default=0.01, metavar="SHARE", help="that may be left out"
    )


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """The command: look at every video, copy the readable ones, tell."""
    folder = Path(arguments.into)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; delete it or choose another folder")
    if not arguments.shard_mb > 0:
        raise UserError(f"--shard-mb {arguments.shard_mb}: a shard needs a size above 0")
    entries = find(arguments.source, single_images=arguments.images)
    videos = VideoSet(entries, max_unreadable=arguments.unreadable)
    places = pack(
        [videos.entry(i) for i in range(len(videos))],
        folder,
        shard_bytes=arguments.shard_mb * 2**20,
    )
    videos.save(folder / "index.h5", places)
    shards = sorted({str(place.path.parent) for place in places})
    return {
        "index": str(folder / "index.h5"), "videos": len(places), "shards": len(shards),
        "left_out": list(videos.unreadable.why.values()),
    }  # fmt: skip


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    summary = f"{result['index']}: {result['videos']} videos in {result['shards']} shards"
    return [summary] + [f"  left out: {why}" for why in result["left_out"]]


def pack(entries: list[Entry], folder: Path, *, shard_bytes: float) -> list[Entry]:
    """Copy files into shards; returns where each lies now, relative to the folder. A shard appears
    whole or not at all.

    UserError for a folder of frames, which is no single file.
    """
    for entry in entries:
        if entry.span is None and entry.path.is_dir():
            raise UserError(
                f"{entry.path}: a folder of frames cannot be packed; make it a video, or pack "
                "--images"
            )

    # One shard after the other, each as full as a file makes it.
    folder.mkdir(parents=True, exist_ok=True)
    places: list[Entry] = []
    with catching_signals() as stop, Progress("pack", len(entries)) as bar:
        shard = 0
        while len(places) < len(entries):
            name = f"{shard:06d}.tar"
            with (
                written_whole(folder / name) as temporary,
                tarfile.open(temporary, "w:", format=tarfile.USTAR_FORMAT) as tar,
            ):
                while len(places) < len(entries) and (tar.offset < shard_bytes or not tar.offset):
                    places.append(_add(tar, entries[len(places)], len(places), name))
                    bar.update(len(places))
                    stop.raise_if_requested()
            shard += 1
    return places


def _add(tar: tarfile.TarFile, entry: Entry, number: int, shard: str) -> Entry:
    """Append a file, and its class if it has one; returns its place."""
    content, suffix = entry.content(), entry.path.suffix.lower()
    stem = f"{number:09d}"
    span = _member(tar, f"{stem}{suffix}", content)
    if entry.label is not None:
        _member(tar, f"{stem}.cls", entry.label.encode())
    return Entry(Path(shard) / f"{stem}{suffix}", entry.label, span)


def _member(tar: tarfile.TarFile, name: str, content: bytes) -> tuple[int, int]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    begins = tar.offset + tarfile.BLOCKSIZE  # behind its header
    tar.addfile(info, io.BytesIO(content))
    return begins, len(content)
