"""The real thing: jobs through `jepa-wm launch` on a SLURM of two nodes, and all that may happen to them there."""

import json
import time
from pathlib import Path

import pytest
from test_ranks import CURVES, alone, assert_equal_to_rounding, overrides  # noqa: F401  (alone is a fixture)
from test_train import SMALL

from jepa_wm import cli
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.progress import read_metrics

TRAINED = "pretrain/checkpoints"


def launch(*words, code=0):
    """Run `jepa-wm launch`; a wrong exit code fails."""
    found = cli.main(["launch", *map(str, words)])
    assert found == code, f"exit code {found}"


@pytest.fixture
def submit(capsys):
    """Submit a job and get its row."""

    def call(*words):
        capsys.readouterr()
        launch(*words, "--cluster", "slurm", "--json")
        rows = json.loads(capsys.readouterr().out)["jobs"]
        return rows[0] if len(rows) == 1 else rows

    return call


@pytest.fixture(scope="session")
def long_words(tiny_data):
    """Settings of a training on one process that takes about `SECONDS` here."""
    words = [word for word in SMALL if "pretrain.steps" not in word and "save_every" not in word and "eval" not in word]
    return [f"observe.path={tiny_data}", *words, "train.precision=fp32", "train.pretrain.save_every=100"]


def until(true, seconds=90):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come to pass in time"
        time.sleep(0.3)
    return found


def step_of(run):
    file = Path(run) / "pretrain" / "progress.json"
    return json.loads(file.read_text())["step"] if file.exists() else 0


@pytest.fixture(scope="session")
def long_run(tmp_path_factory, long_words):
    """(folder, words) of an undisturbed training in this process, long enough to be disturbed elsewhere."""
    folder, steps = tmp_path_factory.mktemp("long") / "run", 30
    began = time.monotonic()
    words = ["--config", "debug", *long_words]
    assert cli.main(["pretrain", *words, "--run", str(folder.parent / "pace"), f"train.pretrain.steps={steps}"]) == 0
    steps = round(min(max(15 * steps / (time.monotonic() - began), 100), 3000))
    words += [f"train.pretrain.steps={steps}", f"train.pretrain.eval_every={steps}"]
    assert cli.main(["pretrain", *words, "--run", str(folder)]) == 0
    return folder, words


def wait_for_end(cluster, job, seconds=150):
    state = until(lambda: (s := cluster.field(job, "JobState")) in ("COMPLETED", "FAILED", "TIMEOUT", "NODE_FAIL") and s, seconds)
    assert state == "COMPLETED"


def wait_for_training(row, *, past=0):
    return until(lambda: (step := step_of(row["run"])) > past and step)


def assert_same_bits(row, long_run):
    ours, whole = (load_checkpoint(newest_checkpoint(Path(f) / TRAINED)) for f in (row["run"], long_run[0]))
    assert ours[1]["step"] == whole[1]["step"]
    assert all((value == ours[0][name]).all() for name, value in whole[0].items())
    assert read_metrics(Path(row["run"]), "pretrain") == read_metrics(long_run[0], "pretrain")


def test_two_nodes_of_two_tasks_preempt_one_and_equal_a_single_process(
    cluster, submit, tmp_path, alone, tiny_data, long_run  # noqa: F811
):
    """The job in the lower partition is pushed out of its node, goes on afterwards, and reaches the same bits."""
    low = submit("pretrain", "--run", tmp_path / "low", *long_run[1], "launch.warning_seconds=30")
    wait_for_training(low)
    many = ["--nodes", 2, "--tasks-per-node", 2, "--partition", "high", "--config", "debug", "--wait"]
    high = submit("pretrain", "--run", tmp_path / "high", *many, *overrides(tiny_data))
    assert high["state"] == "COMPLETED" and high["exit"] == 0
    assert_equal_to_rounding(Path(high["run"]), alone, curves=CURVES[:1])
    wait_for_end(cluster, low["job"])
    assert int(cluster.field(low["job"], "Restarts")) >= 1
    assert_same_bits(low, long_run)


def test_usr2_saves_requeues_and_resumes(cluster, submit, tmp_path, long_run):
    row = submit("pretrain", "--run", tmp_path / "run", *long_run[1])
    stopped_at = wait_for_training(row)
    cluster.ask("scancel", "--signal=USR2", row["job"])
    wait_for_end(cluster, row["job"])
    said = Path(row["log"]).read_text()
    assert f"job {row['job']} has saved and goes back into the queue" in said and stopped_at > 0
    assert cluster.field(row["job"], "Restarts") == "1"
    assert_same_bits(row, long_run)
