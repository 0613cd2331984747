"""WebDataset shards: tar files whose members with one stem make a sample; read in place, written by the verb pack."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

from jepa_wm.core.errors import UserError

Span = tuple[int, int]  # where a member's bytes begin in the tar file, and how many there are
LABELS = (".cls", ".label")  # members that name a sample's class


def members(shard: Path, suffixes: frozenset[str]) -> Iterator[tuple[Path, str | None, Span]]:
    """(SHARD.tar/NAME, class, span) of the members with one of `suffixes`, in the order of the file.

    The class is the content of the member of the same stem that ends in .cls, else None. Only headers and those small
    members are read. Raises UserError for a file that is no tar, or is compressed.
    """
    found: dict[str, tuple[Path, Span]] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                stem, _, suffix = member.name.rpartition(".")
                if not member.isfile():
                    continue
                if f".{suffix.lower()}" in suffixes:
                    found[stem] = (shard / member.name, (member.offset_data, member.size))
                elif f".{suffix.lower()}" in LABELS and (content := tar.extractfile(member)) is not None:
                    labels[stem] = content.read().decode().strip()
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{shard}: is no whole, uncompressed tar file ({error}); copy or pack it again") from None
    for stem, (path, span) in found.items():
        yield path, labels.get(stem), span


def shard_of(path: Path) -> Path:
    """The tar file that a path SHARD.tar/NAME leads into."""
    return next(parent for parent in path.parents if parent.suffix == ".tar")


def content(path: Path, span: Span) -> bytes:
    """The bytes of a member; fewer than there should be if the shard was cut short."""
    with open(shard_of(path), "rb") as file:
        file.seek(span[0])
        return file.read(span[1])
