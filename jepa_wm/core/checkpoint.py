"""Checkpoints that appear by rename: weights apart from training state, both in safetensors and
JSON, no pickle.

step_00001234/weights.safetensors   the model, for others to load
step_00001234/state.safetensors     tensors of the training state (moments, generator states)
step_00001234/state.json            the rest of it: counters, schedules, the data position
step_00001234/manifest.json         size and sha256 of the three, written last
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from jepa_wm.core.errors import UserError, a_few
from jepa_wm.core.files import sync_folder, written_whole

_MARKS = ("$tensor", "$tuple", "$dict", "$float")  # what stands for other than plain JSON
_NAME = re.compile(r"step_(\d{8,})(\.replaced)?")
_PARTIAL = ".partial-"
_FILES = ("weights.safetensors", "state.safetensors", "state.json")


def save_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, torch.Tensor],
    state: Mapping[str, Any],
    keep: int = 2,
) -> Path:
    """Write `folder/step_<step>` and prune all but the `keep` newest; returns its path.

    The checkpoint appears whole or not at all: on any failure (a full disk raises OSError) the
    partial one is removed and the earlier ones are untouched. One process writes at a time."""
    assert keep >= 1, "a checkpoint that is pruned at once is none"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{_PARTIAL}*"):  # of a process that was killed while writing
        shutil.rmtree(leftover)
    partial = folder / f"{_PARTIAL}{step:08d}"
    partial.mkdir()
    try:
        data, tensors = split(state)
        _write_tensors(partial / "weights.safetensors", weights)
        _write_tensors(partial / "state.safetensors", tensors)
        _write_json(partial / "state.json", {"step": step, "state": data})
        files = {
            name: {"size": (partial / name).stat().st_size, "sha256": _sha256(partial / name)}
            for name in _FILES
        }
        _write_json(partial / "manifest.json", {"step": step, "files": files})
        sync_folder(partial)
        final = _put_in_place(partial, folder / f"step_{step:08d}")
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already if all went well
    newest_first = [path for path in _candidates(folder) if path != final]
    for old in newest_first[keep - 1 :]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in `folder`, None if there is none; warns of each newer one that
    is broken."""
    for path in _candidates(folder):
        fault = _fault(path)
        if fault is None:
            return path
        warnings.warn(f"checkpoint {path} is passed over: {fault}", stacklevel=2)
    return None


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(weights, state) as they were saved, tensors on the CPU.

    Raises UserError naming the fault and the remedy if the checkpoint is missing or broken.
    """
    fault = _fault(path)
    if fault is not None:
        raise UserError(
            f"checkpoint {path} cannot be loaded: {fault}; delete it to continue from an earlier "
            "one"
        )
    tensors = load_file(path / "state.safetensors")
    data = json.loads((path / "state.json").read_text(encoding="utf-8"))
    return load_file(path / "weights.safetensors"), join(data["state"], tensors)


def load_strict(
    module: torch.nn.Module, weights: Mapping[str, torch.Tensor], *, source: str = "the weights"
) -> None:
    """Load every weight into its place; `source` is what to call the weights in a message.

    Raises UserError listing all keys that are missing, unexpected or of another shape; the module
    is then unchanged."""
    check_fit(weights, module.state_dict(), source=source, model=type(module).__name__)
    module.load_state_dict(dict(weights), strict=True)


def save_weights(module: torch.nn.Module, path: Path) -> None:
    """Write a module's weights as one safetensors file, which appears whole or not at all."""
    weights = {name: value.contiguous() for name, value in module.state_dict().items()}
    with written_whole(path) as temporary:
        save_file(weights, temporary)


def check_fit(
    weights: Mapping[str, torch.Tensor],
    expected: Mapping[str, torch.Tensor],
    *,
    source: str,
    model: str,
) -> None:
    """Raises UserError listing all keys of `weights` that are missing, unexpected or of another
    shape than wanted."""
    faults = []
    for title, names in (
        ("missing", [name for name in expected if name not in weights]),
        ("unexpected", [name for name in weights if name not in expected]),
        (
            "of another shape",
            [
                f"{name} {tuple(weights[name].shape)}, the model has {tuple(expected[name].shape)}"
                for name in expected
                if name in weights and weights[name].shape != expected[name].shape
            ],
        ),
    ):
        if names:
            faults.append(f"  {len(names)} {title}: {a_few(names)}")
    if faults:
        raise UserError(f"{source} do not fit {model}:\n" + "\n".join(faults))


def split(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """(JSON data, {flattened name: tensor}) of a nested training state, exactly: dicts with int or
    text keys, lists, tuples, ints, floats, bools, text, None and tensors.

    Raises TypeError naming the place of what is none of these."""
    tensors: dict[str, torch.Tensor] = {}
    return _split(state, "state", tensors), tensors


def join(data: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    """The mirror image of `split`; raises KeyError for a tensor that is not there."""
    if isinstance(data, list):
        return [join(item, tensors) for item in data]
    if not isinstance(data, dict):
        return data
    if len(data) == 1:
        ((mark, inside),) = data.items()
        if mark == "$tensor":
            return tensors[inside]
        if mark == "$tuple":
            return tuple(join(item, tensors) for item in inside)
        if mark == "$dict":
            return {key: join(item, tensors) for key, item in inside}
        if mark == "$float":
            return float(inside)
    return {key: join(item, tensors) for key, item in data.items()}


def _candidates(folder: Path) -> list[Path]:
    """Everything named like a checkpoint, newest first, one that was being replaced after its
    successor."""
    checkpoints = []
    for path in folder.iterdir() if folder.is_dir() else ():
        match = _NAME.fullmatch(path.name)
        if match:
            checkpoints.append((int(match[1]), match[2] is None, path))
    return [path for _, _, path in sorted(checkpoints, reverse=True)]


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint, None if it is whole."""
    if not path.is_dir():
        return "there is no such folder"
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        for name in _FILES:
            stated, file = manifest["files"][name], path / name
            if file.stat().st_size != stated["size"]:
                return f"{name} has {file.stat().st_size} bytes instead of {stated['size']}"
            if _sha256(file) != stated["sha256"]:
                return f"{name} has been altered (sha256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return "manifest.json is damaged"
    return None


def _put_in_place(partial: Path, final: Path) -> Path:
    """Rename; one of the same step is moved aside first, where newest_checkpoint still finds it
    after a crash."""
    aside = final.with_name(f"{final.name}.replaced")
    if final.exists():
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
    partial.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(aside, ignore_errors=True)
    return final


def _write_tensors(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        save_file(_separate(tensors), file)
    except SafetensorError as error:  # hides the system's error number in its text
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(file)) from error
    with open(file, "rb") as written:
        os.fsync(written.fileno())


def _separate(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors of which no two share memory (tied weights, views), as safetensors
    demands."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().contiguous()
        storage = tensor.untyped_storage()
        if (
            storage.data_ptr() in seen
            or storage.nbytes() != tensor.numel() * tensor.element_size()
        ):
            tensor = tensor.clone()
        seen.add(storage.data_ptr())
        apart[name] = tensor
    return apart


def _split(value: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        unique = name
        while unique in tensors:  # {"a.b": x, "a": {"b": y}} flatten to the same name
            unique += "'"
        tensors[unique] = value
        return {"$tensor": unique}
    if isinstance(value, Mapping):
        for key in value:
            if type(key) not in (int, str):
                raise TypeError(f"{name}: keys must be int or text, not {key!r}")
        inside = [(key, _split(item, f"{name}.{key}", tensors)) for key, item in value.items()]
        plain = all(isinstance(key, str) and key not in _MARKS for key, _ in inside)
        return dict(inside) if plain else {"$dict": [[key, item] for key, item in inside]}
    if isinstance(value, (list, tuple)):
        items = [_split(item, f"{name}.{i}", tensors) for i, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if type(value) is float and not math.isfinite(value):
        return {"$float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"{name}: {type(value).__name__} cannot be kept in a checkpoint; make it a tensor or "
        "plain data"
    )


def _write_json(file: Path, data: Any) -> None:
    with open(file, "w", encoding="utf-8") as out:
        json.dump(data, out, allow_nan=False)
        out.flush()
        os.fsync(out.fileno())


def _sha256(file: Path) -> str:
    checksum = hashlib.sha256()
    with open(file, "rb") as source:
        while block := source.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()
