"""The groups on what a run has on record: frozen evaluations, figures of stages without a part of
their own, commands and times, settings and versions."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jepa_wm import __version__
from jepa_wm.core.commands import stages
from jepa_wm.core.config import digest
from jepa_wm.core.run import Run
from jepa_wm.core.stage import EVAL, STAGES
from jepa_wm.core.yaml_source import read_yaml
from jepa_wm.report.artifacts import RunArtifacts, read_result
from jepa_wm.report.page import (
    Cell,
    Group,
    Listing,
    Row,
    Section,
    Table,
    clock,
    command_line,
    number,
)

PACKAGES = ("torch", "torchvision", "timm", "numpy", "faiss-cpu")
REPRESENTATIONS = ("encoder", "random_encoder", "pixels")


def evaluations(artifacts: RunArtifacts) -> Group:
    """Every stored evaluation of frozen features, told apart by its data and encoder."""
    rows = []
    for name, result in artifacts.evaluations:
        rows += list(_evaluation_rows(name, result))
    names = [name.replace("_", " ") for name in REPRESENTATIONS]
    section = Section(
        "frozen",
        "Probes on labelled data",
        "Heads and neighbours on frozen features: accuracy of classes, R2 of numbers, on data "
        "that had no say in any choice. Each row is told apart by its settings, by what is in its "
        "data and by the encoder's weights; all of it stands in the folder of that name.",
        [Table(("evaluation", "of", *names, "data", "encoder", "folder"), rows)],
        "eval",
    )
    return Group("evaluations", "Frozen evaluations", [section] if rows else [])


def figures(name: str, text: str, result: Mapping[str, Any], command: str = "") -> Section:
    """The numbers in the result of a stage that has no part of its own."""
    rows = [Row([label, value]) for label, value in _numbers(result)]
    table = Table(("figure", "value"), rows)
    return Section(f"figures_{name.replace(' ', '_')}", name, text, [table], command or name)


def measured(run: Run) -> list[Section]:
    """The figures of evaluations whose newest result stands in the folder of their name, those
    of others among them."""
    sections = []
    for file in sorted(run.path.glob(f"{EVAL}*/result.json")):
        name = file.parent.name.removeprefix(EVAL)
        result = read_result(file, "evaluate again")
        command = f"eval {name}"
        sections.append(figures(command, f"By `jepa-wm {command}`.", result, command))
    return sections


def _numbers(result: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(name, value) of the numbers in a result, those inside of mappings with the names of
    these."""
    for key, value in result.items():
        label = f"{prefix} {key.replace('_', ' ')}".strip()
        if isinstance(value, Mapping):
            yield from _numbers(value, label)
        elif isinstance(value, list):
            for row in value:
                # a row is named by its first number: "rollout horizon 1"
                if isinstance(row, Mapping) and row:
                    first, *rest = row
                    rest_of_row = {part: row[part] for part in rest}
                    yield from _numbers(rest_of_row, f"{label} {first} {row[first]}")
        elif isinstance(value, int | float) and key != "seconds":
            yield label, f"{value:g}" if isinstance(value, float) else str(value)


def made(run: Run, artifacts: RunArtifacts) -> Group:
    """Commands, times, config, versions, machine."""
    rows = []
    for name in stages():
        result = artifacts.results.get(name)
        optional = STAGES.get(name).when is not None  # not every run has it
        if name == "report" or (result is None and optional):
            continue
        made = run.digest(name) if result is not None else "–"
        took = clock(result.get("seconds")) if result is not None else "not finished"
        command = Cell(command_line(name, str(run.path)), code=True)
        rows.append(Row([name, took, Cell(made, code=True), command]))
    commands = Section(
        "stages",
        "Commands and times",
        "Each command takes its stage up with exactly these settings; with another --run it does "
        "it anew. A stage's digest is that of all the settings its result depends on.",
        [Table(("stage", "took", "digest", "command"), rows, "commands")],
        "report",
    )
    facts = {
        "config digest": digest(read_yaml(run.path / "config.yaml").data),
        "machine": f"{cpu_name()}, {cores()} cores, {platform.system()} {platform.machine()}",
        "versions": f"jepa-wm {__version__}, Python {platform.python_version()}",
        "packages": ", ".join(f"{package} {_installed(package)}" for package in PACKAGES),
    }
    config = (run.path / "config.yaml").read_text(encoding="utf-8")
    made_with = Section(
        "made_with",
        "Settings, versions, machine",
        "Versions and machine are those on which this page was written.",
        [
            Table((), [Row([name, value]) for name, value in facts.items()], "facts"),
            Listing("config.yaml", config),
        ],
        "report",
    )
    return Group("made", "How it was made", [commands, made_with])


def cpu_name() -> str:
    """The processor's own name; the kind of machine where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text() if listing.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name.group(1).strip() if name else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _evaluation_rows(name: str, result: Mapping[str, Any]) -> Iterator[Row]:
    """A row for the classes or for each group of numbers; one a depth where there are several."""
    evaluated = result["evaluated"]
    encoder, data = evaluated["encoder"], evaluated["settings"]["test"] or "the run's own"
    digests = " / ".join(evaluated["data"][part]["digest"] for part in ("train", "test"))
    where = (
        Cell(data, hint=digests),
        Cell(encoder["backbone"] or "the run's own", hint=encoder["digest"]),
        Cell(Path(result["stored"]).name, code=True),
    )
    depths = [key for key in result if key.startswith("depth_")]
    for key in depths or [""]:
        by_representation = result[key] if key else result
        kind = f"{name} {key.replace('_', ' ')}".strip()
        for what in _measured(by_representation["encoder"]):
            figures = [_figure(by_representation.get(one), what) for one in REPRESENTATIONS]
            yield Row([kind, what, *figures, *where])


def _measured(figures: Mapping[str, Any]) -> list[str]:
    """What was measured: classes, or each group of numbers; of evaluations of others each
    figure."""
    if "accuracy" in figures:
        return ["classes"]
    groups = [
        key for key, value in figures.items() if isinstance(value, Mapping) and "r2" in value
    ]
    return groups or [key for key, value in figures.items() if isinstance(value, int | float)]


def _figure(figures: Mapping[str, Any] | None, what: str) -> str:
    """A figure with its interval where it has one, a dash where it was not measured."""
    if figures is None:
        return "–"
    if what == "classes" and "accuracy" in figures:
        rate, value = figures, figures["accuracy"]
    elif isinstance(figures[what], Mapping):
        rate, value = figures[what], figures[what]["r2"]
    else:
        return number(figures[what])
    return f"{number(value)} ({number(rate['low'])} to {number(rate['high'])})"
