"""Weights from a file that somebody else made: no code in it is ever run, and what is wrong with it is said."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from jepa_wm.core.errors import UserError


def read_parts(path: Path) -> dict[str, Any]:
    """The top level of a file: part -> its weights by name, and whatever plain data lies beside them.

    A .safetensors file is flat: what stands before the first dot of a name is the part. Any other is read as what
    torch.save writes, through a memory map, so that only the tensors used are fetched. Raises UserError if the file is
    not there, is damaged, or holds anything but tensors and plain data.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; download the weights first and give their path")
    return _from_safetensors(path) if path.suffix == ".safetensors" else _from_torch(path)


def _from_safetensors(path: Path) -> dict[str, Any]:
    try:
        flat = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: is no whole safetensors file ({error}); download it again") from None
    parts: dict[str, Any] = {}
    for name, value in flat.items():
        part, _, rest = name.partition(".")
        parts.setdefault(part, {})[rest] = value
    return parts


# What torch.load was seen to raise for files with a few wrong bytes: it has no error of its own for them.
_DAMAGE = (RuntimeError, zipfile.BadZipFile, EOFError, ValueError, LookupError, TypeError, AttributeError)


def _from_torch(path: Path) -> dict[str, Any]:
    parts = None
    try:
        # The older format of torch.save is one bare pickle: it has no end to tell a cut file by, and cannot be mapped.
        if is_zip := zipfile.is_zipfile(path):
            parts = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects besides tensors and plain data. Opening them could run code of whoever "
            "made the file, so it is refused; ask for the weights as safetensors"
        ) from None
    except _DAMAGE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: is damaged ({reason}); download it again") from None
    if not is_zip:
        raise UserError(
            f"{path}: is cut short, or was not written by torch.save (in its format since PyTorch 1.6); "
            "download it again, or convert it to safetensors"
        )
    if not isinstance(parts, dict):
        raise UserError(f"{path}: holds a {type(parts).__name__}, not the parts of a model by name")
    return parts
