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
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jepa_wm.config import Config, load_config
from jepa_wm.core.commands import stages
from jepa_wm.core.config import save_config
from jepa_wm.core.errors import JobFailed, UserError
from jepa_wm.core.stage import STAGES, pipeline
from jepa_wm.launch import local, slurm, snapshot, status, sweep
from jepa_wm.launch.job import Job
from jepa_wm.launch.settings import LaunchSettings

ENTRY = "jepa_wm.cli:main"
SHORT = {
    "cluster": str,
    "nodes": int,
    "tasks_per_node": int,
    "gpus_per_node": int,
    "partition": str,
    "minutes": int,
}


@dataclass(frozen=True)
class Piece:
    """A command on one run folder, with the config it is to have."""

    command: tuple[str, ...]
    run: Path
    config: Config
    source: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command line."""
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
    for name, kind in SHORT.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(
            flag, type=kind, metavar=name[0].upper(), help=f"short for launch.{name}=..."
        )
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
    command = (arguments.job, *argv)
    _refuse_other_commands(command, arguments)
    overrides = sweep.overrides(arguments.grid, arguments.each)
    config = load_config(arguments.config, given)
    if arguments.dry_run:
        return {
            "sbatch": [
                _dry(stage, config, folder, len(overrides)) for stage in _stages(command, config)
            ]
        }
    chains = []
    for number, more in enumerate(overrides or [[]]):
        run = folder / "sweep" / sweep.name(number, more) if overrides else folder
        source = (arguments.config, *given, *more)
        settings = load_config(arguments.config, source[1:])
        chains.append(
            [Piece(stage, run, settings, source) for stage in _stages(command, settings)]
        )
    for chain in chains:
        status.refuse_live(chain[0].run)
    if config.launch.cluster == "slurm":
        return _submit(chains, arguments, folder)
    return _run_here(chains)


def _stages(command: tuple[str, ...], config: Config) -> list[tuple[str, ...]]:
    """What a run does one after the other: a command, or the stages that its config needs."""
    if command != ("pipeline",):
        return [command]
    return [(stage,) for stage in pipeline(config)]


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    if "sbatch" in result:
        return list(result["sbatch"])
    return status.table(result["jobs"]) if result.get("jobs") else ["no jobs"]


def _run_here(chains: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """One after another; a sweep goes on past a run that failed, a chain does not. Raises
    JobFailed at the end."""
    done, failed = [], []
    for chain in chains:
        for piece in chain:
            record, settings = (
                _record(piece.run, piece.command[0]),
                _asked(piece.command, piece.config),
            )
            job = _prepare(piece, record)
            row = {
                "job": "here",
                "command": " ".join(piece.command),
                "run": str(piece.run),
                "log": str(record / "log"),
            }
            try:
                local.run(job, settings, settings.nodes * settings.tasks_per_node)
            except JobFailed as error:
                failed.append(error)
                done.append({**row, "state": "FAILED", "exit": error.code})
                break
            done.append({**row, "state": "COMPLETED", "exit": 0})
    if failed:
        count = f"{len(failed)} of {len(chains)} runs failed\n" if len(chains) > 1 else ""
        raise JobFailed(count + "\n".join(str(error) for error in failed), failed[0].code)
    return {"jobs": done}


def _submit(
    chains: Sequence[Sequence[Piece]], arguments: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Hand all to SLURM: a sweep of one command as an array, stages after each other, a split with
    its merging job."""
    rows: list[dict[str, Any]] = []
    try:
        if len(chains) > 1 and len(chains[0]) == 1:
            _submit_array(chains, folder, rows)
        else:
            for chain in chains:
                _submit_chain(chain, arguments.split, rows)
    except UserError:
        slurm.cancel([row["job"] for row in rows])  # half a pipeline is of no use
        raise
    if arguments.wait:
        _wait(rows)
    return {"jobs": [status.look(row) for row in rows]}


def _submit_array(
    chains: Sequence[Sequence[Piece]], folder: Path, rows: list[dict[str, Any]]
) -> None:
    pieces = [chain[0] for chain in chains]
    common = _record(folder, pieces[0].command[0])
    jobs = []
    snapshot.take(common, pieces[0].config)
    for number, piece in enumerate(pieces):
        record = common / f"{number:03d}"
        record.mkdir()
        save_config(piece.config, record / "config.yaml")
        jobs.append(_job(piece, record))
    settings = _asked(pieces[0].command, pieces[0].config)
    ids = slurm.submit(jobs, settings, record=common, name=_name(pieces[0].command))
    for one, piece, job in zip(ids, pieces, jobs, strict=True):
        rows.append(_noted(one, piece, Path(job.record), common))


def _submit_chain(chain: Sequence[Piece], split: int, rows: list[dict[str, Any]]) -> None:
    """Stages one after another; one whose work can be shared as an array with a merging job
    behind."""
    after: str | None = None
    for piece in chain:
        record, settings = (
            _record(piece.run, piece.command[0]),
            _asked(piece.command, piece.config),
        )
        job, every = _prepare(piece, record), False
        if split > 1 and _in_shards(piece.command[0]):
            argv = [(*job.argv, "--shard", f"{k}/{split}") for k in range(split)]
            shards = [replace(job, argv=one) for one in argv]
            ids = slurm.submit(
                shards, settings, record=record, name=f"{_name(piece.command)}-shard", after=after
            )
            rows += [_noted(one, piece, record, record) for one in ids]
            after, every = (
                ids[0].split("_")[0],
                True,
            )  # whatever became of the shards, what is missing is then done
        (after,) = slurm.submit(
            [job], settings, record=record, name=_name(piece.command), after=after, every=every
        )
        rows.append(_noted(after, piece, record, record))


def _noted(job: str, piece: Piece, record: Path, common: Path) -> dict[str, Any]:
    """A row of the table of jobs, also kept in the run folder, where `status` finds it."""
    row = {"job": job, "command": " ".join(piece.command), "run": str(piece.run), "record": str(record),
           "log": str(slurm.log_of(common, job))}  # fmt: skip
    status.note(piece.run, row)
    return row


def _wait(rows: Sequence[dict[str, Any]]) -> None:
    """Until no job is in the queue any more; raises JobFailed naming those that did not end well,
    with their logs."""
    while any(status.is_live(row) for row in rows):
        time.sleep(2)
    ended = [status.look(row) for row in rows]
    bad = [row for row in ended if row["state"] != "COMPLETED"]
    if bad:
        raise JobFailed("\n".join(status.complaint(row) for row in bad), bad[0]["exit"] or 1)


def _prepare(piece: Piece, record: Path) -> Job:
    snapshot.take(record, piece.config)
    return _job(piece, record)


def _job(piece: Piece, record: Path) -> Job:
    argv = (*piece.command, "--config", str(record / "config.yaml"), "--run", str(piece.run))
    name, *overrides = piece.source
    known = str(Path(name).resolve()) if Path(name).suffix in (".yaml", ".yml") else name
    return Job(ENTRY, argv, str(record), (known, *overrides))


def _record(run: Path, command: str) -> Path:
    """A new folder for what is launched now."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}_{command}"
    for number in itertools.count():
        record = run / "launch" / (f"{stem}_{number}" if number else stem)
        try:
            record.mkdir(parents=True)
        except FileExistsError:
            continue
        return record
    raise AssertionError("count ends")


def _asked(command: tuple[str, ...], config: Config) -> LaunchSettings:
    """What a job of this command asks for: several ranks only where they work together."""
    settings = config.launch
    if command[0] in STAGES and STAGES.get(command[0]).ranks:
        return settings
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(settings.gpus_per_node, 1)}
    return settings.model_copy(update=alone)


def _dry(command: tuple[str, ...], config: Config, folder: Path, jobs: int) -> str:
    record = folder / "launch" / f"<time>_{command[0]}"
    return slurm.sbatch_text(
        _asked(command, config), record=record, name=_name(command), jobs=jobs or 1
    )


def _refuse_other_commands(command: tuple[str, ...], arguments: argparse.Namespace) -> None:
    known = (*stages(), "demo", "eval", "pipeline")
    if command[0] not in known:
        raise UserError(
            f"there is no job {command[0]!r}; there are {', '.join((*known, 'status'))}"
        )
    if len(command) != (2 if command[0] == "eval" else 1):
        raise UserError(
            f"launch {' '.join(command)}: eval takes one name, other jobs none; settings have the "
            "form a.b=c"
        )
    if arguments.split > 1 and command[0] != "pipeline" and not _in_shards(command[0]):
        sharded = " and ".join(name for name in stages() if _in_shards(name))
        raise UserError(f"--split is for {sharded}, not {command[0]}")
    if arguments.split > 1 and (arguments.cluster or "local") != "slurm":
        raise UserError("--split needs --cluster slurm: one machine gains nothing by it")


def _in_shards(name: str) -> bool:
    return name in STAGES and STAGES.get(name).in_shards


def _name(command: tuple[str, ...]) -> str:
    return "jepa-wm-" + "-".join(command)
