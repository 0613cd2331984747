"""The report: one self-contained HTML page on everything a run folder holds so far, and how that
was made: commands and times, settings and versions."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jepa_wm import __version__
from jepa_wm.core.commands import stages
from jepa_wm.core.config import digest
from jepa_wm.core.files import fingerprint, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.core.stage import EVAL, STAGES, stage
from jepa_wm.core.supervision import reading_states, supervision_of
from jepa_wm.core.yaml_source import read_yaml
from jepa_wm.report import acting, diagnosis, learning, offline, offsets
from jepa_wm.report.artifacts import RunArtifacts, make_strips, read_results
from jepa_wm.report.page import (
    PARTS,
    Block,
    Cell,
    Figure,
    Grid,
    Group,
    Image,
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
from jepa_wm.report.pretraining import encoder_tiles

TILE_HORIZON = 8  # model steps, of the rollout error in a tile
TILE_PARTS = 2  # parts of the state whose error has a tile; all are below
PACKAGES = ("torch", "torchvision", "timm", "numpy", "faiss-cpu")


@stage(
    keep="own",
    headline=("report",),
    unrecorded=(
        "data.path", "dynamics.context_frames", "dynamics.frameskip", "features.backbone",
        "jepa.inverse_dynamics", "train.pretrain.start", "train.pretrain.steps",
    ),
)  # fmt: skip
def report(
    run: Run,
    data_path: str | None,
    dynamics_context_frames: int,
    dynamics_frameskip: int,
    features_backbone: str | None,
    jepa_inverse_dynamics: float,
    train_pretrain_start: str | None,
    train_pretrain_steps: int,
) -> dict[str, Any]:
    """Write <run>/report/index.html from what other stages stored; returns its path, size and
    sections.

    A section whose source is absent says which command makes it and is listed as missing. Raises
    UserError naming a file that is damaged."""
    began, before = time.monotonic(), run.finished("report") or {}
    folder = run.stage_dir("report")

    # Film strips need the trained model: they are made once for each training of the dynamics.
    weights = run.path / "dynamics" / "latent_model.safetensors"
    if run.finished("dynamics") and weights.exists():
        strips, note = folder / "strips.npz", folder / "strips.json"
        made_of = json.dumps({"dynamics": fingerprint(weights)})
        if not (strips.exists() and note.exists() and note.read_text("utf-8") == made_of):
            note.unlink(missing_ok=True)  # what is there is no longer said to be of any
            data = Path(data_path) if data_path else run.path / "collect"
            make_strips(
                run.path, data / "heldout.h5", strips,
                context_frames=dynamics_context_frames, frameskip=dynamics_frameskip,
            )  # fmt: skip
            write_atomic(note, made_of)

    # Everything else is read from files, laid out, and written in one go.
    artifacts = RunArtifacts.read(run)
    encoder = f"the frozen encoder {features_backbone}"
    if features_backbone is None:
        encoder = "an encoder trained by " + supervision_of(
            backbone=None, weights=None, start=train_pretrain_start, steps=train_pretrain_steps,
            inverse_dynamics=jepa_inverse_dynamics,
        )  # fmt: skip
    page = _page(run, artifacts, encoder + reading_states(artifacts.results.get("dynamics", {})))
    path, text = folder / "index.html", page.html()
    write_atomic(path, text)
    result = {
        "report": str(path),
        "bytes": len(text.encode()),
        "sections": page.keys(present=True),
        "missing": page.keys(present=False),
        "seconds": before.get("seconds", time.monotonic() - began),  # of the first writing
    }
    run.write_result("report", result)
    return result


def _page(run: Run, artifacts: RunArtifacts, encoder: str) -> Page:
    """The parts of the stages, the last one first, then the evaluations and how all was made."""
    # Stages and evaluations without a part of their own are shown by the numbers they stored.
    groups: list[Group] = []
    unshown: list[Section] = []
    for name, summary in reversed(stages().items()):
        if name in PARTS:
            groups.append(PARTS.get(name)(artifacts))
        elif name in artifacts.results:
            text = f"What it does: {summary}."
            unshown.append(_figures(name, text, artifacts.results[name]))
    stored = []
    for name, result in read_results(run.path, f"{EVAL}*/result.json"):
        text = f"By `jepa-wm eval {name}`."
        pictures = sorted((run.path / f"{EVAL}{name}").glob("*.png"))
        stored.append(_figures(f"eval {name}", text, result, pictures))
    evaluated = (learning.evaluations, offsets.group, offline.group, diagnosis.group)
    groups += [
        *(part(artifacts) for part in evaluated),
        Group("figures", "Other stages", unshown),
        Group("measured", "Further evaluations", stored),
        _made(run, artifacts),
    ]
    return Page(
        name=run.path.resolve().name,
        lead=_lead(artifacts, encoder),
        tiles=_tiles(artifacts.results),
        groups=[group for group in groups if group.sections],
        run=str(run.path),
    )


def _lead(artifacts: RunArtifacts, encoder: str) -> str:
    """The outcome in one sentence, as far as there is one."""
    outcome = _outcome(artifacts.results.get("plan", {}))
    if outcome:
        return f"A world model on {encoder}, without a pixel decoder, {outcome}"
    return f"This run is not finished. Done so far: {', '.join(artifacts.results) or 'nothing'}."


def _outcome(plan: Mapping[str, Any]) -> str:
    """What came of acting, in half a sentence; empty where nobody acted."""
    # A plan for reward has no success to tell.
    if paid := plan.get("return"):
        beside = [
            f"{acting.baseline_name(name)} {number(baseline['mean'])}"
            for name, baseline in (plan.get("baselines") or {}).items()
            if baseline
        ]
        earned = f"{number(paid['mean'])} an episode"
        within = f"95 % interval {acting.earned_interval(paid)}"
        return f"plans for reward and earns {earned} ({within}); {', '.join(beside)}."
    if not (success := plan.get("success")):
        return ""

    # "Held-out" is claimed only where the layouts were compared with those of training.
    checked = (plan.get("layouts") or {}).get("heldout", {}).get("met") is not None
    training = plan.get(f"success{acting.TRAINING}")
    beside_training = (
        f", on training layouts in {percent(training['success_final'])}" if training else ""
    )
    beaten = f" {plan['search_beaten']}" if "search_beaten" in plan else ""
    return (
        f"plans to goal images and is there at the end in {percent(success['success_final'])} of "
        f"{success['episodes']} episodes{' on held-out layouts' if checked else ''} "
        f"(95 % interval {acting.interval(success)}){beside_training}.{beaten}"
    )


def _tiles(results: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    """The few figures that matter, those that exist."""
    tiles = _acting_tiles(results.get("plan", {})) + encoder_tiles(results.get("pretrain", {}))
    for row in results.get("dynamics", {}).get("rollout") or ():
        if row["horizon"] != TILE_HORIZON:
            continue
        for name, part in list(row.get("state_errors", {}).items())[:TILE_PARTS]:
            says = f"error of the imagined {name} after {TILE_HORIZON} model steps"
            tiles.append(Tile(with_unit(part["error"], part.get("unit"), 2), says))
    timed = [stage for stage in results if results[stage].get("seconds") is not None]
    if timed:
        total = sum(results[stage]["seconds"] for stage in timed)
        tiles.append(Tile(clock(total), f"for {', '.join(timed)}"))
    return tiles


def _acting_tiles(plan: Mapping[str, Any]) -> list[Tile]:
    tiles = []
    if success := plan.get("success"):
        radius = success.get("radius")
        within = "" if radius is None else f" within {radius:g} {success.get('unit', '')}".rstrip()
        rate = percent(success["success_final"])
        tiles.append(Tile(rate, f"of episodes end{within} of the goal"))
    if paid := plan.get("return"):
        says = f"earned in an episode of {paid['budget']} steps"
        tiles.append(Tile(number(paid["mean"]), says))
    if (seconds := plan.get("seconds_per_decision")) is not None:
        tiles.append(Tile(f"{number(seconds, 2)} s", "to decide on the next actions"))
    return tiles


def _figures(
    command: str, text: str, result: Mapping[str, Any], pictures: Sequence[Path] = ()
) -> Section:
    """The numbers in the result of a stage or evaluation that has no part of its own, under the
    pictures that lie beside it."""
    blocks: list[Block] = []
    for file in pictures:
        image = Image("png", file.read_bytes(), f"{file.stem} of {command}")
        blocks.append(Grid([Figure(image, f"{file.stem.capitalize()}.")], "whole"))
    rows = [Row([name, value]) for name, value in _numbers(result)]
    blocks.append(Table(("figure", "value"), rows))
    return Section(f"figures_{command.replace(' ', '_')}", command, text, blocks, command)


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
                    (first, named), *rest = row.items()
                    yield from _numbers(dict(rest), f"{label} {first} {named}")
        elif isinstance(value, int | float) and key != "seconds":
            yield label, f"{value:g}" if isinstance(value, float) else str(value)


def _made(run: Run, artifacts: RunArtifacts) -> Group:
    """Commands, times, config, versions, machine."""
    rows = []
    for name in stages():
        result = artifacts.results.get(name)
        optional = STAGES.get(name).when is not None  # not every run has it
        if name == "report" or (result is None and optional):
            continue
        made, took = "–", "not finished"
        if result is not None:
            made, took = run.digest(name), clock(result.get("seconds"))
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
    own = hasattr(os, "sched_getaffinity")  # else a process may use them all
    cores = len(os.sched_getaffinity(0)) if own else os.cpu_count()
    facts = {
        "config digest": digest(read_yaml(run.path / "config.yaml").data),
        "machine": f"{_cpu_name()}, {cores} cores, {platform.system()} {platform.machine()}",
        "versions": f"jepa-wm {__version__}, Python {platform.python_version()}",
        "packages": ", ".join(f"{package} {_installed(package)}" for package in PACKAGES),
    }
    made_with = Section(
        "made_with",
        "Settings, versions, machine",
        "Versions and machine are those on which this page was written.",
        [
            Table((), [Row([name, value]) for name, value in facts.items()], "facts"),
            Listing("config.yaml", (run.path / "config.yaml").read_text(encoding="utf-8")),
        ],
        "report",
    )
    return Group("made", "How it was made", [commands, made_with])


def _cpu_name() -> str:
    """The processor's own name; the kind of machine where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    text = listing.read_text() if listing.exists() else ""
    name = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return name.group(1).strip() if name else platform.processor() or platform.machine()


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
