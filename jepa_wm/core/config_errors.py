"""Says in the user's terms what pydantic found wrong: where it was written, which key, what was
expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jepa_wm.core.registry import Choice
from jepa_wm.core.yaml_source import KeyPath, Source


def explain(
    error: ValidationError, source: Source, schema: type[BaseModel], file: Path
) -> list[str]:
    """One line for each problem; the branches of a union become one line."""
    expected: dict[KeyPath, list[str]] = {}
    lines: dict[KeyPath, str] = {}
    for item in error.errors(include_url=False):
        path, value = _follow(item["loc"], source.data)
        if item["type"] == "missing":
            path = (*path, str(item["loc"][-1]))
        key, place = ".".join(path), _place(path, source, file)
        if item["type"] == "extra_forbidden":
            lines[path] = f"{place}: unknown key '{key}'; {_nearest(path, schema, source.data)}"
        elif item["type"] == "missing":
            lines[path] = f"{place}: '{key}' is required"
        elif item["type"] in ("value_error", "assertion_error"):
            message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
            lines[path] = f"{place}: {key + ': ' if key else ''}{message}"
        else:
            wish = item["msg"].removeprefix("Input should be ")
            expected.setdefault(path, []).append(wish)
            lines[path] = (
                f"{place}: '{key}' must be {' or '.join(dict.fromkeys(expected[path]))}, got "
                f"{value!r}"
            )
    return list(lines.values())


def _follow(location: Sequence[str | int], data: Any) -> tuple[KeyPath, Any]:
    """Where pydantic's location leads in the data; the names of union branches in it are no
    keys."""
    path: list[str] = []
    for part in location:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            continue
        path.append(str(part))
    return tuple(path), data


def _place(path: KeyPath, source: Source, file: Path) -> str:
    for depth in range(len(path), 0, -1):
        if path[:depth] in source.where:
            return source.where[path[:depth]]
    return str(file)


def _nearest(path: KeyPath, schema: type[BaseModel], data: Any) -> str:
    """The advice for an unknown key: a near name in its section, the same name elsewhere, or all
    valid names."""
    kinds: list[Any] = [schema]
    for name in path[:-1]:
        data = data.get(name) if isinstance(data, dict) else None
        kinds = [inner for kind in kinds for inner in _inside(kind, name, data)]
    siblings = [name for kind in kinds if _is_model(kind) for name in kind.model_fields]
    close = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)
    elsewhere = [key for key in _all_keys(schema) if key[-1] == path[-1]]
    if elsewhere and not difflib.get_close_matches(path[-1], close, cutoff=0.8):
        return f"nearest valid key: '{'.'.join(elsewhere[0])}'"
    if close:
        return f"nearest valid key: '{'.'.join((*path[:-1], close[0]))}'"
    return f"valid keys here: {', '.join(sorted(siblings))}"


def _inside(kind: Any, name: str, data: Any = None) -> list[Any]:
    """The types that may stand under `name` in a model, or under any key of a container; unions
    opened. Where `data`, what does stand there, chooses one of a table, that one; its default
    where there is none."""
    if _is_model(kind) and name in kind.model_fields:
        choices = [part for part in kind.model_fields[name].metadata if isinstance(part, Choice)]
        if choices:
            return [choices[0].schema(data)]
    if _is_model(kind):
        annotations = [kind.model_fields[name].annotation] if name in kind.model_fields else []
    else:
        annotations = list(get_args(kind))
    opened: list[Any] = []
    for annotation in annotations:
        container = get_origin(annotation) in (list, tuple, set, dict)
        opened += (
            [annotation] if container or not get_args(annotation) else _inside(annotation, name)
        )
    return opened


def _all_keys(schema: type[BaseModel], path: KeyPath = ()) -> Iterator[KeyPath]:
    for name in schema.model_fields:
        yield (*path, name)
        for kind in _inside(schema, name):
            if _is_model(kind):
                yield from _all_keys(kind, (*path, name))


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
