"""Encoders that were trained elsewhere: any timm model of single frames, or a released
V-JEPA 2 encoder.

B clips, T frames, C channels, S side in px, N tokens a frame, D width.
"""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

import timm
import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.features.weights import load_encoder, named_size, take_plain_frames
from jepa_wm.models.vit import Encoder


def backbone_of(settings: FeatureSettings, image_size: int) -> Encoder | Backbone:
    """The encoder that the config names, for frames of `image_size` px in -1..1.

    Raises UserError for a name or a file that cannot be used.
    """
    kind, _, name = (settings.backbone or "").partition("/")
    if kind == "timm":
        return Backbone(name, image_size, published=settings.weights == "published")
    assert kind == "vjepa2" and settings.weights is not None, "the config's own check"
    # Positions are counted, not scaled: the encoder takes frames of any size.
    encoder = load_encoder(settings.weights, replace(named_size(name), image_size=image_size))
    if image_size % encoder.patch_size:
        raise _not_a_multiple(image_size, encoder.patch_size, f"vjepa2/{name}")
    return take_plain_frames(encoder)


class Backbone(nn.Module):
    """The patch tokens of a timm model: each frame by itself, normalised as the model wants it."""

    mean: Tensor
    spread: Tensor
    tubelet_size = 1

    def __init__(self, name: str, image_size: int, *, published: bool = False) -> None:
        """Random weights, or the published ones, which are fetched. Raises UserError if that
        fails, if timm has no model of that name, or if image_size is no multiple of its patch."""
        super().__init__()
        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=3)
            raise UserError(
                f"backbone timm/{name}: there is no such model; did you mean "
                f"{' or '.join(near) or '?'}"
            )
        self.sizes = {"backbone": name}  # builds an equal one, but for its image size
        self.model = _create(name, image_size, published)
        config = self.model.pretrained_cfg
        for buffer, key in (("mean", "mean"), ("spread", "std")):
            self.register_buffer(
                buffer, torch.tensor(config[key])[:, None, None], persistent=False
            )
        patch = getattr(getattr(self.model, "patch_embed", None), "patch_size", None)
        if patch is not None and image_size % patch[0]:
            raise _not_a_multiple(image_size, patch[0], f"timm/{name}")
        with torch.no_grad():
            tokens = self.eval()(torch.zeros(1, 1, len(config["mean"]), image_size, image_size))
        self.tokens_per_frame, self.width = tokens.shape[1:]

    def forward(self, clip: Tensor) -> Tensor:
        """Tokens [B, T*N, D] of a clip [B, T, C, S, S] in -1..1; a map of features is read row by
        row."""
        frames = ((clip.flatten(0, 1) + 1) / 2 - self.mean) / self.spread
        tokens = self.model.forward_features(frames)
        if tokens.dim() == 4:
            channels_first = tokens.shape[1] == self.model.num_features
            tokens = tokens.flatten(2).transpose(1, 2) if channels_first else tokens.flatten(1, 2)
        else:
            # Class and register tokens go.
            tokens = tokens[:, getattr(self.model, "num_prefix_tokens", 0) :]
        return tokens.reshape(len(clip), -1, tokens.shape[-1])


def _not_a_multiple(image_size: int, patch: int, backbone: str) -> UserError:
    return UserError(
        f"data.image_size {image_size} is not a multiple of {patch}, the patch of {backbone}"
    )


def _create(name: str, image_size: int, published: bool) -> Any:
    config = timm.get_pretrained_cfg(name)
    # Transformers are built for one size of frames; convolutions take any, and know no such
    # argument.
    sized: dict[str, Any] = (
        {"img_size": image_size} if config is not None and config.fixed_input_size else {}
    )
    try:
        return timm.create_model(name, pretrained=published, num_classes=0, **sized)
    except (OSError, RuntimeError) as error:
        if not published:
            raise
        raise UserError(
            f"backbone timm/{name}: its published weights cannot be fetched ({error}); check the "
            "name and the network"
        ) from None
