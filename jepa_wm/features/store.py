"""The store of frozen features: written once, a pass that was interrupted going on, read through a
memory map.

R encoded rows, N tokens a frame, D width. bf16 numbers are stored as 16-bit integers, which NumPy
can map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import allocate, mapped, write_atomic
from jepa_wm.core.progress import Progress
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features.encoder import FrozenEncoder

CHUNK = 512  # frames encoded before the clock and signals are asked again
NUMBER = 2  # bytes of a number in the store
GB = 1e9  # bytes


class StoredFeatures:
    """Read through a memory map, on the CPU."""

    def __init__(self, file: Path, shape: tuple[int, ...]) -> None:
        self.numbers = mapped(file, np.int16, shape)  # [R, N, D]

    def read(self, rows: np.ndarray) -> Tensor:
        return torch.from_numpy(self.numbers[rows]).view(torch.bfloat16)


def check_room(folder: Path, shape: tuple[int, int, int]) -> None:
    """UserError where the disk of `folder`, or of the one above it where it is not there yet, has
    no room for a store of R frames of N tokens of width D."""
    disk = folder if folder.exists() else folder.parent
    size, free = int(np.prod(shape)) * NUMBER, shutil.disk_usage(disk).free
    if size > free:
        rows, tokens, width = shape
        raise UserError(
            f"{folder}: the features of {rows:,} frames, {tokens} tokens of {width} numbers each, "
            f"take {size / GB:.1f} GB, and its disk has {free / GB:.1f} GB free; set "
            "features.store=false, which encodes frames as they are asked for, a larger "
            "features.stride, or another --run"
        )


def encoded_rows(data: Trajectories, stride: int) -> np.ndarray:
    """Row numbers of every `stride`-th frame of each episode."""
    return np.concatenate(
        [o + np.arange(0, n, stride) for o, n in zip(data.offsets, data.lengths, strict=True)]
    )


def write_features(
    folder: Path,
    encoder: FrozenEncoder,
    data: Trajectories,
    *,
    stride: int,
    shard: tuple[int, int] = (0, 1),
) -> None:
    """Encode into `folder`; an interrupted pass goes on where it stopped, for the same encoder,
    data and stride.

    `shard` (k, n) encodes the k-th of n equal parts, which a pass over the whole then finds done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows, key = encoded_rows(data, stride), _key(encoder, data, stride)
    shape = (len(rows), encoder.tokens_per_frame, encoder.width)

    # Which rows are ours, how far an earlier pass came, and what shards have done for the whole.
    whole = shard == (0, 1)
    first, last = (len(rows) * k // shard[1] for k in (shard[0], shard[0] + 1))
    meta = folder / ("features.json" if whole else f"shard_{shard[0]}_of_{shard[1]}.json")
    start = _done(meta, key, first)
    covered = _shards_done(folder, key) if whole else []

    # From here on the file is for this encoder and these data.
    file = folder / "features.bf16"
    if start == first:
        meta.unlink(missing_ok=True)
        allocate(file, int(np.prod(shape)) * NUMBER)

    # Written, not mapped: of a page that is mapped on two machines, one would write back the
    # other's rows as they were.
    progress = Progress(f"features {folder.name}", last - first, start=start - first)
    with open(file, "r+b") as store, catching_signals() as stop, progress as bar:
        at, written = start, start
        while at < last:
            # A stretch that a shard has done is passed over; the next chunk ends before one.
            end = min(at + CHUNK, last, *(a for a, _ in covered if a > at))
            done_up_to = max((b for a, b in covered if a <= at < b), default=0)
            if not done_up_to:
                tokens = encoder(torch.from_numpy(data.frames[rows[at:end]]))
                store.seek(at * int(np.prod(shape[1:])) * NUMBER)
                store.write(tokens.bfloat16().view(torch.int16).cpu().contiguous().numpy().data)
            at = done_up_to or end
            bar.update(at - first)

            # The record tells only of what is on the disk.
            if stop.requested or at == last or at - written >= 20 * CHUNK:
                store.flush()
                os.fsync(store.fileno())
                write_atomic(meta, json.dumps({**key, "first": first, "done": at}))
                written = at
            stop.raise_if_requested()


def note_features(
    folder: Path, encoder: FrozenEncoder, data: Trajectories, *, stride: int
) -> None:
    """Note in `folder` which features there are, and that none are stored."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {**_key(encoder, data, stride), "stored": False}
    write_atomic(folder / "features.json", json.dumps(record))


def _key(encoder: FrozenEncoder, data: Trajectories, stride: int) -> dict[str, object]:
    """What tells features from others."""
    rows = len(encoded_rows(data, stride))
    return {
        "encoder": weights_digest(encoder),
        "data": data.digest,
        "stride": stride,
        "shape": [rows, encoder.tokens_per_frame, encoder.width],
    }


def _shards_done(folder: Path, key: Mapping[str, object]) -> list[tuple[int, int]]:
    """(first row, row after the last) of what each shard has encoded for `key`."""
    stretches = []
    for file in folder.glob("shard_*.json"):
        first, end = _done(file, key, -1, "first"), _done(file, key, -1)
        if 0 <= first < end:
            stretches.append((first, end))
    return stretches


def _done(meta: Path, key: Mapping[str, object], nothing: int, name: str = "done") -> int:
    """How far a pass for `key` has come by its record (or where it began); `nothing` where there
    is no such pass."""
    known = json.loads(meta.read_text(encoding="utf-8")) if meta.exists() else {}
    return int(known.get(name, nothing)) if {k: known.get(k) for k in key} == key else nothing


def weights_digest(model: nn.Module) -> str:
    """Short sha256 of all weights; of an encoder, of its standardising numbers too."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]
