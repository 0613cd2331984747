"""Where a process stands and how it finds the others: empty and wrong variables, host names that
do not resolve."""

import os
import shutil
import socket
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from jepa_wm import cli
from jepa_wm.core import distributed as world
from jepa_wm.core import rendezvous
from jepa_wm.core import rendezvous as place
from jepa_wm.core.errors import UserError
from jepa_wm.launch import job, local

LAUNCHED = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    rendezvous.STORE,
    rendezvous.INTERFACE,
)
JOIN = """
import os, sys, socket
{before}
import torch
from jepa_wm.core.distributed import joined
with joined() as here:
    print(here.all_max(7 + here.rank), os.environ.get("GLOO_SOCKET_IFNAME"))
"""


@pytest.fixture(autouse=True)
def not_launched(monkeypatch):
    for name in LAUNCHED:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: is no whole number; unset it"),
        ({"WORLD_SIZE": "2.0"}, "WORLD_SIZE=2.0: is no whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0: must be at least 1"),
        ({"WORLD_SIZE": "2", "LOCAL_RANK": "0"}, "WORLD_SIZE is set but 'RANK' is not"),
        (
            {"WORLD_SIZE": "2", "RANK": "", "LOCAL_RANK": "0"},
            "WORLD_SIZE is set but 'RANK' is not",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "first", "LOCAL_RANK": "0"},
            "RANK=first: is no whole number",
        ),
        ({"WORLD_SIZE": "2", "RANK": "-1", "LOCAL_RANK": "0"}, "RANK=-1: must be at least 0"),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"},
            "RANK=2: there are WORLD_SIZE=2 ranks",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": " "},
            "WORLD_SIZE is set but 'LOCAL_RANK' is not",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": ""},
            "set but 'MASTER_ADDR' is not",
        ),
        (
            {
                "WORLD_SIZE": "2",
                "RANK": "1",
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": "http",
            },
            "MASTER_PORT=http: is no whole number",
        ),
        (
            {
                "WORLD_SIZE": "2",
                "RANK": "1",
                "LOCAL_RANK": "1",
                "MASTER_ADDR": "lab-pc",
                "MASTER_PORT": "2000",
            },
            "MASTER_ADDR, lab-pc, does not resolve on",
        ),
    ],
)
def test_what_does_not_say_a_place_is_named(tmp_path, monkeypatch, capsys, told, said):
    def unknown(host, *argv, **settings):
        if host == "lab-pc":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (host, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["pretrain", "--config", "debug", "--run", str(tmp_path)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("empty", ["", "  "])
def test_empty_variables_count_as_not_set(tmp_path, monkeypatch, empty):
    names = (
        "SLURM_PROCID",
        "SLURM_LOCALID",
        "SLURM_NTASKS",
        "SLURM_RESTART_COUNT",
        "SLURM_JOB_ID",
        "SLURM_ARRAY_JOB_ID",
        "SLURM_ARRAY_TASK_ID",
        "OMP_NUM_THREADS",
        "SLURM_CONF",
    )
    for name in (*LAUNCHED, *names):
        monkeypatch.setenv(name, empty)
    argv = [
        "collect",
        "--config",
        "debug",
        "--run",
        str(tmp_path),
        "collect.episodes=2",
        "collect.heldout_episodes=1",
    ]
    assert cli.main(argv) == 0
    with world.joined() as alone:
        assert alone.size == 1
    assert not {"OMP_NUM_THREADS", "SLURM_CONF"} & local.environment().keys()
    job._take_place(tmp_path)
    assert (place.rank(), place.ranks(), os.environ["LOCAL_RANK"]) == (0, 1, "0")
    assert os.environ[rendezvous.STORE] == str(tmp_path / "meet" / "local_0")


def test_a_job_names_the_variable_that_is_wrong(monkeypatch, capsys):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_NTASKS", "many")
    with pytest.raises(SystemExit) as stop:
        job.Job("jepa_wm.cli:main", (), ".", ())()
    assert (
        stop.value.code == 2 and "SLURM_NTASKS=many: is no whole number" in capsys.readouterr().err
    )


def join_two(tmp_path, before="", wrap=()):
    """Start two ranks that meet by a file; returns what each printed."""
    ranks = []
    for rank in range(2):
        told = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "OMP_NUM_THREADS": "1",
            rendezvous.STORE: str(tmp_path / "meet" / "file"),
        }
        script = JOIN.format(before=before)
        ranks.append(
            subprocess.Popen(
                [*wrap, sys.executable, "-c", script],
                env={**os.environ, **told},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    said = [rank.communicate(timeout=100) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [out for out, _ in said]


def test_ranks_of_one_machine_need_no_host_name(tmp_path):
    said = join_two(tmp_path, "socket.gethostname = lambda: 'no-such-host.invalid'")
    assert said == [f"8 {rendezvous.loopback_interface()}\n"] * 2


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="needs root and unshare"
)
def test_ranks_of_a_machine_whose_name_nobody_knows_meet(tmp_path):
    began = time.monotonic()
    wrap = ("unshare", "-u", "sh", "-c", 'hostname lab-pc-17 && exec "$@"', "sh")
    assert join_two(tmp_path, wrap=wrap) == [f"8 {rendezvous.loopback_interface()}\n"] * 2
    assert time.monotonic() - began < 60


def elsewhere(monkeypatch, answer):
    """Be another machine, with a resolver that answers so."""
    monkeypatch.setattr(rendezvous, "machine", lambda: "another")
    monkeypatch.setattr(rendezvous, "NAMING", 0.2)

    def resolve(host, *argv, **settings):
        if isinstance(answer, OSError):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answer, 0))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
            "does not resolve .* /etc/hosts",
        ),
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure"), "does not resolve .* /etc/hosts"),
        (
            "127.0.1.1",
            "resolves to 127.0.1.1 on .*which other machines cannot reach: .* /etc/hosts",
        ),
        ("::1", "resolves to ::1 on "),
    ],
)
def test_ranks_of_several_machines_hear_of_a_host_name_within_seconds(
    tmp_path, monkeypatch, answer, said
):
    wait = timedelta(seconds=30)
    store = rendezvous.meet(tmp_path / "meet" / "file", 0, 2, wait)
    elsewhere(monkeypatch, answer)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=f"the host name of rank 0, {socket.gethostname()}, {said}"
    ):
        rendezvous.meet(tmp_path / "meet" / "file", 1, 2, wait)
    with pytest.raises(
        UserError, match=f"the host name of rank 1, {socket.gethostname()}, {said}"
    ):
        world._choose_interface(1, one_machine=False)
    assert time.monotonic() - began < 5
    del store


def test_an_interface_that_the_user_chose_stays(monkeypatch):
    monkeypatch.setenv(rendezvous.INTERFACE, "ib0")
    world._choose_interface(0, one_machine=True)
    world._choose_interface(1, one_machine=False)
    assert os.environ[rendezvous.INTERFACE] == "ib0"


def test_what_is_waited_for_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "SILENCE", 0.1)
    file, soon = tmp_path / "meet" / "file", timedelta(seconds=0.5)
    with pytest.raises(
        TimeoutError, match=f"rank 1 waits for rank 0 to say in {file} where it is: not within"
    ):
        rendezvous.meet(file, 1, 3, soon)
    store = rendezvous.meet(file, 0, 3, timedelta(seconds=30))
    with pytest.raises(TimeoutError, match="rank 0 of 3 waits for rank 1, 2: not within"):
        rendezvous.gather(store, 0, 3, soon)
    store.delete_key("machine")
    with pytest.raises(TimeoutError, match="rank 1 of 3 waits for rank 0: not within"):
        rendezvous.gather(store, 1, 3, soon)
    with rendezvous.said_if_long("connecting"):
        time.sleep(0.3)
    with rendezvous.said_if_long("quick"):
        pass
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in told] == [
        f"rank 1 waits for rank 0 to say in {file} where it is", "rank 0 of 3 waits for rank 1",
        "rank 1 of 3 waits for rank 0", "connecting",
    ]  # fmt: skip
