"""`jepa-wm launch`: a command as a job here, under torchrun or on SLURM; sweeps, work split over
jobs, the whole pipeline.

jepa-wm launch COMMAND [--cluster local|torchrun|slurm] [--nodes N] [--gpus-per-node G]
                       [--config ...] [section.key=value]
jepa-wm launch pipeline ...       every stage that the config needs, in turn
jepa-wm launch status --run DIR   the jobs of a run folder
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jepa_wm.config import Config, load_config
from jepa_wm.core.commands import stages
from jepa_wm.core.errors import UserError, nearest
from jepa_wm.core.stage import in_shards, pipeline
from jepa_wm.launch import pieces, slurm, status

SHORT = {
    "cluster": str,
    "nodes": int,
    "tasks_per_node": int,
    "gpus_per_node": int,
    "partition": str,
    "minutes": int,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command line."""
    # What is launched and on which config, as the command itself would be told.
    parser.add_argument(
        "job", help=f"a command ({', '.join(stages())}, demo, eval), pipeline or status"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings; for eval its name first",
    )
    parser.add_argument(
        "--config", default="two_rooms", metavar="NAME_OR_PATH", help="default: two_rooms"
    )
    parser.add_argument(
        "--run", metavar="DIR", help="the run folder; default: runs/<name of the config>"
    )
    # What a job asks for is a section of the config; these are its most used keys in short.
    for name, kind in SHORT.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=kind, metavar=name[0].upper(), help=f"short for launch.{name}=..."
        )
    # Several runs or jobs from one call.
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=[A,B]",
        help="sweep over all combinations",
    )
    parser.add_argument(
        "--each", action="append", default=[], metavar="'K=V K=V'", help="one run of a sweep"
    )
    parser.add_argument(
        "--split",
        type=int,
        default=1,
        metavar="N",
        help="features or plan: N jobs with a shard each",
    )
    parser.add_argument(
        "--wait",
        action="store_true",
        help="on slurm: until all jobs have ended, and fail if one did",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be given to sbatch"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Launch what the arguments ask for; returns what was done, with the ids of jobs that go on
    without this process."""
    argv = [word for word in arguments.overrides if "=" not in word]
    given = [word for word in arguments.overrides if "=" in word]
    given += [
        f"launch.{name}={getattr(arguments, name)}"
        for name in SHORT
        if getattr(arguments, name) is not None
    ]
    folder = Path(arguments.run or Path("runs") / Path(arguments.config).stem).resolve()
    if arguments.job == "status":
        return {"jobs": status.of(folder)}
    # All that can be refused is, before anything is submitted.
    command = (arguments.job, *argv)
    _refuse_other_commands(command, arguments)
    overrides = sweep(arguments.grid, arguments.each)
    config = load_config(arguments.config, given)
    if arguments.dry_run:
        if config.launch.cluster != "slurm":
            raise UserError(
                f"--dry-run prints what sbatch would get, and cluster {config.launch.cluster} "
                "asks none: add --cluster slurm"
            )
        return {
            "sbatch": [
                _dry(stage, config, folder, len(overrides)) for stage in _stages(command, config)
            ]
        }
    # A chain for each run of the sweep, for there is one config and one folder each.
    chains = []
    for number, more in enumerate(overrides or [[]]):
        run = folder / "sweep" / sweep_name(number, more) if overrides else folder
        source = (arguments.config, *given, *more)
        settings = load_config(arguments.config, source[1:])
        chains.append(
            [pieces.Piece(stage, run, settings, source) for stage in _stages(command, settings)]
        )
    for chain in chains:
        status.refuse_live(chain[0].run)
    if config.launch.cluster == "slurm":
        return pieces.submit(chains, folder, split=arguments.split, wait=arguments.wait)
    return pieces.run_here(chains)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    if "sbatch" in result:
        return list(result["sbatch"])
    return status.table(result["jobs"]) if result.get("jobs") else ["no jobs"]


def sweep(grid: Sequence[str], each: Sequence[str]) -> list[list[str]]:
    """The overrides of every run: all combinations of axes KEY=[A,B], then each 'KEY=V KEY=V' as
    it is; none without a sweep.

    Raises UserError for an axis that is no list.
    """
    axes = []
    for axis in grid:
        key, equals, text = axis.partition("=")
        try:
            values = yaml.safe_load(text) if equals else None
        except yaml.YAMLError:
            values = None
        if not isinstance(values, list) or not values:
            raise UserError(f"--grid {axis!r}: expected KEY=[A,B,...], a list in YAML")
        axes.append(
            [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
        )
    combined = [list(choice) for choice in itertools.product(*axes)] if axes else []
    return combined + [one.split() for one in each]


def sweep_name(number: int, settings: Sequence[str]) -> str:
    """A run's folder: its number, then the last part of each key with its value."""
    parts = []
    for setting in settings:
        key, _, value = setting.partition("=")
        parts.append(re.sub(r"[^A-Za-z0-9.=+-]+", "-", f"{key.rpartition('.')[2]}={value}"))
    return "_".join([f"{number:03d}", *parts])[:80]


def _stages(command: tuple[str, ...], config: Config) -> list[tuple[str, ...]]:
    """What a run does one after the other: a command, or the stages that its config needs."""
    if command != ("pipeline",):
        return [command]
    return [(stage,) for stage in pipeline(config)]


def _dry(command: tuple[str, ...], config: Config, folder: Path, jobs: int) -> str:
    record = folder / "launch" / f"<time>_{command[0]}"
    return slurm.sbatch_text(
        pieces.asked_of(command, config),
        record=record,
        name=pieces.job_name(command),
        jobs=jobs or 1,
    )


def _refuse_other_commands(command: tuple[str, ...], arguments: argparse.Namespace) -> None:
    known = (*stages(), "demo", "eval", "pipeline", "status")
    if command[0] not in known:
        close = nearest(command[0], known)
        raise UserError(f"there is no job {command[0]!r}; {close}there are {', '.join(known)}")
    if len(command) != (2 if command[0] == "eval" else 1):
        raise UserError(
            f"launch {' '.join(command)}: eval takes one name, other jobs none; settings have the "
            "form a.b=c"
        )
    if arguments.split > 1 and command[0] != "pipeline" and not in_shards(command[0]):
        sharded = " and ".join(name for name in stages() if in_shards(name))
        raise UserError(f"--split is for {sharded}, not {command[0]}")
    if arguments.split > 1 and (arguments.cluster or "local") != "slurm":
        raise UserError("--split needs --cluster slurm: one machine gains nothing by it")
