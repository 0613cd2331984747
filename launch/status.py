"""What became of a run folder's jobs: state, step, time left, last loss; and whether one is still
at it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.launch import slurm

LAST_LINES = 20
COLUMNS = ("job", "command", "state", "exit", "step", "left", "loss", "log")


def note(run: Path, row: dict[str, Any]) -> None:
    """Remember a submitted job in `launch/jobs.json` of its run folder."""
    file = run / "launch" / "jobs.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, json.dumps([*_noted(run), row], indent=1) + "\n")


def of(run: Path) -> list[dict[str, Any]]:
    """All jobs that were submitted for a run folder and for the runs of its sweep, oldest first.

    Raises UserError if there are none.
    """
    rows = [row for folder in (run, *sorted(run.glob("sweep/*"))) for row in _noted(folder)]
    if not rows:
        raise UserError(f"{run}: no job was submitted for this run folder")
    return [look(row) for row in rows]


def look(row: dict[str, Any]) -> dict[str, Any]:
    """A row with `state`, `exit` code, `step` of how many, seconds `left` and `loss`, None where
    not known."""
    known = slurm.describe(row["job"])
    ended = Path(row["record"]) / f"ended_{row['job']}"
    state = known.get("JobState", "UNKNOWN")
    code: int | None = None
    # The job's own record of its end counts before SLURM's, which knows less of a requeued one.
    if state not in slurm.LIVE:
        if ended.exists():
            code = int(json.loads(ended.read_text(encoding="utf-8"))["exit"])
        elif ":" in known.get("ExitCode", ""):
            status, signum = map(int, known["ExitCode"].split(":"))
            code = 128 + signum if signum else status
        if state == "UNKNOWN" and code is not None:  # SLURM has forgotten it, its record has not
            state = "FAILED" if code else "COMPLETED"
    return {
        **row,
        "state": state,
        "exit": code,
        "node": known.get("NodeList"),
        **_progress(row, state),
    }


def is_live(row: dict[str, Any]) -> bool:
    """Whether a job waits or runs; one that waits for something that will never come does
    neither."""
    known = slurm.describe(row["job"])
    return (
        known.get("JobState") in slurm.LIVE and known.get("Reason") != "DependencyNeverSatisfied"
    )


def refuse_live(run: Path) -> None:
    """Raises UserError naming the job if one is still at work in the run folder, or waits to
    be."""
    for row in _noted(run):
        if is_live(row):
            raise UserError(
                f"{run}: job {row['job']} ({row['command']}) is not done with this run folder; "
                "wait for it, cancel it "
                f"with `scancel {row['job']}`, or choose another --run"
            )


def complaint(row: dict[str, Any]) -> str:
    """What a user is told of a job that did not end well."""
    log = Path(row["log"])
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    tail = "\n".join(f"  {line}" for line in lines[-LAST_LINES:])
    ended = f"{row['state']}, exit code {row['exit']}"
    return f"job {row['job']} ({row['command']}): {ended}; log: {log}\n{tail}"


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows under their headings, in columns."""
    cells = [list(COLUMNS)] + [
        ["-" if row.get(name) is None else str(row[name]) for name in COLUMNS] for row in rows
    ]
    widths = [max(len(line[k]) for line in cells) for k in range(len(COLUMNS))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]


def _progress(row: dict[str, Any], state: str) -> dict[str, Any]:
    file = Path(row["run"]) / row["command"].split(" ")[0] / "progress.json"
    if not file.exists():
        return {"step": None, "left": None, "loss": None}
    progress = json.loads(file.read_text(encoding="utf-8"))
    left = progress["seconds_left"] if state == "RUNNING" else None
    loss = progress["figures"].get("loss")
    return {
        "step": f"{progress['step']}/{progress['total']}",
        "left": None if left is None else f"{left:.0f}s",
        "loss": None if loss is None else f"{loss:.4g}",
    }


def _noted(run: Path) -> list[dict[str, Any]]:
    file = run / "launch" / "jobs.json"
    rows: list[dict[str, Any]] = (
        json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    )
    return rows
