"""What the numbers of a source's state are called, and their units: as the command line says, else
the format."""

from __future__ import annotations

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import UNKNOWN, described
from jepa_wm.data.readers.source import Source


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
