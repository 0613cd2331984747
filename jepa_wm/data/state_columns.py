"""Numbers of a state by their names: which they are, and in what units.

X state numbers, P of them chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jepa_wm.core.errors import UserError, listed, nearest
from jepa_wm.data.quantities import UNKNOWN
from jepa_wm.data.trajectories import Trajectories


@dataclass(frozen=True)
class StateColumns:
    """P numbers of a state."""

    names: tuple[str, ...]
    ids: tuple[int, ...]
    units: tuple[str, ...]  # "" where none is known

    @classmethod
    def named(
        cls, names: Sequence[str], known: Sequence[str], units: Sequence[str], *, whose: str
    ) -> StateColumns:
        """Those of `names` among the `known` ones with their `units` (empty: none is known).

        UserError for a name that latent.proprio has and `whose` state has not, or has twice."""
        # As trajectory files write them, in which a space parts one from the next.
        known = ["_".join(name.split()) for name in known]
        units = ["" if unit == UNKNOWN else "".join(unit.split()) for unit in units]
        for name in names:
            if known.count(name) > 1:
                raise UserError(
                    f"latent.proprio names {name!r}, which {known.count(name)} numbers of the "
                    f"state of {whose} are called; give each a name of its own there"
                )
            if name not in known:
                there = listed(known) if known else "none"
                raise UserError(
                    f"latent.proprio names {name!r}, which is no number of the state of {whose} "
                    f"({nearest(name, known)}there: {there}); name one of these, or set "
                    "latent.proprio=[]"
                )
        ids = tuple(known.index(name) for name in names)
        return cls(tuple(names), ids, tuple(units[i] if units else "" for i in ids))

    @classmethod
    def of_data(cls, names: Sequence[str], data: Trajectories) -> StateColumns:
        """Those of a trajectory file's column 'state', whose numbers are state_0, ... where it
        does not name them. UserError also where its names or units are not one a number."""
        if not names:
            return cls((), (), ())
        count = data.state_size
        known = data.text("state_names").split() or [f"state_{i}" for i in range(count)]
        units = ["" if unit == UNKNOWN else unit for unit in data.text("state_units").split()]
        if len(known) != count or len(units) not in (0, count):
            raise UserError(
                f"{data.path}: the state has {count} numbers, state_names {len(known)} and "
                f"state_units {len(units)}; convert the data again with one --names and --units "
                "for each"
            )
        return cls.named(names, known, units, whose=str(data.path))

    def read(self, states: np.ndarray) -> np.ndarray:
        """[..., P] of states [..., X]."""
        return states[..., list(self.ids)]

    def check_units(self, units: Sequence[str], *, whose: str) -> None:
        """UserError where `whose` state has these numbers in other units than the `units` that a
        model was trained on; those that nobody knows may be any."""
        for name, own, trained in zip(self.names, self.units, units, strict=True):
            if own != trained and own and trained:
                raise UserError(
                    f"latent.proprio: {name!r} is in {own} in {whose}, and the model was trained "
                    f"on it in {trained}; give it the same unit"
                )
