"""The exceptions that the command line answers with a message instead of a traceback."""

from __future__ import annotations

import signal
from collections.abc import Iterable


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
