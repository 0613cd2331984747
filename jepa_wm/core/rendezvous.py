"""How ranks find each other without a port agreed beforehand: rank 0 takes a free one and writes it into a file."""

from __future__ import annotations

import json
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from jepa_wm.core.files import write_atomic

if TYPE_CHECKING:
    import torch.distributed as dist

STORE = "JEPA_WM_RENDEZVOUS"  # a file on a disk that all ranks see, where rank 0 says how it is reached


def meet(file: Path, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A store that all ranks are connected to; `file` must not exist before and lies where all of them see it.

    Raises TimeoutError if rank 0 does not write the file in time, and what torch raises if it cannot be reached.
    """
    import torch.distributed as dist

    if rank == 0:
        host = socket.gethostname()
        store = dist.TCPStore(host, 0, size, is_master=True, timeout=timeout, wait_for_workers=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"host": host, "port": store.port}))
        return store
    until = time.monotonic() + timeout.total_seconds()
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"rank 0 did not say in {file} where it is within {timeout.total_seconds():.0f} s")
        if file.parent.is_dir():
            os.listdir(file.parent)  # a network disk shows new files only to those who look
        time.sleep(0.05)
    place = json.loads(file.read_text(encoding="utf-8"))
    return dist.TCPStore(place["host"], place["port"], size, is_master=False, timeout=timeout, wait_for_workers=False)
