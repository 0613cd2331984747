"""`jepa-wm compare`: what several finished runs won or earned, read from the episodes in their
folders, with intervals over tasks and training seeds.

S training seeds, T tasks. Runs that differ in their seed alone are one method; two methods are
compared task by task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.config import config_diff
from jepa_wm.core.errors import UserError
from jepa_wm.core.stage import with_upstream
from jepa_wm.core.yaml_source import read_yaml
from jepa_wm.evals.episodes import SUFFIXES, read_chunks
from jepa_wm.evals.scores import bootstrap, paired_difference, rate_over_seeds
from jepa_wm.worlds.tasks import Episodes, judge

# settings that runs of one method need not share: none of them changes what its main objective
# wins
MAY_DIFFER = (
    "seed",
    "data.path",
    "planner.mpc.also_evaluate",
    "planner.mpc.memory_mb",
    "evaluation.random_encoder_baseline",
    "evaluation.policies",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `jepa-wm compare`."""
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        type=Path,
        help="run folders of one method, a training seed each",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="RUN",
        type=Path,
        help="those of another method",
    )


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """The command: read, check that the runs belong together, compare."""
    return compare(arguments.runs, arguments.against)


def compare(runs: Sequence[Path], against: Sequence[Path] = ()) -> dict[str, object]:
    """`runs` {"figures", "seeds", "commits", "one_commit"}, `against` and `difference` where there
    is another method.

    Figures have `mean`, `low`, `high`, `tasks` and `seeds`. Raises UserError for runs that are not
    finished, that played other tasks, that differ in more than their seed, or that share one."""
    first = [read_run(path) for path in runs]
    second = [read_run(path) for path in against]
    for played in (*first, *second):
        if played.tasks != first[0].tasks:
            raise UserError(
                f"{played.path}: played other tasks than {first[0].path}; plan with the same "
                "settings (evaluation.task_seed, evaluation.episodes, evaluation.budget, "
                "evaluation.task, world)"
            )
    commits = {commit for played in (*first, *second) for commit in played.commits.values()}
    result: dict[str, object] = {"runs": _method(first)}
    if second:
        result |= {"against": _method(second), "difference": _difference(first, second)}
        result["settings_that_differ"] = config_diff(second[0].settings, first[0].settings)
    return {**result, "one_commit": len(commits) == 1 and _clean(commits)}


def _method(played: Sequence[Played]) -> dict[str, object]:
    """Figures of runs of one method."""
    # An interval over seeds is one only where nothing but the seed differs, and each counts once.
    for one in played[1:]:
        changes = config_diff(played[0].settings, one.settings)
        differing = [line for line in changes if line.partition(":")[0] not in MAY_DIFFER]
        if differing:
            raise UserError(
                f"{one.path}: is of another method than {played[0].path}: "
                f"{', '.join(differing)}; give runs that differ in their seed alone, and those of "
                "another method behind --against"
            )
    seeds = [one.seed for one in played]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"{played[-1].path}: two of the runs have the same seed ({seeds}); give each training "
            "seed once"
        )
    # Code is no setting: runs of several commits are told of, not refused.
    commits = {commit for one in played for commit in one.commits.values()}
    return {
        "figures": {key: _figure(_stacked(played, key)) for key in played[0].outcomes},
        "seeds": seeds,
        "unchecked": [str(one.path) for one in played if not one.checked],
        "commits": {str(one.path): one.commits for one in played},
        "one_commit": len(commits) == 1 and _clean(commits),
    }


def _figure(outcomes: np.ndarray) -> dict[str, float | int | None]:
    """Of outcomes [S, T]."""
    interval = rate_over_seeds if outcomes.dtype == bool else bootstrap
    return {
        **_with_bounds(float(outcomes.mean()), *interval(outcomes)),
        "seeds": outcomes.shape[0],
        "tasks": outcomes.shape[1],
        "by_seed": outcomes.mean(1).tolist(),
    }


def _difference(first: Sequence[Played], second: Sequence[Played]) -> dict[str, object]:
    return {
        key: _with_bounds(*paired_difference(_stacked(first, key), _stacked(second, key)))
        for key in first[0].outcomes
        if key in second[0].outcomes
    }


def _with_bounds(mean: float, low: float, high: float) -> dict[str, float | int | None]:
    """Bounds are null where all outcomes are equal, which says nothing of others."""
    known = high > low
    return {"mean": mean, "low": low if known else None, "high": high if known else None}


def _stacked(played: Sequence[Played], key: str) -> np.ndarray:
    return np.stack([one.outcomes[key] for one in played])


def _clean(commits: set[str | None]) -> bool:
    return not any(commit is None or commit.endswith("+changed") for commit in commits)


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result for reading."""
    text = _method_lines("runs", result["runs"])
    if "against" in result:
        text += _method_lines("against", result["against"])
        text += ["difference, the same tasks"]
        text += [f"  {key}: {_words(figure)}" for key, figure in result["difference"].items()]
        text += ["settings that differ", *(f"  {line}" for line in result["settings_that_differ"])]
    if not result["one_commit"]:
        text.append(
            "NOT ONE COMMIT: these figures are of different or unknown code and do not belong in "
            "one row"
        )
    return text


def _method_lines(name: str, method: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, method["seeds"]))
    text = [f"{name}: training seeds {seeds}"]
    if len(method["seeds"]) == 1:
        text.append("  one training seed: intervals are over tasks, for this training alone")
    for key, figure in method["figures"].items():
        text.append(f"  {key}: {_words(figure)}, {figure['tasks']} tasks, {figure['seeds']} seeds")
    text += [
        f"  {path}: NOT CHECKED that held-out layouts are not in its training data"
        for path in method["unchecked"]
    ]
    for path, commits in method["commits"].items():
        by_commit: dict[str, list[str]] = {}
        for stage, commit in commits.items():
            by_commit.setdefault(str(commit or "unknown"), []).append(stage)
        text += [
            f"  {path}: {', '.join(stages)} at commit {commit}"
            for commit, stages in by_commit.items()
        ]
    return text


def _words(figure: Mapping[str, Any]) -> str:
    if figure["low"] is None:
        return f"{figure['mean']:.4g} (all equal: no interval)"
    return f"{figure['mean']:.4g} ({figure['low']:.4g} to {figure['high']:.4g})"


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
    budget, radius = result["success"]["budget"], result["success"]["radius"]
    for split, suffix in SUFFIXES.items():
        count = len(episodes.of(split))
        if not count:  # a world that keeps no layouts apart
            continue
        played = read_chunks(path / "plan" / f"main{suffix}", range(count), ("distance",))
        outcome = judge(played["distance"], radius=radius)
        outcomes |= {
            f"success{suffix}": outcome.success_final,
            f"success_any{suffix}": outcome.success_any,
        }
        _check(path, outcome.success_final, result[f"success{suffix}"]["success_final"])
    return (episodes.digest, budget, radius), outcomes


def _returns(
    path: Path, result: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, np.ndarray]]:
    outcomes = {}
    for suffix in SUFFIXES.values():
        if f"return{suffix}" in result:
            figure, folder = result[f"return{suffix}"], path / "plan" / f"returns{suffix}"
            earned = read_chunks(folder, range(figure["episodes"]), ("earned",))["earned"]
            outcomes[f"return{suffix}"] = earned
            _check(path, earned, figure["mean"])
    return (result["tasks"]["digest"],), outcomes


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
