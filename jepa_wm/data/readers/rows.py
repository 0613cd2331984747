"""Two layouts that most trajectory formats fit: the rows of all episodes end to end, and arrays of
its own for each episode.

E episodes, L frames of one, N rows of all."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import About, Array, Column, Locked, leave_out, reading

TABLES = ("ep_len", "ep_offset", "episode_ends")  # say where episodes lie, and are no rows
Lengths = Sequence[int] | np.ndarray


class FlatRows:
    """All episodes end to end in arrays of N rows; arrays of E entries are about episodes and
    passed over."""

    def __init__(
        self, path: Path, arrays: Mapping[str, Array], lengths: Lengths,
        *, offsets: np.ndarray | None = None, about: About | None = None,
    ) -> None:  # fmt: skip
        self.path, self.lengths, self.about = path, np.asarray(lengths, np.int64), about or About()
        self.numbers = np.arange(len(self.lengths))
        self.offsets = np.cumsum(self.lengths) - self.lengths
        if offsets is not None:
            self.offsets = np.asarray(offsets, np.int64)
        if not len(self.lengths) or self.lengths.min() < 0:
            raise UserError(
                f"{path}: has no episodes, or one of negative length; its table of episodes is "
                "damaged"
            )

        # Arrays of as many entries as there are episodes are about these, and no rows.
        needed = int((self.offsets + self.lengths).max())
        self._arrays: dict[str, Array] = {}
        short = []
        for name, array in arrays.items():
            rows = array.shape[0] if array.shape else None
            if rows is None or rows == len(self.lengths) < needed:
                continue
            self._arrays[name] = array
            if rows < needed:
                short.append(f"'{name}' {rows}")
        if short:
            raise UserError(
                f"{path}: the episodes need {needed} rows, but there are fewer of "
                f"{', '.join(short)}; the file was cut short or its episode lengths are wrong: "
                "make it or copy it again"
            )
        self.columns = {name: Column.of(array) for name, array in self._arrays.items()}

    def read(self, column: str, episode: int, start: int, stop: int) -> np.ndarray:
        first = int(self.offsets[episode])
        with reading(self.path):
            return np.asarray(self._arrays[column][first + start : first + stop])


class EpisodeArrays:
    """Every episode with arrays of its own, opened when it is read; the last few stay open.

    Numbers may have one row fewer than there are frames (no action is taken at the last one): a
    row of zeros stands in for it."""

    def __init__(
        self, path: Path, opened: Callable[[int], Mapping[str, Array]], lengths: Lengths,
        *, about: About, numbers: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        """`numbers` [E]: what the episodes are called; counted from 0 where the format does not
        number them."""
        self.path, self.lengths, self.about = path, np.asarray(lengths, np.int64), about
        self.numbers = np.arange(len(self.lengths)) if numbers is None else numbers
        if not len(self.lengths):
            raise UserError(f"{path}: has no episodes")
        self._opened = lru_cache(maxsize=4)(opened)
        self.columns = {
            name: Column.of(array) for name, array in self._whole().items() if len(array.shape)
        }

    def _whole(self) -> Mapping[str, Array]:
        """The arrays of the first episode that can be opened and read, else of the first that can
        be opened."""
        first: Mapping[str, Array] | None = None
        for e in range(len(self.lengths)):
            try:
                arrays = self._opened(e)
            except UserError:
                continue
            if not any(isinstance(array, Locked) for array in arrays.values()):
                return arrays
            first = first or arrays
        return first or self._opened(0)

    def read(self, column: str, episode: int, start: int, stop: int) -> np.ndarray:
        number = int(self.numbers[episode])
        with reading(self.path):
            try:
                arrays = self._opened(episode)
            except UserError as error:
                raise UserError(f"episode {number}: {error}; {leave_out(number)}") from error
            fault = self._fault(column, episode, arrays)
            if fault is not None:
                raise UserError(f"{self.path}: {fault}; {leave_out(number)}")
            rows = arrays[column].shape[0]
            values = np.asarray(arrays[column][start : min(stop, rows)])

        # No action is stored for the last frame.
        if stop > rows:
            values = np.concatenate([values, np.zeros_like(values, shape=(1, *values.shape[1:]))])
        return values

    def _fault(self, column: str, episode: int, arrays: Mapping[str, Array]) -> str | None:
        """Why a column of an episode cannot be read: it has to be there, and as the first one's
        is."""
        name, length = f"episode {self.numbers[episode]}", int(self.lengths[episode])
        if column not in arrays:
            return f"{name} has no '{column}'"
        array, first = arrays[column], self.columns[column]
        rows, shape = array.shape[0], tuple(array.shape[1:])
        if rows != length and (rows != length - 1 or first.picture):
            return f"{name} has {length} frames but {rows} rows of '{column}'"
        if isinstance(array, Locked):
            return f"'{column}' of {name} {array.locked}"
        if shape != first.shape and not first.picture:
            return f"'{column}' is {shape} in {name}, but {first.shape} in the first"
        return None


def episode_lengths(arrays: Mapping[str, Array]) -> np.ndarray | None:
    """[E] frames of each episode, from whichever table of ends the arrays hold; None if they hold
    none.

    `ep_len` (stable-worldmodel), `episode_ends` (cumulative; diffusion policy), or a flag on the
    last row of an episode: `terminals` with or without `timeouts` (OGBench, D4RL). Rows after the
    last flag are an episode too."""
    if "ep_len" in arrays:
        return np.asarray(arrays["ep_len"][:])
    if "episode_ends" in arrays:
        return np.diff(np.asarray(arrays["episode_ends"][:]), prepend=0)
    flags = [
        np.asarray(arrays[name][:]).reshape(-1) > 0
        for name in ("terminals", "timeouts")
        if name in arrays
    ]
    if not flags or len({len(flag) for flag in flags}) > 1:
        return None
    ends = np.flatnonzero(np.any(flags, axis=0)) + 1
    rows = len(flags[0])
    return np.diff(ends if rows in ends else np.append(ends, rows), prepend=0)


def numbered(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(names in the order of their numbers, numbers [E]) of episodes called demo_2, demo_10, ...

    Where names hold no numbers that tell them apart, they are in order of the alphabet and counted
    from 0."""
    digits = [tuple(map(int, re.findall(r"\d+", name))) for name in names]
    if len({len(row) for row in digits}) == 1 and digits[0]:
        # Dates, lengths and the like may stand in a name too: the number is the one part in which
        # names differ.
        columns = [column for column in zip(*digits, strict=True) if len(set(column)) > 1]
        numbers = columns[0] if columns else tuple(row[-1] for row in digits)
        if len(columns) <= 1 and len(set(numbers)) == len(names) and max(numbers) < 2**63:
            order = np.argsort(numbers)
            return [names[i] for i in order], np.array(numbers)[order]
    return sorted(names), np.arange(len(names))
