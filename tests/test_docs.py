"""The pages of docs/ are current, and what they say can be run."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_weights import SIZE, models, pretrained  # noqa: F401  (models is a fixture)

from jepa_wm.config import Config, load_config
from jepa_wm.core import commands as table
from jepa_wm.core.commands import parse
from jepa_wm.models.head_settings import POLICIES

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
LOG = DOCS / "log.md"  # history: its commands are those of the commits that it names
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += [file for file in sorted(DOCS.rglob("*.md")) if file != LOG]
SHIPPED = {file.stem for file in (ROOT / "configs").glob("*.yaml")}
PROGRAMS = {"make", "pip", "python", "python3", "ruff", "mypy", "mkdocs", "jepa-wm"}


def text_of(page):
    return page.read_text(encoding="utf-8")


def blocks(page, language):
    """The code blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def lines_of(page):
    """The shell lines of a page: of its sh blocks, and of indented ones that name a program."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    indented = re.findall(r"^ {4}(\S.*)", text_of(page), re.MULTILINE)
    lines += [line for line in indented if program(line) in PROGRAMS]
    return [line.partition(" # ")[0].strip() for line in lines if line.strip()]


def program(line):
    """The program a shell line runs."""
    return line.split()[0].rpartition("/")[2]


def commands_of(page):
    """Every `jepa-wm ...` of a page: in its shell lines, and within a line of text."""
    inline = re.findall(r"`jepa-wm ([^`]+)`", text_of(page))
    lines = [part for line in lines_of(page) for part in line.split("&&")]
    lines = [line.strip() for line in lines if program(line.strip()) == "jepa-wm"]
    return [line.partition(" ")[2] for line in lines] + inline


def names(pages):
    return [page.relative_to(ROOT).as_posix() for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_of_a_page_is_one(page):
    for command in commands_of(page):
        if command.split()[0].isupper() or "NAME" in command or command.startswith("-"):
            continue  # a form, not a command
        if command in table.TOOLS:
            continue  # named, without what it takes
        words = parse(shlex.split(command))  # exits for an unknown command or option
        if words.command not in table.TOOLS and words.config in SHIPPED:
            load_config(words.config, words.overrides)  # raises for an unknown key


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_other_shell_line_names_what_is_there(page):
    for line in lines_of(page):
        for part in map(str.strip, line.split("&&")):
            assert program(part) in PROGRAMS, line
            if program(part) == "make":
                assert f"\n{part.split()[1]}:" in text_of(ROOT / "Makefile"), line
            for file in re.findall(r"python3? (\S+\.py)", part):
                assert (ROOT / file).exists(), line


@pytest.fixture(scope="module")
def keys():
    """All dotted keys of the config, those of every entry of a table included, and sections."""
    sections = list(script("reference").sections(Config, ""))
    paths = [name.partition(", ")[0] for name, _ in sections]
    known = {
        f"{path}.{key}"
        for path, (_, m) in zip(paths, sections, strict=True)
        for key in m.model_fields
    }
    return known | set(paths)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_setting_that_a_page_names_exists(page, keys):
    top = "|".join(Config.model_fields)
    spans = re.findall(r"`([^`]+)`", text_of(page))
    words = {word for span in spans for word in span.split()}
    matches = [re.fullmatch(rf"((?:{top})(?:\.[a-z]\w*)+)(=.*)?", word) for word in words]
    named = {match[1] for match in matches if match}
    files = (".yaml", ".md", ".py", ".json", ".h5")
    assert not {key for key in named if not key.endswith(files)} - keys


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_yaml_block_is_a_config(page, tmp_path):
    for block in blocks(page, "yaml"):
        (tmp_path / "block.yaml").write_text(block, encoding="utf-8")
        load_config(tmp_path / "block.yaml")


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_python_block_runs(page, tmp_path, monkeypatch, request):
    """Those that include a file are that file, which tests of its own run."""
    monkeypatch.chdir(tmp_path)
    if "vitl.pt" in "".join(blocks(page, "python")):
        torch.save(pretrained(request.getfixturevalue("models")), "vitl.pt")
    for block in blocks(page, "python"):
        included = re.findall(r'^--8<-- "(.*)"$', block, re.MULTILINE)
        assert all((ROOT / file).exists() for file in included)
        if not included:
            small = block.replace('"vit_large"', "SIZE").replace('"debug"', '"debug", TINY')
            names = {"SIZE": SIZE, "clip": CLIP.clone(), "TINY": TINY}
            exec(compile(small, page.name, "exec"), names)


TINY = ["collect.episodes=12", "features.num_norm_frames=100", "train.threads=1"]
TINY += [f"train.{part}.steps=4" for part in ("pretrain", "latent", "dynamics", "distance")]
CLIP = torch.zeros(1, 4, 3, SIZE.image_size, SIZE.image_size)


@pytest.mark.parametrize("page", [*PAGES, LOG], ids=names([*PAGES, LOG]))
def test_the_project_speaks_of_itself_alone(page):
    address = r"https?://|localhost|\b\d+\.\d+\.\d+\.\d+\b|(?<![\w.~)*>])/\w+/|\.\./|#\d+|issue \d"
    assert not re.findall(address, text_of(page))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(page)):
        generated = {"reference/config.md", "reference/cli.md"}
        assert (page.parent / link).exists() or link in generated, link


def test_the_config_reference_names_every_key():
    page = script("reference").config_page()
    reference = script("reference")
    for _, model in reference.sections(Config, ""):
        assert all(f"| `{name}` |" in page for name in model.model_fields)
    assert "| `seed` | int | `0` |" in page
    [probes] = [m for name, m in reference.sections(Config, "") if name == "probes"]
    row = next(line for line in reference.described(probes) if line.startswith("| `batch"))
    assert "int, >= 1" in row
    # The names of entries are those of the table, alone, in a list and where there may be none.
    policies = " or ".join(f"`{name}`" for name in POLICIES.names())
    for kind, key in (
        (policies, "policy"),
        (f"list of {policies}", "policies"),
        (f"{policies} or null", "warm_start"),
    ):
        assert f"| `{key}` | {kind} |" in page


def test_the_command_reference_is_the_command_line():
    page, evaluation = script("reference").cli_page(), text_of(DOCS / "evaluation.md")
    headings = re.findall(r"^## (\w+)", page, re.MULTILINE)
    assert sorted(headings) == sorted(table.commands())
    assert page.count("usage: jepa-wm") == len(headings) + 1
    shown = evaluation + text_of(DOCS / "weights.md")
    assert all(re.search(rf"(eval |`){name}", shown) for name in table.evaluations())
    assert all(re.search(rf"bench {name}", evaluation) for name in table.BENCHES)


def test_the_page_on_large_runs_is_computed():
    scale = script("scale")
    model = scale.Model.of(load_config(scale.VIT_G))
    assert text_of(DOCS / "scale.md") == scale.page(model, scale.Machine()), (
        "stale: run python docs/scale.py"
    )


def test_the_picture_of_the_rooms_is_that_of_the_imports():
    assert text_of(DOCS / "architecture.svg") == script("architecture").svg(), (
        "stale: run python docs/architecture.py"
    )


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "num_" in (tmp_path / "site" / "reference" / "config.html").read_text(encoding="utf-8")


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
