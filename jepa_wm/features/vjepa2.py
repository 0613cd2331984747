"""The names and shapes of released V-JEPA 2 weights, those of the public code and those that the
library `transformers` writes, to ours and back; nowhere else are they known.

D width, K mask tokens, L layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import file_in, unwrapped
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
RELEASED_NAMES = {
    "encoder": _ENCODER,
    "target_encoder": _ENCODER,
    "predictor": {**_ANY_PREDICTOR, "mask_tokens": "mask_tokens"},
    "action_predictor": {**_ANY_PREDICTOR, **_ACTIONS},
}
# tables of fixed positions, which models with RoPE do not read
UNUSED = ("pos_embed", "predictor_pos_embed")

IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of colours in 0..1

# [D, C, tubelet, patch, patch] of a convolution, a matrix here
_KERNEL = "patch_embed.proj.weight"
_MASK_TOKEN = re.compile(r"mask_tokens\.(\d+)")  # K parameters [1, 1, D], one [K, D] here


# how a name begins with `transformers`, and in the public code
_OF_TRANSFORMERS = {
    "encoder": {"embeddings.patch_embeddings.proj.": "patch_embed.proj.", "layernorm.": "norm."},
    "predictor": {
        "embeddings.predictor_embeddings.": "predictor_embed.",
        "layernorm.": "predictor_norm.",
        "proj.": "predictor_proj.",
    },
}
_BLOCKS = {"encoder": "blocks", "predictor": "predictor_blocks"}
_LAYER = re.compile(r"layer\.(\d+)\.(.+)")
_SEPARATE = re.compile(r"attention\.(query|key|value)\.(weight|bias)")
_MASK_TOKENS = "embeddings.mask_tokens"  # [K, 1, 1, D], K parameters [1, 1, D] in the public code


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
        released[_renamed(name, RELEASED_NAMES[part])] = value
    return released


def to_ours(released: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The mirror image of `to_released`, for weights that are complete."""
    back = {there: here for here, there in RELEASED_NAMES[part].items()}
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


def _renamed(name: str, names: Mapping[str, str]) -> str:
    begins = next(start for start in names if name.startswith(start))
    return names[begins] + name[len(begins) :]


def is_of_transformers(parts: Mapping[str, Any]) -> bool:
    """Whether the weights have the names that `transformers` gives them."""
    return any(
        name.startswith(("embeddings.", "layer."))
        for part in _OF_TRANSFORMERS
        for name in _weights(parts, part)
    )


def in_public_names(
    parts: Mapping[str, Any], path: Path, config: Mapping[str, Any]
) -> dict[str, Any]:
    """Parts of a file under the public code's names: query, key and value as one matrix, mask
    tokens apart.

    A name that is not known stays as it is. Raises UserError where query, key and value do not
    belong together."""
    public = dict(parts)
    for part in _OF_TRANSFORMERS:
        if isinstance(parts.get(part), dict):
            plain = without_wrappers(parts[part], source=f"{path}: the weights of {part!r}")
            public[part] = _public_part(part, plain, config, path)
    return public


def config_beside(path: Path) -> dict[str, Any]:
    """What the config.json beside the weights states; nothing where there is none. Raises
    UserError for a model that this is not."""
    file = file_in(path).parent / "config.json"
    if not file.is_file():
        return {}
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: is no JSON ({error}); download it again") from None
    known = {"model_type": "vjepa2", "hidden_act": "gelu", "layer_norm_eps": 1e-6}
    for key, value in known.items():
        if not isinstance(config, dict) or config.get(key, value) != value:
            stated = config.get(key) if isinstance(config, dict) else config
            raise UserError(
                f"{file}: {key} is {stated!r}, and a V-JEPA 2 model with {value!r} is all that "
                "is known here"
            )
    return config


def _public_part(
    part: str, weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    public: dict[str, Any] = {}
    separate: dict[str, dict[str, Tensor]] = {}  # name of a joined matrix -> query, key and value

    # One name after the other: mask tokens, what lies in a layer, and the rest by its beginning.
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            public[name] = value  # for whoever checks the content to say so
        elif name == _MASK_TOKENS and value.dim() == 4:
            public |= {f"mask_tokens.{k}": token for k, token in enumerate(value)}
        elif layer := _LAYER.fullmatch(name):
            block, inside = f"{_BLOCKS[part]}.{layer[1]}", layer[2]
            if single := _SEPARATE.fullmatch(inside):
                joined = f"{block}.attn.qkv.{single[2]}"
                separate.setdefault(joined, {})[single[1]] = value
            else:
                public[f"{block}.{re.sub('^attention[.]', 'attn.', inside)}"] = value
        else:
            begins = next(
                (start for start in _OF_TRANSFORMERS[part] if name.startswith(start)), ""
            )
            public[_OF_TRANSFORMERS[part].get(begins, "") + name.removeprefix(begins)] = value

    # Query, key and value as one matrix.
    for name, three in separate.items():
        shapes = {kind: tuple(value.shape) for kind, value in three.items()}
        if len(shapes) < 3 or len(set(shapes.values())) > 1:
            raise UserError(
                f"{path}: {part}: for {name} there must be query, key and value of one shape, "
                f"not {shapes}"
            )
        public[name] = torch.cat([three[kind] for kind in ("query", "key", "value")])

    # The public code always has a bias.
    if config.get("qkv_bias") is False:
        biases = {
            name.replace("qkv.weight", "qkv.bias"): public[name]
            for name in separate
            if name.endswith("weight")
        }
        public |= {
            name: weight.new_zeros(len(weight))
            for name, weight in biases.items()
            if name not in public
        }
    return public


def _weights(parts: Mapping[str, Any], part: str) -> list[str]:
    weights = parts.get(part)
    return [unwrapped(str(name)) for name in weights] if isinstance(weights, dict) else []
