"""The real thing: jobs through `jepa-wm launch` on a SLURM of two nodes, and all that may happen
to them there."""

import json
import shlex
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from ranks import CURVES, assert_equal_to_rounding, overrides
from test_train import SMALL

from jepa_wm import cli
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.progress import read_metrics
from jepa_wm.launch import status

TRAINED = "pretrain/checkpoints"
SECONDS = 8

pytestmark = pytest.mark.slow  # minutes, and a cluster of its own


def launch(*argv, code=0):
    """Run `jepa-wm launch`; a wrong exit code fails."""
    found = cli.main(["launch", *map(str, argv)])
    assert found == code, f"exit code {found}"


@pytest.fixture
def submit(capsys):
    """Submit a job and get its row."""

    def call(*argv):
        capsys.readouterr()
        launch(*argv, "--cluster", "slurm", "--json")
        rows = json.loads(capsys.readouterr().out)["jobs"]
        return rows[0] if len(rows) == 1 else rows

    return call


@pytest.fixture(scope="session")
def long_words(tiny_data):
    """Settings of a training on one process that takes about `SECONDS` here."""
    argv = [
        word
        for word in SMALL
        if "pretrain.steps" not in word and "save_every" not in word and "eval" not in word
    ]
    return [
        f"data.path={tiny_data}",
        *argv,
        "train.precision=fp32",
        "train.pretrain.save_every=100",
    ]


def until(true, seconds=300, pause=0.3):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(pause)
    return found


def step_of(run):
    file = Path(run) / "pretrain" / "progress.json"
    return json.loads(file.read_text())["step"] if file.exists() else 0


@pytest.fixture(scope="session")
def long_run(tmp_path_factory, long_words):
    """(folder, argv, steps in a second) of an undisturbed training in this process, long enough to
    be disturbed elsewhere."""
    folder, steps = tmp_path_factory.mktemp("long") / "run", 30
    began = time.monotonic()
    argv = [
        "--config",
        "debug",
        *long_words,
        "train.threads=1",
    ]  # as many as a job has: other sums, other bits
    assert (
        cli.main(
            [
                "pretrain",
                *argv,
                "--run",
                str(folder.parent / "pace"),
                f"train.pretrain.steps={steps}",
            ]
        )
        == 0
    )
    steps = round(min(max(SECONDS * steps / (time.monotonic() - began), 100), 3000))
    argv += [f"train.pretrain.steps={steps}", f"train.pretrain.eval_every={steps}"]
    began = time.monotonic()
    assert cli.main(["pretrain", *argv, "--run", str(folder)]) == 0
    return folder, argv, steps / (time.monotonic() - began)


def wait_for_end(cluster, job, seconds=400):
    """Until the job is done, well; else an error with what its ranks said last."""
    state = until(
        lambda: (
            (s := cluster.field(job, "JobState"))
            in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL")
            and s
        ),
        seconds,
    )
    files = cluster.field(job, "StdErr"), cluster.field(job, "StdOut")
    said = {f: Path(f).read_text()[-2000:] for f in files if state != "COMPLETED"}
    assert state == "COMPLETED", "\n".join(f"{name}:\n{text}" for name, text in said.items())


def wait_for_training(row, *, past=0):
    return until(lambda: (step := step_of(row["run"])) > past and step)


def assert_same_bits(row, long_run):
    ours, whole = (
        load_checkpoint(newest_checkpoint(Path(f) / TRAINED)) for f in (row["run"], long_run[0])
    )
    assert ours[1]["step"] == whole[1]["step"]
    assert all((value == ours[0][name]).all() for name, value in whole[0].items())
    assert read_metrics(Path(row["run"]), "pretrain") == read_metrics(long_run[0], "pretrain")


def test_two_nodes_of_two_tasks_preempt_one_and_equal_a_single_process(
    cluster, submit, tmp_path, alone, tiny_data, long_run
):
    """The job in the lower partition is pushed out of its node, goes on afterwards, and reaches
    the same bits."""
    low = submit("pretrain", "--run", tmp_path / "low", *long_run[1], "launch.warning_seconds=30")
    wait_for_training(low)
    many = [
        "--nodes",
        2,
        "--tasks-per-node",
        2,
        "--partition",
        "high",
        "--config",
        "debug",
        "--wait",
    ]
    high = submit("pretrain", "--run", tmp_path / "high", *many, *overrides(tiny_data))
    assert high["state"] == "COMPLETED" and high["exit"] == 0
    assert_equal_to_rounding(Path(high["run"]), alone, curves=CURVES[:1])
    wait_for_end(cluster, low["job"])
    assert int(cluster.field(low["job"], "Restarts")) >= 1
    assert_same_bits(low, long_run)


def test_the_first_step_comes_soon_after_the_command(cluster, tmp_path, long_words):
    """From the command to the first training step of a tiny model, less what the job waited in the
    queue."""
    run = tmp_path / "run"
    argv = ["--cluster", "slurm", "--config", "debug", "--run", run, *long_words, "--json"]
    argv += ["train.pretrain.steps=3", "train.pretrain.save_every=1", "train.keep=3"]
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "jepa_wm", "launch", "pretrain", *map(str, argv)],
        capture_output=True,
        check=True,
    )
    job = json.loads(done.stdout)["jobs"][0]["job"]
    wait_for_end(cluster, job)
    seconds = (run / TRAINED / "step_00000001" / "manifest.json").stat().st_mtime - began
    submitted, started = (
        datetime.fromisoformat(cluster.field(job, f"{what}Time")) for what in ("Submit", "Start")
    )
    seconds -= (started - submitted).total_seconds()
    print(f"from the command to the first step, without the queue: {seconds:.1f} s")
    assert seconds < 10


def test_usr2_saves_requeues_and_resumes(cluster, submit, tmp_path, long_run):
    row = submit("pretrain", "--run", tmp_path / "run", *long_run[1])
    stopped_at = wait_for_training(row)
    cluster.ask("scancel", "--signal=USR2", row["job"])
    wait_for_end(cluster, row["job"])
    said = Path(row["log"]).read_text()
    assert f"job {row['job']} has saved and goes back into the queue" in said and stopped_at > 0
    assert cluster.field(row["job"], "Restarts") == "1"
    assert_same_bits(row, long_run)


def test_a_warning_before_the_job_can_answer_it_is_not_lost(cluster, submit, tmp_path, long_run):
    """SLURM may warn a job of a short limit at once, and of preemption at any time: here before
    its Python has imported anything."""
    row = submit("pretrain", "--run", tmp_path / "run", *long_run[1])
    until(
        lambda: any("\0submitit" in s and "hold" not in s for s in cluster.tasks(row["job"])),
        seconds=60,
        pause=0.001,
    )
    cluster.ask("scancel", "--signal=USR2", row["job"])
    wait_for_end(cluster, row["job"])
    assert cluster.field(row["job"], "Restarts") == "1"
    assert_same_bits(row, long_run)


def test_requeued_from_outside_and_a_node_that_dies(cluster, submit, tmp_path, long_run):
    """Neither asks the job: it goes on from its newest checkpoint, the second time on the other
    node."""
    row = submit("pretrain", "--run", tmp_path / "run", *long_run[1])
    wait_for_training(row)
    cluster.ask("scontrol", "requeue", row["job"])
    until(
        lambda: (
            cluster.field(row["job"], "Restarts") == "1"
            and cluster.field(row["job"], "JobState") == "RUNNING"
        )
    )
    # Were the node gone before srun has reached it, the job would fail: wait until the task has
    # begun once more.
    until(
        lambda: (
            sum(
                f.read_text().count("Starting with")
                for f in Path(row["run"]).glob("launch/*/log/*.out")
            )
            == 2
        )
    )
    node = cluster.field(row["job"], "NodeList")
    cluster.kill_node(node)
    try:
        wait_for_end(cluster, row["job"])
        assert (
            cluster.field(row["job"], "NodeList") != node
            and int(cluster.field(row["job"], "Restarts")) >= 2
        )
    finally:
        cluster.start_node(node)
    assert_same_bits(row, long_run)


def test_a_time_limit_is_met_with_a_checkpoint(cluster, submit, tmp_path, long_run):
    """The snapshot of the config wins over a file that was changed meanwhile, and says so."""
    # The job is warned after 35 seconds: it must not be done by then, however fast its node is.
    steps = round(100 * long_run[2])
    file = tmp_path / "mine.yaml"
    file.write_text("base: debug\nseed: 7\n")
    argv = [
        *long_run[1][2:-2],
        f"train.pretrain.steps={steps}",
        f"train.pretrain.eval_every={steps}",
    ]
    limits = ["--minutes", 1, "launch.warning_seconds=25"]
    row = submit("pretrain", "--run", tmp_path / "run", "--config", file, *argv, *limits)
    wait_for_training(row)
    file.write_text("base: debug\nseed: 8\n")
    wait_for_end(cluster, row["job"])
    assert int(cluster.field(row["job"], "Restarts")) >= 1
    lines = [line["step"] for line in read_metrics(Path(row["run"]), "pretrain")]
    assert lines == sorted(set(lines)) and lines[-1] == steps
    said = Path(row["log"]).read_text()
    assert "has saved and goes back into the queue" in said
    assert (
        "has changed since the launch; the snapshot wins over:" in said and "seed: 7 -> 8" in said
    )


def test_a_sweep_is_an_array_of_six(cluster, submit, tmp_path, tiny_data, capsys):
    argv = [
        "--config",
        "debug",
        *overrides(tiny_data),
        "train.pretrain.steps=2",
        "launch.array_parallelism=3",
    ]
    grid = ["--grid", "train.pretrain.lr=[1e-3,1e-4]", "--grid", "seed=[0,1,2]", "--wait"]
    rows = submit("pretrain", "--run", tmp_path / "run", *argv, *grid)
    assert len(rows) == 6 and {row["state"] for row in rows} == {"COMPLETED"}
    assert len({row["job"].split("_")[0] for row in rows}) == 1, "one array"
    assert (
        len(
            {
                (
                    Path(row["run"]) / "pretrain/checkpoints/step_00000002/weights.safetensors"
                ).read_bytes()
                for row in rows
            }
        )
        == 6
    )
    launch("status", "--run", tmp_path / "run")
    table = capsys.readouterr().out.splitlines()
    assert (
        table[0].split() == ["job", "command", "state", "exit", "step", "left", "loss", "log"]
        and len(table) == 7
    )
    assert all("COMPLETED" in line and " 2/2 " in line for line in table[1:])
    assert sorted(Path(row["run"]).name for row in rows)[5] == "005_lr=1e-4_seed=2"


def test_a_failing_job_reaches_the_user(cluster, tmp_path, capsys):
    where = ["--cluster", "slurm", "--config", "debug", "--wait"]
    launch("pretrain", "--run", tmp_path / "a", "data.path=nowhere", *where, code=2)
    said = capsys.readouterr().err
    log = next((tmp_path / "a").rglob("*_0_log.err"))
    assert (
        "FAILED, exit code 2" in said
        and f"log: {log}" in said
        and "nowhere" in log.read_text()
        and "nowhere" in said
    )
    launch(
        "collect",
        "--run",
        tmp_path / "b",
        *where,
        'launch.setup=["true", "test -d /no/such/module"]',
        code=1,
    )
    said = capsys.readouterr().err
    assert "launch.setup: exit code 1 of the line: test -d /no/such/module" in said


def test_bad_requests_are_refused(cluster, submit, tmp_path, capsys, monkeypatch):
    where = ["--cluster", "slurm", "--config", "debug", "--run", tmp_path / "run"]
    launch("collect", *where, "--partition", "nope", code=2)
    assert "invalid partition specified: nope" in capsys.readouterr().err
    launch("collect", *where, "launch.gpus_per_node=1", "launch.constraint=h100", code=2)
    assert "SLURM refuses the job" in capsys.readouterr().err
    launch("pretrain", *where, "--gpus-per-node", 9, code=2)
    said = capsys.readouterr().err
    assert "SLURM refuses the job" in said and "main: 2 nodes, 2 CPUs, 4000 MB, GPUs gpu:2" in said
    cluster.ask("scontrol", "update", "partitionname=main", "state=down")
    try:
        row = submit("collect", "--config", "debug", "--run", tmp_path / "run")
        launch("collect", *where, code=2)
        assert (
            f"job {row['job']} (collect) is not done with this run folder"
            in capsys.readouterr().err
        )
        cluster.ask("scancel", row["job"])
    finally:
        cluster.ask("scontrol", "update", "partitionname=main", "state=up")
    monkeypatch.setenv("PATH", str(tmp_path))
    launch("collect", *where, code=2)
    assert "this machine has no sbatch, srun, scontrol, squeue" in capsys.readouterr().err


def test_the_story_as_dependent_jobs_submitted_from_inside_a_job(cluster, tmp_path):
    """The pipeline is submitted by a setup line of another job; its episodes and features are
    split over two jobs."""
    run, steps = (
        tmp_path / "pipeline",
        [f"train.{part}.steps=3" for part in ("pretrain", "latent", "dynamics", "distance")],
    )
    tiny = [
        *SMALL,
        *steps,
        "collect.episodes=4",
        "collect.heldout_episodes=2",
        "evaluation.budget=10",
        "evaluation.episodes=4",
    ]
    inner = [
        "-m",
        "jepa_wm",
        "launch",
        "pipeline",
        "--config",
        "debug",
        "--run",
        run,
        "--cluster",
        "slurm",
        "--split",
        2,
    ]
    line = shlex.join([sys.executable, *map(str, inner), *tiny])
    outer = [
        "--run",
        tmp_path / "outer",
        "--config",
        "debug",
        "--cluster",
        "slurm",
        "--wait",
        "collect.episodes=2",
    ]
    launch("collect", *outer, f"launch.setup={json.dumps([line])}")
    until(lambda: (rows := status.of(run)) and not any(status.is_live(row) for row in rows), 500)
    rows = status.of(run)  # read again: one may have ended between being read and being found dead
    assert [row["command"] for row in rows] == [
        "collect",
        "pretrain",
        *["features"] * 3,
        "dynamics",
        *["plan"] * 3,
        "report",
    ]
    assert {row["state"] for row in rows} == {"COMPLETED"}, [status.complaint(row) for row in rows]
    assert json.loads((run / "plan/result.json").read_text())["success"]["episodes"] == 4
    assert (run / "report/index.html").exists()
