"""A SLURM of its own on loopback: munge, slurmctld and two slurmd, with two pretend GPUs on each
node.

Nothing outside its folder is touched; all ports are free ones. Needs root, and Debian's slurm-wlm
and munge."""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "scontrol",
    "squeue",
    "scancel",
    "sinfo",
)
PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
INSTALL = ["apt-get", "install", "-y", "--no-install-recommends", "slurm-wlm", "munge"]
CONF = """
ClusterName=loop
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmctldPort={ports[0]}
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SlurmctldTimeout=30
SlurmdTimeout=10
InactiveLimit=0
MinJobAge=900
KillWait=10
Waittime=0
GresTypes=gpu
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} \\
    CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} \\
    CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 \\
    GraceTime=20 PreemptMode=REQUEUE
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not():
    """Why there can be no cluster here, None if there can; where CI says so, what is missing is
    installed."""
    if os.getuid():
        return "not root, who alone may run slurmd for others"
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    if missing and os.environ.get("CI") and shutil.which("apt-get"):
        for command in (["apt-get", "update"], INSTALL):
            quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=300)
        if done.returncode:
            return f"`{' '.join(INSTALL)}` failed: {done.stderr.strip()[-200:]}"
        missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return (
        f"there is no {', '.join(missing)}; `{' '.join(INSTALL)}` brings them" if missing else None
    )


class Cluster:
    """Two nodes that jobs can be submitted to with `env`."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.env = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf"), "PATH": PATH}
        self._daemons = {}

    def up(self):
        """Start all daemons and wait for both nodes; raises RuntimeError with what the logs
        say."""
        for name in ("state", "spool/node1", "spool/node2"):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.folder.chmod(0o755)
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
        ports = [s.getsockname()[1] for s in sockets]
        for s in sockets:
            s.close()
        host = socket.gethostname().split(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONF.format(folder=self.folder, ports=ports, host=host)
        )
        (self.folder / "cgroup.conf").write_text(
            "CgroupPlugin=cgroup/v1\n"
        )  # there is no `disabled`
        (self.folder / "gres.conf").write_text(
            "AutoDetect=off\nNodeName=node[1-2] Name=gpu File=/dev/tty[0-1]\n"
        )
        at = [
            f"--{what}={self.folder}/munge.{what.split('-')[0]}"
            for what in ("socket", "key-file", "pid-file", "log-file")
        ]
        self._start(
            "munged",
            "munged",
            "--foreground",
            "--force",
            *at,
            f"--seed-file={self.folder}/munge.seed",
        )
        self._until(lambda: (self.folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", "slurmctld", "-D", "-c", "-i")
        for node in ("node1", "node2"):
            self.start_node(node)
        self._until(
            lambda: self.ask("sinfo", "-h", "-N", "-o", "%t").count("idle") >= 4, "two idle nodes"
        )

    def start_node(self, node):
        """Start the slurmd of a node."""
        self._start(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node):
        """As if its power failed: its daemon, its steps and all they run are killed outright;
        first those that would tell of the others' end."""
        mine = {
            f"SLURMD_NODENAME={node}".encode(),
            f"SLURM_CONF={self.folder}/slurm.conf".encode(),
        }
        tasks, keepers = set(), {self._daemons.pop(node).pid}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mine <= set((process / "environ").read_bytes().split(b"\0")):
                    tasks.add(int(process.name))
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    if (
                        Path(f"/proc/{parent}/comm").read_text().startswith("slurmstepd")
                    ):  # slurmd is not its parent
                        keepers.add(parent)
        for pid in [*keepers, *tasks - keepers]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def tasks(self, job):
        """Command lines of what srun has started for a job, on whatever node."""
        variables = f"SLURM_CONF={self.folder}/slurm.conf", f"SLURM_JOB_ID={job}", "SLURM_STEPID=0"
        mine, tasks = {variable.encode() for variable in variables}, []
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mine <= set((process / "environ").read_bytes().split(b"\0")):
                    tasks.append((process / "cmdline").read_text())
        return tasks

    def ask(self, *argv):
        """What a command says."""
        return subprocess.run(
            argv, env=self.env, capture_output=True, text=True, timeout=60
        ).stdout

    def field(self, job, name):
        """A field of `scontrol show job`."""
        said = self.ask("scontrol", "-o", "show", "job", job)
        return next(
            (word.partition("=")[2] for word in said.split() if word.startswith(f"{name}=")), None
        )

    def down(self):
        """Cancel all jobs and end all daemons."""
        for job in set(self.ask("squeue", "-h", "-o", "%A").split()):
            self.ask("scancel", job)
        time.sleep(2)
        for daemon in reversed(self._daemons.values()):
            daemon.terminate()
        for daemon in self._daemons.values():
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def _start(self, name, *command):
        with open(self.folder / f"{name}.out", "ab") as said:
            self._daemons[name] = subprocess.Popen(
                command, env=self.env, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )

    def _until(self, true, what, seconds=40):
        until = time.monotonic() + seconds
        while not true():
            if time.monotonic() > until:
                logs = "\n".join(
                    f"{f.name}: {f.read_text(errors='replace')[-800:]}"
                    for f in self.folder.glob("*.log")
                )
                raise RuntimeError(f"no {what} after {seconds} s\n{logs}")
            time.sleep(0.2)
