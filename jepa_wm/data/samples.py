"""What names tell: which files are videos and pictures, which are hidden, and which make one
sample, in a folder or in a tar shard (WebDataset; read in place, written by the command pack).

A key names a sample: what stands before a dot of a file's name, as a rule the first, but
`Track 2.0.mp4` beside `Track 2.0.cls` is of the sample `Track 2.0`."""

from __future__ import annotations

import re
import tarfile
import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePath, PurePosixPath

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import decoded

VIDEOS = frozenset((
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".m2t", ".m2ts", ".m4v",
    ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".qt", ".ts",
    ".vob", ".webm", ".wmv", ".y4m",
))  # fmt: skip
PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))
# Folders in which systems keep what they delete, resource forks and thumbnails.
OF_SYSTEMS = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"))
Span = tuple[int, int]  # where a member's bytes begin in the tar file, and how many there are
# members that name a sample's class; the first counts where there are both
LABELS = (".cls", ".label")


def is_hidden(path: PurePath) -> bool:
    """Whether a path, as seen from where one looks, leads to what systems hide: `._0.mp4`,
    `.Trash/0.mp4`."""
    return any(
        part in OF_SYSTEMS or (part.startswith(".") and part not in (".", ".."))
        for part in path.parts
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
    frames = [picture for picture in pictures if not stems & set(keys(picture.name))]
    if len(frames) < len(pictures):
        first = next(picture for picture in pictures if picture not in frames)
        say_passed_over(len(pictures) - len(frames), first)
    return frames


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


def members(shard: Path) -> Iterator[tuple[Path, str | None, Span]]:
    """(SHARD.tar/NAME, class, span) of the videos and pictures, in the order of the file.

    The class is the content of the sample's member .cls, else None. A picture beside the video of
    its sample is passed over, with a warning. Only headers and those small members are read.
    Raises UserError for a file that is no tar, or is compressed, and for a sample of two videos or
    two pictures that one name or one class would not tell apart."""
    films, labels, companions = _contents(shard)
    samples: defaultdict[str, list[str]] = defaultdict(list)
    for name in films:
        samples[key_of(name, companions)].append(name)

    # A sample is one film: a picture beside its video is passed over, two of a kind are refused.
    beside: set[str] = set()
    for key, names in samples.items():
        if any(_suffix(name) in VIDEOS for name in names):
            beside.update(name for name in names if _suffix(name) in PICTURES)
        single = [name for name in names if name not in beside]
        stem = Counter(keys(name)[0] for name in single).most_common(1)[0][0]
        alike = [name for name in single if key in labels or keys(name)[0] == stem]
        if len(alike) > 1:
            raise UserError(
                f"{shard}: sample '{key}' has two films, {alike[0]} and {alike[1]}; leave one in "
                "each sample, or give each a sample of its own"
            )
    if beside:
        say_passed_over(len(beside), shard / min(beside))

    for name, span in films.items():
        if name not in beside:
            label = next((labels[key] for key in keys(name) if key in labels), None)
            yield shard / name, label, span


def class_names(path: Path) -> list[str]:
    """The members that could have named the class of a film SHARD.tar/NAME."""
    inside = path.relative_to(shard_of(path)).as_posix()
    return [key + label for key in keys(inside) for label in LABELS]


def shard_of(path: Path) -> Path:
    """The tar file that a path SHARD.tar/NAME leads into."""
    return next(parent for parent in path.parents if parent.suffix.lower() == ".tar")


def content(path: Path, span: Span) -> bytes:
    """The bytes of a member; fewer than there should be if the shard was cut short."""
    with open(shard_of(path), "rb") as file:
        file.seek(span[0])
        return file.read(span[1])


def _contents(shard: Path) -> tuple[dict[str, Span], dict[str, str], set[str]]:
    """The films' spans by name, the classes by key, and the stems of all members but films."""
    films: dict[str, Span] = {}
    labels: dict[str, str] = {}
    companions: set[str] = set()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                name = PurePosixPath(member.name.lstrip("/"))  # as tar itself unpacks it
                suffix = name.suffix.lower()
                if not member.isfile() or is_hidden(name) or not suffix:
                    continue

                # A film: only where it lies.
                if suffix in VIDEOS | PICTURES:
                    if str(name) in films:
                        raise UserError(
                            f"{shard}: holds {name} twice; give each a name of its own"
                        )
                    films[str(name)] = member.offset_data, member.size
                    continue

                # What stands beside films: of a class its content, the first kind before others.
                key = keys(str(name))[0]
                companions.add(key)
                text = tar.extractfile(member) if suffix in LABELS else None
                if text is not None:
                    label = decoded(text.read(), shard / name).strip()
                    if label and (suffix == LABELS[0] or key not in labels):
                        labels[key] = label
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(
            f"{shard}: is no whole, uncompressed tar file ({error}); copy or pack it again"
        ) from None
    return films, labels, companions


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()
