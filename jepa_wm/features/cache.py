"""The `features` stage: frozen features computed once, kept on disk, read through a memory map.

R encoded rows, N tokens a frame, D width. bf16 numbers are stored as 16-bit integers, which NumPy
can map."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import allocate, lock, mapped, write_atomic
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import supervision_of
from jepa_wm.data.sampling import spread
from jepa_wm.data.trajectories import Trajectories, open_data
from jepa_wm.features.backbone import Backbone, backbone_of
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

Part = Literal["train", "heldout"]
PARTS: tuple[Part, Part] = ("train", "heldout")
CHUNK = 512  # frames encoded before the clock and signals are asked again


@stage(after="pretrain", reads=("data.path", "features.weights"))
def features(
    run: Run,
    seed: int,
    data_path: str | None,
    data_image_size: int,
    encoder: EncoderSettings,
    features: FeatureSettings,
    jepa_inverse_dynamics: float,
    jepa_patch_init: str,
    train_pretrain_start: str | None,
    train_pretrain_steps: int,
    train_precision: str,
    shard: tuple[int, int] | None = None,
) -> dict[str, object]:
    """Freeze the pretrained target encoder, or the backbone that the config names, and encode the
    training and held-out frames; what an interrupted pass has done is kept.

    `shard` (k, n): only the k-th of n equal parts of all frames, others doing theirs meanwhile."""
    folder, stride = run.stage_dir("features"), features.stride
    train = open_data(run.path, data_path, "train")

    # Made by whichever process comes first: of several shards' processes the others must encode
    # with the very weights and units that the first one found.
    with open(folder / ".encoder.lock", "w") as handle:
        lock(handle.fileno(), fcntl.LOCK_EX, folder.parent)
        if not (folder / "encoder.json").exists():
            plain = encoder_of(
                run.path, encoder, features, image_size=data_image_size, seed=seed,
                pretrain_steps=train_pretrain_steps, patch_init=jepa_patch_init,
            )  # fmt: skip
            supervision = supervision_of(
                backbone=features.backbone, weights=features.weights, start=train_pretrain_start,
                steps=train_pretrain_steps, inverse_dynamics=jepa_inverse_dynamics,
            )  # fmt: skip
            fresh = FrozenEncoder(
                plain, data_image_size, precision=train_precision, supervision=supervision
            )
            rows = spread(len(train.actions), features.num_norm_frames)
            fresh.to(dist().device).standardise_on(train.frames[rows])
            fresh.save(folder)
    frozen = FrozenEncoder.load(folder).to(dist().device)
    result: dict[str, object] = {}
    # With the units of the training frames for both parts: held-out frames are met as a trained
    # model meets them.
    for part in PARTS:
        data = open_data(run.path, data_path, part)
        write_features(folder / part, frozen, data, stride=stride, shard=shard or (0, 1))
        result[part] = {"rows": len(encoded_rows(data, stride)), "path": str(folder / part)}
    if shard is not None:
        return {"shard": shard[0], "shards": shard[1]}
    return result | {"tokens": frozen.tokens_per_frame, "width": frozen.width}


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
    rows = encoded_rows(data, stride)
    shape = (len(rows), encoder.tokens_per_frame, encoder.width)
    key = {
        "encoder": weights_digest(encoder),
        "data": data.digest,
        "stride": stride,
        "shape": list(shape),
    }

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
        allocate(file, int(np.prod(shape)) * 2)

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
                store.seek(at * int(np.prod(shape[1:])) * 2)
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


class Features:
    """Frozen features of a trajectory file, by row number."""

    def __init__(self, folder: Path, data: Trajectories) -> None:
        meta = folder / "features.json"
        if not meta.exists():
            raise UserError(f"{meta}: no cached features; run `jepa-wm features` first")
        known = json.loads(meta.read_text(encoding="utf-8"))
        if known["data"] != data.digest or known["done"] != known["shape"][0]:
            raise UserError(
                f"{folder}: features are unfinished or of other data than {data.path}; encode "
                "again"
            )
        self.stride, self.data = int(known["stride"]), data
        self._store = mapped(folder / "features.bf16", np.int16, tuple(known["shape"]))
        self.counts = -(-data.lengths // self.stride)  # [E] frames of each episode in the store
        self._first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    @classmethod
    def of_run(cls, run: Path, data_path: str | None, part: Part) -> Features:
        """Those of one part of a run's trajectories, which lie at `data_path` if it is given."""
        return cls(run / "features" / part, open_data(run, data_path, part))

    @property
    def numbers(self) -> int:
        """N * D of a frame."""
        return int(np.prod(self._store.shape[1:]))

    def tokens(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., N, D] bf16 tokens of frames (multiples of the stride) of episodes, arrays of one
        shape."""
        return torch.from_numpy(self._store[self.index(episode, frame)]).view(torch.bfloat16)

    def index(self, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Where frames (multiples of the stride) of episodes lie in the store."""
        return self._first[episode] + frame // self.stride

    def __len__(self) -> int:
        return len(self._store)

    def slab(self, first: int, last: int) -> Tensor:
        """[last - first, N, D] bf16 tokens in the order of the store."""
        return self.rows(np.arange(first, min(last, len(self))))

    def rows(self, rows: np.ndarray) -> Tensor:
        """[R, N, D] bf16 tokens of rows [R] of the store."""
        return torch.from_numpy(self._store[rows]).view(torch.bfloat16)


def weights_digest(model: nn.Module) -> str:
    """Short sha256 of all weights; of an encoder, of its standardising numbers too."""
    sha = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        sha.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
    return sha.hexdigest()[:16]


def encoder_of(
    run: Path,
    encoder: EncoderSettings,
    features: FeatureSettings,
    *,
    image_size: int,
    pretrain_steps: int,
    patch_init: str,
    seed: int,
) -> Encoder | Backbone:
    """The encoder of a run: its own, as pretraining left it, or the backbone that `features`
    names; random weights are those of the seed. Without a step and where patches start from no
    data nothing has to be pretrained."""
    torch.manual_seed(seed)
    if features.backbone is not None:
        return backbone_of(features, image_size)
    own = Encoder(image_size, encoder)
    if pretrain_steps or patch_init != "normal":
        own.load_state_dict(pretrained(run))
    return own


def pretrained(run: Path) -> dict[str, Tensor]:
    """The weights of the target encoder in the newest pretraining checkpoint."""
    newest = newest_checkpoint(run / "pretrain" / "checkpoints")
    if newest is None:
        raise UserError(f"{run / 'pretrain'}: no whole checkpoint; run `jepa-wm pretrain` first")
    return part_of(load_checkpoint(newest)[0], "target")


def part_of(weights: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The weights of one part of a model, by the names that they have in it."""
    of_part = {}
    for name, value in weights.items():
        if name.startswith(f"{part}."):
            of_part[name.removeprefix(f"{part}.")] = value
    return of_part
