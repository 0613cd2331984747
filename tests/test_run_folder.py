"""Run folders: finished work is found again, and never mixed with another config or another
process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import PIECE, fingerprint
from jepa_wm.core.run import Run
from jepa_wm.core.stage import STAGES, stage


class Collect(BaseModel):
    episodes: int = 5


class EvaluationSettings(BaseModel):
    collect: Collect = Collect()
    steps: int = 200


class Toy(BaseModel):
    seed: int = 0
    world: dict[str, int] = {"size": 65}
    evaluation: EvaluationSettings = EvaluationSettings()
    planner: dict[str, int] = {"candidates": 8}


@pytest.fixture(autouse=True)
def toys(restore):
    """Two stages, for the tests of this file alone."""
    restore(STAGES)

    @stage("toy_collect")
    def collect(run, seed: int, world: dict[str, int], evaluation_collect: Collect):
        return {}

    @stage("toy_plan", after="toy_collect")
    def plan(run, planner: dict[str, int], evaluation: EvaluationSettings):
        return {}


def test_a_result_is_found_again(tmp_path):
    with Run.open(tmp_path / "a" / "run", Toy()) as run:
        assert run.finished("toy_collect") is None
        run.write_result(
            "toy_collect", {"frames": 10, "loss": float("nan"), "curve": (1.0, float("inf"))}
        )
    with Run.open(tmp_path / "a" / "run", Toy()) as run:
        assert run.finished("toy_collect") == {"frames": 10, "loss": None, "curve": [1.0, None]}
        assert run.finished("toy_plan") is None
        assert json.loads((run.path / "toy_collect" / "result.json").read_text())["loss"] is None


def test_settings_of_a_later_stage_may_change_until_it_begins(tmp_path):
    with Run.open(tmp_path, Toy()) as run:
        run.write_result("toy_collect", {"frames": 10})
    changed = Toy(planner={"candidates": 16}, evaluation=EvaluationSettings(steps=100))
    with Run.open(tmp_path, changed) as run:
        assert run.finished("toy_collect") == {"frames": 10}
        run.stage_dir("toy_plan")
    assert "candidates: 16" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError, match="planner.candidates: 16 -> 8"):
        Run.open(tmp_path, Toy(evaluation=EvaluationSettings(steps=100)))


def test_another_config_is_refused_naming_all_keys_and_the_remedy(tmp_path):
    with Run.open(tmp_path, Toy()) as run:
        run.write_result("toy_collect", {})
        run.stage_dir("toy_plan")
    kept = (tmp_path / "config.yaml").read_text()
    with pytest.raises(UserError) as caught:
        Run.open(tmp_path, Toy(seed=1, evaluation=EvaluationSettings(collect=Collect(episodes=6))))
    message = str(caught.value)
    for part in (
        "seed: 0 -> 1",
        "evaluation.collect.episodes: 5 -> 6",
        "another --run",
        f"{tmp_path}/toy_collect {tmp_path}/toy_plan",
    ):
        assert part in message
    assert (tmp_path / "config.yaml").read_text() == kept
    Run.open(tmp_path, Toy()).close()  # the refused attempt left no lock behind


def test_a_setting_newer_than_the_run_counts_as_its_default(tmp_path):
    with Run.open(tmp_path, Toy()) as run:
        run.write_result("toy_collect", {"frames": 10})
        begun = run.stage_dir("toy_plan") / "config.yaml"
    text = begun.read_text()
    assert "  steps: 200\n" in text
    begun.write_text(text.replace("  steps: 200\n", ""))
    with Run.open(tmp_path, Toy()) as run:
        assert run.finished("toy_collect") == {"frames": 10}
        run.write_result("toy_plan", {"success": 1.0})
        assert run.finished("toy_plan") == {"success": 1.0}
    with pytest.raises(UserError, match="evaluation.steps: 200 -> 100") as refused:
        Run.open(tmp_path, Toy(evaluation=EvaluationSettings(steps=100)))
    assert f"keep the old settings (--config {tmp_path / 'config.yaml'})" in str(refused.value)
    begun.write_text(text.replace("  steps: 200\n", "  gone: 3\n"))
    with pytest.raises(UserError, match="evaluation.gone: 3 -> \\(absent\\)"):
        Run.open(tmp_path, Toy())


def test_a_stage_begun_but_not_finished_is_bound_to_its_upstream_settings_too(tmp_path):
    with Run.open(tmp_path, Toy()) as run:
        run.stage_dir("toy_plan")
    with pytest.raises(UserError, match="world.size: 65 -> 64"):
        Run.open(tmp_path, Toy(world={"size": 64}))


def test_a_damaged_or_foreign_result_is_named(tmp_path):
    with Run.open(tmp_path, Toy()) as run:
        file = run.write_result("toy_collect", {"frames": 10})
        file.write_text(file.read_text()[:-9])
        with pytest.raises(UserError, match="result.json: is damaged"):
            run.finished("toy_collect")
        file.write_text('{"frames": 10}')
        with pytest.raises(UserError, match="does not belong to"):
            run.finished("toy_collect")


def test_two_processes_cannot_share_a_folder(tmp_path):
    script = (
        "import sys; from test_run_folder import Run, Toy\n"
        "run = Run.open(sys.argv[1], Toy()); print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert other.stdin and other.stdout
    assert other.stdout.readline() == "open\n"
    with pytest.raises(
        UserError, match=f"process {other.pid} on .* is working in this run folder"
    ):
        Run.open(tmp_path, Toy())
    other.kill()  # even then the lock goes with it
    other.communicate()
    Run.open(tmp_path, Toy()).close()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        Run.open(tmp_path / "file", Toy())
    with pytest.raises(UserError, match="is not a folder"):
        Run.open(tmp_path / "file" / "run", Toy())


def test_a_file_that_a_stage_has_read_may_not_become_another(tmp_path):
    data, weights = tmp_path / "data", tmp_path / "weights.pt"
    data.mkdir()
    for part in ("train", "heldout"):
        (data / f"{part}.h5").write_bytes(part.encode())
    weights.write_bytes(b"first")
    words = [
        f"data.path={data}",
        "features.backbone=vjepa2/vit_large",
        f"features.weights={weights}",
    ]

    def encode(times=[0]):  # noqa: B006 (counts the calls)
        def work(run):
            run.stage_dir("features")
            times[0] += 1
            return {"time": times[0]}

        with Run.open(tmp_path / "run", load_config("debug", words)) as run:
            return run.once("features", work)["time"]

    assert encode() == encode() == 1
    for file in (weights, data / "heldout.h5"):
        held = file.read_bytes()
        file.write_bytes(b"other")
        with pytest.raises(
            UserError,
            match=f"{file.name}: holds something else than when .*features was made of it",
        ):
            encode()
        file.write_bytes(held)
        assert encode() == 1, "what it holds counts, not when it was written"
    weights.unlink()
    assert encode() == 1, "what was read is needed no more"


def test_fingerprints_tell_contents_apart(tmp_path):
    file = tmp_path / "a"
    file.write_bytes(bytes(10 * PIECE))
    whole, ends = fingerprint(file), fingerprint(file, pieces=2)
    for at in (0, 5 * PIECE, 10 * PIECE - 1):
        changed = bytearray(10 * PIECE)
        changed[at] = 1
        file.write_bytes(changed)
        assert fingerprint(file) != whole
        assert (fingerprint(file, pieces=2) == ends) == (at == 5 * PIECE), (
            "of a large file only some is read"
        )
    file.write_bytes(bytes(10 * PIECE + 1))
    assert fingerprint(file, pieces=2) != ends
    (tmp_path / "folder" / "in").mkdir(parents=True)
    (tmp_path / "folder" / "in" / "b").write_bytes(b"b")
    before = fingerprint(tmp_path / "folder")
    (tmp_path / "folder" / "in" / "b").rename(tmp_path / "folder" / "c")
    assert fingerprint(tmp_path / "folder") != before
