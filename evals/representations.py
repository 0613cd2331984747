"""What a frozen evaluation compares: the encoder of a run, a random encoder of its shape, or raw
pixels.

n samples, B of them at a time, T frames, N tokens, D width, S side in px.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast
from jepa_wm.core.scaling import centred_scale
from jepa_wm.data.images import middle, to_input
from jepa_wm.data.settings import DataSettings
from jepa_wm.evals.labelled import Labelled, Part, batches
from jepa_wm.evals.settings import ProbeSettings
from jepa_wm.features.backbone import Backbone
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

Representation = Callable[[Tensor], Tensor]  # clips [B, T, C, S, S] in -1..1 to tokens [B, N, D]
BATCH = 64


@dataclass
class Features:
    """Standardised tokens [n, N, D] (fp16) of the samples that could be read, and these
    samples."""

    tokens: Tensor
    part: Part


@dataclass(frozen=True)
class Sections:
    """The settings of an evaluation of frozen features; `precision` is fp32 or bf16."""

    seed: int
    data: DataSettings
    encoder: EncoderSettings
    features: FeatureSettings
    probes: ProbeSettings
    pretrain_steps: int
    precision: str


def representations_of(
    encoder: Encoder | Backbone, settings: Sections
) -> dict[str, Representation]:
    """What is to be compared: `encoder` first, then the baselines that are asked for."""
    precision, size = settings.precision, settings.data.image_size
    representations = {"encoder": _through(encoder, precision)}
    if "random_encoder" in settings.probes.baselines:
        torch.manual_seed(settings.seed)
        random: Encoder | Backbone
        if isinstance(encoder, Backbone):
            random = Backbone(encoder.name, size)
        else:
            random = Encoder(size, encoder.settings)
        representations["random_encoder"] = _through(random, precision)
    if "pixels" in settings.probes.baselines:
        representations["pixels"] = partial(patches, patch_size=settings.encoder.patch_size)
    return representations


def extract_features(
    representation: Representation, data: Labelled, name: str, *, size: int
) -> tuple[Features, Features]:
    """Training and test samples as `representation` encodes frames of `size` px.

    Each position's mean over the training part is removed and each dimension divided by its spread
    there."""
    train = _extract(representation, data.train, size, f"{name}: train", data.left_out)
    test = _extract(representation, data.test, size, f"{name}: test", data.left_out)
    mean = train.tokens.float().mean(0)
    scale = centred_scale(train.tokens, mean)
    for part in (train, test):
        for rows in part.tokens.split(1024):  # in place: the tokens are most of what is in memory
            rows.copy_((rows - mean) / scale)
    return train, test


def patches(clips: Tensor, patch_size: int) -> Tensor:
    """Raw pixels as tokens [B, N, D]: one for each patch of each frame of clips [B, T, C, S,
    S]."""
    side = clips.shape[-1] // patch_size * patch_size
    x = clips[..., :side, :side].unfold(-2, patch_size, patch_size)
    x = x.unfold(-2, patch_size, patch_size)  # [B, T, C, rows, columns, p, p]
    return x.permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(1, 3)


@torch.no_grad()
def _extract(
    representation: Representation, part: Part, size: int, name: str, left_out: list[str]
) -> Features:
    tokens, rows = [], []
    for numbers, clips in batches(part, BATCH, name, left_out):
        tokens.append(representation(torch.stack([_input(clip, size) for clip in clips])).half())
        rows.append(numbers)
    read = np.concatenate(rows)
    return Features(torch.cat(tokens), part if len(read) == len(part) else part.of(read))


def _input(clip: np.ndarray, size: int) -> Tensor:
    """[T, C, S, S] the middle square of frames [T, h, w, 3]."""
    return to_input(torch.from_numpy(np.array(middle(clip, min(clip.shape[1:3])))), size)


def _through(encoder: Encoder | Backbone, precision: str) -> Representation:
    """The tokens of a frozen encoder, on the CPU."""
    encoder.eval().requires_grad_(False).to(dist().device)

    def tokens(clips: Tensor) -> Tensor:
        clips = clips.to(dist().device)
        if clips.shape[1] < encoder.tubelet_size:  # an image is repeated to fill a tubelet
            clips = clips[:, -1:].expand(-1, encoder.tubelet_size, -1, -1, -1)
        with autocast(clips.device, precision):
            return encoder(clips).float().cpu()

    return tokens
