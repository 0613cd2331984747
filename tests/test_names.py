"""Names that are looked up when they are used, by string or inside a function, are there: all of
them."""

import ast
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jepa_wm
from jepa_wm.core import commands
from jepa_wm.core.stage import STAGES
from jepa_wm.data.readers.registry import READERS

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    file
    for place in ("jepa_wm", "evals", "launch", "docs", "tests")
    for file in (ROOT / place).rglob("*.py")
) + [ROOT / "hubconf.py", ROOT / "setup.py"]
SOURCES = [
    file
    for file in SOURCES
    if file.name not in ("test_layers.py", "test_names.py", "test_registry.py")
]  # name what is not there
DOTTED = re.compile(r"jepa_wm(\.\w+)+(:\w+)?")  # a module, or a module and a name in it


# The groups under which others enter theirs in an open table: named as modules are, and none.
ENTRY_POINTS = {f"jepa_wm.{table}" for table in (*jepa_wm._TABLES, "stages", "report_parts")}


def missing(name: str) -> str | None:
    """What is wrong with a dotted name of a module, of a name in one, or with module:name; None if
    it is there."""
    module, colon, inside = name.partition(":")
    if not colon and not _is_module(module):
        module, _, inside = module.rpartition(".")
    if not _is_module(module):
        return f"there is no module {module}"
    if inside and not hasattr(importlib.import_module(module), inside):
        return f"{module} has no {inside}"
    return None


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is none, or no package
        return False


def imported(source: str) -> set[str]:
    """Dotted names of ours that a source imports, wherever in it, and those that stand in it as
    strings."""
    found, tree = set(), ast.parse(source)
    parts = {
        part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in parts:
            found |= {node.value} if DOTTED.fullmatch(node.value) else set()
    return {
        name
        for name in found - ENTRY_POINTS
        if name.partition(".")[0] == "jepa_wm" and not name.endswith(".*")
    }


@pytest.mark.parametrize("name", jepa_wm.__all__)
def test_a_public_name_is_there_in_a_fresh_process(name):
    script = f"from jepa_wm import {name}; import jepa_wm; assert jepa_wm.{name} is {name}"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_all_public_names_are_imported_at_once():
    script = "from jepa_wm import *; import jepa_wm; assert set(jepa_wm.__all__) <= set(globals())"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert set(jepa_wm.__all__) == {*jepa_wm._HOME, "__version__", "register"}, (
        "what is public is fetched, what is fetched public"
    )


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_what_a_file_imports_or_names_is_there(file):
    names = imported(file.read_text(encoding="utf-8"))
    assert not {name: wrong for name in names if (wrong := missing(name))}


PAGES = [file for file in (ROOT / "docs").rglob("*.md") if file.name != "log.md"]  # history


@pytest.mark.parametrize("file", [ROOT / "README.md", *PAGES], ids=lambda file: file.name)
def test_what_the_pages_import_is_there(file):
    text = file.read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {name for block in code for name in imported(block)}
    names |= set(re.findall(r"python -m (jepa_wm[\w.]*)", text))
    assert not {name: wrong for name in names if (wrong := missing(name))}


def test_every_stage_bench_and_tool_has_its_function():
    for name in STAGES:
        assert callable(STAGES.get(name).function), name
    for module in commands.BENCHES.values():
        assert callable(importlib.import_module(module).run), module
    for module, _ in commands.TOOLS.values():
        for name in ("add_arguments", "run", "lines"):
            assert callable(getattr(importlib.import_module(module), name)), module
    for name in commands.FILES:
        assert callable(importlib.import_module(f"jepa_wm.evals.{name}").run), name


@pytest.mark.parametrize(
    ("argv", "stage"),
    [[[name], name] for name in commands.stages()]
    + [[["eval", "knn"], "eval_knn"], [["eval", "planning"], "plan"], [["bench", "plan"], None]],
)
def test_the_command_line_finds_each(argv, stage):
    assert commands.parse(argv).stage == stage


def test_every_format_has_what_reading_takes():
    for name in READERS:
        assert all(callable(getattr(READERS.get(name), part)) for part in ("recognises", "open"))


def test_what_is_not_there_is_noticed():
    assert missing("jepa_wm.world_model.WorldModel") == "jepa_wm.world_model has no WorldModel"
    assert missing("jepa_wm.nothing.at_all") == "there is no module jepa_wm.nothing"
    assert missing("jepa_wm.cli:nothing") == "jepa_wm.cli has no nothing"
    assert (
        missing("jepa_wm.cli:main") is None
        and missing("jepa_wm.world_model.world_model.WorldModel") is None
    )
    assert imported("def f():\n    from jepa_wm.a import b\nx = 'jepa_wm.c:d'\nimport torch") == {
        "jepa_wm.a.b", "jepa_wm.c:d"
    }  # fmt: skip


def test_the_hub_entries_and_the_console_script_are_there():
    import hubconf

    assert callable(hubconf.frozen_encoder) and callable(hubconf.vjepa2_encoder)
    script = re.search(r'"jepa-wm = ([\w.:]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert script and missing(script[1]) is None
    assert all(importlib.util.find_spec(name) for name in hubconf.dependencies)
