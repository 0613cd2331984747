"""The groups on training: the encoder, the dynamics on its frozen features, and heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jepa_wm.report import plots
from jepa_wm.report.artifacts import RunArtifacts, Strips
from jepa_wm.report.page import (
    PARTS,
    Block,
    Cell,
    Figure,
    Grid,
    Group,
    Image,
    Row,
    Section,
    Strip,
    Table,
    Text,
    number,
    with_unit,
)
from jepa_wm.report.pictures import strip_png

SHOWN_STRIPS = 3
COLUMNS = 9  # frames in a strip, spread over the horizon
HORIZONS = (1, 2, 4, 8, 16, 32)  # in the table of rollout errors
# Logged numbers that are no terms of a loss.
NO_TERMS = ("loss", "lr", "gradient_norm", "feature_std", "effective_rank", "collapsed")
Records = Sequence[Mapping[str, Any]]


@PARTS.register("pretrain")
def pretraining(artifacts: RunArtifacts) -> Group:
    """What can be read from the encoder's features, and how they came about."""
    result, metrics = artifacts.results.get("pretrain"), artifacts.metrics["pretrain"]
    probes = Section(
        "probes",
        "What can be read from the frozen features",
        "A small probe reads the world's state from features that were trained without it. "
        "Features that read no better than those of a random encoder hold nothing of it.",
        [_probe_table(result["probe"])] if result and result.get("probe") else [],
        "pretrain",
    )
    curves = Section(
        "collapse",
        "Loss, spread and rank in pretraining",
        "A falling loss proves nothing: a collapsed encoder predicts itself perfectly. Spread and "
        "effective rank must hold while the probes get better.",
        _pretraining_curves(metrics, (result or {}).get("probe") or {}) if metrics else [],
        "pretrain",
    )
    stateless = result is not None and not result.get("probe")  # there is no state to read
    sections = [curves] if stateless else [probes, curves]
    return Group("pretraining", "Pretraining", sections)


@PARTS.register("dynamics")
def dynamics(artifacts: RunArtifacts) -> Group:
    """How well the consequences of actions are predicted."""
    # While training goes on there are metrics and no result: each section asks for its own.
    result, metrics = artifacts.results.get("dynamics"), artifacts.metrics["dynamics"]
    sections = [
        Section(
            "rollout",
            "Rollout error",
            "From the frames it has observed the model rolls out a list of actions in latent "
            "space; 1 is as wrong as copying the last of them. The gap to shuffled actions is "
            "what knowing the actions buys.",
            _rollout(result["rollout"]) if result and result.get("rollout") else [],
            "dynamics",
        ),
        Section(
            "imagined",
            "What it imagines",
            "Nothing here is painted by the model: each imagined latent is shown as the real "
            "frame whose latent lies nearest.",
            _strips(artifacts.strips) if artifacts.strips else [],
            "dynamics",
        ),
        Section(
            "dynamics_curves",
            "Loss of the dynamics",
            "On frozen features; the encoder no longer changes.",
            [Grid(_losses(metrics)), *_gaps(metrics)] if metrics else [],
            "dynamics",
        ),
    ]
    return Group("dynamics", "Dynamics on frozen features", sections)


@PARTS.register("heads")
def heads(artifacts: RunArtifacts) -> Group:
    """What heads read from latents; a run for goals alone needs none, so nothing is missed."""
    result = artifacts.results.get("heads")
    if not result:
        return Group("reading", "Heads", [])
    rows = []
    for name, head in result["heads"].items():
        rows.append(Row([name, number(head["error"]), number(head["constant"]), head["measure"]]))
    section = Section(
        "heads",
        "Error beside the best constant",
        "Heads on the frozen latents, on held-out samples, beside the best constant of the "
        "training samples.",
        [Table(("head", "error", "best constant", "measure"), rows)],
        "heads",
    )
    return Group("reading", "Heads", [section])


def _probe_table(probes: Mapping[str, Mapping[str, Any]]) -> Table:
    """The error of each part of the state beside that on a random encoder."""
    rows = []
    for name, probe in probes.items():
        error, random, unit = probe.get("error"), probe.get("random_encoder"), probe.get("unit")
        ratio = Cell("–")
        if error is not None and random:
            ratio = Cell(number(error / random), "won" if error < random else "lost")
        beside = "not measured" if random is None else with_unit(random, unit)
        rows.append(Row([name.replace("_", " "), with_unit(error, unit), beside, ratio]))
    header = ("part of the state", "error", "random encoder", "ratio, below 1 is better")
    return Table(header, rows)


def _pretraining_curves(metrics: Records, probes: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    names = _logged(metrics)
    read = [name for name in names if name.startswith("probe/")]
    figures = _losses(metrics)
    if "feature_std" in names:
        text = "Standard deviation of features across samples at equal position."
        figures.append(Figure(plots.curves(metrics, ["feature_std"]), "Spread.", text))
    if "effective_rank" in names:
        text = "How many directions the features use."
        plot = plots.curves(metrics, ["effective_rank"])
        figures.append(Figure(plot, "Effective rank.", text))
    if read:
        levels = {f"probe/{name}": probe.get("random_encoder") for name, probe in probes.items()}
        units = sorted({str(probe["unit"]) for probe in probes.values() if probe.get("unit")})
        text = f"Error in {' and '.join(units)}" if units else "Error"
        text += "; dashed: a random encoder." if levels else "."
        figures.append(Figure(plots.curves(metrics, read, levels=levels), "Probes.", text))
    return [Grid(figures, "pairs"), *_gaps(metrics)]


def _losses(metrics: Records) -> list[Figure]:
    """The loss, and its terms where it has several."""
    names = _logged(metrics)
    terms = [name for name in names if name not in NO_TERMS and not name.startswith("probe/")]
    figures = []
    if "loss" in names:
        plot = plots.curves(metrics, ["loss"], log=_positive(metrics, ["loss"]))
        figures.append(Figure(plot, "Loss.", "The sum that is minimised."))
    if terms:
        plot = plots.curves(metrics, terms, log=_positive(metrics, terms))
        figures.append(Figure(plot, "Its terms.", "As they are logged."))
    return figures


class _Error(NamedTuple):
    """One error of a rollout, with true and with shuffled actions, at every horizon."""

    name: str
    title: str
    caption: str
    true: list[float | None]
    shuffled: list[float | None]


def _rollout(rows: Records) -> list[Block]:
    """A plot and a pair of columns for each kind of error that the rows have."""
    errors = list(_rollout_errors(rows))
    horizons = [row["horizon"] for row in rows]
    figures = []
    for error in errors:
        curves = {"true actions": error.true, "shuffled": error.shuffled}
        plot = plots.against_horizon(horizons, curves, error.name)
        figures.append(Figure(plot, error.title, error.caption))
    header = ["horizon"]
    for error in errors:
        header += [error.name, "shuffled actions"]
    shown = [i for i, horizon in enumerate(horizons) if horizon in HORIZONS] or range(len(rows))
    table = []
    for i in shown:
        cells = [str(horizons[i])]
        for error in errors:
            cells += [number(error.true[i]), number(error.shuffled[i])]
        table.append(Row(cells))
    return [Grid(figures), Table(header, table)]


def _rollout_errors(rows: Records) -> Iterator[_Error]:
    """In the latent, in the frozen features where that was measured, and of each part of the
    state."""
    kinds = [("relative_error", "relative error", "In the latent.", "1 = copying.")]
    if "feature_error" in rows[0]:
        text = "1 = copying; what the latent dropped counts."
        kinds.append(("feature_error", "relative error in features", "In the features.", text))
    for key, name, title, caption in kinds:
        true = [row.get(key) for row in rows]
        yield _Error(name, title, caption, true, [row.get(f"{key}_shuffled") for row in rows])
    for key, part in rows[0].get("state_errors", {}).items():
        words, unit = key.replace("_", " "), part.get("unit")
        errors = [row["state_errors"][key] for row in rows]
        yield _Error(
            f"{words}, {unit}" if unit else words,
            f"{words.capitalize()}.",
            "Read from the imagined latent.",
            [error["error"] for error in errors],
            [error["shuffled"] for error in errors],
        )


def _strips(strips: Strips) -> list[Block]:
    horizon = strips.true.shape[1] - 1
    chosen = np.linspace(0, horizon, min(COLUMNS, horizon + 1)).round().astype(int)
    steps = ["start" if step == 0 else f"+{step}" for step in chosen]
    kinds = (("true", strips.true), ("imagined", strips.imagined), ("shuffled", strips.shuffled))
    blocks: list[Block] = []
    for n in range(min(SHOWN_STRIPS, len(strips.true))):
        rows = []
        for name, frames in kinds:
            rows.append(
                (name, Image("png", strip_png(frames[n, chosen]), f"{name}, clip {n + 1}"))
            )
        blocks.append(Strip(steps, rows))
    return blocks


def _logged(metrics: Records) -> list[str]:
    """Names of the numbers in the records, in the order they first come up."""
    names: dict[str, None] = {}
    for record in metrics:
        names.update(
            {key: None for key, value in record.items() if isinstance(value, int | float)}
        )
    return [name for name in names if name not in ("stage", "step")]


def _positive(metrics: Records, names: Sequence[str]) -> bool:
    values = [record[name] for record in metrics for name in names if name in record]
    return all(value is None or value > 0 for value in values)


def _gaps(metrics: Records) -> list[Block]:
    """A line on figures that were not finite, where there are any: a gap in a curve must not pass
    for calm."""
    gaps = sum(value is None for record in metrics for value in record.values())
    text = f"Logged figures that were not finite, gaps in the curves: {gaps}."
    return [Text(text, "lost")] if gaps else []
