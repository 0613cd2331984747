"""Trajectories on disk: flat HDF5 rows with `ep_offset` and `ep_len`, as stable-worldmodel writes
them.

Rows of one episode are contiguous. Row t holds the observation at t and the action taken there;
the last action of an episode leads nowhere. N rows, E episodes. Frames are stored unchunked and
read through a memory map."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Literal

import h5py
import numpy as np

from jepa_wm.core.errors import UserError, listed
from jepa_wm.core.files import fingerprint, mapped
from jepa_wm.data.hdf5 import missing_filter, open_h5
from jepa_wm.data.quantities import Quantities

ActionKind = Literal["delta", "absolute"]  # moves, which add up, or places to go to
ACTION_KINDS: tuple[ActionKind, ...] = ("delta", "absolute")
Columns = Mapping[str, tuple[tuple[int, ...], str]]  # name: shape and type of one row
Attribute = str | int | float | np.ndarray


class TrajectoryWriter:
    """Writes a file of known size whole or not at all: it grows under a temporary name and is
    renamed by `close`."""

    def __init__(self, path: Path, lengths: np.ndarray, columns: Columns) -> None:
        self.path, self._partial = Path(path), Path(path).with_suffix(".partial")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open_h5(self._partial, "w")
        rows = int(np.sum(lengths))
        self.offset = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
        self._file["ep_len"], self._file["ep_offset"] = np.asarray(lengths, np.int64), self.offset
        self._sums = {name: hashlib.sha256() for name in columns}
        # The same rows cut into other episodes are other content.
        self._cut = hashlib.sha256(np.asarray(lengths, "<i8").tobytes()).hexdigest()
        for name, (shape, dtype) in columns.items():
            self._file.create_dataset(name, (rows, *shape), dtype)

    def write(self, column: str, row: int, values: np.ndarray) -> None:
        """Put `values` [n, ...] at rows `row` .. `row + n`."""
        self._file[column][row : row + len(values)] = values
        self._sums[column].update(np.ascontiguousarray(values).data)

    def close(self, **attributes: Attribute) -> None:
        """Finish: store attributes and a digest of what was written, flush, and let the file
        appear under its name."""
        content = self._cut + "".join(part.hexdigest() for part in self._sums.values())
        self._file.attrs.update(
            {"digest": hashlib.sha256(content.encode()).hexdigest()[:16], **attributes}
        )
        self._file.close()
        self._partial.replace(self.path)

    def abandon(self) -> None:
        """Drop what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)


class Trajectories:
    """A read-only trajectory file. `frames` is a memory map [N, h, w, c] uint8; nothing is loaded
    until indexed."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise UserError(
                f"{self.path}: no such trajectory file; run `jepa-wm collect` first or name "
                "another file"
            )
        try:
            self._file = open_h5(self.path)
        except OSError as error:
            raise UserError(
                f"{self.path}: not a readable HDF5 file ({error}); collect it again"
            ) from error

        # The columns are there, can be read here, and reach as far as the episodes do.
        self.lengths, self.offsets = self.column("ep_len"), self.column("ep_offset")
        pixels, action = self._dataset("pixels"), self._dataset("action")
        needed = int((self.offsets + self.lengths).max()) if len(self.lengths) else 0
        rows = {"pixels": len(pixels), "action": len(action)}
        short = [f"'{name}' {count}" for name, count in rows.items() if count < needed]
        if short or not needed or self.lengths.min() < 1:
            fault = "an episode is empty"
            if short:
                fault = f"its episodes need {needed} rows, it has of {', '.join(short)}"
            raise UserError(
                f"{self.path}: {fault}; it was cut short or its lengths are wrong: convert it "
                "again"
            )

        # Frames are mapped where they lie in one piece.
        offset = pixels.id.get_offset()
        if pixels.chunks is None and offset is not None:
            self.frames = mapped(self.path, pixels.dtype, pixels.shape, offset)
        else:
            self.frames = pixels[:]
        self.actions = self._finite(action[:].astype(np.float32).reshape(len(action), -1))
        self.attributes: dict[str, object] = dict(self._file.attrs)

    @property
    def episodes(self) -> int:
        return len(self.lengths)

    @property
    def digest(self) -> str:
        """Names the content; written once by whoever made the file, else computed from it."""
        return str(self.attributes.get("digest") or fingerprint(self.path))

    @property
    def taken_actions(self) -> np.ndarray:
        """[n, A] all actions but each episode's last, which leads nowhere and may be a filling;
        all there are where no episode is longer than that."""
        leads = np.ones(len(self.actions), bool)
        leads[self.offsets + self.lengths - 1] = False
        return self.actions[leads] if leads.any() else self.actions

    def text(self, attribute: str) -> str:
        """An attribute of the file, "" where it has none."""
        return attribute_text(self.attributes.get(attribute, ""))

    @property
    def action_kind(self) -> ActionKind:
        """What an action is: a move ("delta", also where the file does not say) or a place to go
        to ("absolute"). UserError for another word in the file's attribute `action_kind`."""
        word = self.text("action_kind") or "delta"
        for kind in ACTION_KINDS:
            if word == kind:
                return kind
        raise UserError(
            f"{self.path}: its attribute action_kind is {word!r}, neither delta nor absolute; "
            "make the file again with `jepa-wm convert ... --action-kind delta` or `absolute`"
        )

    @property
    def quantities(self) -> Quantities:
        """What the numbers of the state are, by the attributes `state_groups` and `state_units`;
        UserError where these do not fit."""
        if "state" not in self or not self.text("state_groups"):
            return Quantities()
        try:
            return Quantities.parse(
                self.text("state_groups"), self.text("state_units"), self.state_size
            )
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from None

    def __contains__(self, name: str) -> bool:
        return name in self._file

    def _dataset(self, name: str) -> h5py.Dataset:
        """UserError where the file lacks it, or what it is stored by is not installed."""
        if name not in self._file:
            raise UserError(
                f"{self.path}: column '{name}' is missing; it has {listed(self._file)}"
            )
        missing = missing_filter(self._file[name])
        if missing is not None:
            raise UserError(f"{self.path}: column '{name}' {missing}")
        return self._file[name]

    def _finite(self, actions: np.ndarray) -> np.ndarray:
        """Actions [N, A]; what is not finite is refused, but in an episode's last, which leads
        nowhere: there 0."""
        last = self.offsets + self.lengths - 1
        actions[last] = np.nan_to_num(actions[last], nan=0.0, posinf=0.0, neginf=0.0)
        bad = np.flatnonzero(~np.isfinite(actions).all(1))
        if len(bad):
            episode = int(np.searchsorted(self.offsets, bad[0], side="right")) - 1
            raise UserError(
                f"{self.path}: {len(bad)} actions are not finite, the first in episode {episode}; "
                f"leave such episodes out with `jepa-wm convert ... --without {episode}`"
            )
        return actions

    def column(self, name: str) -> np.ndarray:
        """A whole small column [N, ...]; UserError if the file lacks it."""
        values: np.ndarray = self._dataset(name)[:]
        return values

    def states(self) -> np.ndarray:
        """[N, Y] float32 of the column 'state', also where it holds a single number a row;
        UserError without it."""
        return self.column("state").astype(np.float32).reshape(len(self.actions), -1)

    @property
    def state_size(self) -> int:
        """Y, 0 where the file has no state."""
        return int(np.prod(self._file["state"].shape[1:])) if "state" in self else 0


def data_folder(run: Path, path: str | None) -> Path:
    """The folder of `train.h5` and `heldout.h5`: `path`, as data.path names it, else the run's
    own."""
    return Path(path) if path else run / "collect"


def open_data(run: Path, path: str | None, part: Literal["train", "heldout"]) -> Trajectories:
    """The run's training or held-out trajectories; UserError if they are not there."""
    file = data_folder(run, path) / f"{part}.h5"
    if path and not file.exists():
        lacking = f"it has no {file.name}" if file.parent.is_dir() else "there is no such folder"
        raise UserError(
            f"data.path {path}: {lacking}; name a folder with train.h5 and heldout.h5, or leave "
            "it out for what `collect` makes"
        )
    return Trajectories(file)


def attribute_text(value: object) -> str:
    """An HDF5 attribute as text: other writers than h5py store bytes."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


CHUNK = 2**24  # bytes copied at a time


class EpisodeWriter:
    """Takes one episode after another; the file appears whole with `close`, or not at all.

    `lengths` [E], where they are known beforehand, saves the copying: add just as many episodes,
    each so long."""

    def __init__(self, path: Path, columns: Columns, lengths: np.ndarray | None = None) -> None:
        self.path, self.columns = Path(path), columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lengths: list[int] = []
        self._rows: dict[str, IO[bytes]] = {}
        self._kept = ExitStack()
        self._writer = None if lengths is None else TrajectoryWriter(self.path, lengths, columns)
        # On the same disk: a full one shows while episodes are played; a kill leaves nothing.
        if self._writer is None:
            for name in columns:
                self._rows[name] = self._kept.enter_context(
                    tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
                )

    def add(self, episode: dict[str, np.ndarray]) -> None:
        """Append an episode's columns [t, ...], all of them and all of one length."""
        assert episode.keys() == self.columns.keys(), sorted(episode)
        for name, (shape, dtype) in self.columns.items():
            values = np.ascontiguousarray(episode[name], dtype)
            rows = len(next(iter(episode.values())))
            assert values.shape == (rows, *shape), (name, values.shape)
            if self._writer is not None:
                self._writer.write(name, int(self._writer.offset[len(self._lengths)]), values)
            else:
                self._rows[name].write(values.data)
        self._lengths.append(len(values))

    def close(self, tell: Callable[[], None] = lambda: None, **attributes: Attribute) -> None:
        """Finish the file, with these attributes; `tell` is called now and then, and if it raises
        `abandon` is due."""
        if self._writer is None:
            self._writer = TrajectoryWriter(self.path, np.array(self._lengths), self.columns)
            for name, (shape, dtype) in self.columns.items():
                row, first = np.dtype((dtype, shape)), 0
                self._rows[name].seek(0)
                while block := self._rows[name].read(max(1, CHUNK // row.itemsize) * row.itemsize):
                    tell()
                    values = np.frombuffer(block, row)
                    self._writer.write(name, first, values)
                    first += len(values)
            self._kept.close()
        self._writer.close(**attributes)

    def abandon(self) -> None:
        """Drop what was written."""
        self._kept.close()
        if self._writer is not None:
            self._writer.abandon()
