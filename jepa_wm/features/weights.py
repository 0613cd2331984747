"""Released V-JEPA 2 models from local files: the encoder and both predictors, every key accounted
for.

Sizes are read off the tensors; what these do not tell is a `Size`. D width.
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
from jepa_wm.features.foreign_file import read_parts
from jepa_wm.features.vjepa2 import (
    config_beside,
    in_public_names,
    is_of_transformers,
    to_ours,
    to_released,
    without_wrappers,
)
from jepa_wm.models.predictor import (
    ActionPredictor,
    ActionPredictorSizes,
    Predictor,
    PredictorSizes,
)
from jepa_wm.models.settings import EncoderSettings
from jepa_wm.models.vit import Encoder

ROPE_BASE = 10_000.0

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
    (parts, config), size = _read(Path(path)), named_size(size)
    part = part or ("target_encoder" if "target_encoder" in parts else "encoder")
    weights, source = _part(parts, part, path)
    kernel = _of_dimensions(weights, "patch_embed.proj.weight", 5, source)
    width, depth = kernel.shape[0], _depth(weights, "blocks", source)
    if (size.width or width, size.depth or depth) != (width, depth):
        raise UserError(
            f"{source}: has {depth} blocks of width {width}, but the size asked for has "
            f"{size.depth} of {size.width}; "
            f"name the right one of {', '.join(SIZES)}, or give a Size"
        )
    _check_heads(width, size.heads, "heads", source)
    _check_stated(config, "num_attention_heads", size.heads, "heads", source)
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
    parts, config = _read(Path(path))
    weights, source = _part(parts, "predictor", path)
    embed = _of_dimensions(weights, "predictor_embed.weight", 2, source)
    back = _of_dimensions(weights, "predictor_proj.weight", 2, source)
    width, heads = embed.shape[0], named_size(size).predictor_heads
    _check_heads(width, heads, "predictor_heads", source)
    _check_stated(config, "pred_num_attention_heads", heads, "predictor_heads", source)

    sizes = PredictorSizes(
        width=width,
        depth=_depth(weights, "predictor_blocks", source),
        num_heads=heads,
        encoder_width=embed.shape[1],
        output_width=back.shape[0],
        mask_types=sum(name.startswith("mask_tokens.") for name in weights),
        rope="vjepa2",
        rope_base=ROPE_BASE,
        mlp_ratio=_mlp_ratio(weights, "predictor_blocks", width, source),
    )
    return _filled(lambda: Predictor(sizes), weights, "predictor", source)


def load_action_predictor(
    path: str | Path, size: str | Size, *, patch: int = 16
) -> ActionPredictor:
    """The action-conditioned predictor of a released file.

    `patch` is the side of the encoder's patches in px. Raises UserError as `load_encoder` does.
    """
    parts, config = _read(Path(path))
    weights, source = _part(parts, "predictor", path)
    embed = _of_dimensions(weights, "predictor_embed.weight", 2, source)
    width, size = embed.shape[0], named_size(size)
    _check_heads(width, size.action_heads, "action_heads", source)
    # The released layout says what a state and an action are by the widths of their maps alone.
    inputs = {
        f"{name}_size": _of_dimensions(weights, f"{name}_encoder.weight", 2, source).shape[1]
        for name in ("action", "state", "extrinsics")
    }
    sizes = ActionPredictorSizes(
        encoder_width=embed.shape[1],
        grid=size.image_size // patch,
        width=width,
        depth=_depth(weights, "predictor_blocks", source),
        num_heads=size.action_heads,
        rope="vjepa2",
        rope_base=ROPE_BASE,
        mlp_ratio=_mlp_ratio(weights, "predictor_blocks", width, source),
        **inputs,
    )
    return _filled(lambda: ActionPredictor(sizes), weights, "action_predictor", source)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the parts of a file under the public code's names, what a config.json beside it states)."""
    parts = read_parts(path)
    if not is_of_transformers(parts):
        return parts, {}
    config = config_beside(path)
    return in_public_names(parts, path, config), config


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
    strange = [
        name
        for name, value in tensors.items()
        if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        raise UserError(f"{source}: {strange[0]!r} is no tensor; this is not the released layout")
    return without_wrappers(tensors, source=source), source


def _of_dimensions(
    weights: Mapping[str, Tensor], name: str, dimensions: int, source: str
) -> Tensor:
    """A weight that sizes are read off."""
    if name not in weights:
        raise UserError(
            f"{source}: {name!r} is missing, without which the sizes are unknown; is this V-JEPA "
            "2?"
        )
    if weights[name].dim() != dimensions:
        raise UserError(
            f"{source}: {name!r} has shape {tuple(weights[name].shape)} instead of {dimensions} "
            "dimensions"
        )
    return weights[name]


def _depth(weights: Mapping[str, Tensor], blocks: str, source: str) -> int:
    matches = [re.match(rf"{blocks}\.(\d+)\.", name) for name in weights]
    numbers = [int(match[1]) for match in matches if match]
    if not numbers:
        raise UserError(f"{source}: no weight is named {blocks}.0...; is this V-JEPA 2?")
    return max(numbers) + 1


def _mlp_ratio(weights: Mapping[str, Tensor], blocks: str, width: int, source: str) -> float:
    return _of_dimensions(weights, f"{blocks}.0.mlp.fc1.weight", 2, source).shape[0] / width


def _check_heads(width: int, heads: int, field: str, source: str) -> None:
    if heads < 1 or width % (2 * heads) or width // heads < 6:
        raise UserError(
            f"{source}: width {width} does not divide into {heads} heads; give a Size with other "
            f"{field}"
        )


def _check_stated(
    config: Mapping[str, Any], key: str, heads: int, field: str, source: str
) -> None:
    """No tensor tells the number of heads; where config.json does, it has to be the one that was
    asked for."""
    if (stated := config.get(key, heads)) != heads:
        raise UserError(
            f"{source}: the config.json beside them states {key} {stated}, and the size asked "
            f"for has {field} {heads}; "
            "name the right size, or give a Size"
        )
