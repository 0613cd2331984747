"""Reads YAML into plain data that still knows in which file and line each key was written.

Scalars follow YAML 1.2: `1e-4` is a number, only true and false are booleans, `yes`, `010` and
dates are text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import read_text, write_atomic

KeyPath = tuple[str, ...]  # ("encoder", "width")
OVERRIDE = "override "  # what the place of a key that no file holds begins with

_FLOAT = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+"
    r"|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"^[-+]?(?:0|[1-9][0-9_]*)$")


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"^<<$"), "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, list(_first))


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes every text which YAML 1.1 or our loader would take for something
    else."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))
_Dumper.add_representer(
    list,
    lambda dumper, items: dumper.represent_sequence(
        "tag:yaml.org,2002:seq",
        items,
        flow_style=not any(isinstance(item, (list, dict)) for item in items),
    ),
)


@dataclass
class Source:
    """Plain data, the place each key came from, and what was wrong with single values."""

    data: dict[str, Any] = field(default_factory=dict)
    where: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def lay_over(self, below: Source) -> Source:
        """Deep-merge this source over `below`; lists and scalars replace, mappings merge.

        A mapping that chooses another entry of a table (another `name`) replaces the one below:
        settings of a solver are none of another's."""
        return Source(
            _merged(below.data, self.data),
            {**below.where, **self.where},
            below.problems + self.problems,
        )


def read_yaml(path: Path) -> Source:
    """Read one file whose top level is a mapping (or empty).

    Raises UserError naming file and line for what is no YAML, and the path for what cannot be
    read."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except PermissionError:
        raise UserError(f"{path}: may not be read; check its permissions") from None
    source = Source()
    value = _parse(text, str(path), (), source, lambda line: f"{path}:{line}")
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{path}: the top level must be a mapping of sections, got {value!r}")
    source.data = value or {}
    return source


def names_first(overrides: Sequence[str]) -> list[str]:
    """The overrides in an order in which what names an entry of a table (`latent.name=...`) stands
    before other keys of its section: laid over them it would take them away."""
    ordered: list[str] = []
    for override in overrides:
        at, key = len(ordered), override.partition("=")[0]
        if key.endswith(".name"):
            section = key.removesuffix("name")
            keys = [text.partition("=")[0] for text in ordered]
            inside = (i for i, one in enumerate(keys) if one.startswith(section) and one != key)
            at = next(inside, at)
        ordered.insert(at, override)
    return ordered


def read_override(override: str) -> Source:
    """Read one `section.key=value`, the value in YAML; raises UserError naming the override."""
    place = f"{OVERRIDE}'{override}'"
    dotted, equals, text = override.partition("=")
    path = tuple(dotted.strip().split("."))
    if not equals or not all(path):
        raise UserError(f"{place}: an override has the form section.key=value")
    source = Source()
    value = _parse(text, place, path, source, lambda line: place)
    for depth in range(len(path), 0, -1):
        source.where[path[:depth]] = place
        value = {path[depth - 1]: value}
    source.data = value
    return source


def write_yaml(data: dict[str, Any], path: Path) -> None:
    """Write plain data so that `read_yaml` gives it back; atomic."""
    write_atomic(
        path, yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    )


def _parse(
    text: str, name: str, path: KeyPath, source: Source, place: Callable[[int], str]
) -> Any:
    """The data in `text`, its keys' places added to `source.where` under `path`."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else _plain(loader, node, path, source, place)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        line = place(mark.line + 1) if mark else name
        raise UserError(
            f"{line}: is not YAML: {getattr(error, 'problem', None) or error}"
        ) from None


def _plain(
    loader: _Loader, node: yaml.Node, path: KeyPath, source: Source, place: Callable[[int], str]
) -> Any:
    """One node as plain data; a key given twice or a number that is not finite goes to
    `source.problems`."""
    here = place(node.start_mark.line + 1)
    if isinstance(node, yaml.CollectionNode) and not node.tag.endswith((":map", ":seq")):
        raise yaml.MarkedYAMLError(
            problem=f"the tag {node.tag!r} has no place in a config", problem_mark=node.start_mark
        )
    if isinstance(node, yaml.MappingNode):
        written = [
            str(loader.construct_object(key))
            for key, _ in node.value
            if not key.tag.endswith(":merge")
        ]
        for name in sorted({name for name in written if written.count(name) > 1}):
            source.problems.append(f"{here}: '{'.'.join((*path, name))}' is given twice")
        loader.flatten_mapping(node)
        data = {}
        for key_node, value_node in node.value:
            name = str(loader.construct_object(key_node))
            inside = (*path, name)
            source.where[inside] = place(key_node.start_mark.line + 1)
            data[name] = _plain(loader, value_node, inside, source, place)
        return data
    if isinstance(node, yaml.SequenceNode):
        return [
            _plain(loader, item, (*path, str(i)), source, place)
            for i, item in enumerate(node.value)
        ]
    value = loader.construct_object(node)
    if isinstance(value, float) and not math.isfinite(value):
        source.problems.append(
            f"{here}: '{'.'.join(path)}' must be a finite number, got {node.value}"
        )
        return 0.0  # stands in, so that the rest can be checked in the same round
    return value


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        if isinstance(lower, dict) and isinstance(value, dict) and not _another(lower, value):
            merged[key] = _merged(lower, value)
        else:
            merged[key] = value
    return merged


def _another(below: dict[str, Any], above: dict[str, Any]) -> bool:
    """Whether both name an entry of a table, and not the same."""
    return "name" in below and "name" in above and below["name"] != above["name"]
