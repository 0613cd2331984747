"""Pieces of work, each a command on a run folder: carried out here, or handed to SLURM as jobs,
arrays and chains of jobs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jepa_wm.config import Config
from jepa_wm.core.config import save_config
from jepa_wm.core.errors import JobFailed, UserError
from jepa_wm.core.stage import in_shards, on_ranks
from jepa_wm.launch import local, slurm, status
from jepa_wm.launch.job import Job, take_snapshot
from jepa_wm.launch.settings import LaunchSettings

ENTRY = "jepa_wm.cli:main"


@dataclass(frozen=True)
class Piece:
    """A command on one run folder, with the config it is to have."""

    command: tuple[str, ...]
    run: Path
    config: Config
    source: tuple[str, ...]


def run_here(chains: Sequence[Sequence[Piece]]) -> dict[str, Any]:
    """One after another; a sweep goes on past a run that failed, a chain does not. Raises
    JobFailed at the end."""
    done, failed = [], []
    for chain in chains:
        for piece in chain:
            record = _record(piece.run, piece.command[0])
            settings = asked_of(piece.command, piece.config)
            job = _prepare(piece, record)
            row = {
                "job": "here",
                "command": " ".join(piece.command),
                "run": str(piece.run),
                "log": str(record / "log"),
            }
            # What comes behind a failed piece reads its output: the chain ends there.
            try:
                local.run(job, settings, settings.nodes * settings.tasks_per_node)
            except JobFailed as error:
                failed.append(error)
                done.append({**row, "state": "FAILED", "exit": error.code})
                break
            done.append({**row, "state": "COMPLETED", "exit": 0})
    # Told at the end, so that no run of a sweep waits for another's mistake to be mended.
    if failed:
        count = f"{len(failed)} of {len(chains)} runs failed\n" if len(chains) > 1 else ""
        raise JobFailed(count + "\n".join(str(error) for error in failed), failed[0].code)
    return {"jobs": done}


def submit(
    chains: Sequence[Sequence[Piece]], folder: Path, *, split: int, wait: bool
) -> dict[str, Any]:
    """Hand all to SLURM: a sweep of one command as an array, stages after each other, one that is
    `split` into several jobs with its merging job; `wait` until all have ended."""
    rows: list[dict[str, Any]] = []
    try:
        if len(chains) > 1 and len(chains[0]) == 1:
            _submit_array(chains, folder, rows)
        else:
            for chain in chains:
                _submit_chain(chain, split, rows)
    except UserError:
        slurm.cancel([row["job"] for row in rows])  # half a pipeline is of no use
        raise
    if wait:
        _wait(rows)
    return {"jobs": [status.look(row) for row in rows]}


def _submit_array(
    chains: Sequence[Sequence[Piece]], folder: Path, rows: list[dict[str, Any]]
) -> None:
    """One array for all runs of a sweep: the code is kept once, a config for each."""
    pieces = [chain[0] for chain in chains]
    common = _record(folder, pieces[0].command[0])
    jobs = []
    take_snapshot(common, pieces[0].config)
    for number, piece in enumerate(pieces):
        record = common / f"{number:03d}"
        record.mkdir()
        save_config(piece.config, record / "config.yaml")
        jobs.append(_job(piece, record))
    settings = asked_of(pieces[0].command, pieces[0].config)
    ids = slurm.submit(jobs, settings, record=common, name=job_name(pieces[0].command))
    for one, piece, job in zip(ids, pieces, jobs, strict=True):
        rows.append(_noted(one, piece, Path(job.record), common))


def _submit_chain(chain: Sequence[Piece], split: int, rows: list[dict[str, Any]]) -> None:
    """Stages one after another; one whose work can be shared as an array with a merging job
    behind."""
    after: str | None = None
    for piece in chain:
        record = _record(piece.run, piece.command[0])
        settings = asked_of(piece.command, piece.config)
        job, every = _prepare(piece, record), False
        # The merging job starts whatever became of the shards: what is missing is then done by it.
        if split > 1 and in_shards(piece.command[0]):
            argv = [(*job.argv, "--shard", f"{k}/{split}") for k in range(split)]
            shards = [replace(job, argv=one) for one in argv]
            ids = slurm.submit(
                shards,
                settings,
                record=record,
                name=f"{job_name(piece.command)}-shard",
                after=after,
            )
            rows += [_noted(one, piece, record, record) for one in ids]
            after, every = ids[0].split("_")[0], True
        (after,) = slurm.submit(
            [job], settings, record=record, name=job_name(piece.command), after=after, every=every
        )
        rows.append(_noted(after, piece, record, record))


def _noted(job: str, piece: Piece, record: Path, common: Path) -> dict[str, Any]:
    """A row of the table of jobs, also kept in the run folder, where `status` finds it."""
    row = {
        "job": job,
        "command": " ".join(piece.command),
        "run": str(piece.run),
        "record": str(record),
        "log": str(slurm.log_of(common, job)),
    }
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
    take_snapshot(record, piece.config)
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


def asked_of(command: tuple[str, ...], config: Config) -> LaunchSettings:
    """What a job of this command asks for: several ranks only where they work together."""
    settings = config.launch
    if on_ranks(command[0]):
        return settings
    alone = {"nodes": 1, "tasks_per_node": 1, "gpus_per_node": min(settings.gpus_per_node, 1)}
    return settings.model_copy(update=alone)


def job_name(command: tuple[str, ...]) -> str:
    """What a job of this command is called in the queue."""
    return "jepa-wm-" + "-".join(command)
