"""How long a piece of work has taken, over all the processes that were interrupted at it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from jepa_wm.core.files import write_atomic


@contextmanager
def clock(file: Path) -> Iterator[Callable[[], float]]:
    """Gives a function that tells the seconds spent so far, those of earlier attempts included.

    A block that is left by an exception keeps its seconds in `file`, if the folder is there, for
    the next attempt; a block that is finished removes it. A process that is killed outright counts
    for nothing."""
    before = (
        float(json.loads(file.read_text(encoding="utf-8"))["seconds"]) if file.exists() else 0.0
    )
    began = time.monotonic()

    def spent() -> float:
        return before + time.monotonic() - began

    try:
        yield spent
    except BaseException:
        if file.parent.is_dir():
            with suppress(
                OSError
            ):  # a full disk, say: what went wrong matters more than the time it took
                write_atomic(file, json.dumps({"seconds": spent()}))
        raise
    file.unlink(missing_ok=True)
