"""Which columns of a source are used, and what its numbers are called: what the command line of
convert and inspect says, else the format."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import UNKNOWN, described
from jepa_wm.data.readers.channels import UNITS, Kind
from jepa_wm.data.readers.registry import formats
from jepa_wm.data.readers.source import Source


@dataclass(frozen=True)
class Chosen:
    """Names of the columns to use; None means the usual ones, and `cameras` are parts of picture
    columns' names."""

    pixels: str | None = None
    action: str | None = None
    state: str | None = None
    # the first becomes `pixels`, each further one `pixels_<its name>`
    cameras: tuple[str, ...] = ()
    # of the state's numbers, where the format has none or others are wanted
    names: tuple[str, ...] = ()
    # of one frame of the pictures; more are stacked frames. None: what they show
    channels: Kind | None = None
    # row t: the action taken at t, or the one that led there
    action_row: Literal["leaving", "arriving"] | None = None
    units: tuple[str, ...] = ()  # of the state's numbers, - where there is none


def add_column_arguments(
    parser: argparse.ArgumentParser, *, more_formats: Sequence[str] = ()
) -> None:
    """The words that say what a source is and which of its columns are used."""
    # The columns.
    parser.add_argument(
        "--format", choices=[*formats(), *more_formats], help="default: recognised from the files"
    )
    parser.add_argument("--pixels", metavar="COLUMN", help="the column of frames")
    parser.add_argument("--action", metavar="COLUMN")
    parser.add_argument("--state", metavar="COLUMN")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME",
        help="of the state's numbers; what stands before the last underscore groups them: "
        "block_x block_y angle",
    )  # fmt: skip
    parser.add_argument(
        "--units", nargs="+", default=[], metavar="UNIT",
        help="of the state's numbers, - where there is none: px px rad; rad and deg are angles",
    )  # fmt: skip
    parser.add_argument(
        "--camera",
        nargs="+",
        default=[],
        metavar="NAME",
        help="cameras by name: pixels, then pixels_NAME for more",
    )

    # How pictures and rows are to be read.
    parser.add_argument(
        "--channels", choices=list(UNITS),
        help="what one frame of the pictures is, where it does not show; more channels are "
        "stacked frames, newest last",
    )  # fmt: skip
    parser.add_argument(
        "--action-row", choices=["leaving", "arriving"],
        help="whether a row holds the action taken at its frame or the one that led to it",
    )  # fmt: skip


def chosen(arguments: argparse.Namespace) -> Chosen:
    """The columns that the command line names."""
    a = arguments
    return Chosen(
        a.pixels,
        a.action,
        a.state,
        tuple(a.camera),
        tuple(a.names),
        a.channels,
        a.action_row,
        tuple(a.units),
    )


def state_names(source: Source, column: str | None, given: tuple[str, ...]) -> tuple[str, ...]:
    """A name for each state number, () without a state; state_0, state_1, ... where nobody has
    named them.

    UserError for names that are not one a number.
    """
    if column is None:
        return ()
    count = int(np.prod(source.columns[column].shape))
    if given and len(given) != count:
        raise UserError(
            f"{source.path}: --names gives {len(given)} for the {count} numbers of '{column}'"
        )
    names = given or source.about.names.get(column, ())
    return tuple("_".join(name.split()) for name in names) or tuple(
        f"state_{i}" for i in range(count)
    )


def state_units(
    source: Source, column: str | None, names: tuple[str, ...], given: tuple[str, ...]
) -> tuple[str, ...]:
    """A unit for each state number, "" where it has none; () where none is known.

    UserError for units that are not one a number, or differ within a group of numbers.
    """
    if column is None:
        if given:
            raise UserError(
                f"{source.path}: --units are given, but there is no state; name its column with "
                "--state"
            )
        return ()
    units = given or source.about.units.get(column, ())
    try:
        described(names, units)
    except UserError as error:
        raise UserError(f"{source.path}: --units, --names: {error}") from None
    return tuple("" if unit == UNKNOWN else unit for unit in units)
