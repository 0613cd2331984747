"""The sections on learning: how the encoder learned to see, and how well what actions do is
imagined."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from jepa_wm.report import charts
from jepa_wm.report.artifacts import RunArtifacts, Strips
from jepa_wm.report.film import strip_png
from jepa_wm.report.page import Group, Section, grid, img, number, panel, row, table

SHOWN_STRIPS = 3
COLUMNS = 9  # frames in a strip, spread over the horizon


def seeing(artifacts: RunArtifacts) -> Group:
    result, metrics = artifacts.results.get("pretrain"), artifacts.metrics["pretrain"]
    probes = Section(
        "probes",
        "What can be read from the frozen features",
        "A small probe reads the world's state from features that were learned without it. Features that read "
        "no better than those of a random encoder have learned nothing.",
        _probe_table(result) if result and result.get("probe") else None,
        "pretrain",
    )
    curves = Section(
        "collapse",
        "Loss, spread and rank while it learned",
        "A falling loss proves nothing: a collapsed encoder predicts itself perfectly. Spread and effective "
        "rank must hold while the probes get better.",
        _seeing_curves(metrics, result) if metrics else None,
        "pretrain",
    )
    stateless = result is not None and not result.get(
        "probe"
    )  # data without a state leave nothing to read
    return Group("seeing", "Pretraining", (curves,) if stateless else (probes, curves))


def imagining(artifacts: RunArtifacts) -> Group:
    result, metrics = artifacts.results.get("dynamics"), artifacts.metrics["dynamics"]
    rollout = result.get("rollout") if result else None
    heads = artifacts.results.get("heads")
    return Group(
        "imagining",
        "Learning what actions do",
        (
            Section(
                "rollout",
                "Error of the imagined future",
                "From the frames it has seen the model imagines on by a list of actions alone; 1 is as wrong as taking "
                "the last of them for all. The gap to shuffled actions is what knowing the actions buys.",
                _rollout(rollout) if rollout else None,
                "dynamics",
            ),
            Section(
                "imagined",
                "What it imagines",
                "Nothing here is painted by the model: each imagined latent is shown as the real frame whose latent "
                "lies nearest.",
                _strips(artifacts.strips) if artifacts.strips else None,
                "dynamics",
            ),
            Section(
                "dynamics_curves",
                "Loss while it learned",
                "On frozen features; the encoder no longer moves.",
                _loss_panels(metrics) if metrics else None,
                "dynamics",
            ),
            *([_heads(heads)] if heads else []),
        ),
    )


def _heads(result: Mapping[str, Any]) -> Section:
    rows = [
        row(
            (
                escape(name),
                number(head["error"]),
                number(head["constant"]),
                escape(head["measure"]),
            )
        )
        for name, head in result["heads"].items()
    ]
    return Section(
        "heads",
        "What heads read",
        "Heads on the frozen latents, on held-out samples, beside the best constant of the training samples.",
        table(("head", "error", "best constant", "measure"), rows),
        "heads",
    )


def _probe_table(result: Mapping[str, Any]) -> str:
    rows = []
    for name, probe in result["probe"].items():
        error, rival, unit = (
            probe.get("error"),
            probe.get("random_encoder"),
            escape(str(probe.get("unit", ""))),
        )
        known = error is not None and bool(rival)
        rows.append(
            row(
                (
                    escape(name.replace("_", " ")),
                    f"<b>{number(error)} {unit}</b>",
                    f"{number(rival)} {unit}" if rival is not None else "not measured",
                    f'<span class="{"won" if error < rival else "lost"}">{number(error / rival)}</span>'
                    if known
                    else "–",
                )
            )
        )
    return table(
        ("part of the state", "error", "random encoder", "ratio, below 1 is learned"), rows
    )


def _seeing_curves(metrics: Sequence[Mapping[str, Any]], result: Mapping[str, Any] | None) -> str:
    names = _figures(metrics)
    items = []
    if losses := [name for name in names if "loss" in name]:
        items.append(
            panel(charts.curves(metrics, losses), "Loss.", "Error of the predicted latents.")
        )
    if "feature_std" in names:
        said = "Standard deviation of features across samples at equal position."
        items.append(panel(charts.curves(metrics, ["feature_std"]), "Spread.", said))
    if "effective_rank" in names:
        said = "How many directions the features use."
        items.append(panel(charts.curves(metrics, ["effective_rank"]), "Effective rank.", said))
    if probes := [name for name in names if name.startswith("probe/")]:
        final = (result or {}).get("probe") or {}
        levels = {f"probe/{name}": probe.get("random_encoder") for name, probe in final.items()}
        units = " and ".join(
            sorted({str(probe["unit"]) for probe in final.values() if probe.get("unit")})
        )
        said = f"Error{f' in {units}' if units else ''}" + (
            "; dashed: a random encoder." if levels else "."
        )
        items.append(panel(charts.curves(metrics, probes, dashed=levels), "Probes.", said))
    return grid(items, style="pairs") + _skipped(metrics)


def _loss_panels(metrics: Sequence[Mapping[str, Any]]) -> str:
    losses = [name for name in _figures(metrics) if "loss" in name]
    shown = (
        ([name for name in losses if name == "loss"], "Loss.", "The sum that is trained on."),
        ([name for name in losses if name != "loss"], "Its parts.", "As they are logged."),
    )
    items = [
        panel(charts.curves(metrics, names, log=_positive(metrics, names)), title, said)
        for names, title, said in shown
        if names
    ]
    return grid(items) + _skipped(metrics)


def _rollout(rows: Sequence[Mapping[str, Any]]) -> str:
    """A curve and a pair of columns for each kind of error that the rows have."""
    kinds = [
        _Kind(
            "relative error",
            "In the latent.",
            "1 = copying.",
            lambda row, end: row.get(f"relative_error{end}"),
        )
    ]
    if "feature_error" in rows[0]:
        kinds.append(_Kind(
            "relative error in features", "In the frozen features.", "1 = copying; what the latent dropped counts.",
            lambda row, end: row.get(f"feature_error{end}"),
        ))  # fmt: skip
    kinds += [_of_state(name, group) for name, group in rows[0].get("state_errors", {}).items()]
    horizons = [entry["horizon"] for entry in rows]
    items = []
    for kind in kinds:
        curves = {
            "true actions": [kind.at(r, "") for r in rows],
            "shuffled": [kind.at(r, "_shuffled") for r in rows],
        }
        items.append(
            panel(charts.against_horizon(horizons, curves, kind.name), kind.title, kind.said)
        )
    chosen = [entry for entry in rows if entry["horizon"] in (1, 2, 4, 8, 16, 32)] or list(rows)
    figures = [
        row(
            (
                str(entry["horizon"]),
                *(number(kind.at(entry, end)) for kind in kinds for end in ("", "_shuffled")),
            )
        )
        for entry in chosen
    ]
    header = ("horizon", *(name for kind in kinds for name in (kind.name, "shuffled actions")))
    return grid(items) + table(header, figures)


@dataclass(frozen=True)
class _Kind:
    """An error of the rollout: what it is called, and how it is read from a row, with the ending
    "" or "_shuffled"."""

    name: str
    title: str
    said: str
    at: Callable[[Mapping[str, Any], str], float | None]


def _of_state(name: str, group: Mapping[str, Any]) -> _Kind:
    """The error of a group of state numbers."""

    def at(entry: Mapping[str, Any], end: str) -> float | None:
        value: float | None = entry["state_errors"][name]["shuffled" if end else "error"]
        return value

    unit, words = str(group.get("unit") or ""), name.replace("_", " ")
    return _Kind(
        f"{words}, {unit}" if unit else words,
        f"{words.capitalize()}.",
        "Read from the imagined latent.",
        at,
    )


def _strips(strips: Strips) -> str:
    horizon = strips.true.shape[1] - 1
    chosen = np.unique(np.linspace(0, horizon, min(COLUMNS, horizon + 1)).round().astype(int))
    labels = "".join(f"<span>{'start' if step == 0 else f'+{step}'}</span>" for step in chosen)
    parts = []
    for n in range(min(SHOWN_STRIPS, len(strips.true))):
        cells = [f"<span>model step</span><div>{labels}</div>"]
        kinds = (
            ("what came", strips.true),
            ("imagined", strips.imagined),
            ("shuffled", strips.shuffled),
        )
        for name, frames in kinds:
            cells.append(
                f"<span>{name}</span>{img('png', strip_png(frames[n, chosen]), f'{name}, clip {n + 1}')}"
            )
        parts.append(f'<div class="wide"><div class="strip">{"".join(cells)}</div></div>')
    return "".join(parts)


def _figures(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the numbers in the records, in the order they first come up."""
    names = dict.fromkeys(
        name
        for record in metrics
        for name, value in record.items()
        if isinstance(value, (int, float))
    )
    return [name for name in names if name not in ("stage", "step")]


def _positive(metrics: Sequence[Mapping[str, Any]], names: Sequence[str]) -> bool:
    return all(
        record[name] is None or record[name] > 0
        for record in metrics
        for name in names
        if name in record
    )


def _skipped(metrics: Sequence[Mapping[str, Any]]) -> str:
    """A line on figures that were not finite, where there are any: a gap in a curve must not pass
    for calm."""
    gaps = sum(value is None for record in metrics for value in record.values())
    return (
        f'<p class="lost">Logged figures that were not finite, gaps in the curves: {gaps}.</p>'
        if gaps
        else ""
    )
