"""Independent pieces of work side by side, each on one CPU thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def side_by_side(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Do `work` on all pieces, as many at a time as PyTorch may use threads, each piece on a
    single one.

    Threads that share every operation wait for each other after each, which is dear where the
    machine has other work too; threads with pieces of their own wait once. While it runs,
    PyTorch's thread count is 1 for the whole process. An error in a piece is raised here, after
    the running pieces have ended."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            work(piece)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(before)
