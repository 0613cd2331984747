"""Writes docs/results.md from docs/results/*.json, one file a question: `python docs/results.py`.

A row: label, value (a number, or one a seed), interval, n, seeds, commit, machine, command (as it
runs today), as_run (as it ran at the commit, where words differ), supervision, and what it is
measured against: `target` {at_least | at_most | above}, a number or "reference". "missed" is
computed, never written."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LONGEST = 150  # lines of the page

Row = dict[str, Any]

HEAD = """# Results

The current recipe only, generated from `docs/results/*.json`; what was tried before is in the
[log](log.md), how it is measured in the [protocol](protocol.md).

A value is the mean over seeds or runs where several are listed; intervals are of 95 %; "missed"
compares it with the target (its interval with the reference's, where the target says so). "by"
names the command below the table, in today's words, and the commit it was measured at.
*Supervision* says what the figure rests on besides pixels: **actions** (the encoder's
inverse-dynamics term reads them, and so does the latent) or **actions, the latent alone**,
**labels** (of the probe), **reward**, or **-** where nothing was learned.

Machines, all with two cores but G: A, AMD EPYC, bf16 faster than fp32; B, Intel Xeon with
AVX512-bf16, fp32 used; C, AMD EPYC with AVX2 only, fp32 used; D, AMD EPYC, bf16 206 GFLOP/s
against 48 in fp32; G, one H100 and 16 cores.
"""


def tables() -> list[dict[str, Any]]:
    """All questions in their order, each row with what it shares with the others of its table."""
    read = [json.loads(file.read_text(encoding="utf-8")) for file in HERE.glob("results/*.json")]
    for table in read:
        table["rows"] = [{**table.get("common", {}), **row} for row in table["rows"]]
    return sorted(read, key=lambda table: int(table["order"]))


def mean(value: float | list[float]) -> float:
    """Of a number, or of one number a seed."""
    return sum(value) / len(value) if isinstance(value, list) else value


def missed(row: Row) -> bool | None:
    """Whether the value falls short of the target; None where there is no target."""
    if "target" not in row:
        return None
    [(kind, goal)] = row["target"].items()
    reference = row.get("reference", {})
    if kind == "above":  # intervals apart from the reference's
        return not row["interval"][0] > reference["interval"][1]
    bound = mean(reference["value"]) if goal == "reference" else goal
    value = round(mean(row["value"]), 6)
    return value < bound if kind == "at_least" else value > bound


def shown(number: float) -> str:
    """Without a leading zero and with no more digits than were written."""
    text = f"{number:g}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def figure(cell: Row, unit: str) -> str:
    """A value with the seeds it is the mean of, and its unit."""
    if not cell:
        return ""
    value = cell["value"]
    if not isinstance(value, list):
        return shown(value) + unit
    digits = max(len(shown(one).partition(".")[2]) for one in value)
    seeds = ", ".join(map(shown, value))
    return f"{shown(round(mean(value), max(digits, 1)))}{unit} ({seeds})"


def interval(cell: Row) -> str:
    """As "low to high"; empty where there is none."""
    return " to ".join(map(shown, cell["interval"])) if "interval" in cell else ""


def goal(row: Row, reference: str) -> str:
    """The target in words."""
    if "target" not in row:
        return ""
    [(kind, bound)] = row["target"].items()
    words = {"at_least": "at least", "at_most": "at most", "above": "intervals apart, above"}[kind]
    return f"{words} {reference if bound == 'reference' else shown(bound)}"


def section(table: dict[str, Any]) -> list[str]:
    """One question: notes, the table, and what made each row."""
    made: dict[tuple[str, ...], str] = {}
    reference = table.get("reference", "")
    columns = ["what", "value", "interval", *([reference] if reference else []), "n", "seeds"]
    columns += ["target", "missed", "supervision", "by"]
    lines = ["", f"## {table['question']}", *([] if table.get("notes") else [""])]
    lines += [*table.get("notes", []), ""] if table.get("notes") else []
    lines += ["| " + " | ".join(columns) + " |", "| " + " | ".join("---" for _ in columns) + " |"]
    for row in table["rows"]:
        unit = row.get("unit", "")
        key = (row["command"], row["commit"], row["machine"])
        by = made.setdefault(key, string.ascii_letters[len(made)])
        failed = missed(row)
        beside = row.get("reference", {})
        against = figure(beside, unit)
        if "interval" in beside:
            against += f" ({interval(beside)})"
        cells = [row["label"], figure(row, unit), interval(row), *([against] if reference else [])]
        cells += [str(row["n"]), ", ".join(map(str, row["seeds"])), goal(row, reference)]
        cells += ["" if failed is None else "**missed**" if failed else "no", row["supervision"]]
        lines.append("| " + " | ".join(cells + [by]) + " |")
    ways = [f"{by}: `{c}` at {commit}, machine {where}" for (c, commit, where), by in made.items()]
    return [*lines, "", "; ".join(ways) + "."]


def page() -> str:
    """The whole page."""
    lines = HEAD.splitlines()
    for table in tables():
        lines += section(table)
    lines += ["", "## Not measured yet", ""]
    lines += (HERE / "results" / "open.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LONGEST, f"results.md has {len(lines)} lines: move what is past to log.md"
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (HERE / "results.md").write_text(page(), encoding="utf-8")
