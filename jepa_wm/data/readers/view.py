"""Any source as training wants it: uint8 frames, float actions and float state under our own
names.

L frames of an episode, h x w px, A action numbers, Y state numbers. Which column plays which part
is chosen by name; a part that is not named takes the usual column of that name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepa_wm.core.errors import UserError, listed
from jepa_wm.data.quantities import UNKNOWN, described
from jepa_wm.data.readers.channels import Kind, channels_of
from jepa_wm.data.readers.registry import Checked, Source, leave_out

# Looked for in this order where nothing is named.
PIXELS = ("pixels", "image", "img", "observation.image", "observations", "observation")
ACTIONS = ("action", "actions", "rel_action")
STATES = (
    "state", "states", "observation.state", "observations/state", "qpos", "observations/qpos",
    "observations", "observation",
)  # fmt: skip
# What the action of a row earned and whether it ended the episode for good, by our names.
PAY = {
    "reward": ("reward", "rewards", "next.reward"),
    "terminated": ("terminated", "terminals", "terminations", "termination"),
}


@dataclass(frozen=True)
class Chosen:
    """Which columns are used and what their numbers are called; None or () means the usual ones,
    and what the format says."""

    pixels: str | None = None
    action: str | None = None
    state: str | None = None
    # parts of picture columns' names: the first becomes `pixels`, each further `pixels_<its name>`
    cameras: tuple[str, ...] = ()
    names: tuple[str, ...] = ()  # of the state's numbers
    units: tuple[str, ...] = ()  # of the state's numbers, - where there is none
    # of one frame of the pictures; more are stacked frames. None: what they show
    channels: Kind | None = None
    # row t: the action taken at t, or the one that led there
    action_row: Literal["leaving", "arriving"] | None = None


class View:
    """A source as training sees it. UserError if a part is missing or could be several
    columns."""

    def __init__(self, source: Source, chosen: Chosen | None = None) -> None:
        self.source, chosen = source, chosen or Chosen()
        self._numbers = [name for name, column in source.columns.items() if not column.picture]

        # Which columns play which part; all of them can be read here.
        self.pictures = self._pictures(chosen)  # {our name: theirs}
        self.action = self._named("action", chosen.action, ACTIONS)
        self.state = next((name for name in STATES if name in self._numbers), None)
        if chosen.state is not None:
            self.state = self._named("state", chosen.state, STATES)
        self.pay = self._pay()  # {our name: theirs}
        for name in (*self.pictures.values(), self.action, self.state, *self.pay.values()):
            if name is not None and source.columns[name].locked is not None:
                raise UserError(f"{source.path}: column '{name}' {source.columns[name].locked}")

        # What their numbers mean.
        row = chosen.action_row or ("arriving" if source.about.arriving else "leaving")
        self._arriving = row == "arriving"
        column = source.columns[self.action]
        self.discrete = column.dtype.kind in "iu" and column.size == 1
        self._choices = source.about.choices
        self.state_names, self.state_units = self._names_and_units(chosen)

        # How their pictures become frames.
        self._channels = {
            name: channels_of(source, theirs, chosen.channels)
            for name, theirs in self.pictures.items()
        }
        self._scale = {name: self._float_scale(theirs) for name, theirs in self.pictures.items()}

    def kind(self, name: str) -> str:
        """What a frame of our picture column `name` is, for reading."""
        kind, stacked = self._channels[name].kind, self._channels[name].stacked
        return f"{kind}, the newest of {stacked} stacked frames" if stacked > 1 else kind

    def called(self, episode: int) -> int:
        """The number by which the set itself knows the episode at a place."""
        return int(self.source.numbers[episode])

    def check(self, episode: int) -> None:
        """UserError where the source knows, without looking, that frames of it are missing."""
        if isinstance(self.source, Checked):
            for column in self.pictures.values():
                self.source.check(column, episode)

    def check_all(self, episodes: Sequence[int]) -> None:
        """UserError that tells the numbers of all of these episodes that `check` refuses."""
        broken: dict[int, UserError] = {}
        for e in episodes:
            try:
                self.check(e)
            except UserError as error:
                broken[self.called(e)] = error
        if broken:
            first, numbers = next(iter(broken.values())), " ".join(map(str, broken))
            more = f"; broken are in all: --without {numbers}" if len(broken) > 1 else ""
            raise UserError(f"{first}{more}")

    def frames(self, name: str, episode: int, start: int, stop: int) -> np.ndarray:
        """[stop - start, h, w, 3] uint8 of our picture column `name`; of stacked frames the
        newest."""
        theirs = self.pictures[name]
        values = self.source.read(theirs, episode, start, stop)
        if values.dtype != np.uint8:
            values = np.round(values * self._scale[name])
            if not (values.min() >= 0 and values.max() <= 255):
                raise UserError(
                    f"{self.source.path}: '{theirs}' of episode {self.called(episode)} has values "
                    "outside 0..255; store its frames as uint8"
                )
        return self._channels[name].frames(values.astype(np.uint8, copy=False))

    def actions(self, episode: int) -> np.ndarray:
        """[L, A] float32; a discrete action as one-hot. Where none is stored for the last frame, 0
        stands for it. UserError for numbers that are not finite, and for discrete actions that
        there are not."""
        values = self._beside_frames(self.action, episode)
        if self.discrete:
            if values.min(initial=0) < 0 or values.max(initial=0) >= self.choices:
                raise UserError(
                    f"{self.source.path}: '{self.action}' of episode {self.called(episode)} is "
                    f"outside 0..{self.choices - 1}; {leave_out(self.called(episode))}"
                )
            one_hot = np.zeros((len(values), self.choices), np.float32)
            one_hot[np.arange(len(values)), values[:, 0]] = 1
            values = one_hot
        return values.astype(np.float32)

    def states(self, episode: int, start: int, stop: int) -> np.ndarray:
        """[stop - start, Y] float32, where there is a `state`; UserError for numbers that are not
        finite."""
        assert self.state is not None
        values = self.source.read(self.state, episode, start, stop).reshape(stop - start, -1)
        self._refuse_not_finite(self.state, episode, values)
        return values.astype(np.float32)

    def earned(self, name: str, episode: int) -> np.ndarray:
        """[L] of our column `name` of `pay`, beside the frame whose action it is of, as
        `actions`."""
        return self._beside_frames(self.pay[name], episode)[:, 0]

    @property
    def choices(self) -> int:
        """How many discrete actions there are: what the format says, else one more than the
        largest met."""
        if self._choices is None:
            largest = 0
            for e in range(len(self.source.lengths)):
                try:
                    actions = self._beside_frames(self.action, e)
                except UserError:  # said where the episode is read
                    continue
                largest = max(largest, int(actions.max(initial=0)))
            self._choices = largest + 1
        return self._choices

    @property
    def action_size(self) -> int:
        """How many numbers an action has here."""
        return self.choices if self.discrete else self.source.columns[self.action].size

    def _beside_frames(self, column: str, episode: int) -> np.ndarray:
        """[L, n] numbers of the actions of an episode, each beside the frame that it is taken at;
        the last one is never taken, may be anything, and is 0 where it is not finite."""
        length = int(self.source.lengths[episode])
        values = self.source.read(column, episode, 0, length).reshape(length, -1)
        if self._arriving:
            values = np.concatenate([values[1:], np.zeros_like(values[:1])])
        self._refuse_not_finite(column, episode, values[: length - 1])
        return np.where(np.isfinite(values), values, 0)

    def _refuse_not_finite(self, column: str, episode: int, values: np.ndarray) -> None:
        bad = np.count_nonzero(~np.isfinite(values).all(1))
        if bad:
            number = self.called(episode)
            raise UserError(
                f"{self.source.path}: '{column}' of episode {number} is not finite in {bad} "
                f"rows; {leave_out(number)}"
            )

    def _named(self, part: str, name: str | None, usual: tuple[str, ...]) -> str:
        for candidate in (name,) if name else usual:
            if candidate in self._numbers:
                return candidate
        asked = f"column '{name}'" if name else f"a column for the {part}"
        raise UserError(
            f"{self.source.path}: {asked} is missing; name one of {listed(self._numbers)} with "
            f"--{part}"
        )

    def _pay(self) -> dict[str, str]:
        single = [name for name in self._numbers if self.source.columns[name].size == 1]
        pay: dict[str, str] = {}
        for ours, usual in PAY.items():
            more = self.source.about.terminated if ours == "terminated" else None
            theirs = next((name for name in (*usual, more) if name in single), None)
            if theirs is not None:
                pay[ours] = theirs
        return pay

    def _pictures(self, chosen: Chosen) -> dict[str, str]:
        path, columns = self.source.path, self.source.columns
        there = sorted(name for name in columns if columns[name].picture)
        if chosen.pixels is not None and chosen.pixels not in there:
            raise UserError(
                f"{path}: column '{chosen.pixels}' holds no pictures; those that do are "
                f"{listed(there)}"
            )

        # Cameras by name, each of one column.
        taken: dict[str, str] = {}
        for camera in chosen.cameras:
            fits = [
                name
                for name in there
                if name == camera or name.replace("/", ".").endswith(f".{camera}")
            ]
            if len(fits) != 1:
                raise UserError(
                    f"{path}: --camera {camera} fits {fits or 'no column'} of {listed(there)}; "
                    "name it in full"
                )
            taken[f"pixels_{camera.replace('/', '_')}" if taken else "pixels"] = fits[0]
        if taken:
            return taken

        # The column that is named, the only one, or the one of a usual name.
        if not there:
            raise UserError(
                f"{path}: no column holds pictures, only {listed(columns)}; a set with frames is "
                "needed"
            )
        usual = [chosen.pixels] if chosen.pixels else [name for name in PIXELS if name in there]
        if not usual and len(there) > 1:
            raise UserError(
                f"{path}: has several cameras; choose with --camera or --pixels among "
                f"{listed(there)}"
            )
        return {"pixels": (usual or there)[0]}

    def _names_and_units(self, chosen: Chosen) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """A name for each state number, state_0, ... where nobody has named them, and a unit, ""
        where it has none; () where none is known. UserError for names or units that are not one a
        number, or for units that differ within a group."""
        path, about = self.source.path, self.source.about
        if self.state is None:
            if chosen.units:
                raise UserError(
                    f"{path}: --units are given, but there is no state; name its column with "
                    "--state"
                )
            return (), ()
        count = self.source.columns[self.state].size
        if chosen.names and len(chosen.names) != count:
            raise UserError(
                f"{path}: --names gives {len(chosen.names)} for the {count} numbers of "
                f"'{self.state}'"
            )

        # What the user says counts before what the format does.
        names = chosen.names or about.names.get(self.state, ())
        names = tuple("_".join(name.split()) for name in names)
        names = names or tuple(f"state_{i}" for i in range(count))
        units = chosen.units or about.units.get(self.state, ())
        try:
            described(names, units)
        except UserError as error:
            raise UserError(f"{path}: --units, --names: {error}") from None
        return names, tuple("" if unit == UNKNOWN else unit for unit in units)

    def _float_scale(self, column: str) -> float:
        """Pictures in floats go to 1 or to 255: the largest value in a few frames tells; those of
        yes and no to 1."""
        kind, lengths = self.source.columns[column].dtype.kind, self.source.lengths
        if kind != "f":
            return 255.0 if kind == "b" else 1.0
        largest = 0.0
        for e in sorted({0, len(lengths) // 2, len(lengths) - 1}):
            for t in sorted({0, int(lengths[e]) // 2, int(lengths[e]) - 1}):
                try:
                    frame = self.source.read(column, e, t, t + 1)
                except UserError:  # said where the episode is read
                    continue
                largest = max(largest, float(frame.max(initial=0)))
        return 255.0 if largest <= 1.0 else 1.0
