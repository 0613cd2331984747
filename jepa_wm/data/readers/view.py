"""Any source as training wants it: uint8 frames, float actions and float state under our own
names.

L frames of an episode, h x w px, A action numbers, Y state numbers. Which column plays which part
is chosen by name; a part that is not named takes the usual column of that name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepa_wm.core.errors import UserError, listed
from jepa_wm.data.readers.channels import channels_of
from jepa_wm.data.readers.choice import Chosen, state_names, state_units
from jepa_wm.data.readers.source import Checked, Source, leave_out

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


class View:
    """A source as training sees it. UserError if a part is missing or could be several
    columns."""

    def __init__(self, source: Source, chosen: Chosen | None = None) -> None:
        self.source, chosen = source, chosen or Chosen()

        # Which columns play which part; all of them can be read here.
        self.pictures = self._pictures(chosen)  # {our name: theirs}
        self._refuse_locked(*self.pictures.values())
        self.action = self._named("action", chosen.action, ACTIONS)
        self.state = self._usual_state()
        if chosen.state is not None:
            self.state = self._named("state", chosen.state, STATES)
        self._refuse_locked(
            self.action, *([] if self.state is None else [self.state]), *self._usual_pay().values()
        )

        # What their numbers mean.
        row = chosen.action_row or ("arriving" if source.about.arriving else "leaving")
        self._shift = 1 if row == "arriving" else 0
        self.pay = self._usual_pay()  # {our name: theirs}
        column = source.columns[self.action]
        self.discrete = column.dtype.kind in "iu" and int(np.prod(column.shape)) == 1
        self._choices = source.about.choices
        self.state_names = state_names(source, self.state, chosen.names)
        self.state_units = state_units(source, self.state, self.state_names, chosen.units)

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
        """UserError where the source knows that frames of an episode are missing, without looking
        at them."""
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
            if len(broken) > 1:
                raise UserError(f"{first}; broken are in all: --without {numbers}")
            raise first

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
        stands for it.

        UserError for numbers that are not finite, and for discrete actions that there are not.
        """
        values = self.raw_actions(episode)
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

    def raw_actions(self, episode: int) -> np.ndarray:
        """[L, A] as they are stored, beside the frame they are taken at; UserError for numbers
        that are not finite."""
        length = int(self.source.lengths[episode])
        values = self.source.read(self.action, episode, 0, length).reshape(length, -1)
        if self._shift:
            values = np.concatenate([values[1:], np.zeros_like(values[:1])])
        self._refuse_not_finite(self.action, episode, values[: length - 1])
        return np.where(
            np.isfinite(values), values, 0
        )  # the last one is never taken and may be anything

    def states(self, episode: int, start: int, stop: int) -> np.ndarray:
        """[stop - start, Y] float32, where there is a `state`; UserError for numbers that are not
        finite."""
        assert self.state is not None
        values = self.source.read(self.state, episode, start, stop).reshape(stop - start, -1)
        self._refuse_not_finite(self.state, episode, values)
        return values.astype(np.float32)

    def earned(self, name: str, episode: int) -> np.ndarray:
        """[L] of our column `name` of `pay`, beside the frame whose action it is of; 0 where none
        is stored.

        UserError for numbers that are not finite.
        """
        length, theirs = int(self.source.lengths[episode]), self.pay[name]
        values = self.source.read(theirs, episode, 0, length).reshape(length, -1)
        if self._shift:
            values = np.concatenate([values[1:], np.zeros_like(values[:1])])
        self._refuse_not_finite(theirs, episode, values[: length - 1])
        return np.where(np.isfinite(values), values, 0)[:, 0]

    @property
    def choices(self) -> int:
        """How many discrete actions there are: what the format says, else one more than the
        largest met."""
        if self._choices is None:
            self._choices = max(self._largest(e) for e in range(len(self.source.lengths))) + 1
        return self._choices

    def _largest(self, episode: int) -> int:
        """The largest discrete action of an episode; 0 of a broken one, which says so where it is
        read."""
        try:
            return int(self.raw_actions(episode).max(initial=0))
        except UserError:
            return 0

    @property
    def action_size(self) -> int:
        """How many numbers an action has here."""
        return (
            self.choices if self.discrete else int(np.prod(self.source.columns[self.action].shape))
        )

    def _refuse_not_finite(self, column: str, episode: int, values: np.ndarray) -> None:
        bad = np.count_nonzero(~np.isfinite(values).all(1)) if values.dtype.kind == "f" else 0
        if bad:
            number = self.called(episode)
            raise UserError(
                f"{self.source.path}: '{column}' of episode {number} is not finite in {bad} "
                f"rows; {leave_out(number)}"
            )

    def _refuse_locked(self, *columns: str) -> None:
        for name in columns:
            if self.source.columns[name].locked is not None:
                raise UserError(
                    f"{self.source.path}: column '{name}' {self.source.columns[name].locked}"
                )

    def _named(self, part: str, name: str | None, usual: tuple[str, ...]) -> str:
        columns = self.source.columns
        numbers = [column for column in columns if not columns[column].picture]
        for candidate in (name,) if name else usual:
            if candidate in numbers:
                return candidate
        asked = f"column '{name}'" if name else f"a column for the {part}"
        raise UserError(
            f"{self.source.path}: {asked} is missing; name one of {listed(numbers)} with --{part}"
        )

    def _usual_state(self) -> str | None:
        columns = self.source.columns
        return next(
            (name for name in STATES if name in columns and not columns[name].picture), None
        )

    def _usual_pay(self) -> dict[str, str]:
        columns = self.source.columns
        single = [
            name
            for name in columns
            if not columns[name].picture and int(np.prod(columns[name].shape)) == 1
        ]
        known = (
            {"terminated": (self.source.about.terminated,)} if self.source.about.terminated else {}
        )
        taken = {
            ours: next((name for name in (*usual, *known.get(ours, ())) if name in single), None)
            for ours, usual in PAY.items()
        }
        return {ours: theirs for ours, theirs in taken.items() if theirs is not None}

    def _pictures(self, chosen: Chosen) -> dict[str, str]:
        path, columns = self.source.path, self.source.columns
        there = sorted(name for name in columns if columns[name].picture)
        if chosen.pixels is not None and chosen.pixels not in there:
            raise UserError(
                f"{path}: column '{chosen.pixels}' holds no pictures; those that do are "
                f"{listed(there)}"
            )

        # Cameras by name, each of one column.
        if chosen.cameras:
            taken: dict[str, str] = {}
            for camera in chosen.cameras:
                fits = [
                    name
                    for name in there
                    if name == camera or name.replace("/", ".").endswith(f".{camera}")
                ]
                if len(fits) != 1:
                    raise UserError(
                        f"{path}: --camera {camera} fits {fits or 'no column'} of "
                        f"{listed(there)}; name it in full"
                    )
                taken["pixels" if not taken else f"pixels_{camera.replace('/', '_')}"] = fits[0]
            return taken

        # The column that is named, the only one, or the one of a usual name.
        if chosen.pixels is not None or len(there) == 1:
            return {"pixels": chosen.pixels or there[0]}
        if not there:
            raise UserError(
                f"{path}: no column holds pictures, only {listed(columns)}; a set with frames is "
                "needed"
            )
        usual = [name for name in PIXELS if name in there]
        if not usual:
            raise UserError(
                f"{path}: has several cameras; choose with --camera or --pixels among "
                f"{listed(there)}"
            )
        return {"pixels": usual[0]}

    def _float_scale(self, column: str) -> float:
        """Pictures in floats go to 1 or to 255: the largest value in a few frames tells; those of
        yes and no to 1."""
        if self.source.columns[column].dtype.kind != "f":
            return 255.0 if self.source.columns[column].dtype.kind == "b" else 1.0
        lengths, largest = self.source.lengths, 0.0
        listed = {
            (e, t)
            for e in {0, len(lengths) // 2, len(lengths) - 1}
            for t in {0, lengths[e] // 2, lengths[e] - 1}
        }
        for e, t in sorted((e, int(t)) for e, t in listed):
            try:
                largest = max(largest, float(self.source.read(column, e, t, t + 1).max(initial=0)))
            except UserError:  # said where the episode is read
                continue
        return 255.0 if largest <= 1.0 else 1.0
