"""The pages of docs/ are current, and what they say can be run."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"


def script(name):
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def test_the_results_are_those_of_their_tables():
    page = (DOCS / "results.md").read_text(encoding="utf-8")
    assert page == script("results").page(), "stale: run python docs/results.py"
    assert len(page.splitlines()) <= 150


@pytest.mark.parametrize("file", sorted((DOCS / "results").glob("*.json")), ids=lambda f: f.stem)
def test_a_row_of_results_says_how_it_was_made(file):
    table = json.loads(file.read_text(encoding="utf-8"))
    needed = {"label", "value", "n", "seeds", "commit", "machine", "command", "supervision"}
    for row in table["rows"]:
        whole = {**table.get("common", {}), **row}
        assert needed <= set(whole), whole["label"]
        assert set(whole) <= needed | {"unit", "interval", "reference", "target", "as_run"}


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        ({"value": [92, 90, 93], "target": {"at_least": 95}}, True),
        ({"value": [96, 95, 95], "target": {"at_least": 95}}, False),
        ({"value": 3.1, "target": {"at_most": 3}}, True),
        ({"value": 3, "target": {"at_most": "reference"}, "reference": {"value": [2, 5]}}, False),
        (
            {
                "value": 8,
                "interval": [6, 9],
                "target": {"above": "reference"},
                "reference": {"value": 5, "interval": [4, 7]},
            },
            True,
        ),
        ({"value": 8}, None),
    ],
)
def test_missed_is_computed_from_value_and_target(row, missed):
    assert script("results").missed(row) is missed
