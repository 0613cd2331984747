"""Shows how far a loop is (a bar on a terminal, plain lines elsewhere) and keeps its figures on
disk."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from jepa_wm.core.files import finite, write_atomic

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SECONDS_BETWEEN_LINES, SECONDS_BETWEEN_NOTES = 10.0, 5.0


class Progress:
    """A bar with the remaining time and the live figures, on stderr; without a terminal a line
    every 10 s.

    `start` is the step a resumed loop begins at: the time left is reckoned from this process's own
    pace. `file` tells the same to whoever asks how a job is getting on."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        start: int = 0,
        stream: TextIO | None = None,
        file: Path | None = None,
    ) -> None:
        self.label, self.total, self.start, self.file = label, total, start, file
        self.console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._step = start
        self._figures: dict[str, float | str] = {}
        self._began = self._printed = time.monotonic()
        self._told = 0.0
        # A log file is no place for a bar, which is drawn over and over.
        self._bar: RichProgress | None = None
        if self.console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=self.console,
            )
            self._task = self._bar.add_task(label, total=total, completed=start, figures="")

    def __enter__(self) -> Progress:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *how: object) -> None:
        if self._bar:
            self._bar.stop()
        else:
            self._print_line()
        self._tell()

    def update(self, step: int, **figures: float | str) -> None:
        """`step` steps are done; the figures given replace those of the same name, the others
        stay."""
        self._step = step
        self._figures.update(figures)
        if self._bar:
            self._bar.update(self._task, completed=step, figures=self._shown_figures())
        elif time.monotonic() - self._printed >= SECONDS_BETWEEN_LINES:
            self._print_line()
        if time.monotonic() - self._told >= SECONDS_BETWEEN_NOTES:
            self._tell()

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, markup=False)

    def seconds_left(self) -> float | None:
        """The time left at the pace so far; None before the first step."""
        done = self._step - self.start
        if done <= 0:
            return None
        return (time.monotonic() - self._began) / done * max(self.total - self._step, 0)

    def _print_line(self) -> None:
        self._printed = time.monotonic()
        left = self.seconds_left()
        share = 100 * self._step / self.total if self.total else 100.0
        parts = [f"{self.label}  {self._step}/{self.total}  {share:.0f}%"]
        if left is not None and self._step < self.total:
            parts.append(f"{_clock(left)} left")
        self.note("  ".join([*parts, self._shown_figures()]).rstrip())

    def _tell(self) -> None:
        if self.file is None:
            return
        self._told = time.monotonic()
        known = {
            "label": self.label,
            "step": self._step,
            "total": self.total,
            "seconds_left": self.seconds_left(),
        }
        with suppress(OSError):  # a full disk: the work itself is to go on
            write_atomic(
                self.file,
                json.dumps({**known, "at": time.time(), "figures": finite(self._figures)}),
            )

    def _shown_figures(self) -> str:
        return "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._figures.items()
        )


class Metrics:
    """Figures of one stage, appended to the run folder's metrics.jsonl and to TensorBoard events.

    A line is {"stage", "step", figures...}; `step` counts finished steps, so a line of step s
    belongs to the checkpoint of step s. Resuming at `start` drops this stage's lines past it (all
    of them when it is 0), as well as a last line that was cut short; other stages' lines stay."""

    def __init__(
        self, folder: Path, stage: str, *, start: int = 0, tensorboard: bool = True
    ) -> None:
        self.stage, self.start = stage, start
        self.path = folder / "metrics.jsonl"
        self._events = folder / "tensorboard" / stage if tensorboard else None
        self._writer: SummaryWriter | None = None
        self._drop_lines_past(start)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 (closed in close)

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Write one line at once; numbers that are not finite become null, and events take the
        plain numbers."""
        line = {"stage": self.stage, "step": step, **finite(values)}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is None:
            return
        if self._writer is None:
            # A second of imports: only when it is used.
            from torch.utils.tensorboard import SummaryWriter

            # A viewer hides what lies at or past this step.
            purge = self.start + 1 if self.start else 0
            self._writer = SummaryWriter(str(self._events), purge_step=purge)
        for name, value in line.items():
            if name not in ("stage", "step") and isinstance(value, (int, float)):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Close the files; TensorBoard events are flushed here and every two minutes."""
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *how: object) -> None:
        self.close()

    def _drop_lines_past(self, start: int) -> None:
        if not self.path.exists():
            return
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if self._belongs(line, start)]
        if text != "".join(f"{line}\n" for line in kept):
            write_atomic(self.path, "".join(f"{line}\n" for line in kept))

    def _belongs(self, line: str, start: int) -> bool:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            return False  # cut short by a kill
        if record.get("stage") != self.stage:
            return True
        return bool(start) and record["step"] <= start


def read_metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    """The stage's lines of a run folder's metrics.jsonl, oldest first; a cut-short line is passed
    over."""
    path = folder / "metrics.jsonl"
    records = []
    for line in (
        path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ()
    ):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [record for record in records if record.get("stage") == stage]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
