"""Turns a wish to stop (Ctrl-C, SIGTERM, SIGUSR2) into a flag that a loop polls where stopping is
safe."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from jepa_wm.core.errors import Interrupted

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)


_outer: StopFlag | None = None  # of the block that is open, if one is


class StopFlag:
    """`requested` turns true with the first signal; `signum` says which it was."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def raise_if_requested(self) -> None:
        """Raise Interrupted once a signal has come; call it after the checkpoint is on disk."""
        if self.signum is not None:
            raise Interrupted(self.signum)


@contextmanager
def catching_signals() -> Iterator[StopFlag]:
    """Within the block signals only set the flag, but a second Ctrl-C raises KeyboardInterrupt at
    once.

    The handlers found on entry are put back at the end. A block within such a block shares its
    flag, so that a signal that came before the inner one is not lost. Python lets only the main
    thread set handlers: in any other thread the flag is never set."""
    global _outer
    if _outer is not None:
        yield _outer
        return
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if flag.requested and signum == signal.SIGINT:
            raise KeyboardInterrupt
        flag.signum = flag.signum or signum

    before = {signum: signal.getsignal(signum) for signum in STOPPING}
    try:
        for signum in STOPPING:
            signal.signal(signum, note)
        _outer = flag
        yield flag
    finally:
        _outer = None
        for signum, handler in before.items():
            signal.signal(signum, handler)
