"""V-JEPA 2 as the library `transformers` writes it: its names in those of the public code, and
what config.json states.

L layers, D width, K mask tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import file_in, unwrapped
from jepa_wm.features.vjepa2 import without_wrappers

# how a name begins there, and in the public code
_NAMES = {
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


def is_of_transformers(parts: Mapping[str, Any]) -> bool:
    """Whether the weights have the names that `transformers` gives them."""
    return any(
        name.startswith(("embeddings.", "layer."))
        for part in _NAMES
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
    for part in _NAMES:
        if isinstance(parts.get(part), dict):
            plain = without_wrappers(parts[part], source=f"{path}: the weights of {part!r}")
            public[part] = _part_of(part, plain, config, path)
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


def _part_of(
    part: str, weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    public: dict[str, Any] = {}
    apart: dict[str, dict[str, Tensor]] = {}  # name of a joined matrix -> query, key and value
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            public[name] = value  # for whoever checks the content to say so
        elif name == _MASK_TOKENS and value.dim() == 4:
            public |= {f"mask_tokens.{k}": token for k, token in enumerate(value)}
        elif layer := _LAYER.fullmatch(name):
            block, inside = f"{_BLOCKS[part]}.{layer[1]}", layer[2]
            if separate := _SEPARATE.fullmatch(inside):
                apart.setdefault(f"{block}.attn.qkv.{separate[2]}", {})[separate[1]] = value
            else:
                public[f"{block}.{re.sub('^attention[.]', 'attn.', inside)}"] = value
        else:
            begins = next((start for start in _NAMES[part] if name.startswith(start)), "")
            public[_NAMES[part].get(begins, "") + name.removeprefix(begins)] = value
    for name, three in apart.items():
        shapes = {kind: tuple(value.shape) for kind, value in three.items()}
        if len(shapes) < 3 or len(set(shapes.values())) > 1:
            raise UserError(
                f"{path}: {part}: for {name} there must be query, key and value of one shape, "
                f"not {shapes}"
            )
        public[name] = torch.cat([three[kind] for kind in ("query", "key", "value")])
    if config.get("qkv_bias") is False:  # the public code always has one
        biases = {
            name.replace("qkv.weight", "qkv.bias"): public[name]
            for name in apart
            if name.endswith("weight")
        }
        public |= {
            name: weight.new_zeros(len(weight))
            for name, weight in biases.items()
            if name not in public
        }
    return public


def _weights(parts: Mapping[str, Any], part: str) -> list[str]:
    found = parts.get(part)
    return [unwrapped(str(name)) for name in found] if isinstance(found, dict) else []
