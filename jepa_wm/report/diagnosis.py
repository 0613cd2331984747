"""The group on a diagnosis: which stage is the weakest, and the tables that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.page import Block, Group, Row, Section, Table, Text, number, percent, with_unit

READ = ("features", "latent", "imagined", "shuffled")
STATE_COLUMNS = ("part of the state", "the task's distance depends on it", *READ)
PLAN_COLUMNS = (
    "plan", "at the end", "95 % interval", "at any step", "tasks", "less the search's",
    "95 % interval, by task", "",
)  # fmt: skip


def group(artifacts: RunArtifacts) -> Group:
    """A section for each diagnosis that is stored."""
    sections = [
        Section(
            "diagnosis" if not count else f"diagnosis_{count + 1}",
            "The weakest stage",
            "Of the state: the normalised mean square error (1: as the mean's; at most .1: it is "
            "kept) and the mean error of one small reader, on frozen features, on latents as an "
            "agent believes them, and on latents imagined with the recorded and with shuffled "
            "actions. Of plans: success on the same tasks where one part is replaced.",
            _blocks(result),
            "eval diagnose",
        )
        for count, result in enumerate(artifacts.diagnoses)
        if "sentence" in result
    ]
    return Group("diagnosed", "Diagnosis", sections)


def _blocks(result: Mapping[str, Any]) -> list[Block]:
    state = [
        Row([row["group"], "yes" if row["of_task"] else "no", *(_kept(row, k) for k in READ)])
        for row in result["state"]
    ]
    plans = [_plan(row) for row in result["plans"]]
    tables = [Table(STATE_COLUMNS, state)] if state else [Text(result["state_reason"])]
    return [Text(result["sentence"]), *tables, Table(PLAN_COLUMNS, plans)]


def _kept(row: Mapping[str, Any], read: str) -> str:
    if row[read] is None:
        return "–"
    return f"{number(row[read], 2)} ({with_unit(row[f'{read}_error'], row['unit'], 2)})"


def _plan(row: Mapping[str, Any]) -> Row:
    name = row["plan"].replace("_", " ")
    if row["success_final"] is None:
        return Row([name, *["–"] * (len(PLAN_COLUMNS) - 2), row["reason"]])
    low, high = (f"{100 * row[key]:.0f}" for key in ("low", "high"))
    cells = [
        name,
        percent(row["success_final"]),
        f"{low} to {high} %",
        percent(row["success_any"]),
    ]
    beside = ["–", "–", ""]
    if "difference" in row:
        least, middle, most = (
            f"{100 * row[key]:+.0f}" for key in ("low_difference", "difference", "high_difference")
        )
        beside = [f"{middle} %", f"{least} to {most} %", ""]
    return Row([*cells, str(row["n"]), *beside])
