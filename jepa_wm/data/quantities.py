"""What the numbers of a state are: named groups, each in one unit, and angles, which are the same
after a whole turn.

n samples, Y state numbers, Z the same with two numbers for each angle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.scaling import TURN

UNKNOWN = "-"  # stands in a list of units where none is known


@dataclass(frozen=True)
class Quantities:
    """Named groups of state numbers and the unit of each group; "" where none is known.

    A number in rad or deg is an angle: errors are the shorter way round, and what is fitted to it
    is fitted to its cosine and sine, so that nothing leaps where the numbers do. A joint that may
    turn more than once around is judged by where it stands."""

    groups: Mapping[str, Sequence[int]] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)  # of the groups

    @classmethod
    def parse(cls, groups: str, units: str, count: int) -> Quantities:
        """What the attributes `state_groups` ("block:0,1 angle:2") and `state_units`
        ("px px rad") of a file say of `count` state numbers.

        UserError for groups that name other numbers, and for units that are not one a number or
        differ within a group."""
        numbers: dict[str, list[int]] = {}
        for entry in groups.split():
            name, _, digits = entry.rpartition(":")
            numbers[name] = [int(i) if i.isdecimal() else count for i in digits.split(",")]
            if not name or max(numbers[name]) >= count:
                raise UserError(
                    f"state_groups has {entry!r}, which is no NAME:i,j with numbers i, j below "
                    f"{count}, of which the state has so many; convert the data again, or mend "
                    "the attribute"
                )
        known = ["" if unit == UNKNOWN else unit for unit in units.split()]
        if not known:
            return cls(numbers)
        if len(known) != count:
            raise UserError(
                f"state_units {units!r} are {len(known)} for {count} numbers of the state; give "
                f"one for each, {UNKNOWN} where there is none"
            )

        # A group is measured as one distance, so its numbers share a unit.
        group_units: dict[str, str] = {}
        for name, ids in numbers.items():
            mixed = sorted({known[i] for i in ids})
            if len(mixed) > 1:
                raise UserError(
                    f"state_units of the group {name!r} are "
                    f"{' and '.join(unit or 'none' for unit in mixed)}: an error of it would mean "
                    "nothing; give its numbers names that differ before the last underscore "
                    "(block_x block_y angle)"
                )
            group_units[name] = mixed[0]
        return cls(numbers, group_units)

    def unit(self, group: str) -> str:
        """The group's unit, "" where none is known."""
        return self.units.get(group, "")

    def difference(self, guess: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """[..., Y] guess minus truth; of angles the shorter way round."""
        difference = np.asarray(guess - truth)
        for i, turn in self.angles().items():
            difference[..., i] = (difference[..., i] + turn / 2) % turn - turn / 2
        return difference

    def errors(self, guess: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
        """[...] Euclidean error of each group, for guesses and states [..., Y]."""
        difference = self.difference(guess, truth)
        return {
            name: np.linalg.norm(difference[..., list(ids)], axis=-1)
            for name, ids in self.groups.items()
        }

    def normalised_errors(
        self, guess: np.ndarray, truth: np.ndarray, constant: np.ndarray
    ) -> dict[str, float]:
        """The mean square error of each group, for guesses and states [n, Y], over that of one
        constant state [Y]: 0 is exact, 1 no better than the constant. Groups that the constant
        tells exactly have none."""
        own = self.errors(guess, truth)
        square = {
            name: float(np.square(each).mean())
            for name, each in self.errors(np.broadcast_to(constant, truth.shape), truth).items()
        }
        return {
            name: float(np.square(each).mean()) / square[name]
            for name, each in own.items()
            if square[name] > 0
        }

    def unrolled(self, state: np.ndarray) -> np.ndarray:
        """[..., Z] what is to be fitted for states [..., Y]: angles as cosines, then their sines
        behind all numbers."""
        angles = self.angles()
        if not angles:
            return state
        turned = state[..., list(angles)] * np.array(
            [2 * np.pi / turn for turn in angles.values()], state.dtype
        )
        unrolled = np.concatenate([state, np.sin(turned)], -1)
        unrolled[..., list(angles)] = np.cos(turned)
        return unrolled

    def unrolled_groups(self, count: int) -> dict[str, list[int]]:
        """The numbers of each group among the `count` of what is `unrolled`."""
        angles = list(self.angles())
        first = count - len(angles)
        return {
            name: [*ids, *(first + angles.index(i) for i in ids if i in angles)]
            for name, ids in self.groups.items()
        }

    def rolled(self, values: np.ndarray) -> np.ndarray:
        """[..., Y] the inverse of `unrolled`; angles in half a turn either way."""
        angles = self.angles()
        if not angles:
            return values
        count = values.shape[-1] - len(angles)
        state = values[..., :count].copy()
        for k, (i, turn) in enumerate(angles.items()):
            state[..., i] = np.arctan2(values[..., count + k], values[..., i]) * (
                turn / (2 * np.pi)
            )
        return state

    def angles(self) -> dict[int, float]:
        """{number: a whole turn of it}."""
        return {
            i: TURN[self.unit(name)]
            for name, ids in self.groups.items()
            if self.unit(name) in TURN
            for i in ids
        }


def grouped(names: Sequence[str]) -> str:
    """The `state_groups` text of state names: what stands before the last underscore names the
    group.

    ("agent_x", "agent_y", "speed") gives "agent:0,1 speed:2"; numbers of one group should be of
    one unit."""
    groups: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        groups.setdefault(name.rpartition("_")[0] or name, []).append(str(i))
    return " ".join(f"{group}:{','.join(ids)}" for group, ids in groups.items())


def described(names: Sequence[str], units: Sequence[str]) -> dict[str, str]:
    """The attributes of a trajectory file that tell of its state: `state_names`, `state_groups`,
    `state_units`; UserError as `Quantities.parse`."""
    names = ["_".join(name.split()) for name in names]
    about = {"state_names": " ".join(names), "state_groups": grouped(names)}
    if any(units):
        about["state_units"] = " ".join("".join(unit.split()) or UNKNOWN for unit in units)
        Quantities.parse(about["state_groups"], about["state_units"], len(names))
    return about
