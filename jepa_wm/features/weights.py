"""Released V-JEPA 2 models from local files: the encoder and both predictors, every key accounted
for; their names and shapes to ours and back.

Sizes are read off the tensors; what these do not tell is a `Size`. D width, K mask tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jepa_wm.core.checkpoint import check_fit
from jepa_wm.core.errors import UserError, a_few
from jepa_wm.features.foreign_file import read_released, without_wrappers
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.predictor import (
    ActionPredictor,
    ActionPredictorSizes,
    Predictor,
    PredictorSizes,
)
from jepa_wm.models.vit import Encoder

ROPE_BASE = 10_000.0
ENCODERS = ("encoder", "target_encoder")  # parts of a file; the others are predictors
# how a name begins with us, and there
_ENCODER = {"embed.": "patch_embed.proj.", "blocks.": "blocks.", "norm.": "norm."}
_PREDICTOR = {
    "embed.": "predictor_embed.", "blocks.": "predictor_blocks.", "norm.": "predictor_norm.",
    "project.": "predictor_proj.", "mask_tokens": "mask_tokens",
    "action.": "action_encoder.", "state.": "state_encoder.", "extrinsics.": "extrinsics_encoder.",
}  # fmt: skip
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of colours in 0..1

# [D, C, tubelet, patch, patch] of a convolution, a matrix here
_KERNEL = "patch_embed.proj.weight"
_MASK_TOKEN = re.compile(r"mask_tokens\.(\d+)")  # K parameters [1, 1, D], one [K, D] here

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Size:
    """What tensors do not tell: the side in px of the frames the model was trained on, and the
    heads of encoder, predictor and action-conditioned predictor. Width and depth of the encoder
    are checked where they are given."""

    image_size: int
    heads: int
    predictor_heads: int = 12
    action_heads: int = 16
    width: int = 0
    depth: int = 0


SIZES = {
    "vit_large": Size(256, 16, width=1024, depth=24),
    "vit_huge": Size(256, 16, width=1280, depth=32),
    "vit_giant": Size(256, 22, width=1408, depth=40),
    "vit_giant_384": Size(384, 22, width=1408, depth=40),
    "vit_gigantic": Size(256, 26, width=1664, depth=48),
}


def named_size(size: str | Size) -> Size:
    """The size of that name in SIZES, a Size as it is; UserError for an unknown name."""
    if isinstance(size, Size):
        return size
    if size not in SIZES:
        raise UserError(f"size {size!r} is unknown; it is one of {', '.join(SIZES)}, or a Size")
    return SIZES[size]


def load_encoder(path: str | Path, size: str | Size, *, part: str = "") -> Encoder:
    """The encoder of a released file, frozen; its `settings` tell its sizes.

    `size` is a name in SIZES or, for any other model, a Size. `part` is 'target_encoder' or
    'encoder'; by default the target encoder where the file has one, as in the public code. It sees
    whole clips [B, T, C, H, W] of frames that were normalised by ImageNet's mean and spread; for
    frames in -1..1 see `take_plain_frames`. Raises UserError for a file that is none, is damaged
    or holds anything but tensors and plain data (no pickle is ever run), and for keys that are
    missing, stray or of another shape."""
    (parts, config), size = read_released(Path(path)), named_size(size)
    part = part or ("target_encoder" if "target_encoder" in parts else "encoder")
    weights, source = _part(parts, part, path)
    kernel = _of_dimensions(weights, "patch_embed.proj.weight", 5, source)
    width, depth = kernel.shape[0], _depth(weights, "blocks", source)
    if (size.width or width, size.depth or depth) != (width, depth):
        raise UserError(
            f"{source}: has {depth} blocks of width {width}, but the size asked for has "
            f"{size.depth} of {size.width}; name the right one of {', '.join(SIZES)}, or give a "
            "Size"
        )
    _check_heads(width, size.heads, "heads", source, config, "num_attention_heads")
    settings = EncoderSettings(
        patch_size=kernel.shape[3], tubelet_size=kernel.shape[2], width=width, depth=depth,
        num_heads=size.heads,
        channels=kernel.shape[1], attention="clip", rope="vjepa2", rope_base=ROPE_BASE,
        mlp_ratio=_mlp_ratio(weights, "blocks", width, source), locality=0.0,
    )  # fmt: skip
    return _filled(lambda: Encoder(size.image_size, settings), weights, part, source)


def load_predictor(path: str | Path, size: str | Size) -> Predictor:
    """The mask-token predictor of a released pretraining file.

    Its positions are those of the encoder that was loaded with it, `Encoder.positions`. Raises
    UserError as `load_encoder` does."""
    parts, config = read_released(Path(path))
    weights, source = _part(parts, "predictor", path)
    embed = _of_dimensions(weights, "predictor_embed.weight", 2, source)
    back = _of_dimensions(weights, "predictor_proj.weight", 2, source)
    width, heads = embed.shape[0], named_size(size).predictor_heads
    _check_heads(width, heads, "predictor_heads", source, config, "pred_num_attention_heads")

    sizes = PredictorSizes(
        width=width, depth=_depth(weights, "predictor_blocks", source), num_heads=heads,
        encoder_width=embed.shape[1], output_width=back.shape[0],
        mask_types=sum(name.startswith("mask_tokens.") for name in weights),
        rope="vjepa2", rope_base=ROPE_BASE,
        mlp_ratio=_mlp_ratio(weights, "predictor_blocks", width, source),
    )  # fmt: skip
    return _filled(lambda: Predictor(sizes), weights, "predictor", source)


def load_action_predictor(
    path: str | Path, size: str | Size, *, patch: int = 16
) -> ActionPredictor:
    """The action-conditioned predictor of a released file.

    `patch` is the side of the encoder's patches in px. Raises UserError as `load_encoder` does.
    """
    parts, _ = read_released(Path(path))
    weights, source = _part(parts, "predictor", path)
    embed = _of_dimensions(weights, "predictor_embed.weight", 2, source)
    width, size = embed.shape[0], named_size(size)
    _check_heads(width, size.action_heads, "action_heads", source, {}, "")
    # The released layout says what a state and an action are by the widths of their maps alone.
    inputs = {
        f"{name}_size": _of_dimensions(weights, f"{name}_encoder.weight", 2, source).shape[1]
        for name in ("action", "state", "extrinsics")
    }
    sizes = ActionPredictorSizes(
        encoder_width=embed.shape[1], grid=size.image_size // patch, width=width,
        depth=_depth(weights, "predictor_blocks", source), num_heads=size.action_heads,
        rope="vjepa2", rope_base=ROPE_BASE,
        mlp_ratio=_mlp_ratio(weights, "predictor_blocks", width, source), **inputs,
    )  # fmt: skip
    return _filled(lambda: ActionPredictor(sizes), weights, "action_predictor", source)


def to_released(module: nn.Module, part: str) -> dict[str, Tensor]:
    """A module's weights under the released names of `part` and in the released shapes, without
    prefixes."""
    names = _ENCODER if part in ENCODERS else _PREDICTOR
    released: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name == "mask_tokens":
            released |= {f"mask_tokens.{i}": token[None, None] for i, token in enumerate(value)}
            continue
        if name == "embed.weight" and isinstance(module, Encoder):
            patch = (module.tubelet_size, -1, module.patch_size, module.patch_size)
            value = value.unflatten(1, patch).transpose(1, 2)
        released[_renamed(name, names)] = value
    return released


def to_ours(released: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The mirror image of `to_released`, for weights that are complete."""
    names = _ENCODER if part in ENCODERS else _PREDICTOR
    back = {there: here for here, there in names.items()}
    ours: dict[str, Tensor] = {}
    tokens: dict[int, Tensor] = {}
    for name, value in released.items():
        mask_token = _MASK_TOKEN.fullmatch(name)
        if mask_token:
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


def _filled(
    build: Callable[[], Model], weights: Mapping[str, Tensor], part: str, source: str
) -> Model:
    """The frozen model with the weights in their places. Its initial values would be thrown away,
    and drawing a billion of them takes a minute: none are drawn."""
    with torch.device("meta"):
        model = build()
    check_fit(
        weights, to_released(model, part), source=source, model=f"a V-JEPA 2 {part} of these sizes"
    )
    model.to_empty(device="cpu").load_state_dict(to_ours(weights, part), strict=True)
    return model.eval().requires_grad_(False)


def _part(
    parts: Mapping[str, object], part: str, path: str | Path
) -> tuple[dict[str, Tensor], str]:
    """(weights of one part without wrappers' prefixes, what to call them in a message)."""
    source, tensors = f"{path}: the weights of {part!r}", parts.get(part)
    if not isinstance(tensors, dict):
        raise UserError(
            f"{path}: has no part {part!r}, only {a_few(map(repr, parts)) or 'nothing'}"
        )
    for name, value in tensors.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"{source}: {name!r} is no tensor; this is not the released layout")
    return without_wrappers(tensors, source=source), source


def _of_dimensions(
    weights: Mapping[str, Tensor], name: str, dimensions: int, source: str
) -> Tensor:
    """A weight that sizes are read off."""
    if name not in weights:
        unknown = "without which the sizes are unknown; is this V-JEPA 2?"
        raise UserError(f"{source}: {name!r} is missing, {unknown}")
    shape = tuple(weights[name].shape)
    if len(shape) != dimensions:
        raise UserError(f"{source}: {name!r} has shape {shape} instead of {dimensions} dimensions")
    return weights[name]


def _depth(weights: Mapping[str, Tensor], blocks: str, source: str) -> int:
    matches = map(re.compile(rf"{blocks}\.(\d+)\.").match, weights)
    numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        raise UserError(f"{source}: no weight is named {blocks}.0...; is this V-JEPA 2?")
    return max(numbers) + 1


def _mlp_ratio(weights: Mapping[str, Tensor], blocks: str, width: int, source: str) -> float:
    return _of_dimensions(weights, f"{blocks}.0.mlp.fc1.weight", 2, source).shape[0] / width


def _check_heads(
    width: int, heads: int, field: str, source: str, config: Mapping[str, Any], key: str
) -> None:
    """No tensor tells the number of heads: they have to divide the width, and to be those that
    the config.json states under `key`, if it does."""
    if heads < 1 or width % (2 * heads) or width // heads < 6:
        raise UserError(
            f"{source}: width {width} does not divide into {heads} heads; give a Size with other "
            f"{field}"
        )
    if (stated := config.get(key, heads)) != heads:
        raise UserError(
            f"{source}: the config.json beside them states {key} {stated}, and the size asked "
            f"for has {field} {heads}; name the right size, or give a Size"
        )


def _renamed(name: str, names: Mapping[str, str]) -> str:
    begins = next(start for start in names if name.startswith(start))
    return names[begins] + name[len(begins) :]
