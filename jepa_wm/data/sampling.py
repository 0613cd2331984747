"""Even draws from episodes of unequal lengths: every start in them is as likely as any other.

E episodes, B samples.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError


class EvenDraw:
    """Turns numbers in 0..1 into episodes and starts in them, so that an episode counts by how
    many starts it has."""

    def __init__(self, counts: np.ndarray) -> None:
        """`counts` [E] starts of each episode, 0 for one that has none."""
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def total(self) -> int:
        """All starts of all episodes."""
        return int(self._first[-1])

    def at(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(episode, number of the start in it), of the shape of `unit` in 0..1 (1 excluded)."""
        number = np.minimum((unit * self.total).astype(np.int64), self.total - 1)
        episode = np.searchsorted(self._first, number, side="right") - 1
        return episode, number - self._first[episode]


def leave_out_short(path: Path, lengths: np.ndarray, needed: int, purpose: str) -> None:
    """Say how many episodes of `lengths` [E] have fewer than `needed` frames; UserError where that
    leaves none.

    `purpose` completes "too short for", with the settings to change.
    """
    short = int((lengths < needed).sum())
    if short == len(lengths):
        raise UserError(
            f"{path}: no episode is long enough for {purpose}: {needed} frames are needed, and "
            "the longest has "
            f"{lengths.max()}; lower one of these settings, or give longer episodes"
        )
    if short:
        warnings.warn(
            f"{path}: {short} of {len(lengths)} episodes are left out, too short for {purpose} "
            f"({needed} frames)",
            stacklevel=3,
        )
