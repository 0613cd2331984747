"""Weights from a file that somebody else made: no code in it is ever run, and what is wrong with
it is said."""

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

# What torch.compile, data parallelism and activation checkpointing write around a module's own
# name, anywhere in it.
_AROUND = re.compile(
    r"(?:(?<=\.)|^)(?:_orig_mod|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_BEFORE = re.compile(r"^(?:module\.|backbone\.)+")


def read_parts(path: Path) -> dict[str, Any]:
    """The top level of a file: part -> its weights by name, and whatever plain data lies beside
    them.

    A .safetensors file is flat, and so may any be: what stands before the first dot of a name is
    the part. Others are read as what torch.save writes, through a memory map, so that only the
    tensors used are fetched. Of a folder that is the file the hub's names lead to; an index of
    several safetensors files stands for them all. Raises UserError if there is no such file, if it
    is damaged, or holds anything but tensors and plain data."""
    path = file_in(path)
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


def file_in(path: Path) -> Path:
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


def _in_parts(flat: Mapping[str, Any], path: Path) -> dict[str, Any]:
    parts: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, rest = unwrapped(str(name)).removeprefix("vjepa2.").partition(".")
        if rest in parts.setdefault(part, {}):
            raise UserError(
                f"{path}: holds {part + '.' + rest!r} twice, under different prefixes; keep one "
                "of the two"
            )
        parts[part][rest] = value
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
    except (
        json.JSONDecodeError,
        UnicodeDecodeError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path}: is no index of safetensors files ({error!r}); download it again"
        ) from None

    # Every file lies beside the index, and every weight in one of them.
    strange = [name for name in names if not isinstance(name, str) or Path(name).name != name]
    absent = [name for name in names if name not in strange and not (path.parent / name).is_file()]
    if strange or absent:
        why = f"names {strange[0]!r}" if strange else f"{absent[0]} is not beside it"
        raise UserError(f"{path}: {why}; download all files of the model into one folder")
    flat = {
        name: value
        for file in names
        for name, value in _from_safetensors(path.parent / file).items()
    }
    missing = sorted(set(places) - set(flat))
    if missing:
        raise UserError(
            f"{path}: {len(missing)} weights are in none of its files, such as {missing[0]}; "
            "download again"
        )
    return {name: flat[name] for name in places}


# What torch.load was seen to raise for files with a few wrong bytes: it has no error of its own
# for them.
_DAMAGE = (
    RuntimeError,
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
)


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
