"""The exceptions that the command line answers with a message instead of a traceback, and the
signals that ask a loop to stop where stopping is safe."""

from __future__ import annotations

import difflib
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

EXIT_FAILED, EXIT_USER = 1, 2  # a command's codes: our fault or a full disk; a mistake explained
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)
_outer: StopFlag | None = None  # of the block that is open, if one is


class UserError(ValueError):
    """Something the user can put right; its text names the thing and the remedy."""


class TrainingDiverged(UserError):
    """A loss is no longer finite; the text names the step and the last good checkpoint."""


class JobFailed(Exception):
    """A job that was launched did not end well; the text says which, how and where its log lies.

    `code` is what the launching process exits with.
    """

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


class Interrupted(Exception):
    """A signal asked the work to stop and the loop has left things in order.

    `signum` is the signal's number, so that the process can exit with 128 + signum.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


def listed(names: Iterable[str], *, most: int = 10) -> str:
    """Names for a message, in order: all of a few, of many the first and how many more there
    are."""
    ordered = sorted(names)
    more = f" and {len(ordered) - most} more" if len(ordered) > most else ""
    return f"{ordered[:most]}{more}"


def a_few(names: Iterable[str], most: int = 8) -> str:
    """The first of some names, and how many more there are."""
    listed = list(names)
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """Advice on a name that is not among those there are: the nearest, nothing where none is
    near."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"nearest: {close[0]}; " if close else ""


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

    # A second Ctrl-C means now: whoever presses it does not want to wait for the loop.
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
