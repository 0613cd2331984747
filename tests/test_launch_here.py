"""Jobs on this machine: the same command as a job, ranks that die, what the snapshot holds, shards
of work, bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ranks import CURVES, assert_equal_to_rounding, overrides

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.checkpoint import newest_checkpoint
from jepa_wm.core.run import Run
from jepa_wm.data.trajectories import open_data
from jepa_wm.features.cache import Features
from jepa_wm.launch import slurm

SPOIL = """
import os, signal, time
if os.environ.get("RANK") == "1":
    from jepa_wm.training import loop
    original = loop._one_step
    def one_step(task, optimiser, settings, step):
        if step == 3:
            {}
        return original(task, optimiser, settings, step)
    loop._one_step = one_step
"""


@pytest.fixture
def spoiled(tmp_path):
    """Gives an environment in which rank 1 does something at step 3."""

    def make(what):
        (tmp_path / "spoil").mkdir()
        (tmp_path / "spoil" / "sitecustomize.py").write_text(SPOIL.format(what))
        return {"PYTHONPATH": str(tmp_path / "spoil")}

    return make


def launch(*argv, code=0, timeout=100, env=()):
    done = subprocess.run(
        [sys.executable, "-m", "jepa_wm", "launch", *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OMP_NUM_THREADS": "1", **dict(env)},
    )
    assert done.returncode == code, done.stderr
    return done


def record_of(folder):
    (record,) = (path for path in (folder / "launch").iterdir() if path.is_dir())
    return record


@pytest.mark.parametrize("cluster", ["local", "torchrun"])
def test_two_ranks_as_a_job_train_what_one_process_does(tmp_path, alone, tiny_data, cluster):
    folder = tmp_path / "run"
    argv = [
        "--config",
        "debug",
        "--run",
        folder,
        "--cluster",
        cluster,
        "--tasks-per-node",
        2,
        *overrides(tiny_data),
    ]
    done = launch("pretrain", *argv, "--json")
    assert json.loads(done.stdout)["jobs"][0]["state"] == "COMPLETED"
    assert_equal_to_rounding(folder, alone, curves=CURVES[:1])
    record = record_of(folder)
    assert {"code", "config.yaml", "git.json", "git.diff", "job.json", "log"} <= {
        path.name for path in record.iterdir()
    }
    assert (record / "code/jepa_wm/evals/goal_reaching.py").exists() and (
        record / "code/jepa_wm/configs/debug.yaml"
    ).exists()
    assert "pretrain: done" in (record / "log/0.log").read_text()


def processes_of(folder):
    """Command lines of all processes that name a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            argv = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in argv and int(file.parent.name) != os.getpid():
            found.append(argv)
    return found


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "rank 1 of 2 ended with exit code 137"),
        ("raise ValueError('spoiled')", 1, "ValueError: spoiled"),
        # the group's threads may abort an interpreter that takes itself apart under them
        (
            "import atexit; atexit.register(os.abort); raise ValueError('spoiled')",
            1,
            "ValueError: spoiled",
        ),
    ],
)
def test_a_dead_rank_ends_all_with_its_code_and_its_traceback(
    tmp_path, tiny_data, spoiled, what, code, said
):
    argv = [
        "--config",
        "debug",
        "--run",
        tmp_path / "run",
        "--tasks-per-node",
        2,
        *overrides(tiny_data),
    ]
    done = launch("pretrain", *argv, code=code, env=spoiled(what))
    assert said in done.stderr and f"logs: {record_of(tmp_path / 'run') / 'log'}" in done.stderr
    log = record_of(tmp_path / "run") / "log"
    until = max((log / f"{rank}.log").stat().st_mtime for rank in range(2))
    assert time.time() - until < 30 and not processes_of(tmp_path / "run")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_stopping_the_launcher_stops_all_ranks_with_a_checkpoint(
    tmp_path, tiny_data, spoiled, signum
):
    folder = tmp_path / "run"
    argv = [
        "--config",
        "debug",
        "--run",
        str(folder),
        "--tasks-per-node",
        "2",
        *overrides(tiny_data),
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **spoiled("time.sleep(3)")}
    process = subprocess.Popen(
        [sys.executable, "-m", "jepa_wm", "launch", "pretrain", *argv],
        env=env,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder / "pretrain" / "config.yaml").exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    process.send_signal(signum)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == (143 if signum == signal.SIGTERM else -9), said
    if signum == signal.SIGTERM:
        assert f"stopped by SIGTERM; run the same command again to continue ({folder})" in said
    end = (
        time.monotonic() + 150
    )  # a loaded machine takes its time to import and to take the first step
    while processes_of(folder):
        assert time.monotonic() < end, processes_of(folder)
        time.sleep(0.2)
    assert "stopped by SIGTERM" in (record_of(folder) / "log/0.log").read_text()
    assert newest_checkpoint(folder / "pretrain/checkpoints") is not None


def test_shares_are_merged_once_whatever_is_missing(tmp_path, alone):
    whole, split = tmp_path / "whole", tmp_path / "split"
    shutil.copytree(alone, whole)
    config = load_config(whole / "config.yaml")
    shutil.copytree(whole, split)
    shutil.rmtree(split / "features")
    argv = [
        "--config",
        str(whole / "config.yaml"),
        "evaluation.budget=10",
        "planner.solver.num_samples=8",
        "planner.solver.elites=4",
    ]
    for shard in ("1/3", "0/2"):
        assert cli.main(["features", "--run", str(split), "--shard", shard, *argv[:2]]) == 0
    assert cli.main(["features", "--run", str(split), *argv[:2]]) == 0
    data = open_data(whole, config.data.path, "train")
    mine, its = (
        Features(folder / "features/train", data).slab(0, 10**6).float()
        for folder in (split, whole)
    )
    assert len(mine) and (mine - its).abs().max() < 0.05 and (mine == its).float().mean() > 0.99
    for folder, shards in ((whole, []), (split, ["2/4", "0/3"])):
        for shard in shards:
            assert cli.main(["plan", "--run", str(folder), "--shard", shard, *argv]) == 0
        before = {file: file.stat().st_mtime_ns for file in (folder / "plan").glob("*/*.npz")}
        assert len(before) == 3 * len(shards), (
            "the main objective on both kinds of layouts, the other on held-out ones"
        )
        assert cli.main(["plan", "--run", str(folder), *argv]) == 0
        assert all(file.stat().st_mtime_ns == then for file, then in before.items()), (
            "nothing is played twice"
        )
    results = [json.loads((folder / "plan/result.json").read_text()) for folder in (split, whole)]
    assert results[0]["success"]["episodes"] == results[1]["success"]["episodes"] == 6
    tracks = [np.load(folder / "plan/episodes.npz")["positions"] for folder in (split, whole)]
    np.testing.assert_allclose(*tracks, atol=0.5)


def test_a_folder_in_use_is_refused_by_name(tmp_path, tiny_data, capsys):
    with Run.open(tmp_path / "run", load_config("debug")):
        launch_words = ["launch", "collect", "--config", "debug", "--run", str(tmp_path / "run")]
        assert cli.main(launch_words) == 2
    assert f"process {os.getpid()} on " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["dance"], "there is no job 'dance'; there are "),
        (["pretrian"], "there is no job 'pretrian'; nearest: pretrain; there are "),
        (["pretrain", "--dry-run"], "cluster local asks none: add --cluster slurm"),
        (["pretrain", "--gpus-per-node", "9"], "9 GPUs are asked for and this machine has"),
        (["pretrain", "--nodes", "2"], "torchrun --nnodes 2"),
        (["pretrain", "launch.partitoin=x"], "launch.partition"),
        (["pretrain", "--minutes", "0"], "launch.minutes"),
        (["collect", "--grid", "seed=3"], "expected KEY=[A,B,...]"),
        (["plan", "--split", "2"], "--split needs --cluster slurm"),
        (["pretrain", "--split", "2", "--cluster", "slurm"], "--split is for features and plan"),
        (["eval"], "eval takes one name"),
        (["status"], "no job was submitted for this run folder"),
    ],
)
def test_bad_words_are_refused(tmp_path, capsys, argv, said):
    assert cli.main(["launch", *argv, "--config", "debug", "--run", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("run/launch/*/job.json")) or "GPUs" in said


def test_what_slurm_did_not_take_leaves_no_record(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    argv = ["launch", "collect", "--config", "debug", "--cluster", "slurm", "--run", str(tmp_path)]
    assert cli.main(argv) == 2
    assert "this machine has no sbatch, srun, scontrol, squeue" in capsys.readouterr().err
    refuse = 'echo "sbatch: error: no such partition" >&2; exit 1\n'
    for name, body in (("sbatch", refuse), *((n, "exit 0\n") for n in slurm.COMMANDS[1:])):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}")
        (tmp_path / name).chmod(0o755)
    assert cli.main(argv) == 2
    assert "SLURM refuses the job: no such partition" in capsys.readouterr().err
    assert not list(tmp_path.glob("launch/*"))


def test_a_dry_run_prints_what_sbatch_would_get(tmp_path, capsys):
    argv = [
        "launch.tasks_per_node=4",
        "launch.setup=[module load cuda]",
        "launch.memory_gb=7.5",
        "launch.qos=long",
    ]
    argv += [
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--partition",
        "gpu",
        "--grid",
        "seed=[1,2,3]",
        "--minutes",
        "90",
        "--cluster",
        "slurm",
    ]
    assert cli.main(["launch", "pretrain", "--dry-run", "--run", str(tmp_path), *argv]) == 0
    text = capsys.readouterr().out
    for line in (
        "--nodes=2",
        "--ntasks-per-node=4",
        "--gpus-per-node=4",
        "--partition=gpu",
        "--time=90",
        "--mem=7680MB",
        "--qos=long",
        "--requeue",
        "--signal=USR2@90",
        "--array=0-2%3",
        "--job-name=jepa-wm-pretrain",
    ):
        assert f"#SBATCH {line}\n" in text, line
    assert "\nmodule load cuda\n" in text and "--kill-on-bad-exit=1" in text
    for objective, heads in (("temporal", 0), ("reward", 1)):
        argv = [
            "launch",
            "pipeline",
            "--dry-run",
            "--cluster",
            "slurm",
            "--run",
            str(tmp_path),
            f"planner.cost.objective={objective}",
        ]
        assert cli.main(argv) == 0
        assert capsys.readouterr().out.count("--job-name=jepa-wm-heads\n") == heads, objective
    assert not list(tmp_path.iterdir())
