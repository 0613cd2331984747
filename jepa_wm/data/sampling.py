"""Which sample comes when: even draws from episodes of unequal lengths, permutations that take no
memory, mixtures of several sets, and batches that are prepared a step ahead.

E episodes, B samples.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from jepa_wm.core.errors import UserError

ROUNDS = 4  # of the Feistel network
WORD = 2**64 - 1

Batch = TypeVar("Batch")


class EvenDraw:
    """Turns numbers in 0..1 into episodes and starts in them, so that an episode counts by how
    many starts it has."""

    def __init__(self, counts: np.ndarray) -> None:
        """`counts` [E] starts of each episode, 0 for one that has none."""
        self._first = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def total(self) -> int:
        """All starts of all episodes."""
        return int(self._first[-1])

    def at(self, unit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(episode, number of the start in it), of the shape of `unit` in 0..1 (1 excluded)."""
        number = np.minimum((unit * self.total).astype(np.int64), self.total - 1)
        episode = np.searchsorted(self._first, number, side="right") - 1
        return episode, number - self._first[episode]


def spread(rows: int, count: int) -> np.ndarray:
    """`count` row numbers spread evenly over so many (never more than there are)."""
    return np.linspace(0, rows - 1, min(count, rows)).astype(np.int64)


def leave_out_short(path: Path, lengths: np.ndarray, needed: int, purpose: str) -> None:
    """Say how many episodes of `lengths` [E] have fewer than `needed` frames; UserError where that
    leaves none.

    `purpose` completes "too short for", with the settings to change.
    """
    short = int((lengths < needed).sum())
    if short == len(lengths):
        raise UserError(
            f"{path}: no episode is long enough for {purpose}: {needed} frames are needed, and "
            f"the longest has {lengths.max()}; lower one of these settings, or give longer "
            "episodes"
        )
    if short:
        warnings.warn(
            f"{path}: {short} of {len(lengths)} episodes are left out, too short for {purpose} "
            f"({needed} frames)",
            stacklevel=3,
        )


@dataclass(frozen=True)
class ShuffledOrder:
    """Every epoch a new permutation of the samples.

    A pure function of seed, epoch and position, and of how many samples there are: nothing to
    save."""

    count: int  # samples
    seed: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UserError("there is no sample to draw: no video of the set can be read")

    def index(self, epoch: int, position: int) -> int:
        """The sample at a position, 0 to `count` - 1, of an epoch."""
        assert 0 <= position < self.count
        return permuted(position, self.count, _keys(self.seed, epoch))

    def nth(self, n: int) -> tuple[int, int]:
        """(epoch, sample) of the n-th sample since the beginning."""
        epoch, position = divmod(n, self.count)
        return epoch, self.index(epoch, position)


def permuted(index: int, count: int, keys: tuple[int, ...]) -> int:
    """Where a permutation of 0 .. count - 1 sends an index; other keys, another permutation.

    A Feistel network permutes the smallest even number of bits that holds `count`; what falls
    outside is sent on until it falls inside (cycle walking: Black and Rogaway, 2002)."""
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    low = (1 << half) - 1
    while True:
        left, right = index >> half, index & low
        for key in keys:
            left, right = right, left ^ (_mixed(right ^ key) & low)
        index = left << half | right
        if index < count:
            return index


def _mixed(x: int) -> int:
    """A 64-bit number whose bits all depend on all bits of x (the finaliser of SplitMix64; Steele
    et al., 2014)."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & WORD
    x = (x ^ x >> 27) * 0x94D049BB133111EB & WORD
    return x ^ x >> 31


@lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(map(int, np.random.default_rng([seed, 6, epoch]).integers(2**63, size=ROUNDS)))


def shares(weights: tuple[float, ...], block: int) -> np.ndarray:
    """How many of `block` samples each weight gets: in proportion, summing to `block`, none
    without any."""
    exact = np.array(weights) / sum(weights) * (block - len(weights))
    counts = exact.astype(np.int64)
    rest = block - len(weights) - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:rest]] += 1
    return counts + 1


class MixtureSampler:
    """Which of several parts gives the n-th sample, and how many that part gave before.

    Every block of 1024 samples holds the parts in proportion to their weights, in a random order
    of its own. A pure function of seed and n."""

    BLOCK = 1024

    def __init__(self, weights: tuple[float, ...], seed: int) -> None:
        if min(weights) <= 0:
            raise UserError(
                f"weights {list(weights)}: each part of a mixture needs a weight above 0"
            )
        self.seed, self.counts = seed, shares(weights, self.BLOCK)
        self._block = lru_cache(maxsize=4)(self._laid_out)

    def nth(self, n: int) -> tuple[int, int]:
        """(part, how many samples came from it before) of sample n."""
        if len(self.counts) == 1:
            return 0, n
        block, place = divmod(n, self.BLOCK)
        parts, before = self._block(block)
        part = int(parts[place])
        return part, block * int(self.counts[part]) + int(before[place])

    def _laid_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """(part [BLOCK], earlier samples of the same part in this block [BLOCK])."""
        r = np.random.default_rng([self.seed, 10, 0, block])
        parts = r.permutation(np.repeat(np.arange(len(self.counts)), self.counts))
        before = np.zeros(self.BLOCK, np.int64)
        for part in range(len(self.counts)):
            before[parts == part] = np.arange(self.counts[part])
        return parts, before


class Prefetcher(Generic[Batch]):
    """`batch(step, rows)` gives what `make(step, rows)` would; the next step's is then made in a
    thread meanwhile.

    What is made is a function of the two alone, so a batch that nobody fetches is no loss but its
    time. Errors of `make` are raised where its batch is fetched. Where a batch is fetched in
    parts, each part is prepared a step ahead."""

    def __init__(self, make: Callable[[int, slice], Batch]) -> None:
        self._make, self._pool = make, ThreadPoolExecutor(1)
        # by rows: their step, and what is made
        self._next: dict[tuple[int, int], tuple[int, Future[Batch]]] = {}

    def batch(self, step: int, rows: slice) -> Batch:
        part = rows.start, rows.stop
        if part not in self._next or self._next[part][0] != step:
            self._next[part] = step, self._pool.submit(self._make, step, rows)
        ready = self._next[part][1].result()
        self._next[part] = step + 1, self._pool.submit(self._make, step + 1, rows)
        return ready
