"""What the README says is so: its paths, commands and settings exist, and its example is the file
that runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_wm.config import load_config
from jepa_wm.core import commands as table
from jepa_wm.core.arguments import parse

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs" / "own_environment.py"
PLACEHOLDER = re.compile(r"\{\{.*?\}\}")


def commands():
    """Every `jepa-wm <words>` of the two texts."""
    found = re.findall(r"jepa-wm +([a-z][^`\n|]*)", PLACEHOLDER.sub("", README + RESULTS))
    return sorted({command.strip() for command in found})


def test_the_map_of_rooms_is_true_to_the_tree():
    table = re.search(r"## Map of rooms\n\n(.*?)\n\n", README, re.DOTALL).group(1)
    named = set(re.findall(r"^\| `([\w/]+)/` \|", table, re.MULTILINE))
    assert not [room for room in named if not (ROOT / room).is_dir()], "named, but not there"
    rooms = {
        file.parent.relative_to(ROOT).as_posix()
        for file in (ROOT / "jepa_wm").glob("*/__init__.py")
    }
    assert rooms | {"evals", "launch", "configs", "tests"} <= named, "there, but without a row"


def test_every_command_is_one():
    assert {"demo", "demo --config debug"} <= set(commands())
    for command in commands():
        words = parse(command.split())  # exits for an unknown command or option
        if words.command not in table.TOOLS and words.config in {
            file.stem for file in (ROOT / "configs").glob("*.yaml")
        }:
            load_config(words.config, words.overrides)  # raises for an unknown key


def test_the_table_of_verbs_is_the_command_line():
    told = re.findall(
        r"^\| `([a-z]+)[^`]*` \|",
        re.search(r"## Commands\n.*?\n## ", README, re.DOTALL).group(),
        re.M,
    )
    assert sorted(told) == sorted([*table.COMMANDS, *table.TOOLS, "eval", "bench"])
    assert all(f"`{name}`" in README for name in [*table.EVALS, *table.BENCHES])


def test_the_make_targets_and_documents_exist():
    targets = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^    make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in targets
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / link).exists(), link
    assert not PLACEHOLDER.search(README + RESULTS)


@pytest.mark.parametrize("text", [README, RESULTS], ids=["README", "results"])
def test_the_project_speaks_of_itself_alone(text):
    assert not re.findall(
        r"https?://|localhost|\b\d+\.\d+\.\d+\.\d+\b|(?<![\w.~)*>])/\w+/|\.\./|#\d+|issue \d", text
    )


def test_the_example_is_the_file_and_short():
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert block == EXAMPLE.read_text(encoding="utf-8")
    assert len(block.splitlines()) <= 60


def test_the_example_reaches_its_goals(tmp_path):
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=one_thread, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    start, end = map(float, done.stdout.splitlines()[-1].split()[-2:])
    assert start > 15 and end < 8, done.stdout
