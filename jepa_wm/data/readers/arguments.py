"""The command line's words for what a source is and which of its columns are used, shared by
convert and inspect."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from jepa_wm.data.readers.channels import UNITS
from jepa_wm.data.readers.registry import FORMATS
from jepa_wm.data.readers.view import Chosen


def add_column_arguments(
    parser: argparse.ArgumentParser, *, formats: Sequence[str] = tuple(FORMATS)
) -> None:
    """The words that say what a source is and which of its columns are used."""
    parser.add_argument("--format", choices=formats, help="default: recognised from the files")
    parser.add_argument("--pixels", metavar="COLUMN", help="the column of frames")
    parser.add_argument("--action", metavar="COLUMN")
    parser.add_argument("--state", metavar="COLUMN")
    parser.add_argument(
        "--names", nargs="+", default=[], metavar="NAME",
        help="of the state's numbers; what stands before the last underscore groups them: block_x block_y angle",
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
    parser.add_argument(
        "--channels", choices=list(UNITS),
        help="what one frame of the pictures is, where it does not show; more channels are stacked frames, newest last",
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
