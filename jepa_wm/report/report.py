"""The report: one self-contained HTML page on everything a run folder holds so far."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jepa_wm import __version__
from jepa_wm.core.config import digest
from jepa_wm.core.files import fingerprint, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.report import acting, learning
from jepa_wm.report.artifacts import STAGES, RunArtifacts
from jepa_wm.report.page import (
    Cell,
    Group,
    Listing,
    Page,
    Row,
    Section,
    Table,
    Tile,
    clock,
    command_line,
    number,
    percent,
    with_unit,
)
from jepa_wm.report.strips import make_strips

# stage -> what makes its part of the page; the last stages come first
GROUPS: dict[str, Callable[[RunArtifacts], Group]] = {
    "plan": acting.group,
    "heads": learning.heads,
    "dynamics": learning.dynamics,
    "pretrain": learning.pretraining,
}
TOLD_HORIZON = 8  # model steps, of the rollout error at the top
TOLD_PARTS = 2  # parts of the state whose error is told at the top; all are below
PACKAGES = ("torch", "torchvision", "timm", "numpy", "faiss-cpu")


@stage(keep="own", headline=("report",))
def report(run: Run) -> dict[str, Any]:
    """Write <run>/report/index.html from what other stages stored; returns its path, size and
    sections.

    A section whose source is absent says which command makes it and is listed as missing. Raises
    UserError naming a file that is damaged."""
    began, before = time.monotonic(), run.finished("report") or {}
    folder = run.stage_dir("report")

    # Film strips need the trained model: they are made once for each training of the dynamics.
    weights = [
        run.path / "dynamics" / f"{name}.safetensors" for name in ("latent", "action_predictor")
    ]
    if run.finished("dynamics") and (there := [file for file in weights if file.exists()]):
        _keep_strips(run, there[0], folder / "strips.npz", folder / "strips.json")

    # Everything else is read from files, laid out, and written in one go.
    artifacts = RunArtifacts.read(run)
    page = _page(run, artifacts)
    path, text = folder / "index.html", page.html()
    write_atomic(path, text)
    result = {
        "report": str(path),
        "bytes": len(text.encode()),
        "sections": page.keys(present=True),
        "missing": page.keys(present=False),
        # of the first writing, so that a rerun agrees
        "seconds": before.get("seconds", time.monotonic() - began),
    }
    run.write_result("report", result)
    return result


def _keep_strips(run: Run, weights: Path, strips: Path, made_of: Path) -> None:
    """Make the strips where there are none, or only those of dynamics that were deleted and
    trained anew."""
    model = json.dumps({"dynamics": fingerprint(weights)})
    if strips.exists() and made_of.exists() and made_of.read_text(encoding="utf-8") == model:
        return
    made_of.unlink(missing_ok=True)
    make_strips(run, strips)
    write_atomic(made_of, model)


def _page(run: Run, artifacts: RunArtifacts) -> Page:
    """The groups of the stages, the last one first, then the evaluations and how all was made."""
    groups = [GROUPS[stage](artifacts) for stage in reversed(STAGES) if stage in GROUPS]
    groups += [learning.evaluations(artifacts), _made(run, artifacts)]
    return Page(
        name=run.path.resolve().name,
        lead=_lead(artifacts),
        tiles=_tiles(artifacts.results),
        groups=[group for group in groups if group.sections],
        run=str(run.path),
    )


def _lead(artifacts: RunArtifacts) -> str:
    """The outcome in one sentence, as far as there is one."""
    outcome = acting.lead(artifacts.results.get("plan", {}))
    if outcome:
        return f"A world model on a frozen encoder, without a pixel decoder, {outcome}"
    return f"This run is not finished. Done so far: {', '.join(artifacts.results) or 'nothing'}."


def _tiles(results: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    """The few figures that matter, those that exist."""
    tiles = _acting_tiles(results.get("plan", {})) + _encoder_tiles(results.get("pretrain", {}))
    for row in results.get("dynamics", {}).get("rollout") or ():
        if row["horizon"] != TOLD_HORIZON:
            continue
        for name, part in list(row.get("state_errors", {}).items())[:TOLD_PARTS]:
            says = f"error of the imagined {name} after {TOLD_HORIZON} model steps"
            tiles.append(Tile(with_unit(part["error"], part.get("unit"), 2), says))
    took = {stage: result.get("seconds") for stage, result in results.items()}
    known = {stage: seconds for stage, seconds in took.items() if seconds is not None}
    if known:
        tiles.append(Tile(clock(sum(known.values())), f"for {', '.join(known)}"))
    return tiles


def _acting_tiles(plan: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    if success := plan.get("success"):
        radius = success.get("radius")
        within = "" if radius is None else f" within {radius:g} {success.get('unit', '')}".rstrip()
        says = f"of episodes end{within} of the goal"
        tiles.append(Tile(percent(success["success_final"]), says))
    if paid := plan.get("return"):
        says = f"earned in an episode of {paid['budget']} steps"
        tiles.append(Tile(number(paid["mean"]), says))
    if plan.get("seconds_per_decision") is not None:
        seconds = number(plan["seconds_per_decision"], 2)
        tiles.append(Tile(f"{seconds} s", "to decide on the next actions"))
    return tiles


def _encoder_tiles(pretrain: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    if pretrain.get("collapsed") is not None:
        spread, rank = pretrain.get("feature_std"), pretrain.get("effective_rank")
        says = f"spread {number(spread)}, effective rank {number(rank)}"
        collapsed = pretrain["collapsed"]
        word = "collapsed" if collapsed else "no collapse"
        tiles.append(Tile(word, says, "lost" if collapsed else ""))
    for name, probe in list((pretrain.get("probe") or {}).items())[:1]:
        random = probe.get("random_encoder")
        beside = "" if random is None else f", {number(random, 2)} from a random encoder"
        value = with_unit(probe.get("error"), probe.get("unit"), 2)
        tiles.append(Tile(value, f"error in reading the {name}{beside}"))
    return tiles


def _made(run: Run, artifacts: RunArtifacts) -> Group:
    """Commands, times, config, versions, machine."""
    rows = []
    for name in STAGES:
        result = artifacts.results.get(name)
        if name == "heads" and result is None:
            continue  # plans toward goals need none
        made = run.digest(name) if result is not None else "–"
        took = clock(result.get("seconds")) if result is not None else "not finished"
        command = Cell(command_line(name, str(run.path)), code=True)
        rows.append(Row([name, took, Cell(made, code=True), command]))
    stages = Section(
        "stages",
        "Commands and times",
        "Each command takes its stage up with exactly these settings; with another --run it does "
        "it anew. A stage's digest is that of all the settings its result depends on.",
        [Table(("stage", "took", "digest", "command"), rows, "commands")],
        "report",
    )
    facts = {
        "config digest": digest(run.config),
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
    return Group("made", "How it was made", [stages, made_with])


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
