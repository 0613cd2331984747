"""The rooms import only what the design lets them: read from the source, imports inside functions included."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ABOVE = frozenset(  # everything a training loop stands on
    {"core", "observe", "worlds", "encode", "predict", "freeze", "dynamics", "imagine"}
)
MAY_IMPORT = {
    "core": frozenset(),
    "observe": frozenset({"core"}),
    "worlds": frozenset({"core", "observe"}),
    "encode": frozenset({"core"}),
    "predict": frozenset({"core", "encode"}),
    "freeze": frozenset({"core", "encode", "observe"}),
    "dynamics": frozenset({"core", "encode"}),
    "imagine": frozenset({"core", "freeze", "dynamics"}),
    "plan": frozenset({"core"}),
    "act": frozenset({"core", "observe", "worlds", "imagine", "plan"}),
    "train": ABOVE,
    "show": frozenset({"core", "observe", "imagine"}),
    "evals": ABOVE | {"plan", "act", "train", "show"},
    "launch": frozenset({"core"}),
    "configs": frozenset(),
}
AT_THE_TOP = ("evals", "launch", "configs")  # rooms that lie beside jepa_wm/
DOORS = {"__init__.py", "__main__.py", "cli.py", "demo.py"}  # files directly in jepa_wm/: may import any room


def room_folder(room: str) -> Path:
    return ROOT / room if room in AT_THE_TOP else ROOT / "jepa_wm" / room


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of all modules (or names in them) that a file of `package` imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
    return found


def forbidden(source: str, package: str, room: str) -> list[str]:
    """What a file of `room` imports against the table; the top-level folders' own names are never right."""
    wrong = []
    for module in sorted(imported_modules(source, package)):
        first, _, rest = module.partition(".")
        if first in AT_THE_TOP:
            wrong.append(module)
        elif first == "jepa_wm":
            other = rest.partition(".")[0]
            public = other not in MAY_IMPORT  # a name of jepa_wm/__init__.py, or one of the doors
            if other != "__version__" and other != room and (public or other not in MAY_IMPORT[room]):
                wrong.append(module)
    return wrong


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    folder = room_folder(room)
    wrong = []
    for file in sorted(folder.rglob("*.py")):
        inside = file.parent.relative_to(folder).parts
        package = ".".join(("jepa_wm", room, *inside))
        names = forbidden(file.read_text(encoding="utf-8"), package, room)
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in names]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_room_and_every_room_a_package():
    rooms = {path.name for path in (ROOT / "jepa_wm").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms <= set(MAY_IMPORT), "a new room needs a line in the table"
    for room in MAY_IMPORT:
        if any(room_folder(room).glob("*.py")):
            assert (room_folder(room) / "__init__.py").exists(), f"{room} is left out of a wheel without __init__.py"


def test_nothing_but_the_doors_lies_in_the_hall():
    assert {path.name for path in (ROOT / "jepa_wm").glob("*.py")} <= DOORS


@pytest.mark.parametrize(
    ("source", "room", "wrong"),
    [
        ("def f():\n    from jepa_wm.act import agent", "plan", ["jepa_wm.act.agent"]),
        ("import jepa_wm.train.pretrain", "encode", ["jepa_wm.train.pretrain"]),
        ("from jepa_wm import predict", "encode", ["jepa_wm.predict"]),
        ("from ..train import loop", "encode", ["jepa_wm.train.loop"]),
        ("from .. import train", "encode", ["jepa_wm.train"]),
        ("import importlib\nimportlib.import_module('jepa_wm.plan')", "train", ["jepa_wm.plan"]),
        ("from jepa_wm.cli import main", "act", ["jepa_wm.cli.main"]),
        ("from jepa_wm import load_config", "core", ["jepa_wm.load_config"]),
        ("import evals.planning", "evals", ["evals.planning"]),
        ("from .blocks import Block\nfrom jepa_wm.core.seeds import x\nimport torch", "encode", []),
        ("from jepa_wm import __version__", "show", []),
    ],
)
def test_the_walk_sees_every_form_of_import(source, room, wrong):
    assert forbidden(source, f"jepa_wm.{room}", room) == wrong
