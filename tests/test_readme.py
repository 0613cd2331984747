"""What the README says is so: its rooms, figures and examples; tests/test_docs.py reads its
commands and settings with those of the other pages."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLE = ROOT / "docs" / "own_environment.py"


def section(heading):
    """What stands below a heading."""
    return re.search(rf"## {heading}\n\n(.*?)(?=\n## |\Z)", README, re.DOTALL).group(1)


def rows(text):
    """The cells of a table's rows, its head apart."""
    table = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_it_is_a_page():
    assert len(README.splitlines()) <= 150


def test_the_map_of_rooms_is_true_to_the_tree():
    named = {row[0].strip("`/") for row in rows(section("Map of rooms"))}
    assert not [room for room in named if not (ROOT / room).is_dir()], "named, but not there"
    rooms = {
        file.parent.relative_to(ROOT).as_posix()
        for file in (ROOT / "jepa_wm").glob("*/__init__.py")
    }
    assert rooms | {"evals", "launch", "configs", "tests"} <= named, "there, but without a row"


def test_its_figures_are_those_of_the_results():
    results = rows((ROOT / "docs" / "results.md").read_text(encoding="utf-8"))
    made = {(row[1].partition(" (")[0], row[2]) for row in results}
    shown = rows(section("Results"))
    assert len(shown) == 5
    assert [row for row in shown if (row[1], row[2]) not in made] == []


def test_a_miss_is_said():
    results = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    [headline] = [row for row in rows(results) if "success at the end, held-out" in row[0]]
    assert ("**missed**" in headline) == ("**missed**" in rows(section("Results"))[0][0])


def test_the_two_commands_and_the_pipeline_are_there():
    assert re.findall(r"^    make (\w+)$", README, re.MULTILINE) == ["demo", "test"]
    assert len(re.findall(r"^    jepa-wm \w+ ", section("The pipeline"), re.MULTILINE)) == 5


def test_the_example_is_short():
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60


def test_the_example_reaches_its_goals(tmp_path):
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLE], cwd=tmp_path, env=one_thread, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    start, end = map(float, done.stdout.splitlines()[-1].split()[-2:])
    assert start > 15 and end < 8, done.stdout
