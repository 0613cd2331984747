"""The group on success against the distance of goals: a curve a method, and the table of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jepa_wm.report import plots
from jepa_wm.report.acting import SUCCESS_COLUMNS, baseline_rows, success_row
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.page import Block, Figure, Grid, Group, Row, Section, Table, Text
from jepa_wm.report.policies import beside_search

Offset = Mapping[str, Any]  # what was measured at one offset, a stored row of `eval offsets`


def group(artifacts: RunArtifacts) -> Group:
    """A section for each curve that is stored: rows of one set of settings."""
    curves: dict[str, list[Offset]] = {}
    for row in artifacts.offsets:
        curves.setdefault(row["curve"], []).append(row)
    sections = [
        Section(
            "offsets" if not count else f"offsets_{count + 1}",
            "Success against the steps from start to goal",
            "Goals are frames so many environment steps after the starts, each with a budget of "
            "twice as many to get there. At the end: within the radius when the budget ends, with "
            "its 95 % Wilson interval, which is the band around a curve.",
            _blocks(sorted(rows, key=lambda row: int(row["offset"]))),
            "eval offsets",
        )
        for count, rows in enumerate(curves.values())
    ]
    return Group("distant", "Success by distance", sections)


def outcomes(rows: Sequence[Offset]) -> dict[str, list[Mapping[str, float] | None]]:
    """{method: its outcome at each of the rows, None where it was not measured}: the search,
    policies alone, baselines and oracle."""
    methods: dict[str, None] = {}
    each = []
    for row in rows:
        by_method = {"search": row["success"], **row.get("policies", {})}
        by_method |= {name: one for name, one in row["baselines"].items() if one is not None}
        by_method["oracle"] = row.get("oracle")
        methods |= dict.fromkeys(by_method)
        each.append(by_method)
    return {name.replace("_", " "): [row.get(name) for row in each] for name in methods}


def _blocks(rows: Sequence[Offset]) -> list[Block]:
    plot = plots.success_by_offset([row["offset"] for row in rows], outcomes(rows))
    table: list[Row] = []
    compared: list[Block] = []
    for row in rows:
        steps = f"{row['offset']} steps from start to goal"
        table += [Row([steps], "head"), success_row("this model", row["success"], "ours")]
        table += baseline_rows(row)
        beside = beside_search(row)
        compared += [Text(steps, heading=True), *beside] if beside else []
    caption = "All methods play the same tasks."
    return [
        Grid([Figure(plot, "Success at the end.", caption)]),
        Table(SUCCESS_COLUMNS, table),
        *compared,
    ]
