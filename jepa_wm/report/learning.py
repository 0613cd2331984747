"""The groups on what is learned on frozen features: dynamics, heads, and evaluations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

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
)
from jepa_wm.report.pictures import strip_png

REPRESENTATIONS = ("encoder", "random_encoder", "pixels")
SHOWN_STRIPS = 3
COLUMNS = 9  # frames in a strip, spread over the horizon
HORIZONS = (1, 2, 4, 8, 16, 32)  # in the table of rollout errors
# Logged numbers that are no terms of a loss.
APART = ("probe/", "normalised_error/", "gradient_share/")  # shown by themselves
NO_TERMS = (
    "loss", "lr", "gradient_norm", "feature_std", "effective_rank", "patch_rank", "collapsed"
)  # fmt: skip
Records = Sequence[Mapping[str, Any]]
Errors = list[float | None]


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
            [Grid(losses(metrics)), *gaps_in(metrics)] if metrics else [],
            "dynamics",
        ),
    ]
    return Group("dynamics", "Dynamics on frozen features", sections)


@PARTS.register("heads")
def heads(artifacts: RunArtifacts) -> Group:
    """What heads read from latents; a run for goals alone needs none, so nothing is missed."""
    rows = []
    for name, head in artifacts.results.get("heads", {}).get("heads", {}).items():
        rows.append(Row([name, number(head["error"]), number(head["constant"]), head["measure"]]))
    section = Section(
        "heads",
        "Error beside the best constant",
        "Heads on the frozen latents, on held-out samples, beside the best constant of the "
        "training samples.",
        [Table(("head", "error", "best constant", "measure"), rows)],
        "heads",
    )
    return Group("reading", "Heads", [section] if rows else [])


def evaluations(artifacts: RunArtifacts) -> Group:
    """Every stored evaluation of frozen features, told apart by its data and encoder."""
    rows = [
        row for name, result in artifacts.evaluations for row in _evaluation_rows(name, result)
    ]
    names = [name.replace("_", " ") for name in REPRESENTATIONS]
    section = Section(
        "frozen",
        "Probes on labelled data",
        "Heads and neighbours on frozen features: accuracy of classes, R2 of numbers, on data "
        "that had no say in any choice, with 95 % intervals; beside a baseline by how much the "
        "encoder is better, on the same videos or episodes. Each row is told apart by its "
        "settings, by what is in its data and by the encoder's weights; all of it stands in the "
        "folder of that name.",
        [Table(("evaluation", "of", *names, "data", "encoder", "folder"), rows)],
        "eval",
    )
    return Group("evaluations", "Frozen evaluations", [section] if rows else [])


def losses(metrics: Records) -> list[Figure]:
    """The loss, and its terms where it has several."""
    names = logged(metrics)
    terms = [name for name in names if name not in NO_TERMS and not name.startswith(APART)]
    figures = []
    for keys, title, text in (
        (["loss"] if "loss" in names else [], "Loss.", "The sum that is minimised."),
        (terms, "Its terms.", "As they are logged."),
    ):
        values = [record[key] for record in metrics for key in keys if key in record]
        if keys:
            log = all(value is None or value > 0 for value in values)
            figures.append(Figure(plots.curves(metrics, keys, log=log), title, text))
    return figures


def _rollout(rows: Records) -> list[Block]:
    """A plot and a pair of columns for each kind of error that the rows have."""
    horizons = [row["horizon"] for row in rows]
    shown = [i for i, horizon in enumerate(horizons) if horizon in HORIZONS] or range(len(rows))
    header, figures = ["horizon"], []
    table = [[str(horizons[i])] for i in shown]
    for name, title, caption, true, shuffled in _rollout_errors(rows):
        plot = plots.against_horizon(horizons, {"true actions": true, "shuffled": shuffled}, name)
        figures.append(Figure(plot, title, caption))
        header += [name, "shuffled actions"]
        for i, cells in zip(shown, table, strict=True):
            cells += [number(true[i]), number(shuffled[i])]
    return [Grid(figures), Table(header, [Row(cells) for cells in table])]


def _rollout_errors(rows: Records) -> Iterator[tuple[str, str, str, Errors, Errors]]:
    """(name, title, caption, errors with true and with shuffled actions at every horizon): in the
    latent, in the frozen features where that was measured, and of each part of the state."""
    kinds = [("relative_error", "relative error", "In the latent.", "1 = copying.")]
    if "feature_error" in rows[0]:
        text = "1 = copying; what the latent dropped counts."
        kinds.append(("feature_error", "relative error in features", "In the features.", text))
    for key, name, title, caption in kinds:
        true = [row.get(key) for row in rows]
        yield name, title, caption, true, [row.get(f"{key}_shuffled") for row in rows]
    for key, part in rows[0].get("state_errors", {}).items():
        words, unit = key.replace("_", " "), part.get("unit")
        errors = [row["state_errors"][key] for row in rows]
        yield (
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
    blocks: list[Block] = []
    for n in range(min(SHOWN_STRIPS, len(strips.true))):
        rows = []
        for name in ("true", "imagined", "shuffled"):
            png = strip_png(getattr(strips, name)[n, chosen])
            rows.append((name, Image("png", png, f"{name}, clip {n + 1}")))
        blocks.append(Strip(steps, rows))
    return blocks


def logged(metrics: Records) -> list[str]:
    """Names of the numbers in the records, in the order they first come up."""
    numbers = [
        key
        for record in metrics
        for key, value in record.items()
        if isinstance(value, int | float) and key != "step"
    ]
    return list(dict.fromkeys(numbers))


def gaps_in(metrics: Records) -> list[Block]:
    """A line on figures that were not finite, where there are any: a gap in a curve must not pass
    for calm."""
    gaps = sum(value is None for record in metrics for value in record.values())
    text = f"Logged figures that were not finite, gaps in the curves: {gaps}."
    return [Text(text, "lost")] if gaps else []


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
    groups = [key for key, value in figures.items() if isinstance(value, Mapping)]
    groups = [key for key in groups if "r2" in figures[key]]
    return groups or [key for key, value in figures.items() if isinstance(value, int | float)]


def _figure(figures: Mapping[str, Any] | None, what: str) -> str:
    """A figure with its interval where it has one, and by how much the encoder is better where
    that is known; a dash where it was not measured."""
    if figures is None:
        return "–"
    if what == "classes" and "accuracy" in figures:
        rate, value = figures, figures["accuracy"]
    elif isinstance(figures[what], Mapping):
        rate, value = figures[what], figures[what]["r2"]
    else:
        return number(figures[what])
    better = figures.get("encoder_is_better", {})
    better = better if what == "classes" else better.get(what)
    beside = f"; encoder better by {_interval(better['difference'], better)}" if better else ""
    return _interval(value, rate) + beside


def _interval(value: float, bounds: Mapping[str, Any]) -> str:
    """A value, with its interval where one could be told."""
    if bounds["low"] is None:
        return number(value)
    return f"{number(value)} ({number(bounds['low'])} to {number(bounds['high'])})"
