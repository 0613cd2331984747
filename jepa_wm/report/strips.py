"""Film strips of what is imagined: each imagined latent shown as the real frame whose latent lies
nearest.

C clips, H horizon, h x w a frame; M frames in the bank, Q queries, N latent tokens of width D.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from torch import Tensor

from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import WindowSampler, usual_steps
from jepa_wm.world_model.latents import Recording
from jepa_wm.world_model.world_model import WorldModel

CLIPS, HORIZON = 4, 8
BANK = 3000  # frames


def make_strips(
    run: Path, heldout: Path, path: Path, *, context_frames: int, frameskip: int
) -> None:
    """Write `true`, `imagined` and `shuffled`, each [C, H+1, h, w, 3] uint8, from held-out
    episodes of the trained run in the folder `run`.

    All three start at the same real frame, up to which the model has observed as many as when an
    agent acts; `shuffled` imagines with another window's actions."""
    data, model = Trajectories(heldout), WorldModel.load(run)

    # Windows of as many observed frames as an agent has, and as long a future as there is.
    steps = usual_steps(data.lengths, frameskip)
    observed = min(context_frames, steps)
    horizon = min(HORIZON, steps - observed + 1)
    sampler = WindowSampler(
        data, frames=observed + horizon, frameskip=frameskip, stride=1, seed=1,
        setting="film strips: frames seen and imagined",
    )  # fmt: skip
    episode, frame, actions = sampler.batch(0, CLIPS)
    rows = data.offsets[episode] + frame  # [C, observed + H]
    recording = Recording(data, model.latent_model)
    context = _context(model, recording, rows[:, :observed])
    blocks = recording.blocks(episode, frame, actions).to(model.device)

    # Each imagined latent is shown as the real frame whose latent lies nearest.
    true = data.frames[rows[:, observed - 1 :]]
    bank = _bank(model, data.frames, len(data.actions))
    past, strips = blocks[:, : observed - 1], {"true": true}
    for name, taken in (("imagined", blocks), ("shuffled", blocks.roll(1, 0))):
        plans = taken[:, None, observed - 1 :]
        latents = model.compared(model.imagine(context, past, plans)).flatten(0, 2).flatten(1)
        nearest, _ = bank.nearest(latents.float().cpu().numpy())
        shown = data.frames[nearest].reshape(len(rows), horizon, *true.shape[2:])
        strips[name] = np.concatenate([true[:, :1], shown], 1)
    np.savez_compressed(path, **strips)


def _context(model: WorldModel, recording: Recording, rows: np.ndarray) -> Tensor:
    """[C, observed, N, D] latents of the frames in these rows [C, observed], as an agent believes
    them that has observed them all."""
    latents = [
        model.encode(torch.from_numpy(recording.data.frames[at]), recording.at_rows(at))
        for at in rows.T
    ]
    return model.latent.believed_together(torch.stack(latents, 1))


def _bank(model: WorldModel, frames: np.ndarray, count: int) -> FrameBank:
    rows = np.unique(np.linspace(0, count - 1, min(BANK, count)).astype(np.int64))
    latents = model.compared(model.encode(torch.from_numpy(frames[rows])))
    return FrameBank(latents.flatten(1).cpu().numpy(), rows)


class FrameBank:
    """Latents of real frames, with the numbers of the rows that these frames are stored in."""

    def __init__(self, latents: np.ndarray, rows: np.ndarray) -> None:
        """`latents` [M, D] float32 and `rows` [M] integers; raises ValueError if empty or if they
        do not fit."""
        latents = _matrix("latents", latents)
        rows = np.asarray(rows)
        if len(latents) == 0:
            raise ValueError(
                "latents: the frame bank is empty; build it from the latents of at least one real "
                "frame"
            )
        if rows.shape != (len(latents),) or not np.issubdtype(rows.dtype, np.integer):
            raise ValueError(
                f"rows: one integer a latent is needed, got {rows.dtype} of shape {rows.shape} "
                f"for {len(latents)}"
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
        queries = _matrix("latents", latents)
        if queries.shape[1] != self.width:
            raise ValueError(
                f"latents: width {queries.shape[1]}, but the bank holds latents of width "
                f"{self.width}; pool or flatten both in the same way"
            )
        if len(queries) == 0:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        nearest = self._index.search(queries, 1)[1][:, 0]
        # faiss expands |a - b|^2, which is inexact for near neighbours: measure these few again.
        return self.rows[nearest], np.linalg.norm(queries - self._latents[nearest], axis=1)


def _matrix(name: str, value: np.ndarray) -> np.ndarray:
    """`value` as contiguous float32 [rows, D]; raises ValueError naming it if it is something
    else."""
    matrix = np.ascontiguousarray(value, dtype=np.float32)
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"{name}: a matrix [rows, width] is needed, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError(f"{name}: holds values that are not finite; check what made them")
    return matrix
