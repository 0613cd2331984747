"""The report: one self-contained HTML page on everything a run folder holds so far."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from jepa_wm.core.files import fingerprint, write_atomic
from jepa_wm.core.run import Run
from jepa_wm.report import acting, evaluations, learning, provenance, returns
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.page import Group, number, page
from jepa_wm.report.strips import make_strips

TOLD_HORIZON = 8  # model steps, of the headline's imagined error
TOLD_GROUPS = 2  # groups of state numbers whose error is told at the top; all are below


def run(run: Run) -> dict[str, Any]:
    """Write <run>/report/index.html from what other stages left; returns its path, size and
    sections.

    A section whose source is absent says which command makes it and is listed as missing. Raises
    UserError naming a file that is damaged."""
    began, before = time.monotonic(), run.finished("report") or {}
    folder = run.stage_dir("report")
    weights = [
        run.path / "dynamics" / f"{name}.safetensors" for name in ("latent", "action_predictor")
    ]
    if run.finished("dynamics") and (there := [file for file in weights if file.exists()]):
        _keep_strips(run, there[0], folder / "strips.npz", folder / "strips.json")
    artifacts = RunArtifacts.read(run)
    seeing = learning.seeing(artifacts)
    seeing = replace(seeing, sections=(*seeing.sections, *evaluations.sections(run.path)))
    groups = (
        acting.group(artifacts),
        learning.imagining(artifacts),
        seeing,
        provenance.group(run, artifacts),
    )
    name = run.path.resolve().name
    text = page(f"{name} · jepa_wm", _head(name, artifacts), groups, run=str(run.path))
    path = run.stage_dir("report") / "index.html"
    write_atomic(path, text)
    result = {
        "report": str(path),
        "bytes": len(text.encode()),
        "sections": _keys(groups, present=True),
        "missing": _keys(groups, present=False),
        "seconds": before.get(
            "seconds", time.monotonic() - began
        ),  # of the first writing, so that a rerun agrees
    }
    run.write_result("report", result)
    return result


def _keep_strips(run: Run, weights: Path, strips: Path, made_of: Path) -> None:
    """Make the strips where there are none, or only some of dynamics that were deleted since and
    learned anew."""
    model = json.dumps({"dynamics": fingerprint(weights)})
    if strips.exists() and made_of.exists() and made_of.read_text(encoding="utf-8") == model:
        return
    made_of.unlink(missing_ok=True)
    make_strips(run, strips)
    write_atomic(made_of, model)


def _keys(groups: Sequence[Group], *, present: bool) -> list[str]:
    return [
        section.key
        for group in groups
        for section in group.sections
        if (section.body is not None) == present
    ]


def _head(name: str, artifacts: RunArtifacts) -> str:
    tiles = "".join(
        f'<div class="tile"><b>{value}</b><span>{said}</span></div>'
        for value, said in _tiles(artifacts)
    )
    title = escape(name.replace("_", " "))
    return f'<h1>{title}</h1>\n<p class="lead">{_lead(artifacts)}</p>\n<div class="tiles">{tiles}</div>'


def _lead(artifacts: RunArtifacts) -> str:
    """The outcome in one sentence, as far as there is one."""
    plan = artifacts.results.get("plan", {})
    if plan.get("return"):
        return returns.lead(plan)
    if success := plan.get("success"):
        checked = (plan.get("layouts") or {}).get("heldout", {}).get("met") is not None
        training = plan.get(f"success{acting.TRAINING}")
        beside = (
            f", on training layouts in {acting.percent(training['success_final'])}"
            if training
            else ""
        )
        return (
            f"A model that learned to see without labels or a pixel decoder plans to goal images and is there at the "
            f"end in {acting.percent(success['success_final'])} of {success['episodes']} episodes"
            f"{' on held-out layouts' if checked else ''} (95 % interval {acting.interval(success)}){beside}."
        )
    done = ", ".join(artifacts.results) or "nothing"
    return f"This run is not finished. Done so far: {escape(done)}."


def _tiles(artifacts: RunArtifacts) -> list[tuple[str, str]]:
    """(figure, what it is) of the few figures that matter, those that exist."""
    results = artifacts.results
    tiles = _plan_tiles(results.get("plan", {})) + _seeing_tiles(results.get("pretrain", {}))
    for entry in results.get("dynamics", {}).get("rollout") or ():
        if entry["horizon"] == TOLD_HORIZON:
            for name, read in list(entry.get("state_errors", {}).items())[:TOLD_GROUPS]:
                told = f"{number(read['error'], 2)} {escape(str(read.get('unit', '')))}"
                tiles.append(
                    (
                        told,
                        f"error of the imagined {escape(name)} after {TOLD_HORIZON} model steps",
                    )
                )
    seconds = {
        stage: result["seconds"]
        for stage, result in results.items()
        if result.get("seconds") is not None
    }
    if seconds:
        tiles.append(
            (provenance.clock(sum(seconds.values())), f"for {escape(', '.join(seconds))}")
        )
    return tiles


def _plan_tiles(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = []
    if success := plan.get("success"):
        unit = escape(str(success.get("unit", "")))
        radius = (
            f" within {success['radius']:g} {unit}".rstrip()
            if success.get("radius") is not None
            else ""
        )
        tiles.append(
            (acting.percent(success["success_final"]), f"of episodes end{radius} of the goal")
        )
    if earned := plan.get("return"):
        tiles.append((number(earned["mean"]), f"earned in an episode of {earned['budget']} steps"))
    if plan.get("seconds_per_decision") is not None:
        tiles.append(
            (f"{number(plan['seconds_per_decision'], 2)} s", "to decide on the next actions")
        )
    return tiles


def _seeing_tiles(pretrain: Mapping[str, Any]) -> list[tuple[str, str]]:
    tiles = []
    if pretrain.get("collapsed") is not None:
        word = '<em class="lost">collapsed</em>' if pretrain["collapsed"] else "no collapse"
        said = f"spread {number(pretrain.get('feature_std'))}, effective rank {number(pretrain.get('effective_rank'))}"
        tiles.append((word, said))
    for name, probe in list((pretrain.get("probe") or {}).items())[:1]:
        rival = probe.get("random_encoder")
        beside = f", {number(rival, 2)} from a random encoder" if rival is not None else ""
        unit = escape(str(probe.get("unit", "")))
        tiles.append(
            (
                f"{number(probe.get('error'), 2)} {unit}",
                f"error in reading the {escape(name)}{beside}",
            )
        )
    return tiles
