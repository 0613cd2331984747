"""What messages advise exists: settings, options and commands that the source names in its texts
are there."""

import ast
import re
import types
from pathlib import Path
from typing import Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from jepa_wm.config import Config
from jepa_wm.core.commands import command_parser, commands, evaluations
from jepa_wm.core.registry import Choice
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import Unreadable

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    file for room in ("jepa_wm", "evals", "launch") for file in (ROOT / room).rglob("*.py")
)
SECTIONS = {name for name, field in Config.model_fields.items() if name != "seed"}
NAMED = re.compile(rf"(?<![\w./])(?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_]\w*)+")
OPTION = re.compile(r"(?<![\w(-])--[a-z][a-z-]*(?![\w:])")
COMMAND = re.compile(r"jepa-wm ([a-z]+)")
MARKED = re.compile(r"`([a-z_]+)`")
FOREIGN = {"--nnodes"}  # torchrun's


def texts(source):
    """Every text of a source that is no docstring, f-strings with {} for what they fill in."""
    tree, inside = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            inside |= set(map(id, node.values))
            yield "".join(
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
            )
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))  # a docstring
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.value


def models(annotation):
    """The sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    nested = get_origin(annotation) in (Union, types.UnionType, tuple, list) or hasattr(
        annotation, "__metadata__"
    )
    return [model for part in get_args(annotation) for model in models(part)] if nested else []


def below(field):
    """The sections that a field may hold; of one that is chosen by name, each of the table."""
    choices = [item for item in field.metadata if isinstance(item, Choice)]
    chosen = [choice.registry.get(name) for choice in choices for name in choice.registry]
    return [*models(field.annotation), *chosen]


def is_setting(dotted, above=(Config,)):
    name, _, rest = dotted.partition(".")
    fields = [model.model_fields[name] for model in above if name in model.model_fields]
    return bool(fields) and (
        not rest or is_setting(rest, [model for field in fields for model in below(field)])
    )


def every(pattern):
    """(file, what it names) wherever a text says more than a name."""
    for file in SOURCES:
        for text in texts(file.read_text(encoding="utf-8")):
            for match in pattern.finditer(text) if " " in text else ():
                yield file.relative_to(ROOT).as_posix(), match.group(match.lastindex or 0)


def test_settings_that_are_named_are_there():
    named = {(file, name) for file, name in every(NAMED) if name not in ("train.h5",)}
    assert len(named) > 40 and not {(file, name) for file, name in named if not is_setting(name)}
    assert (
        is_setting("data.max_unreadable")
        and not is_setting("data.ceiling")
        and not is_setting("data.augment.x")
    )


def test_options_and_commands_that_are_named_are_there():
    options = {
        o
        for command in commands()
        for action in command_parser(command)._actions
        for o in action.option_strings
    }
    named = {
        name for file, name in every(OPTION) if not file.startswith("jepa_wm/show/")
    } - FOREIGN  # CSS is there
    assert "--without" in named and not named - options
    called = {name for _, name in every(COMMAND)}
    assert "features" in called and not called - set(commands())
    marked = {name for _, name in every(MARKED)}
    others = {
        "absolute",
        "make",
    }  # a value of the attribute action_kind, and what a module of worlds offers
    assert "collect" in marked and not marked - set(commands()) - set(evaluations()) - others


def test_too_many_unreadable_videos_name_the_setting_that_allows_more():
    with pytest.raises(
        ValueError,
        match=r"allow more with data\.max_unreadable\n\(of `jepa-wm pack`: --unreadable\)",
    ):
        Unreadable(3, 0.1).add(Path("x.mp4"), VideoError("x.mp4: is cut short"))
