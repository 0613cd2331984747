"""The names and shapes under which V-JEPA 2 is released, to ours and back; nowhere else are they
known.

D width, K mask tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import unwrapped
from jepa_wm.models.vit import Encoder

# part of a file -> how a name begins with us, and there
_ENCODER = {"embed.": "patch_embed.proj.", "blocks.": "blocks.", "norm.": "norm."}
_ANY_PREDICTOR = {
    "embed.": "predictor_embed.",
    "blocks.": "predictor_blocks.",
    "norm.": "predictor_norm.",
    "project.": "predictor_proj.",
}
_ACTIONS = {
    "action.": "action_encoder.",
    "state.": "state_encoder.",
    "extrinsics.": "extrinsics_encoder.",
}
NAMES = {
    "encoder": _ENCODER,
    "target_encoder": _ENCODER,
    "predictor": {**_ANY_PREDICTOR, "mask_tokens": "mask_tokens"},
    "action_predictor": {**_ANY_PREDICTOR, **_ACTIONS},
}
UNUSED = (
    "pos_embed",
    "predictor_pos_embed",
)  # tables of fixed positions, which models with RoPE do not read

IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of colours in 0..1

_KERNEL = (
    "patch_embed.proj.weight"  # [D, C, tubelet, patch, patch] of a convolution, a matrix here
)
_MASK_TOKEN = re.compile(r"mask_tokens\.(\d+)")  # K parameters [1, 1, D], one [K, D] here


def without_wrappers(weights: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The weights without the prefixes that training wrapped them in, and without what is UNUSED.

    Raises UserError if two of them then have one name.
    """
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = unwrapped(name)
        if short in plain:
            raise UserError(
                f"{source}: holds {short!r} twice, under different prefixes; keep one of the two"
            )
        plain[short] = value
    return {name: value for name, value in plain.items() if name not in UNUSED}


def to_released(module: nn.Module, part: str) -> dict[str, Tensor]:
    """A module's weights under the released names of `part` and in the released shapes, without
    prefixes."""
    released: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name == "mask_tokens":
            released |= {f"mask_tokens.{i}": token[None, None] for i, token in enumerate(value)}
            continue
        if name == "embed.weight" and isinstance(module, Encoder):
            patch = (module.tubelet_size, -1, module.patch_size, module.patch_size)
            value = value.unflatten(1, patch).transpose(1, 2)
        released[_renamed(name, NAMES[part])] = value
    return released


def to_ours(released: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The mirror image of `to_released`, for weights that are complete."""
    back = {there: here for here, there in NAMES[part].items()}
    ours: dict[str, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    for name, value in released.items():
        if mask_token := _MASK_TOKEN.fullmatch(name):
            tokens[int(mask_token[1])] = value.flatten()
            continue
        ours[_renamed(name, back)] = value.transpose(1, 2).flatten(1) if name == _KERNEL else value
    if tokens:
        ours["mask_tokens"] = torch.stack([tokens[i] for i in sorted(tokens)])
    return ours


@torch.no_grad()
def take_plain_frames(encoder: Encoder) -> Encoder:
    """The encoder, from now on for frames in -1..1 as all of ours are: ImageNet's mean and spread,
    by which released models want frames normalised, are folded into the patch embedding, which is
    linear. Changes it in place."""
    mean, spread = (
        torch.tensor(x, dtype=torch.float64)[:, None, None]
        for x in (IMAGENET_MEAN, IMAGENET_SPREAD)
    )
    kernel = encoder.embed.weight.double().unflatten(
        1, (encoder.tubelet_size, 3, encoder.patch_size, encoder.patch_size)
    )
    encoder.embed.bias.add_((kernel * ((0.5 - mean) / spread)).flatten(1).sum(1))
    encoder.embed.weight.copy_((kernel * (0.5 / spread)).flatten(1))
    return encoder


def _renamed(name: str, names: Mapping[str, str]) -> str:
    begins = next(start for start in names if name.startswith(start))
    return names[begins] + name[len(begins) :]
