"""Jobs on this machine: ranks as child processes, or torchrun's; a rank that dies takes the others
with it, and so does the launcher. Why they are not all torchrun's: docs/cluster.md."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from jepa_wm.core.errors import STOPPING, Interrupted, JobFailed, UserError
from jepa_wm.core.rendezvous import LOOPBACK, STORE
from jepa_wm.launch.job import STOPPED, Job, die_with_parent
from jepa_wm.launch.settings import LaunchSettings

# seconds that the other ranks have to end after one has failed: unasked, and asked
PATIENCE, GRACE = 5.0, 10.0
LAST_LINES = 30  # of a failed rank's log that are shown
# what a job tells its own processes
FOREIGN = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")


def run(job: Job, settings: LaunchSettings, ranks: int) -> None:
    """Run a job to its end, rank 0's log shown as it grows.

    Raises JobFailed with the exit code of the rank that failed and the end of its log, within
    PATIENCE + GRACE seconds, and Interrupted, after all ranks have saved, when a signal asked this
    process to stop."""
    if settings.nodes > 1:
        raise UserError(
            f"cluster {settings.cluster} is this machine, launch.nodes is {settings.nodes}: set "
            "launch.cluster=slurm, "
            f"or start `torchrun --nnodes {settings.nodes} ... -m jepa_wm {' '.join(job.argv)}` "
            "on each node"
        )
    _refuse_missing_gpus(settings, ranks)
    commands = _commands(job.save(), settings, ranks)
    log = Path(job.record) / "log"
    log.mkdir(exist_ok=True)
    meeting = Path(job.record) / "meet" / f"here_{os.getpid()}_{time.monotonic_ns()}"
    children: list[subprocess.Popen[bytes]] = []
    with _forwarding(children) as stopped:
        for rank, command in enumerate(commands):
            place = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                STORE: str(meeting),
            }
            address = place if settings.cluster == "local" else {}
            children.append(_start(command, job, settings, ranks, address, _logs(log, rank)))
        try:
            codes = _wait(children, log)
        finally:
            _end(children)
    if stopped and set(codes.values()) <= {0, 128 + signal.SIGINT, *STOPPED}:
        raise Interrupted(stopped[0])
    failed = [rank for rank, code in codes.items() if code]
    if failed:
        # One that was killed, or that says what the user can put right, is the cause of the
        # others' lost connections.
        first = min(
            failed,
            key=lambda rank: (
                codes[rank] < 128,
                codes[rank] != 2,
                _logs(log, rank).stat().st_mtime,
            ),
        )
        who = (
            f"rank {first} of {ranks}"
            if len(commands) == ranks
            else f"torchrun with {ranks} ranks"
        )
        tail = (
            _logs(log, first)
            .read_text(encoding="utf-8", errors="replace")
            .splitlines()[-LAST_LINES:]
        )
        text = f"{job.argv[0]}: {who} ended with exit code {codes[first]}; logs: {log}"
        raise JobFailed("\n".join([text, *tail]), codes[first])


def environment() -> dict[str, str]:
    """This process's environment without what a job around it, if there is one, says of its own
    place."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN) or k == "SLURM_CONF"}
    for name in ("SLURM_CONF", "OMP_NUM_THREADS"):  # empty, they would be taken for settings
        if not kept.get(name, "set").strip():
            del kept[name]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", STORE):
        kept.pop(name, None)
    return kept


def setup_lines(settings: LaunchSettings) -> list[str]:
    """Shell lines before the job; the first that fails is named and ends it."""
    if not settings.setup:
        return []
    text = 'echo "launch.setup: exit code $code of the line: $BASH_COMMAND" >&2'
    return [f"trap 'code=$?; {text}; exit $code' ERR", *settings.setup, "trap - ERR"]


def _commands(file: Path, settings: LaunchSettings, ranks: int) -> list[list[str]]:
    """One command a child: a rank each, or torchrun with all of them."""
    job = ["-m", "jepa_wm.launch.job", str(file)]
    if settings.cluster == "torchrun":
        rendezvous = [
            "--standalone",
            f"--local-addr={LOOPBACK}",
            f"--nproc-per-node={ranks}",
        ]  # needs no host name
        commands = [[sys.executable, "-m", "torch.distributed.run", *rendezvous, *job]]
    else:
        commands = [[sys.executable, *job]] * ranks
    before = setup_lines(settings)
    return (
        [["bash", "-c", "\n".join([*before, "exec " + shlex.join(c)])] for c in commands]
        if before
        else commands
    )


def _start(
    command: list[str],
    job: Job,
    settings: LaunchSettings,
    ranks: int,
    place: Mapping[str, str],
    log: Path,
) -> subprocess.Popen[bytes]:
    known = environment()
    code = str(Path(job.record) / "code")
    threads = settings.cpus_per_task or max(1, len(os.sched_getaffinity(0)) // ranks)
    known["PYTHONPATH"] = os.pathsep.join(filter(None, [code, known.get("PYTHONPATH", "")]))
    known = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1", **known, **place}
    with open(log, "ab") as text:
        return subprocess.Popen(
            command, env=known, stdin=subprocess.DEVNULL, stdout=text, stderr=text,
            start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip


def _wait(children: list[subprocess.Popen[bytes]], log: Path) -> dict[int, int]:
    """Until all have ended, or one has failed and the others have had PATIENCE; the exit codes of
    those that ended."""
    until: float | None = None
    with open(_logs(log, 0), "rb") as first:
        first.seek(0, os.SEEK_END)
        while True:
            codes = {
                rank: _code(child)
                for rank, child in enumerate(children)
                if child.poll() is not None
            }
            if any(codes.values()) and until is None:
                until = time.monotonic() + PATIENCE
            over = len(codes) == len(children) or (until is not None and time.monotonic() > until)
            if new := first.read():
                sys.stderr.write(new.decode(errors="replace"))
                sys.stderr.flush()
            if over:
                return codes
            time.sleep(0.1)


def _end(children: list[subprocess.Popen[bytes]]) -> None:
    """Have all children end: asked first, then made to, with whatever they have started."""
    until = time.monotonic() + GRACE
    for child in children:
        if child.poll() is None:
            child.terminate()
    for child in children:
        try:
            child.wait(max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


@contextmanager
def _forwarding(children: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Within the block a wish to stop is passed on to all children; gives the signals that
    came."""
    came: list[int] = []

    def forward(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        for child in children:
            if child.poll() is None:
                child.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in STOPPING}
    try:
        yield came
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _refuse_missing_gpus(settings: LaunchSettings, ranks: int) -> None:
    import torch

    from jepa_wm.core.distributed import dist

    there = torch.cuda.device_count() if dist().device.type == "cuda" else 0
    needed = max(settings.gpus_per_node, ranks if there else 0)
    if needed > there:
        raise UserError(
            f"{needed} GPUs are asked for and this machine has {there}: lower "
            "launch.gpus_per_node and "
            "launch.tasks_per_node"
        )


def _code(child: subprocess.Popen[bytes]) -> int:
    code = child.returncode
    return 128 - code if code < 0 else code


def _logs(folder: Path, rank: int) -> Path:
    return folder / f"{rank}.log"
