"""The report: one self-contained HTML page on everything a run folder holds so far."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa_wm.core.commands import stages
from jepa_wm.core.files import fingerprint, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.report import acting, record
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.page import (
    PARTS,
    Group,
    Page,
    Section,
    Tile,
    clock,
    number,
    percent,
    with_unit,
)
from jepa_wm.report.strips import make_strips

TILE_HORIZON = 8  # model steps, of the rollout error in a tile
TILE_PARTS = 2  # parts of the state whose error has a tile; all are below


@stage(
    keep="own",
    headline=("report",),
    unrecorded=(
        "data_path", "dynamics_context_frames", "dynamics_frameskip", "features_backbone",
        "jepa_inverse_dynamics",
    ),
)  # fmt: skip
def report(
    run: Run,
    data_path: str | None,
    dynamics_context_frames: int,
    dynamics_frameskip: int,
    features_backbone: str | None,
    jepa_inverse_dynamics: float,
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
        made_of = json.dumps({"dynamics": fingerprint(weights)})
        if _stale(folder, made_of):
            data = Path(data_path) if data_path else run.path / "collect"
            make_strips(
                run.path, data / "heldout.h5", folder / "strips.npz",
                context_frames=dynamics_context_frames, frameskip=dynamics_frameskip,
            )  # fmt: skip
            write_atomic(folder / "strips.json", made_of)

    # Everything else is read from files, laid out, and written in one go.
    artifacts = RunArtifacts.read(run)
    encoder = _supervision(features_backbone, jepa_inverse_dynamics)
    page = _page(run, artifacts, encoder)
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


def _stale(folder: Path, made_of: str) -> bool:
    """Whether there are no strips, or only those of dynamics that were deleted and trained anew;
    these are no longer said to be of any."""
    strips, note = folder / "strips.npz", folder / "strips.json"
    if strips.exists() and note.exists() and note.read_text(encoding="utf-8") == made_of:
        return False
    note.unlink(missing_ok=True)
    return True


def _page(run: Run, artifacts: RunArtifacts, encoder: str) -> Page:
    """The parts of the stages, the last one first, then the evaluations and how all was made."""
    groups: list[Group] = []
    figures: list[Section] = []
    for name, summary in reversed(stages().items()):
        if name in PARTS:
            groups.append(PARTS.get(name)(artifacts))
        elif name in artifacts.results:
            figures.append(
                record.figures(name, f"What it does: {summary}.", artifacts.results[name])
            )
    groups += [record.evaluations(artifacts), Group("figures", "Other stages", figures)]
    groups.append(Group("measured", "Further evaluations", record.measured(run)))
    groups.append(record.made(run, artifacts))
    return Page(
        name=run.path.resolve().name,
        lead=_lead(artifacts, encoder),
        tiles=_tiles(artifacts.results),
        groups=[group for group in groups if group.sections],
        run=str(run.path),
    )


def _supervision(backbone: str | None, inverse_dynamics: float) -> str:
    """What the encoder of a run was trained by, in words."""
    if backbone is not None:
        return f"the frozen encoder {backbone}"
    if inverse_dynamics:
        return "an encoder trained by latent prediction and inverse dynamics, which reads actions"
    return "an encoder trained by latent prediction, without actions or labels"


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
        earned = (
            f"{number(paid['mean'])} an episode (95 % interval {acting.earned_interval(paid)})"
        )
        return f"plans for reward and earns {earned}; {', '.join(beside)}."
    success = plan.get("success")
    if not success:
        return ""

    # "Held-out" is claimed only where the layouts were compared with those of training.
    checked = (plan.get("layouts") or {}).get("heldout", {}).get("met") is not None
    training = plan.get(f"success{acting.TRAINING}")
    beside_training = (
        f", on training layouts in {percent(training['success_final'])}" if training else ""
    )
    return (
        f"plans to goal images and is there at the end in {percent(success['success_final'])} of "
        f"{success['episodes']} episodes{' on held-out layouts' if checked else ''} "
        f"(95 % interval {acting.interval(success)}){beside_training}."
    )


def _tiles(results: Mapping[str, Mapping[str, Any]]) -> list[Tile]:
    """The few figures that matter, those that exist."""
    tiles = _acting_tiles(results.get("plan", {})) + _encoder_tiles(results.get("pretrain", {}))
    for row in results.get("dynamics", {}).get("rollout") or ():
        if row["horizon"] != TILE_HORIZON:
            continue
        for name, part in list(row.get("state_errors", {}).items())[:TILE_PARTS]:
            says = f"error of the imagined {name} after {TILE_HORIZON} model steps"
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
