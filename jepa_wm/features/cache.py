"""The `features` stage: frozen features computed once and kept on disk, or left to be computed
when they are asked for; what reads them is the same.

R encoded rows, N tokens a frame, D width."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import lock
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import supervision_of
from jepa_wm.data.sampling import spread
from jepa_wm.data.trajectories import Trajectories, open_data
from jepa_wm.features.backbone import Backbone, backbone_of
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.features.sources import EncodedFeatures, RunEncoder, Source
from jepa_wm.features.store import (
    StoredFeatures,
    check_room,
    encoded_rows,
    note_features,
    write_features,
)
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

Part = Literal["train", "heldout"]
PARTS: tuple[Part, Part] = ("train", "heldout")


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

    `shard` (k, n): only the k-th of n equal parts of all frames, others doing theirs meanwhile.
    UserError, before anything is begun, where the disk has no room for them."""
    stride, data = features.stride, {p: open_data(run.path, data_path, p) for p in PARTS}
    plain = None
    if not (run.path / "features" / "encoder.json").exists():
        plain = encoder_of(
            run.path, encoder, features, image_size=data_image_size, seed=seed,
            pretrain_steps=train_pretrain_steps, patch_init=jepa_patch_init,
        )  # fmt: skip
        if features.store:
            rows = sum(len(encoded_rows(each, stride)) for each in data.values())
            check_room(run.path / "features", (rows, plain.tokens_per_frame, plain.width))
    folder, train = run.stage_dir("features"), data["train"]

    # Made by whichever process comes first: of several shards' processes the others must encode
    # with the very weights and units that the first one found.
    with open(folder / ".encoder.lock", "w") as handle:
        lock(handle.fileno(), fcntl.LOCK_EX, folder.parent)
        if plain is not None and not (folder / "encoder.json").exists():
            supervision = supervision_of(
                backbone=features.backbone, weights=features.weights, start=train_pretrain_start,
                steps=train_pretrain_steps, inverse_dynamics=jepa_inverse_dynamics,
            )  # fmt: skip
            fresh = FrozenEncoder(
                plain, data_image_size, precision=train_precision, supervision=supervision
            )
            drawn = spread(len(train.actions), features.num_norm_frames)
            fresh.to(dist().device).standardise_on(train.frames[drawn])
            fresh.save(folder)
    frozen = FrozenEncoder.load(folder).to(dist().device)
    result: dict[str, object] = {}
    # With the units of the training frames for both parts: held-out frames are met as a trained
    # model meets them.
    for part, each in data.items():
        if features.store:
            write_features(folder / part, frozen, each, stride=stride, shard=shard or (0, 1))
        else:
            note_features(folder / part, frozen, each, stride=stride)
        result[part] = {"rows": len(encoded_rows(each, stride)), "path": str(folder / part)}
    if shard is not None:
        return {"shard": shard[0], "shards": shard[1]}
    return result | {"tokens": frozen.tokens_per_frame, "width": frozen.width}


class Features:
    """Frozen features of a trajectory file, by row number, stored or encoded when they are asked
    for. Tokens lie on the CPU, or where they were just encoded."""

    def __init__(
        self, folder: Path, data: Trajectories, encoder: RunEncoder | None = None
    ) -> None:
        """`encoder`, where others read by it too; else the one beside `folder`."""
        meta = folder / "features.json"
        if not meta.exists():
            raise UserError(f"{meta}: no cached features; run `jepa-wm features` first")
        known = json.loads(meta.read_text(encoding="utf-8"))
        stored = known.get("stored", True)
        if known["data"] != data.digest or (stored and known["done"] != known["shape"][0]):
            raise UserError(
                f"{folder}: features are unfinished or of other data than {data.path}; encode "
                "again"
            )
        self.stride, self.data = int(known["stride"]), data
        self.shape = tuple(known["shape"])  # R, N, D
        self._source: Source
        if stored:
            self._source = StoredFeatures(folder / "features.bf16", self.shape)
        else:
            encoder = encoder or RunEncoder(folder.parent)
            rows = encoded_rows(data, self.stride)
            self._source = EncodedFeatures(encoder, data.frames, rows)
        self.counts = -(-data.lengths // self.stride)  # [E] frames of each episode in the store
        self._first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    @classmethod
    def both_of_run(cls, run: Path, data_path: str | None) -> tuple[Features, Features]:
        """Those of a run's training and of its held-out trajectories, which lie at `data_path` if
        it is given."""
        folder = run / "features"
        encoder = RunEncoder(folder)
        train, heldout = (
            cls(folder / part, open_data(run, data_path, part), encoder) for part in PARTS
        )
        return train, heldout

    @property
    def numbers(self) -> int:
        """N * D of a frame."""
        return int(np.prod(self.shape[1:]))

    def tokens(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., N, D] bf16 tokens of frames (multiples of the stride) of episodes, arrays of one
        shape."""
        return self._source.read(self.index(episode, frame))

    def index(self, episode: np.ndarray, frame: np.ndarray) -> np.ndarray:
        """Where frames (multiples of the stride) of episodes lie in the store."""
        return self._first[episode] + frame // self.stride

    def __len__(self) -> int:
        return self.shape[0]

    def slab(self, first: int, last: int) -> Tensor:
        """[last - first, N, D] bf16 tokens in the order of the store."""
        return self.rows(np.arange(first, min(last, len(self))))

    def rows(self, rows: np.ndarray) -> Tensor:
        """[R, N, D] bf16 tokens of rows [R] of the store."""
        return self._source.read(rows)


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
