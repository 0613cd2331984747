"""The lock on a run folder: who works there, so that another process is told."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from jepa_wm.core.errors import UserError


def locked(folder: Path, *, shared: bool) -> int:
    """An open, locked file handle; the kernel drops the lock with the process, however that ends.

    `shared`: beside others that ask so. Raises UserError, with who holds it, where that cannot be.
    """
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(handle, 200, 0).decode().strip() or "unknown"
        os.close(handle)
        raise UserError(
            f"{folder}: {holder} is working in this run folder; wait for it, or choose another --run"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, _self().encode(), 0)
    return handle


def _self() -> str:
    """This process, as another one that finds the folder locked is told."""
    job = os.environ.get("SLURM_JOB_ID")
    return (f"job {job}, " if job else "") + f"process {os.getpid()} on {socket.gethostname()}"
