"""The one job class: a command of the command line on a snapshot of code and config, here, under
torchrun or on SLURM.

<run>/launch/<when>_<command>/job.json      what is run
<run>/launch/<when>_<command>/config.yaml   the resolved config, whatever becomes of its file
<run>/launch/<when>_<command>/code/         the code it runs; git.json, git.diff its state in git
<run>/launch/<when>_<command>/log/          what it said, a file a rank
<run>/launch/<when>_<command>/ended_<job>   how it ended
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import BaseModel

from jepa_wm.config import load_config
from jepa_wm.core import rendezvous
from jepa_wm.core.config import config_diff, save_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.provenance import git
from jepa_wm.core.rendezvous import STORE
from jepa_wm.core.yaml_source import read_yaml
from jepa_wm.launch.hold import release

# exit codes of a command that saved and can go on
STOPPED = (128 + signal.SIGUSR2, 128 + signal.SIGTERM)
PACKAGE = "jepa_wm"
AT_THE_TOP = ("evals", "launch", "configs")  # rooms that lie beside the package in a checkout
KEPT = (".py", ".yaml", ".typed")


@dataclass(frozen=True)
class Job:
    """`entry` names the function that is given `argv`; `record` is the folder described above;
    `source` are the config's name and the overrides that the snapshot was made of."""

    entry: str
    argv: tuple[str, ...]
    record: str
    source: tuple[str, ...]

    def __call__(self) -> None:
        """Run as one rank, placed by the environment; exits with the command's code
        if that is not 0.

        On SLURM a stopped job goes back into the queue, where it goes on from its checkpoint.
        """
        on_slurm = rendezvous.variable("SUBMITIT_EXECUTOR") is not None
        # submitit would answer a mistake in the environment with a traceback.
        try:
            if on_slurm:
                _take_place(Path(self.record))
                release()
            first = rendezvous.rank() == 0
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        if first:
            self._tell_of_changes()
        module, _, name = self.entry.partition(":")
        main: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), name)
        code = main(self.argv)
        # Before the end is recorded: what goes back into the queue has not ended.
        if on_slurm and code in STOPPED and not _cancelled():
            _requeue()
        if first:
            ended = {"exit": code, "at": time.time()}
            write_atomic(Path(self.record) / f"ended_{_job_id()}", json.dumps(ended))
        if code:
            sys.exit(code)

    def checkpoint(self) -> object:
        """What submitit puts back into the queue where a signal comes before the command has
        begun."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def save(self) -> Path:
        """Write job.json, from which `python -m jepa_wm.launch.job FILE` runs it."""
        file = Path(self.record) / "job.json"
        write_atomic(file, json.dumps(asdict(self), indent=1) + "\n")
        return file

    @classmethod
    def load(cls, file: Path) -> Job:
        """The job that `save` wrote."""
        known = json.loads(file.read_text(encoding="utf-8"))
        return cls(known["entry"], tuple(known["argv"]), known["record"], tuple(known["source"]))

    def _tell_of_changes(self) -> None:
        """Say what a user has changed since the launch: the snapshot wins."""
        if not self.source:
            return
        name, *overrides = self.source
        try:
            now = load_config(name, overrides)
        except UserError as error:
            print(
                f"config {name} can no longer be read ({error}); the snapshot of the launch wins",
                file=sys.stderr,
            )
            return
        changes = config_diff(read_yaml(Path(self.record) / "config.yaml").data, now)
        if changes:
            listed = "\n".join(f"  {change}" for change in changes)
            print(
                f"config {name} has changed since the launch; the snapshot wins over:\n{listed}",
                file=sys.stderr,
            )


def take_snapshot(record: Path, config: BaseModel) -> None:
    """Write what a job runs on into its new record: the code, its state in git and the resolved
    config."""
    save_config(config, record / "config.yaml")
    source = _folder(PACKAGE)
    _copy(source, record / "code" / PACKAGE)
    for room in AT_THE_TOP:
        _copy(_folder(f"{PACKAGE}.{room}"), record / "code" / PACKAGE / room)
    state = {
        "commit": git(source, "rev-parse", "HEAD"),
        "changed": git(source, "status", "--porcelain"),
    }
    write_atomic(record / "git.json", json.dumps(state, indent=1) + "\n")
    write_atomic(record / "git.diff", git(source, "diff", "HEAD") or "")


def _folder(package: str) -> Path:
    module = importlib.import_module(package)
    assert module.__file__ is not None, f"{package} has no files to copy"
    return Path(module.__file__).resolve().parent


def _copy(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        rooms = file.relative_to(source).parts
        if (
            file.is_file()
            and file.suffix in KEPT
            and "__pycache__" not in rooms
            and rooms[0] not in AT_THE_TOP
        ):
            place = target / file.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)


def _take_place(record: Path) -> None:
    """Tell the job's own code its rank, from what SLURM tells; ranks meet by a file of this start
    of the job."""
    os.environ |= {
        "RANK": str(rendezvous.number("SLURM_PROCID", 0)),
        "LOCAL_RANK": str(rendezvous.number("SLURM_LOCALID", 0)),
        "WORLD_SIZE": str(rendezvous.number("SLURM_NTASKS", 1, least=1)),
    }
    start = rendezvous.number("SLURM_RESTART_COUNT", 0)
    os.environ[STORE] = str(record / "meet" / f"{_job_id()}_{start}")


def _job_id() -> str:
    """SLURM's name of this job, "array_task" in an array; "local" elsewhere."""
    array = rendezvous.variable("SLURM_ARRAY_JOB_ID")
    task = rendezvous.variable("SLURM_ARRAY_TASK_ID")
    if array is not None and task is not None:
        return f"{array}_{task}"
    return rendezvous.variable("SLURM_JOB_ID") or "local"


def _cancelled() -> bool:
    """Whether a user took the job out of the queue: then it must not go back in."""
    answer = subprocess.run(
        ["scontrol", "-o", "show", "job", _job_id()], capture_output=True, text=True
    ).stdout
    return "JobState=CANCELLED" in answer


def _requeue() -> None:
    """Put the job back into the queue and wait for SLURM to end this start of it; one that ends by
    itself before would count as done."""
    if rendezvous.rank() == 0:
        print(
            f"job {_job_id()} has saved and goes back into the queue", file=sys.stderr, flush=True
        )
        answer = subprocess.run(
            ["scontrol", "requeue", _job_id()], capture_output=True, text=True, timeout=60
        )
        # It may be there already: somebody else's requeue is what stopped it.
        if answer.returncode:
            print(answer.stderr, file=sys.stderr, flush=True)
    for signum in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(signum, signal.SIG_DFL)
    time.sleep(120)


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the launching process ends in whatever way: no rank is
    left behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    die_with_parent()
    Job.load(Path(sys.argv[1]))()
