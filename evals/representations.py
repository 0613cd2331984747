"""What a frozen evaluation compares: the encoder of a run, a random encoder of its shape, or raw
pixels.

n samples, B of them at a time, T frames, N tokens, D width, S side in px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa_wm.config import Config
from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast, resolve_precision
from jepa_wm.core.run import Run
from jepa_wm.core.standardise import shared_scale
from jepa_wm.data.images import to_input
from jepa_wm.data.video_clips import middle
from jepa_wm.evals.labelled import Labelled, Part, batches, open_labelled
from jepa_wm.features.backbone import Backbone
from jepa_wm.features.cache import encoder_of
from jepa_wm.models.vit import Encoder

Representation = Callable[[Tensor], Tensor]  # clips [B, T, C, S, S] in -1..1 to tokens [B, N, D]
BATCH = 64


@dataclass
class Features:
    """Standardised tokens [n, N, D] (fp16) of the samples that could be read, and these
    samples."""

    tokens: Tensor
    part: Part


def open_all(run: Run) -> tuple[Config, Labelled, dict[str, Representation]]:
    """(the config, the labelled data, what is to be compared: `encoder` first, then the baselines
    that are asked for)."""
    config = resolve_precision(run.config, run.path)
    return config, open_labelled(run, config), representations_of(encoder_of(run, config), config)


def representations_of(encoder: Encoder | Backbone, config: Config) -> dict[str, Representation]:
    """What is to be compared: `encoder` first, then the baselines that are asked for."""
    representations, size = {"encoder": _through(encoder, config)}, config.data.image_size
    if "random_encoder" in config.probes.baselines:
        torch.manual_seed(config.seed)
        if isinstance(encoder, Backbone):
            representations["random_encoder"] = _through(Backbone(encoder.name, size), config)
        else:
            representations["random_encoder"] = _through(
                Encoder.from_settings(size, encoder.settings or config.encoder), config
            )
    if "pixels" in config.probes.baselines:
        representations["pixels"] = _pixels(config.encoder.patch_size)
    return representations


def extract_features(
    representation: Representation,
    data: Labelled,
    config: Config,
    name: str,
    *,
    size: int | None = None,
) -> tuple[Features, Features]:
    """Both parts as `representation` sees frames of `size` px (default: the encoder's own size).

    Each position's mean over the training part is removed and each dimension divided by its spread
    there."""
    size = size or config.data.image_size
    train, test = (_extract(representation, part, size, f"{name}: {which}", data.left_out) for which, part in
                   (("train", data.train), ("test", data.test)))  # fmt: skip
    mean = train.tokens.float().mean(0)
    scale = shared_scale((train.tokens - mean).square().mean((0, 1)).sqrt())
    for seen in (train, test):
        for rows in seen.tokens.split(1024):  # in place: the tokens are most of what is in memory
            rows.copy_((rows - mean) / scale)
    return train, test


def pooled(tokens: Tensor, kind: str) -> Tensor:
    """[n, F] from tokens [n, N, D]: their `mean`, or `all` of them end to end."""
    return tokens.float().mean(1) if kind == "mean" else tokens.float().flatten(1)


def pools(name: str) -> tuple[str, ...]:
    """The ways of pooling to choose from; the mean of raw pixels is no rival worth beating."""
    return ("all",) if name == "pixels" else ("mean", "all")


@torch.no_grad()
def _extract(
    representation: Representation, part: Part, size: int, name: str, left_out: list[str]
) -> Features:
    tokens, rows = [], []
    for some, clips in batches(part, BATCH, name, left_out):
        tokens.append(representation(torch.stack([_input(clip, size) for clip in clips])).half())
        rows.append(some)
    read = np.concatenate(rows)
    return Features(torch.cat(tokens), part if len(read) == len(part) else part.of(read))


def _input(clip: np.ndarray, size: int) -> Tensor:
    """[T, C, S, S] the middle square of frames [T, h, w, 3]."""
    return to_input(torch.from_numpy(np.array(middle(clip, min(clip.shape[1:3])))), size)


def _through(encoder: Encoder | Backbone, config: Config) -> Representation:
    encoder.eval().requires_grad_(False).to(dist().device)

    def representation(clips: Tensor) -> Tensor:
        clips = clips.to(dist().device)
        if clips.shape[1] < encoder.tubelet_size:  # a still fills a tubelet
            clips = clips[:, -1:].expand(-1, encoder.tubelet_size, -1, -1, -1)
        with autocast(clips.device, config.train.precision):
            return encoder(clips).float().cpu()

    return representation


def _pixels(patch: int) -> Representation:
    """Raw pixels as tokens: one for each patch of each frame."""

    def representation(clips: Tensor) -> Tensor:
        side = clips.shape[-1] // patch * patch
        x = (
            clips[..., :side, :side].unfold(-2, patch, patch).unfold(-2, patch, patch)
        )  # [B, T, C, r, c, p, p]
        return x.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(1, 3)

    return representation
