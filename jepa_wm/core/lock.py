"""The lock on a run folder: who works there, so that another process is told."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import warnings
from pathlib import Path

from jepa_wm.core.errors import UserError
from jepa_wm.core.rendezvous import variable

# What a lock fails with on a network disk that is mounted without them (Lustre, some NFS, many
# FUSE disks).
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_told = False


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
    job = variable("SLURM_JOB_ID")
    return (f"job {job}, " if job else "") + f"process {os.getpid()} on {socket.gethostname()}"
