"""Shows what an imagined latent means: the real frame whose latent lies nearest (faiss, exact L2).

M frames in the bank, Q questions, D latent width.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np


class FrameBank:
    """Latents of real frames with the row numbers those frames have wherever they are stored."""

    def __init__(self, latents: np.ndarray, rows: np.ndarray) -> None:
        """`latents` [M, D] float32 and `rows` [M] integers; raises ValueError if empty or if they
        do not fit."""
        latents = _matrix("latents", latents)
        rows = np.asarray(rows)
        if len(latents) == 0:
            raise ValueError(
                "latents: the frame bank is empty; build it from the latents of at least one real frame"
            )
        if rows.shape != (len(latents),) or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"rows: one integer a latent is needed, got {rows.dtype} of shape {rows.shape} for {len(latents)}"
            )
        self.rows = rows.astype(np.int64)
        self._latents = latents
        self._index: Any = faiss.IndexFlatL2(latents.shape[1])
        self._index.add(latents)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """D, the number of values in a latent."""
        return int(self._latents.shape[1])

    def nearest(self, latents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(row numbers [Q] int64, Euclidean distances [Q] float32) of the real frames nearest to
        `latents` [Q, D].

        Raises ValueError if the width is not the bank's or a value is not finite.
        """
        asked = _matrix("latents", latents)
        if asked.shape[1] != self.width:
            raise ValueError(
                f"latents: width {asked.shape[1]}, but the bank holds latents of width {self.width}; "
                "pool or flatten both in the same way"
            )
        if len(asked) == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        _, found = self._index.search(asked, 1)
        found = found[:, 0]
        # faiss expands |a - b|^2, which is inexact for near neighbours: measure the few that were
        # found again.
        return self.rows[found], np.linalg.norm(asked - self._latents[found], axis=1)


def _matrix(name: str, value: np.ndarray) -> np.ndarray:
    """`value` as contiguous float32 [rows, D]; raises ValueError naming it if it is something
    else."""
    matrix = np.ascontiguousarray(value, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name}: a matrix [rows, width] is needed, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: holds values that are not finite; check what made them")
    return matrix
