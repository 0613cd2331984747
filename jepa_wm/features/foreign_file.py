"""Weights from a file that somebody else made, under the names of V-JEPA 2's public code: no code
in it is ever run, and what is wrong with it is said. The names that the library `transformers`
writes are known here and nowhere else.

D width, K mask tokens.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from jepa_wm.core.errors import UserError

INDEX = ".index.json"  # of weights in several files: {"weight_map": {name: file}}
# as the hub names them
IN_FOLDERS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin")
# tables of fixed positions, which models with RoPE do not read
UNUSED = ("pos_embed", "predictor_pos_embed")

# What torch.compile, data parallelism and activation checkpointing write around a module's own
# name, anywhere in it; and what is written before all of them.
_AROUND = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_BEFORE = re.compile(r"^(?:module\.|backbone\.|vjepa2\.)+")

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

# What torch.load was seen to raise for files with a few wrong bytes: it has no error of its own
# for them.
_DAMAGE = (
    RuntimeError, zipfile.BadZipFile, EOFError, ValueError, LookupError, TypeError, AttributeError,
)  # fmt: skip


def read_parts(path: Path) -> dict[str, Any]:
    """The top level of a file: part -> its weights by name, and whatever plain data lies beside
    them.

    A .safetensors file is flat, and so may any be: what stands before the first dot of a name is
    the part. Others are read as what torch.save writes, through a memory map, so that only the
    tensors used are fetched. Of a folder that is the file the hub's names lead to; an index of
    several safetensors files stands for them all. Raises UserError if there is no such file, if it
    is damaged, or holds anything but tensors and plain data."""
    path = _file_in(path)
    if not path.is_file():
        raise UserError(
            f"{path}: there is no such file; download the weights first and give their path"
        )
    if path.name.endswith(INDEX):
        return _in_parts(_from_index(path), path)
    if path.suffix == ".safetensors":
        return _in_parts(_from_safetensors(path), path)
    parts = _from_torch(path)
    flat = parts and all(isinstance(value, Tensor) for value in parts.values())
    return _in_parts(parts, path) if flat else parts


def read_released(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the parts of a V-JEPA 2 file under the public code's names, what the config.json beside it
    states, of which there is one for weights of `transformers`).

    Query, key and value are one matrix, and mask tokens lie apart; a name that is not known stays
    as it is. Raises UserError as `read_parts` does, where query, key and value do not belong
    together, and for a config of a model that this is not."""
    parts = read_parts(path)
    named = {part: parts[part] for part in _OF_TRANSFORMERS if isinstance(parts.get(part), dict)}
    names = [unwrapped(str(name)) for weights in named.values() for name in weights]
    if not any(name.startswith(("embeddings.", "layer.")) for name in names):
        return parts, {}
    config = _config_beside(path)
    for part, weights in named.items():
        plain = without_wrappers(weights, source=f"{path}: the weights of {part!r}")
        parts[part] = _public_part(part, plain, config, path)
    return parts, config


def _file_in(path: Path) -> Path:
    """The file that a path means: of a folder the weights in it, else itself. UserError for a
    folder without any."""
    if not path.is_dir():
        return path
    for name in IN_FOLDERS:
        if (path / name).is_file():
            return path / name
    raise UserError(
        f"{path}: is a folder without {' or '.join(IN_FOLDERS)}; give the path of the weights "
        "themselves"
    )


def unwrapped(name: str) -> str:
    """A weight's name without what training wrapped the module in, in any order."""
    return _BEFORE.sub("", _AROUND.sub("", name))


def without_wrappers(weights: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """The weights without the prefixes that training wrapped them in, and without what is UNUSED.

    Raises UserError if two of them then have one name.
    """
    plain: dict[str, Tensor] = {}
    for name, value in weights.items():
        short = unwrapped(str(name))
        if short in plain:
            raise UserError(
                f"{source}: holds {short!r} twice, under different prefixes; keep one of the two"
            )
        plain[short] = value
    return {name: value for name, value in plain.items() if name not in UNUSED}


def _in_parts(flat: Mapping[str, Any], path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name, value in without_wrappers(flat, source=str(path)).items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(
            f"{path}: is no whole safetensors file ({error}); download it again"
        ) from None


def _from_index(path: Path) -> dict[str, Tensor]:
    """The weights of all files that an index names, each of them there."""
    try:
        places = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: is no index of safetensors files ({error!r}); download it again"
        ) from None

    # Every file lies beside the index, and every weight in one of them.
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    absent = [name for name in names if name not in strange and not (path.parent / name).is_file()]
    if strange or absent:
        why = f"names {strange[0]!r}" if strange else f"{absent[0]} is not beside it"
        raise UserError(f"{path}: {why}; download all files of the model into one folder")
    flat: dict[str, Tensor] = {}
    for file in names:
        flat |= _from_safetensors(path.parent / file)
    missing = sorted(set(places) - set(flat))
    if missing:
        raise UserError(
            f"{path}: {len(missing)} weights are in none of its files, such as {missing[0]}; "
            "download again"
        )
    return {name: flat[name] for name in places}


def _from_torch(path: Path) -> dict[str, Any]:
    # The older format of torch.save is one bare pickle: it has no end to tell a cut file by, and
    # cannot be mapped.
    parts = None
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            parts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects besides tensors and plain data. Opening them could run "
            "code of whoever made the file, so it is refused; ask for the weights as safetensors"
        ) from None
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is damaged ({reason}); download it again") from None
    if not is_zip:
        raise UserError(
            f"{path}: is cut short, or was not written by torch.save (in its format since PyTorch "
            "1.6); download it again, or convert it to safetensors"
        )
    if not isinstance(parts, dict):
        raise UserError(
            f"{path}: holds a {type(parts).__name__}, not the parts of a model by name"
        )
    return parts


def _config_beside(path: Path) -> dict[str, Any]:
    """What the config.json beside the weights states; nothing where there is none. Raises
    UserError for a model that this is not."""
    file = _file_in(path).parent / "config.json"
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
        for name in separate:
            bias = name.replace("qkv.weight", "qkv.bias")
            if bias not in public:
                public[bias] = public[name].new_zeros(len(public[name]))
    return public
