"""Batches prepared while the one before them is being learned from."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Batch = TypeVar("Batch")


class Ahead(Generic[Batch]):
    """`batch(step)` gives what `make(step)` would; `batch(step + 1)` is then made in a thread meanwhile.

    What is made is a function of the step alone, so a batch that nobody fetches is no loss but its time. Errors of
    `make` are raised where its batch is fetched.
    """

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self._make, self._pool = make, ThreadPoolExecutor(1)
        self._next: tuple[int, Future[Batch]] | None = None

    def batch(self, step: int) -> Batch:
        if self._next is None or self._next[0] != step:
            self._next = step, self._pool.submit(self._make, step)
        ready = self._next[1].result()
        self._next = step + 1, self._pool.submit(self._make, step + 1)
        return ready
