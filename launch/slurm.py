"""Jobs on SLURM, through submitit: what is asked for as sbatch text, submitting, and what became
of a job."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from jepa_wm.core.errors import UserError
from jepa_wm.launch.job import PACKAGE, Job
from jepa_wm.launch.local import environment, setup_lines
from jepa_wm.launch.settings import LaunchSettings

COMMANDS = ("sbatch", "srun", "scontrol", "squeue")
LIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "PREEMPTED")
FOREVER = 10**6  # submitit's own count of requeues never ends a job: it is ours that puts it back


def submit(
    jobs: Sequence[Job],
    settings: LaunchSettings,
    *,
    record: Path,
    name: str,
    after: str | None = None,
    every: bool = False,
) -> list[str]:
    """Submit jobs, an array if there are several; returns their ids. They may start when job
    `after` is done, whether well or, with `every`, in whatever way.

    Raises UserError with what SLURM said if it refuses them; their record is then gone.
    """
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        shutil.rmtree(record)
        raise UserError(
            f"this machine has no {', '.join(missing)}: submit where SLURM is installed, or "
            "cluster=local"
        )
    executor = _executor(settings, record, name, after, every)
    # sbatch explains a refusal in its output, of which submitit makes a traceback.
    try:
        with _clean_environment():
            if len(jobs) == 1:
                return [str(executor.submit(jobs[0]).job_id)]
            with executor.batch():
                submitted = [executor.submit(job) for job in jobs]
            return [str(job.job_id) for job in submitted]
    except FailedJobError as error:
        shutil.rmtree(record, ignore_errors=True)  # a shard that was taken may still write there
        answer = re.findall(r"sbatch: error: (.*)", str(error)) or [str(error).strip()]
        raise UserError(f"SLURM refuses the job: {'; '.join(answer)}\n{_offered()}") from error


def sbatch_text(settings: LaunchSettings, *, record: Path, name: str, jobs: int = 1) -> str:
    """What would be given to sbatch."""
    executor = _executor(settings, record, name, None, False, dry=True)
    if jobs > 1:
        executor.parameters["map_count"] = jobs
    return executor._make_submission_file_text(executor._submitit_command_str, "dry")


def describe(job: str) -> dict[str, str]:
    """SLURM's fields of a job (JobState, ExitCode, NodeList, ...); of a finished one from
    accounting, if there is any.

    Empty when it is known to neither.
    """
    answer = _ask("scontrol", "-o", "show", "job", job)
    if "JobState=" in answer:
        return dict(re.findall(r"(\S+?)=(\S*)", answer.splitlines()[0]))
    kept = _ask("sacct", "-n", "-P", "-X", "-o", "State,ExitCode,NodeList", "-j", job)
    rows = [line.split("|") for line in kept.splitlines()]
    if not rows or len(rows[0]) < 3:
        return {}
    return {"JobState": rows[0][0].split(" ")[0], "ExitCode": rows[0][1], "NodeList": rows[0][2]}


def cancel(jobs: Sequence[str]) -> None:
    """Take jobs out of the queue."""
    _ask("scancel", *jobs)


def log_of(record: Path, job: str, rank: int = 0) -> Path:
    """Where a rank's errors and progress are written."""
    return record / "log" / f"{job}_{rank}_log.err"


def _executor(
    settings: LaunchSettings,
    record: Path,
    name: str,
    after: str | None,
    every: bool,
    *,
    dry: bool = False,
) -> SlurmExecutor:
    kind = _Dry if dry else SlurmExecutor
    # Python's options -I and -S: as little as can be before the signal is held back.
    hold = record / "code" / PACKAGE / "launch" / "hold.py"
    python = shlex.join([sys.executable, "-I", "-S", str(hold)])
    executor = kind(folder=record / "log", max_num_timeout=FOREVER, python=python)
    threads = f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{settings.cpus_per_task or 1}}}"
    path = f"export PYTHONPATH={shlex.quote(str(record / 'code'))}${{PYTHONPATH:+:$PYTHONPATH}}"
    # Left out where not set: the cluster's own default counts then.
    optional: dict[str, Any] = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "comment": settings.comment,
        "gpus_per_node": settings.gpus_per_node or None,
        "cpus_per_task": settings.cpus_per_task or None,
        "mem": None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}MB",
        "dependency": None if after is None else f"{'afterany' if every else 'afterok'}:{after}",
    }
    executor.update_parameters(
        job_name=name,
        time=settings.minutes,
        nodes=settings.nodes,
        ntasks_per_node=settings.tasks_per_node,
        signal_delay_s=settings.warning_seconds,
        array_parallelism=settings.array_parallelism,
        setup=[*setup_lines(settings), threads, path],
        srun_args=["--kill-on-bad-exit=1"],
        additional_parameters={"requeue": True},
        **{key: value for key, value in optional.items() if value is not None},
    )
    return executor


class _Dry(SlurmExecutor):
    """Writes the text also where there is no SLURM."""

    @classmethod
    def affinity(cls) -> int:
        return 1


@contextmanager
def _clean_environment() -> Iterator[None]:
    """Submitting from inside a job must not hand on what that job says of itself."""
    before, kept = dict(os.environ), environment()
    os.environ.clear()
    os.environ.update(kept)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _offered() -> str:
    """The partitions there are, with what their nodes have."""
    lines = sorted(
        set(
            _ask(
                "sinfo", "-h", "-o", "%R: %D nodes, %c CPUs, %m MB, GPUs %G, limit %l"
            ).splitlines()
        )
    )
    return "partitions: " + "; ".join(lines) if lines else "sinfo lists no partitions"


def _ask(*words: str) -> str:
    """What a SLURM command says, nothing where it fails or is not there."""
    if shutil.which(words[0]) is None:
        return ""
    return subprocess.run(words, capture_output=True, text=True, timeout=60).stdout
