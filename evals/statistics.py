"""`jepa-wm compare`: what several finished runs won or earned, with intervals over tasks and
training seeds.

S training seeds, T tasks. Runs that differ in their seed alone are one method; two methods are
compared task by task."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.config import as_plain, config_diff
from jepa_wm.core.errors import UserError
from jepa_wm.evals.intervals import bootstrap_seeds_and_tasks, paired_difference, rate_over_seeds
from jepa_wm.evals.outcomes import Played, read_run

# settings that runs of one method need not share: none of them changes what its main objective
# wins
MAY_DIFFER = (
    "seed",
    "data.path",
    "planner.mpc.also_evaluate",
    "planner.mpc.memory_mb",
    "evaluation.random_encoder_baseline",
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
        differing = config_diff(_shared(played[0].settings), _shared(one.settings))
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
    """Of outcomes [S, T]; bounds are null where all returns are equal, which says nothing of
    others."""
    low, high = (
        rate_over_seeds(outcomes)
        if outcomes.dtype == bool
        else bootstrap_seeds_and_tasks(outcomes)
    )
    known = high > low
    return {
        "mean": float(outcomes.mean()),
        "low": low if known else None,
        "high": high if known else None,
        "seeds": outcomes.shape[0],
        "tasks": outcomes.shape[1],
        "by_seed": outcomes.mean(1).tolist(),
    }


def _difference(first: Sequence[Played], second: Sequence[Played]) -> dict[str, object]:
    differences: dict[str, object] = {}
    for key in first[0].outcomes:
        if key in second[0].outcomes:
            mean, low, high = paired_difference(_stacked(first, key), _stacked(second, key))
            differences[key] = {
                "mean": mean,
                "low": low if high > low else None,
                "high": high if high > low else None,
            }
    return differences


def _stacked(played: Sequence[Played], key: str) -> np.ndarray:
    return np.stack([one.outcomes[key] for one in played])


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those that runs of one method need not share."""
    plain = json.loads(json.dumps(as_plain(settings)))
    for dotted in MAY_DIFFER:
        *parents, name = dotted.split(".")
        inside = plain
        for parent in parents:
            inside = inside.get(parent, {})
        inside.pop(name, None)
    return plain


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
