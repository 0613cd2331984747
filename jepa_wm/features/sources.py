"""Frozen features without a store: encoded at the moment in which they are asked for.

R encoded rows, N tokens a frame, D width."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import exact
from jepa_wm.features.encoder import FrozenEncoder

TOGETHER = 256  # frames encoded at once, as `FrozenEncoder.raw` does


class Source(Protocol):
    """Tokens by row, the same whichever source they come from."""

    def read(self, rows: np.ndarray) -> Tensor:
        """[..., N, D] bf16 tokens of rows [...]."""


class RunEncoder:
    """The frozen encoder in a folder, loaded when it is first needed, for all that read by it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def frozen(self) -> FrozenEncoder:
        """It, where this process computes; UserError names what is missing."""
        # The values drawn for an encoder that is about to be loaded must not shift those of what
        # is trained on it.
        with torch.random.fork_rng(devices=[]):
            return FrozenEncoder.load(self.folder).to(dist().device)


class EncodedFeatures:
    """Encoded when they are asked for, where this process computes, and rounded as the store
    rounds them."""

    def __init__(self, encoder: RunEncoder, frames: np.ndarray, rows: np.ndarray) -> None:
        """`frames` [n, h, w, c] of a trajectory file, `rows` [R] those of them that are read."""
        self.encoder, self.frames, self.file_rows = encoder, frames, rows

    def read(self, rows: np.ndarray) -> Tensor:
        # Windows of a batch may share frames: each is encoded once, in the order of the file.
        each, places = np.unique(rows, return_inverse=True)
        frames = torch.from_numpy(self.frames[self.file_rows[each]])
        frozen = self.encoder.frozen
        # The encoder has a precision of its own, whatever is computed around it.
        with exact(frozen.mean.device):
            parts = [frozen(part).bfloat16() for part in frames.split(TOGETHER)]
        index = torch.from_numpy(places.reshape(rows.shape)).to(frozen.mean.device)
        return torch.cat(parts)[index]
