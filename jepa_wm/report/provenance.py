"""The section on how the run was made: commands, times, config, versions, machine."""

from __future__ import annotations

import os
import platform
import re
from html import escape
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jepa_wm import __version__
from jepa_wm.core.config import digest
from jepa_wm.core.run import Run
from jepa_wm.report.artifacts import STAGES, RunArtifacts
from jepa_wm.report.page import Group, Section, command_line, row, table

PACKAGES = ("torch", "torchvision", "timm", "numpy", "faiss-cpu")


def group(run: Run, artifacts: RunArtifacts) -> Group:
    return Group(
        "made",
        "How it was made",
        (
            Section(
                "stages",
                "Commands and times",
                "Each command takes its stage up with exactly these settings; with another --run it does it anew. "
                "A stage's digest is that of all the settings its result depends on.",
                _stages(run, artifacts),
                "report",
            ),
            Section(
                "made_with",
                "Settings, versions, machine",
                "Versions and machine are those on which this page was written.",
                _made_with(run),
                "report",
            ),
        ),
    )


def clock(seconds: float | None) -> str:
    """12.3 s, 4 min 05 s, 1 h 12 min."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def cpu_name() -> str:
    """The processor's own name; the kind of machine where the system does not tell."""
    listing = Path("/proc/cpuinfo")
    found = (
        re.search(r"^model name\s*:\s*(.+)$", listing.read_text(), re.MULTILINE)
        if listing.exists()
        else None
    )
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def cores() -> int:
    """Cores this process may use."""
    return (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )


def _stages(run: Run, artifacts: RunArtifacts) -> str:
    rows = []
    for stage in STAGES:
        result = artifacts.results.get(stage)
        if stage == "heads" and result is None:
            continue  # plans toward goals need none
        made = run.digest(stage) if result is not None else "–"
        took = clock(result.get("seconds")) if result is not None else "not finished"
        command = f"<code>{escape(command_line(stage, str(run.path)))}</code>"
        rows.append(row((stage, took, f"<code>{made}</code>", command)))
    return table(("stage", "took", "digest", "command"), rows, style="commands")


def _made_with(run: Run) -> str:
    facts = {
        "config digest": digest(run.config),
        "machine": f"{cpu_name()}, {cores()} cores, {platform.system()} {platform.machine()}",
        "versions": f"jepa-wm {__version__}, Python {platform.python_version()}",
        "packages": ", ".join(f"{package} {_installed(package)}" for package in PACKAGES),
    }
    rows = [row((escape(name), escape(value))) for name, value in facts.items()]
    config = run.path / "config.yaml"
    text = escape(config.read_text(encoding="utf-8"))
    return f"{table((), rows, style='facts')}<details><summary>config.yaml</summary><pre>{text}</pre></details>"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
