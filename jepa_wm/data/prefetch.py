"""Batches prepared while the one before them is being learned from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Prefetcher(Generic[Batch]):
    """`batch(step, rows)` gives what `make(step, rows)` would; the next step's is then made in a
    thread meanwhile.

    What is made is a function of the two alone, so a batch that nobody fetches is no loss but its
    time. Errors of `make` are raised where its batch is fetched. Where a batch is fetched in
    parts, each part is prepared a step ahead."""

    def __init__(self, make: Callable[[int, slice], Batch]) -> None:
        self._make, self._pool = make, ThreadPoolExecutor(1)
        self._next: dict[
            tuple[int, int], tuple[int, Future[Batch]]
        ] = {}  # by rows: their step, and what is made

    def batch(self, step: int, rows: slice) -> Batch:
        part = rows.start, rows.stop
        if part not in self._next or self._next[part][0] != step:
            self._next[part] = step, self._pool.submit(self._make, step, rows)
        ready = self._next[part][1].result()
        self._next[part] = step + 1, self._pool.submit(self._make, step + 1, rows)
        return ready
