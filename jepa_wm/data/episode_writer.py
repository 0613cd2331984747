"""Writes a trajectory file episode by episode, also where their lengths are known only when they
have been played.

Then rows are kept in unnamed files beside it and copied to their places when all are there: memory
does not grow."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from jepa_wm.data.trajectories import TrajectoryWriter

CHUNK = 2**24  # bytes copied at a time


class EpisodeWriter:
    """Takes one episode after another; the file appears whole with `close`, or not at all.

    `lengths` [E], where they are known beforehand, saves the copying: add just as many episodes,
    each so long."""

    def __init__(
        self,
        path: Path,
        columns: dict[str, tuple[tuple[int, ...], str]],
        lengths: np.ndarray | None = None,
    ) -> None:
        self.path, self.columns = Path(path), columns
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lengths: list[int] = []
        self._rows: dict[str, IO[bytes]] = {}
        self._kept = ExitStack()
        self._writer = None if lengths is None else TrajectoryWriter(self.path, lengths, columns)
        if (
            self._writer is None
        ):  # on the same disk: a full one shows while episodes are played; a kill leaves nothing
            for name in columns:
                self._rows[name] = self._kept.enter_context(
                    tempfile.TemporaryFile(dir=self.path.parent)  # noqa: SIM115
                )

    def add(self, episode: dict[str, np.ndarray]) -> None:
        """Append an episode's columns [t, ...], all of them and all of one length."""
        assert episode.keys() == self.columns.keys(), sorted(episode)
        for name, (shape, dtype) in self.columns.items():
            values = np.ascontiguousarray(episode[name], dtype)
            assert values.shape == (len(next(iter(episode.values()))), *shape), (
                name,
                values.shape,
            )
            if self._writer is not None:
                self._writer.write(name, int(self._writer.offset[len(self._lengths)]), values)
            else:
                self._rows[name].write(values.data)
        self._lengths.append(len(values))

    def close(
        self, tell: Callable[[], None] = lambda: None, **attributes: str | int | float | np.ndarray
    ) -> None:
        """Finish the file, with these attributes; `tell` is called now and then, and if it raises
        `abandon` is due."""
        if self._writer is None:
            self._writer = TrajectoryWriter(self.path, np.array(self._lengths), self.columns)
            for name, (shape, dtype) in self.columns.items():
                self._copy(self._writer, name, np.dtype((dtype, shape)), tell)
            self._kept.close()
        self._writer.close(**attributes)

    def abandon(self) -> None:
        """Drop what was written."""
        self._kept.close()
        if self._writer is not None:
            self._writer.abandon()

    def _copy(
        self, writer: TrajectoryWriter, name: str, row: np.dtype, tell: Callable[[], None]
    ) -> None:
        rows, at = self._rows[name], 0
        rows.seek(0)
        while block := rows.read(max(1, CHUNK // row.itemsize) * row.itemsize):
            tell()
            values = np.frombuffer(block, row)
            writer.write(name, at, values)
            at += len(values)
