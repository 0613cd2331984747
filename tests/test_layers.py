"""The rooms import only what the design lets them: read from the source, imports inside functions
included."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW_TRAINING = frozenset({"core", "data", "worlds", "models", "features", "world_model"})
EVERYTHING = BELOW_TRAINING | {"planning", "training", "report", "evals", "launch", "integrations"}
MAY_IMPORT = {
    "core": frozenset(),
    "data": frozenset({"core"}),
    "worlds": frozenset({"core", "data"}),
    "models": frozenset({"core"}),
    "features": frozenset({"core", "data", "models"}),
    "world_model": frozenset({"core", "data", "models", "features"}),
    "planning": frozenset({"core", "worlds", "world_model"}),  # of the worlds: their protocol
    "training": BELOW_TRAINING,
    "report": frozenset({"core", "data", "world_model"}),
    "evals": EVERYTHING,
    "launch": frozenset({"core"}),
    "integrations": EVERYTHING,
    "configs": frozenset(),
}
MODULE = re.compile(r"jepa_wm(\.\w+)+(:\w+)?")
# The tables of core that name modules of all rooms for the command line, and import none.
NAME_ALL_ROOMS = ("jepa_wm/core/stage.py", "jepa_wm/core/commands.py")
AT_THE_TOP = ("evals", "launch", "configs")  # rooms that lie beside jepa_wm/
ENTRY_POINTS = {
    "__init__.py",
    "__main__.py",
    "cli.py",
    "config.py",
    "demo.py",
}  # files directly in jepa_wm/: may import any room


def room_folder(room: str) -> Path:
    return ROOT / room if room in AT_THE_TOP else ROOT / "jepa_wm" / room


def imported_modules(source: str, package: str) -> set[str]:
    """Full names of all modules (or names in them) that a file of `package` imports, wherever in
    the file."""
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
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "importlib.import_module",
            "__import__",
        ):
            found |= {arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)}
        elif isinstance(node, ast.Constant) and MODULE.fullmatch(str(node.value)):
            found.add(node.value.replace(":", "."))  # in a table, loaded when it is asked for
    return found


def forbidden(source: str, package: str, room: str) -> list[str]:
    """What a file of `room` imports against the table; the top-level folders' own names are never
    right."""
    wrong = []
    for module in sorted(imported_modules(source, package)):
        first, _, rest = module.partition(".")
        if first in AT_THE_TOP:
            wrong.append(module)
        elif first == "jepa_wm":
            other = rest.partition(".")[0]
            public = (
                other not in MAY_IMPORT
            )  # a name of jepa_wm/__init__.py, or one of the entry points
            if (other in ("config", "cli") and room == "launch") or other == "configs":
                continue  # launch is an entry point too; configs hold no code
            if (
                other != "__version__"
                and other != room
                and (public or other not in MAY_IMPORT[room])
            ):
                wrong.append(module)
    return wrong


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_lies_below_it(room):
    folder = room_folder(room)
    wrong = []
    for file in sorted(folder.rglob("*.py")):
        inside = file.parent.relative_to(folder).parts
        package = ".".join(("jepa_wm", room, *inside))
        if file.relative_to(ROOT).as_posix() in NAME_ALL_ROOMS:
            continue
        names = forbidden(file.read_text(encoding="utf-8"), package, room)
        wrong += [f"{file.relative_to(ROOT)} imports {name}" for name in names]
    assert not wrong, "\n".join(wrong)


def test_every_folder_is_a_room_and_every_room_a_package():
    rooms = {
        path.name
        for path in (ROOT / "jepa_wm").iterdir()
        if path.is_dir() and path.name != "__pycache__"
    }
    assert rooms <= set(MAY_IMPORT), "a new room needs a line in the table"
    for room in MAY_IMPORT:
        if any(room_folder(room).glob("*.py")):
            assert (room_folder(room) / "__init__.py").exists(), (
                f"{room} is left out of a wheel without __init__.py"
            )


def test_nothing_but_the_entry_points_lies_at_the_top():
    assert {path.name for path in (ROOT / "jepa_wm").glob("*.py")} <= ENTRY_POINTS


@pytest.mark.parametrize(
    ("source", "room", "wrong"),
    [
        ("def f():\n    from jepa_wm.planning import agent", "worlds", ["jepa_wm.planning.agent"]),
        ("import jepa_wm.training.pretrain", "models", ["jepa_wm.training.pretrain"]),
        ("from jepa_wm import planning", "models", ["jepa_wm.planning"]),
        ("from ..training import loop", "models", ["jepa_wm.training.loop"]),
        ("from .. import training", "models", ["jepa_wm.training"]),
        (
            "import importlib\nimportlib.import_module('jepa_wm.planning')",
            "training",
            ["jepa_wm.planning"],
        ),
        ("from jepa_wm.cli import main", "worlds", ["jepa_wm.cli.main"]),
        ("from jepa_wm import load_config", "core", ["jepa_wm.load_config"]),
        ("import evals.planning", "evals", ["evals.planning"]),
        (
            "from .blocks import Block\nfrom jepa_wm.core.seeds import x\nimport torch",
            "models",
            [],
        ),
        ("from jepa_wm import __version__", "report", []),
        ("TABLE = {'a': 'jepa_wm.training.dynamics'}", "models", ["jepa_wm.training.dynamics"]),
        ("TABLE = {'a': 'jepa_wm.models.dynamics:Dynamics'}", "models", []),
    ],
)
def test_the_walk_sees_every_form_of_import(source, room, wrong):
    assert forbidden(source, f"jepa_wm.{room}", room) == wrong
