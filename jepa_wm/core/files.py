"""Files that appear whole or not at all, the plain data and the text that go into them, what names
a file's content, and the lock on a folder: who works there, so that another process is told."""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import math
import os
import socket
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError

# by some network disks
NOT_OFFERED = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENODEV, errno.EINVAL)
PIECE = 2**16  # bytes of a large file that are read in one place
# What a lock fails with on a network disk that is mounted without them (Lustre, some NFS, many
# FUSE disks).
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_told = False


def write_atomic(path: Path, text: str) -> None:
    """Write `text` (UTF-8) beside `path`, then rename it into place; on any failure the old file
    stays as it was.

    Raises OSError, with the temporary file removed.
    """
    with written_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Where to write a file that appears at `path` when the block ends, or not at all: a path
    beside it with the same suffix. What an exception leaves is removed.

    Raises OSError."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power cut, on disks that can."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


def allocate(file: Path, size: int) -> None:
    """Give a file `size` bytes, kept or zero, and take the room on the disk now: a full disk shows
    before the work.

    A disk that cannot take room beforehand gives the size alone. Raises OSError.
    """
    handle = os.open(
        file, os.O_RDWR | os.O_CREAT, 0o644
    )  # no O_APPEND: what stands in for a missing fallocate bars it
    try:
        os.ftruncate(handle, size)
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    finally:
        os.close(handle)


def mapped(
    file: Path, dtype: np.dtype | type, shape: tuple[int, ...], offset: int = 0
) -> np.ndarray:
    """A read-only memory map of an array in a file. Raises UserError where the disk offers
    none."""
    try:
        return np.memmap(file, dtype, "r", offset, shape)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
    try:  # a private map reads the same, and some disks (FUSE) that share none offer it
        private = np.memmap(file, dtype, "c", offset, shape)
    except OSError as error:
        raise UserError(
            f"{file}: its disk offers no memory maps ({error.strerror}); copy it to another disk"
        ) from error
    private.flags.writeable = False
    return private


def finite(value: Any) -> Any:
    """Plain JSON data of nested results: NaN and infinity become None, array scalars numbers,
    paths text.

    Raises TypeError for anything else (a tensor, say): convert it where its meaning is known.
    """
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    raise TypeError(
        f"a result holds numbers, text, lists and dicts, not {type(value).__name__}: {value!r}"
    )


def fingerprint(path: Path, *, pieces: int = 64) -> str:
    """Sixteen hex digits that name what is in a file, or in all files of a folder, whatever they
    are called from outside and whenever they were written.

    Of a file larger than `pieces` of 64 KiB (two at least) its size counts, and so many pieces
    from its first to its last byte."""
    sha = hashlib.sha256()
    if path.is_dir():
        for inside in sorted(file for file in path.rglob("*") if file.is_file()):
            sha.update(
                f"{inside.relative_to(path)} {fingerprint(inside, pieces=pieces)}\n".encode()
            )
        return sha.hexdigest()[:16]
    size = path.stat().st_size
    sha.update(f"{size} ".encode())
    with open(path, "rb") as file:
        if size <= pieces * PIECE:
            sha.update(file.read())
        else:
            for k in range(pieces):
                file.seek((size - PIECE) * k // (pieces - 1))
                sha.update(file.read(PIECE))
    return sha.hexdigest()[:16]


def digest_of(*parts: np.ndarray | Iterable[np.ndarray]) -> str:
    """Sixteen hex digits that name arrays, or series of them."""
    sha = hashlib.sha256()
    for part in parts:
        for array in (part,) if isinstance(part, np.ndarray) else part:
            sha.update(
                f"{array.dtype}{array.shape}".encode() + np.ascontiguousarray(array).tobytes()
            )
    return sha.hexdigest()[:16]


MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does, so it is asked for first
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> str:
    """The text of a file, its line endings as they are; UserError for one that is none, OSError as
    ever."""
    return decoded(path.read_bytes(), path)


def decoded(content: bytes, name: Path | str) -> str:
    """The text that bytes stand for; UserError for what no mark and no UTF-8 explains: nothing is
    guessed."""
    encoding = next((encoding for mark, encoding in MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{name}: is not UTF-8 text (character {text.index(chr(0))} is a zero); save it as "
            "UTF-8"
        )
    return text


def locked(folder: Path, *, shared: bool) -> int:
    """An open, locked file handle; the kernel drops the lock with the process, however that ends.

    `shared`: beside others that ask so. Raises UserError, with who holds it, where that cannot be,
    and where the folder may not be written to. On a disk without locks the handle is open only,
    and a warning says so."""
    try:
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        if error.errno not in FORBIDDEN:
            raise
        raise UserError(
            f"{folder}: may not be written to ({error.strerror}); choose another --run"
        ) from None
    try:
        lock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB, folder)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "unknown"
        os.close(handle)
        raise UserError(
            f"{folder}: {holder} is working in this run folder; wait for it, or choose another "
            "--run"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, _self().encode(), 0)
    return handle


def lock(handle: int, operation: int, place: Path) -> None:
    """`flock` as asked for, or a warning where the disk of `place` has no locks; raises what flock
    raises else."""
    try:
        fcntl.flock(handle, operation)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        tell_of_no_locks(place)


def tell_of_no_locks(place: Path) -> None:
    """Warn, once a process, that the disk of `place` has no file locks."""
    global _told
    if not _told:
        _told = True
        warnings.warn(
            f"{place}: this disk has no file locks, so two jobs in one folder cannot be kept "
            "apart here; "
            "see to it that only one works there at a time",
            stacklevel=2,
        )


def _self() -> str:
    """This process, as another one that finds the folder locked is told."""
    job = os.environ.get("SLURM_JOB_ID", "").strip()
    return (f"job {job}, " if job else "") + f"process {os.getpid()} on {socket.gethostname()}"
