"""The config and command-line references, read from the code: `python docs/reference.py config` or
`cli` prints one.

As a hook of mkdocs it adds both as pages at every build, so that they cannot be stale, and the
pages that lie at the top of the repository."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from jepa_wm import cli
from jepa_wm.config import Config
from jepa_wm.core.registry import Choice, EntryName

ROOT = Path(__file__).resolve().parents[1]
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "length >="}


def config_page() -> str:
    """Every key with its type, default and meaning, a heading a section."""
    lines = [
        "# Config reference",
        "",
        "Every setting is given on the command line as `section.key=value`, or in a YAML file,",
        "which holds what differs from the config that its `base:` names. An unknown key is an",
        "error with the nearest name. What a run used stands in its `config.yaml`.",
    ]
    for section, model in sections(Config, ""):
        lines += ["", f"## {section or 'Top level'}", "", *described(model)]
    return "\n".join(lines) + "\n"


def sections(model: type[BaseModel], path: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, schema) of a section and of all below it; of a table, one a registered
    name."""
    yield path, model
    for name, field in model.model_fields.items():
        below = f"{path}.{name}" if path else name
        for choice in choices(field):
            for entry in choice.registry.names():
                for section, schema in sections(choice.registry.get(entry), below):
                    yield (f"{section}, name: {entry}" if section == below else section), schema
        for schema in models_of(field.annotation):
            if not choices(field):
                yield from sections(schema, below)


def choices(field: FieldInfo) -> list[Choice]:
    """The table that the field is chosen from, if it is."""
    return [part for part in field.metadata if isinstance(part, Choice)]


def models_of(annotation: Any) -> list[type[BaseModel]]:
    """The sections in a type: itself, or those of a union or of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models_of(part)]


def described(model: type[BaseModel]) -> list[str]:
    """The section's docstring and a table of its keys."""
    text = inspect.cleandoc(model.__doc__ or "")
    comments = comments_of(model)
    rows = []
    for name, field in model.model_fields.items():
        kind = type_of(field)
        value = default(field)
        rows.append(f"| `{name}` | {kind} | {value} | {comments.get(name, '')} |")
    table = ["| key | type | default | meaning |", "| --- | --- | --- | --- |", *rows]
    return [*([text.replace("\n\n", " "), ""] if text else []), *(table if rows else ["No keys."])]


def type_of(field: FieldInfo) -> str:
    """The type in words, with its bounds."""
    if choices(field):
        names = choices(field)[0].registry.names()
        return "a section with a `name`: " + ", ".join(f"`{name}`" for name in names)
    kind = names_of(field.metadata) or named(field.annotation)
    for part in field.metadata:
        for bound, sign in BOUNDS.items():
            if getattr(part, bound, None) is not None:
                kind += f", {sign} {getattr(part, bound):g}"
    return kind


def named(kind: Any) -> str:
    """A type as a reader of YAML would say it."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return names_of(kind.__metadata__) or named(inside[0])
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in inside)
    if origin in (Union, UnionType):
        return " or ".join(named(part) for part in inside)
    if origin is tuple and len(inside) == 2 and inside[1] is Ellipsis:
        return f"list of {named(inside[0])}"
    if origin is tuple:
        return "[" + ", ".join(named(part) for part in inside) + "]"
    if origin is dict:
        return f"mapping to {named(inside[1])}"
    if kind is NoneType:
        return "null"
    if models_of(kind):
        return "section"
    return str(getattr(kind, "__name__", kind))


def names_of(metadata: Iterable[Any]) -> str:
    """The names that a value is chosen from, if it is the name of an entry of a table; else
    nothing."""
    tables = [part.registry for part in metadata if isinstance(part, EntryName)]
    return " or ".join(f"`{name}`" for table in tables for name in table.names())


def default(field: FieldInfo) -> str:
    """The default as YAML would have it; nothing for a section, whose keys have their own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return ""
    if isinstance(value, tuple):
        value = [v.model_dump(exclude_defaults=True) if models_of(type(v)) else v for v in value]
    return f"`{json.dumps(value)}`"


def comments_of(model: type[BaseModel]) -> dict[str, str]:
    """{key: the comments on its lines and right above it}, those of parents included."""
    comments: dict[str, str] = {}
    for parent in reversed(model.__mro__):
        if not (issubclass(parent, BaseModel) and parent.__module__.startswith("jepa_wm")):
            continue
        source = textwrap.dedent(inspect.getsource(parent))
        lines, above = source.splitlines(), 0
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                text = " ".join(filter(None, map(comment, lines[above : node.end_lineno])))
                comments[node.target.id] = text.replace("|", "\\|")
            above = node.end_lineno or 0
    return comments


def comment(line: str) -> str:
    """What stands behind the `#` of a line, if it is not in a string."""
    match = re.match(r"""(?:[^#"']|"[^"]*"|'[^']*')*#\s*(.*)""", line)
    text = match[1].strip() if match else ""
    return "" if text.startswith(("noqa", "type:", "fmt:")) else text


def cli_page() -> str:
    """What `jepa-wm --help` and every command's own help say."""
    front = help_of([])
    commands = re.findall(r"^ {4}([a-z]+)\s", front, re.MULTILINE)
    lines = ["# Command line reference", "", "```text", front.strip(), "```"]
    for command in commands:
        lines += ["", f"## {command}", "", "```text", help_of([command]).strip(), "```"]
    return "\n".join(lines) + "\n"


def help_of(words: list[str]) -> str:
    """The help text of a command, at a fixed width."""
    text, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "99"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            cli.main([*words, "--help"])
    finally:
        if width is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = width
    return text.getvalue()


def on_files(files: Any, config: Any) -> Any:
    """mkdocs: these pages are added to those of the folder."""
    from mkdocs.structure.files import File

    pages = {"reference/config.md": config_page(), "reference/cli.md": cli_page()}
    for name in ("CONTRIBUTING", "CHANGELOG"):  # lie at the top, their links begin there
        text = (ROOT / f"{name}.md").read_text(encoding="utf-8")
        pages[f"{name.lower()}.md"] = text.replace("](docs/", "](")
    for name, page in pages.items():
        files.append(File.generated(config, name, content=page))
    return files


if __name__ == "__main__":
    print({"config": config_page, "cli": cli_page}[sys.argv[1]](), end="")
