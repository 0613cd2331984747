"""Checkpoints written beside the training, which waits for a copy in memory only."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from jepa_wm.core.checkpoint import newest_checkpoint, save_checkpoint


class Saver:
    """Writes to one folder, one checkpoint at a time, the `keep` newest kept.

    A save that fails is warned of and training goes on, as the next may succeed; `settle`, after
    the last one, raises what went wrong with it."""

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.waited = 0.0  # seconds that training stood still for it
        self._thread: threading.Thread | None = None
        self._error: OSError | None = None
        self._step = 0

    def save(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Copy all tensors, then write them in the background, after the one before is on disk."""
        began = time.monotonic()
        self.join()
        if self._error is not None:
            self._warn(self._error)
        self._error, self._step = None, step
        copies = _on_host(weights), _on_host(state)
        # Not a daemon: an interpreter that ends waits for what it has begun to write.
        self._thread = threading.Thread(
            target=self._write, args=(step, *copies), name=f"checkpoint of step {step}"
        )
        self._thread.start()
        self.waited += time.monotonic() - began

    def settle(self) -> None:
        """Wait until all is written; raises the OSError that the last save failed with."""
        began = time.monotonic()
        self.join()
        self.waited += time.monotonic() - began
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Saver:
        return self

    def __exit__(self, *how: object) -> None:
        self.join()

    def _write(self, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        try:
            save_checkpoint(self.folder, step, weights, state, keep=self.keep)
        except OSError as error:
            self._error = error

    def join(self) -> None:
        """Wait until what was begun is written, or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _warn(self, error: OSError) -> None:
        newest = newest_checkpoint(self.folder)
        kept = f"the newest whole one is {newest}" if newest else "there is none yet"
        warnings.warn(
            f"the checkpoint of step {self._step} could not be written to {self.folder} "
            f"({error}); training goes on, "
            f"{kept}",
            stacklevel=3,
        )


def _on_host(state: Any) -> Any:
    """The same nested state with every tensor copied to the CPU, so that training may go on
    changing its own."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: _on_host(item) for key, item in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_on_host(item) for item in state)
    return state
