"""Configs: PyYAML reads them, pydantic checks them, and every problem is named at once with file,
line and key."""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from jepa_wm.core.errors import UserError, nearest
from jepa_wm.core.registry import Choice
from jepa_wm.core.yaml_source import (
    OVERRIDE,
    KeyPath,
    Source,
    names_first,
    read_override,
    read_yaml,
    write_yaml,
)

Schema = TypeVar("Schema", bound=BaseModel)
Settings = BaseModel | Mapping[str, Any]  # a checked config, or one read back as plain data


def load_yaml_config(
    name_or_path: str | Path, overrides: Sequence[str], schema: type[Schema]
) -> Schema:
    """Read a YAML (laid over the config its `base:` names), lay the overrides on top, check it
    with `schema`.

    Types are strict: an integer may stand for a float, nothing else is converted. UserError lists
    every problem, one a line: place (file:line or override), key, what was expected and found."""
    path = find_config(name_or_path)
    source = _read_with_bases(path, ())
    broken: list[str] = []
    for override in names_first(overrides):
        try:
            source = read_override(override).lay_over(source)
        except UserError as error:
            broken.append(str(error))
    problems = source.problems + broken
    config = None
    try:
        config = schema.model_validate_json(json.dumps(source.data), strict=True)
    except ValidationError as error:
        problems += _explain(error, source, schema, path)
    if problems or config is None:
        raise UserError("\n".join(problems))
    return config


def find_config(name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    """The file that a config's name or path means; a bare name is sought beside a config, then
    among the shipped.

    `beside` is the file whose `base:` named this one; relative paths start there. Raises UserError
    with the nearest name."""
    named = Path(name_or_path)
    if named.suffix in (".yaml", ".yml") or len(named.parts) != 1:
        path = beside.parent / named if beside else named
        if not path.is_file():
            raise UserError(
                f"config {str(name_or_path)!r}: there is no file {path}; "
                f"{_shipped_ones(named.stem)}"
            )
        return path
    if beside and beside.stem != named.name and (beside.parent / f"{named}.yaml").is_file():
        return beside.parent / f"{named}.yaml"
    path = _shipped_folder() / f"{named}.yaml"
    if not path.is_file():
        raise UserError(f"no config is named {str(name_or_path)!r}; {_shipped_ones(str(named))}")
    return path


def save_config(config: BaseModel, path: Path) -> None:
    """Write the resolved config so that loading it gives an equal one; atomic."""
    write_yaml(config.model_dump(mode="json"), path)


def config_diff(a: Settings, b: Settings) -> list[str]:
    """What differs: `dotted.key: value in a -> value in b`, '(absent)' where there is none."""
    left, right = dict(_leaves(as_plain(a))), dict(_leaves(as_plain(b)))
    absent = "(absent)"
    return [
        f"{'.'.join(key)}: {left.get(key, absent)} -> {right.get(key, absent)}"
        for key in {**left, **right}
        if key not in left or key not in right or left[key] != right[key]
    ]


def with_defaults(stored: Mapping[str, Any], config: BaseModel) -> dict[str, Any]:
    """Settings that were stored, with those they lack at their defaults in the schema of `config`.

    A section that `config` has as null is left as it was stored.
    """
    deeper = {
        name: with_defaults(stored[name], section)
        for name, section in config
        if isinstance(section, BaseModel) and isinstance(stored.get(name), Mapping)
    }
    return {**type(config).model_construct().model_dump(mode="json"), **stored, **deeper}


def pick(config: Settings, keys: Sequence[str]) -> dict[str, Any]:
    """{dotted key: its section or value} for the chosen keys that the config has."""
    chosen = {}
    for dotted in keys:
        section: Any = as_plain(config)
        *parents, name = dotted.split(".")
        for parent in parents:
            section = section.get(parent) if isinstance(section, Mapping) else None
        if isinstance(section, Mapping) and name in section:
            chosen[dotted] = section[name]
    return chosen


def digest(config: Settings) -> str:
    """A short sha256 (16 hex digits), the same on every machine and in every order of keys."""
    text = json.dumps(as_plain(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def as_plain(config: Settings) -> dict[str, Any]:
    """The config as dicts, lists and scalars, as they stand in its YAML."""
    return config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"evaluation.collect": x} as {"evaluation": {"collect": x}}, the broader of two
    overlapping keys kept whole."""
    tree: dict[str, Any] = {}
    for dotted, value in sorted(flat.items(), key=lambda item: item[0].count(".")):
        inside = tree
        *parents, name = dotted.split(".")
        for parent in parents:
            inside = inside.setdefault(parent, {})
        inside.setdefault(name, value)
    return tree


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> Source:
    """A file laid over its base, and that over its own; raises UserError when they run in a
    circle."""
    if path.resolve() in above:
        raise UserError(
            f"{path}: 'base' runs in a circle: "
            f"{' -> '.join(str(p) for p in (*above, path.resolve()))}"
        )
    source = read_yaml(path)
    base = source.data.pop("base", None)
    if base is None:
        return source
    place = source.where.pop(("base",))
    if not isinstance(base, str):
        raise UserError(f"{place}: 'base' must be the name or path of one config, got {base!r}")
    try:
        below = find_config(base, beside=path)
    except UserError as error:
        raise UserError(f"{place}: 'base': {error}") from None
    return source.lay_over(_read_with_bases(below, (*above, path.resolve())))


def _leaves(data: Mapping[str, Any], path: KeyPath = ()) -> Iterator[tuple[KeyPath, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, (*path, str(key)))
        else:
            yield (*path, str(key)), value


def _shipped_folder() -> Path:
    return Path(str(importlib.resources.files("jepa_wm.configs")))


def _shipped_ones(named: str) -> str:
    names = sorted(file.stem for file in _shipped_folder().glob("*.yaml"))
    return f"{nearest(named, names)}shipped with the library: {', '.join(names) or 'none'}"


def _explain(
    error: ValidationError, source: Source, schema: type[BaseModel], file: Path
) -> list[str]:
    """One line for each problem; the branches of a union become one line."""
    expected: dict[KeyPath, list[str]] = {}
    lines: dict[KeyPath, str] = {}
    # Lines are kept by key, for pydantic complains of each branch of a union apart.
    for item in error.errors(include_url=False):
        path, value = _follow(item["loc"], source.data)
        if item["type"] == "missing":
            path = (*path, str(item["loc"][-1]))
        key, place = ".".join(path), _place(path, source) or _blamed(item["msg"], source)
        place = place or str(file)
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


def _place(path: KeyPath, source: Source) -> str | None:
    for depth in range(len(path), 0, -1):
        if path[:depth] in source.where:
            return source.where[path[:depth]]
    return None


def _blamed(message: str, source: Source) -> str | None:
    """Where the keys that a check of several sections names were written: as overrides, if any
    was, else in a file."""
    keys = (tuple(key.split(".")) for key in re.findall(r"[a-z_0-9]+(?:\.[a-z_0-9]+)+", message))
    places = list(dict.fromkeys(source.where[key] for key in keys if key in source.where))
    overrides = [place for place in places if place.startswith(OVERRIDE)]
    return ", ".join(overrides or places[:1]) or None


def _nearest(path: KeyPath, schema: type[BaseModel], data: Any) -> str:
    """The advice for an unknown key: a near name in its section or elsewhere, or all names."""
    kinds: list[Any] = [schema]
    for name in path[:-1]:
        data = data.get(name) if isinstance(data, dict) else None
        kinds = [inner for kind in kinds for inner in _inside(kind, name, data)]
    siblings = [name for kind in kinds if _is_model(kind) for name in kind.model_fields]
    if path[-1] in siblings:  # of another branch of a union
        return f"it does not go with the other keys of '{'.'.join(path[:-1])}'"
    close = difflib.get_close_matches(path[-1], siblings, n=1, cutoff=0.6)
    elsewhere = [key for key in _all_keys(schema) if key[-1] == path[-1]]
    if path in elsewhere:  # of another entry of a table
        return f"it goes with another {'.'.join(path[:-1])}.name than the one chosen here"
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
