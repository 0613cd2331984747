"""Splits nested training state into JSON data and named tensors, and joins the two again, exactly.

Dicts with any int or text keys, lists, tuples, ints, floats (not finite ones too), bools, text and
None survive as they are; tensors are taken out and replaced by their names. What is none of these
is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

_MARKS = ("$tensor", "$tuple", "$dict", "$float")


def split(state: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """(JSON data, {flattened name: tensor}); raises TypeError naming the place of what cannot be
    kept."""
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


def on_host(state: Any) -> Any:
    """The same nested state with every tensor copied to the CPU, so that training may go on
    changing its own."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, Mapping):
        return {key: on_host(item) for key, item in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(on_host(item) for item in state)
    return state


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
