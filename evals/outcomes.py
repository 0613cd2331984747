"""What a finished run won or earned in each of its tasks, read from the episodes in its folder.

T tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.stage import with_upstream
from jepa_wm.core.yaml_source import read_yaml
from jepa_wm.worlds.tasks import SPLITS, Episodes, judge

SUFFIXES = {"heldout": "", "train": "_training_layouts"}  # of folders and keys, by split


@dataclass(frozen=True)
class Played:
    """One finished run: what it won or earned in each task."""

    path: Path
    settings: dict[str, Any]  # of plan and all stages before it
    commits: dict[str, str | None]  # stage -> commit of the code that made it
    tasks: tuple[Any, ...]  # what was played and how it was judged: equal for equal tasks
    outcomes: dict[str, np.ndarray]  # key of a figure -> [T], bool where won or lost
    # that held-out layouts are not in its training file; also where a world has no layouts
    checked: bool

    @property
    def seed(self) -> int:
        """Of its training."""
        return int(self.settings["seed"])


def read_run(path: Path) -> Played:
    """What a finished run left; UserError where its plan is not finished or does not belong to its
    episodes."""
    result = _json(path / "plan" / "result.json")
    settings = dict(read_yaml(path / "plan" / "config.yaml").data)
    commits = {}
    for stage in with_upstream("plan"):
        file = path / stage / "result.json"
        if file.exists():
            commits[stage] = _json(file).get("commit")
    tasks, outcomes = _returns(path, result) if "return" in result else _successes(path, result)
    layouts = result.get("layouts")
    checked = not layouts or layouts["heldout"]["met"] == 0
    return Played(path, settings, commits, tasks, outcomes, checked)


def _successes(
    path: Path, result: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, np.ndarray]]:
    episodes = Episodes.load(path / "plan" / "tasks.json")
    outcomes: dict[str, np.ndarray] = {}
    rule = tuple(result["success"][key] for key in ("budget", "radius"))
    for split in SPLITS:
        part, suffix = episodes.of(split), SUFFIXES[split]
        if not len(part):  # a world that keeps no layouts apart
            continue
        distance = _chunks(path / "plan" / f"main{suffix}", "distance", len(part))
        outcome = judge(distance, radius=rule[1])
        outcomes |= {
            f"success{suffix}": outcome.success_final,
            f"success_any{suffix}": outcome.success_any,
        }
        _check(path, outcome.success_final, result[f"success{suffix}"]["success_final"])
    return (episodes.digest, *rule), outcomes


def _returns(
    path: Path, result: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, np.ndarray]]:
    outcomes = {}
    for key in ("return", "return_training_layouts"):
        if key in result:
            folder = path / "plan" / key.replace("return", "returns", 1)
            outcomes[key] = _chunks(folder, "earned", result[key]["episodes"])
            _check(path, outcomes[key], result[key]["mean"])
    return (result["tasks"]["digest"],), outcomes


def _chunks(folder: Path, name: str, count: int) -> np.ndarray:
    """[T, ...] of the chunks of episodes there, each named by its first."""
    parts: list[np.ndarray] = []
    while (first := sum(map(len, parts))) < count:
        file = folder / f"{first:05d}.npz"
        if not file.exists():
            raise UserError(
                f"{file}: is not there, so the outcomes of single tasks are not known; plan again"
            )
        with np.load(file) as stored:
            parts.append(stored[name])
    return np.concatenate(parts)


def _check(path: Path, outcomes: np.ndarray, stored: float) -> None:
    if not np.isclose(outcomes.mean(), stored, rtol=1e-6, atol=1e-9):
        raise UserError(
            f"{path}/plan: its episodes give {outcomes.mean():g}, its result {stored:g}; delete "
            "it, plan again"
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(
            f"{file}: is not there; finish the run first (`jepa-wm plan --run {file.parents[1]}`)"
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, ValueError) as error:
        raise UserError(f"{file}: is damaged ({error}); delete it and plan again") from None
