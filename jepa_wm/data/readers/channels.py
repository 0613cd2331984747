"""What the channels of pictures are: grey, colours, alpha, or frames stacked over time. None is
guessed that shows.

n rows, h x w px, C channels of all stacked frames together, u channels of one frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import Source

Kind = Literal["grey", "grey_alpha", "rgb", "rgba"]  # of one frame
UNITS: dict[Kind, int] = {"grey": 1, "grey_alpha": 2, "rgb": 3, "rgba": 4}
STACKED: tuple[Kind, ...] = ("grey", "rgb", "rgba")  # what stacks are made of
EPISODES, PLACES, ROWS = 3, 2, 8  # read: the first episodes, places in each, rows from there on
MORE = 16  # episodes and places in each, where nothing moved before
LAGS = 4  # rows from one frame of a stack to the next, at most


@dataclass(frozen=True)
class Channels:
    """How a frame is taken from the channels of a row."""

    kind: Kind
    newest: int  # the first channel of the newest frame
    stacked: int = 1  # frames in a row

    def frames(self, values: np.ndarray) -> np.ndarray:
        """[n, h, w, 3] of pictures in any layout that `channels_last` takes; alpha is dropped."""
        values = channels_last(values)
        if self.kind in ("grey", "grey_alpha"):
            return np.repeat(values[..., self.newest : self.newest + 1], 3, -1)
        return values[..., self.newest : self.newest + 3]


def channels_last(values: np.ndarray) -> np.ndarray:
    """[n, h, w, C] of pictures [n, h, w], [n, h, w, C], [n, C, h, w], or [n, k, h, w, u], k frames
    each."""
    if values.ndim == 3:
        return values[..., None]
    if values.ndim == 5:
        stacked = np.moveaxis(values, 1, -2)
        return stacked.reshape(*stacked.shape[:3], -1)
    if values.shape[1] < min(values.shape[2:]):  # the channels are the short side
        return np.moveaxis(values, 1, -1)
    return values


def usual(count: int) -> Channels:
    """What so many channels are where nothing shows it: of 6, 9, ... the last three are the newest
    frame."""
    kinds: dict[int, Kind] = {1: "grey", 2: "grey_alpha", 4: "rgba"}
    kind = kinds.get(count, "rgb")
    return Channels(kind, count - 3, count // 3) if kind == "rgb" else Channels(kind, 0)


def channels_of(source: Source, column: str, stated: Kind | None) -> Channels:
    """What the channels of a picture column are: `stated` of one frame, else what its rows show.

    In stacked frames all but one come again in the rows after. UserError where nothing shows
    whether channels are colours or stacked grey frames, and where `stated` does not divide
    them."""
    shape = source.columns[column].shape
    count = int(channels_last(np.empty((1, *shape), "u1")).shape[-1])
    if stated is not None and count % UNITS[stated]:
        raise UserError(
            f"{source.path}: --channels {stated}: '{column}' has {count} channels, no multiple of "
            f"{UNITS[stated]}"
        )
    if count == 1:
        return usual(1)

    # A few rows; more where nothing moves, which would look like any stack.
    samples = list(_samples(source, column))
    if not any((rows != rows[:1]).any() for rows in samples):
        samples = list(_samples(source, column, episodes=MORE, places=MORE))

    # Stacked frames: the first kind and step under which channels come again in later rows.
    has_frame_axis = len(shape) == 4  # k frames of 1 or 3 channels
    kinds: tuple[Kind, ...] = STACKED
    if stated is not None:
        kinds = (stated,)
    elif has_frame_axis:
        kinds = ("grey",) if shape[-1] == 1 else ("rgb",)
    for step in range(1, count):  # frames that a stack moves on by from row to row
        for kind in kinds:
            unit = UNITS[kind]
            if count % unit or step * unit >= count:
                continue
            newest = _newest(samples, unit, step * unit)
            if newest is not None:
                return Channels(kind, newest, count // unit)

    # Nothing comes again: what was stated, an opaque alpha channel, or colours.
    if stated is not None:
        return Channels(stated, count - UNITS[stated], count // UNITS[stated])
    floats = bool(samples) and samples[0].dtype.kind == "f"
    opaque = 1 if floats and max(float(rows.max()) for rows in samples) <= 1 else 255
    alpha = bool(samples) and all((rows[..., -1] == opaque).all() for rows in samples)
    if not has_frame_axis and count in (2, 4) and alpha:
        return usual(count)
    if count == 3 if has_frame_axis else count % 3 == 0:
        return usual(count)
    raise UserError(
        f"{source.path}: nothing shows whether the {count} channels of '{column}' are stacked "
        "frames; say what one frame is: "
        f"{' or '.join(f'--channels {kind}' for kind, unit in UNITS.items() if count % unit == 0)}"
    )


def _samples(
    source: Source, column: str, *, episodes: int = EPISODES, places: int = PLACES
) -> Iterator[np.ndarray]:
    """Rows [n, h, w, C] in a row, from some places of each of the first episodes."""
    for e in range(min(episodes, len(source.lengths))):
        length = int(source.lengths[e])
        for start in sorted({place * length // places for place in range(places)}):
            try:
                rows = source.read(column, e, start, min(start + ROWS, length))
            except UserError:  # said where the episode is read
                continue
            if len(rows):
                yield channels_last(rows)


def _newest(samples: Sequence[np.ndarray], unit: int, shift: int) -> int | None:
    """The first channel of the newest of stacked frames of `unit` channels each, where channels
    come again `shift` channels on in a later row; None if they do not."""
    count = samples[0].shape[-1] if samples else 0
    older, newer = slice(None, count - shift), slice(shift, None)
    for lag in range(1, LAGS + 1):
        pairs = [(rows[:-lag], rows[lag:]) for rows in samples if len(rows) > lag]
        for first, then, now in ((count - unit, newer, older), (0, older, newer)):
            again = all(
                np.array_equal(before[..., then], after[..., now]) for before, after in pairs
            )
            if again and any(
                (before[..., now] != after[..., now]).any() for before, after in pairs
            ):
                return first
    return None
