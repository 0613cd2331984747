"""The whole pipeline from one command, on the tiny setting of configs/debug.yaml."""

import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from jepa_wm import cli, demo
from jepa_wm.config import load_config
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.vit import Encoder

STAGES = ("collect", "pretrain", "features", "dynamics", "plan")
PROMISED = {
    "collapsed",
    "feature_std",
    "effective_rank",
    "probe",
    "rollout",
    "success",
    "success_by",
    "baselines",
    "oracle",
    "seconds_per_decision",
    "minutes",
    "report",
    "stages",
    "success_training_layouts",
    "baselines_training_layouts",
    "oracle_training_layouts",
}
BASELINE = ["evaluation.random_encoder_baseline=true", "jepa.patch_init=whitening"]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    """(run folder, the JSON of `jepa-wm demo --config debug`)."""
    folder = tmp_path_factory.mktemp("story") / "run"
    command = [
        sys.executable,
        "-m",
        "jepa_wm",
        "demo",
        "--config",
        "debug",
        "--run",
        str(folder),
        "--json",
        *BASELINE,
    ]
    same_threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(command, capture_output=True, text=True, env=same_threads)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


LEARNS = [
    "world.geometry.fixed_wall=32",
    "collect.episodes=1000",
    "collect.heldout_episodes=20",
    "features.num_norm_frames=2000",
    "encoder.width=64",
    "encoder.depth=2",
    "encoder.num_heads=1",
    "jepa.width=32",
    "jepa.depth=1",
    "train.pretrain.steps=60",
    "train.pretrain.batch=16",
    "train.pretrain.warmup=10",
    "train.pretrain.eval_every=60",
    "train.pretrain.probe_frames=100",
    "train.pretrain.probe_steps=5",
    "train.pretrain.final_probe_steps=5",
    "train.latent.steps=1000",
    "train.latent.batch=128",
    "train.latent.lr=3e-3",
    "train.dynamics.steps=3000",
    "train.dynamics.batch=96",
    "train.dynamics.rollout=0",
    "train.distance.steps=600",
    "train.distance.batch=64",
    "planner.solver.num_samples=64",
    "planner.solver.iterations=3",
    "planner.mpc.also_evaluate=[]",
    "evaluation.episodes=32",
    "evaluation.budget=120",
]


def test_what_was_learned_plans_better_than_chance_and_than_a_walker_blind_to_walls(
    tmp_path, capsys
):
    """One wall place, any door: what a few minutes of training suffice for. The margins are wider
    than the noise."""
    assert (
        cli.main(
            ["demo", "--config", "two_rooms", "--run", str(tmp_path / "run"), "--json", *LEARNS]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    won, baselines = result["success"]["success_final"], result["baselines"]
    assert (
        won > baselines["random"]["success_final"] + 0.5
        and won > baselines["straight_line"]["success_final"] + 0.15
    )
    eighth = result["rollout"][7]["state_errors"]["agent"]
    assert eighth["error"] < eighth["shuffled"] / 3


def assert_success(entry):
    assert entry["unit"] == "px"
    assert {
        "success_final",
        "success_any",
        "low",
        "high",
        "episodes",
        "seeds",
        "budget",
    } <= entry.keys()
    assert (
        0 <= entry["low"] <= entry["success_final"] <= entry["high"] <= 1
        and entry["success_final"] <= entry["success_any"]
    )


def test_the_last_line_has_all_that_scripts_are_promised(story):
    _, result = story
    assert result.keys() == PROMISED
    assert {"agent", "wall", "door"} == result["probe"].keys()
    for entry in result["probe"].values():
        assert entry["error"] > 0 and entry["random_encoder"] > 0 and entry["unit"] == "px"
    for horizon, row in enumerate(result["rollout"], 1):
        assert row["horizon"] == horizon and row["state_errors"].keys() == {
            "agent",
            "wall",
            "door",
        }
        for key in (
            "relative_error",
            "relative_error_shuffled",
            "feature_error",
            "feature_error_shuffled",
        ):
            assert row[key] > 0
        for entry in row["state_errors"].values():
            assert entry["error"] > 0 and entry["shuffled"] > 0 and entry["unit"] == "px"
    assert_success(result["success"])
    for suffix in ("", "_training_layouts"):
        baselines = result[f"baselines{suffix}"]
        assert baselines.keys() == {"random", "straight_line", "random_encoder"}
        for entry in (result[f"success{suffix}"], result[f"oracle{suffix}"], *baselines.values()):
            assert_success(entry)
    for entry in result["success_by"].values():
        assert_success(entry)
    layouts = result["stages"]["plan"]["layouts"]
    assert layouts["heldout"]["met"] == 0 and layouts["heldout"]["nearest"] >= 2
    assert layouts["heldout"]["episodes"] == layouts["training"]["episodes"] == 6
    assert 0 < result["seconds_per_decision"] < 10 and 0 < result["minutes"] < 10


def test_the_scripted_walkers_frame_the_task(story):
    """The planner with the true simulator does better than chance, or the tasks and baselines are
    not what they say."""
    _, result = story
    assert result["oracle"]["success_any"] >= result["baselines"]["random"]["success_any"]
    assert result["success"]["episodes"] == result["oracle"]["episodes"] == 6


def test_every_stage_keeps_its_result_and_the_page_is_there(story):
    folder, result = story
    for stage in STAGES:
        stored = json.loads((folder / stage / "result.json").read_text())
        told = {**result, **result["stages"][stage]}
        own = stored.keys() - {"config_digest", "random_encoder_seconds"}
        assert own <= told.keys() and all(stored[key] == told[key] for key in own)
    assert (
        result["stages"]["collect"]["train"]["episodes"] == 60
        and "rows" in result["stages"]["features"]["train"]
    )
    took = {stage: entry["seconds"] for stage, entry in result["stages"].items()}
    assert took.keys() == {*STAGES, "random_encoder", "report"} and all(
        seconds > 0 for seconds in took.values()
    )
    assert result["minutes"] == pytest.approx(sum(took.values()) / 60)
    page = (folder / "report" / "index.html").read_text()
    assert str(folder / "report" / "index.html") == result["report"] and page.startswith("<!")
    assert 'src="http' not in page and 'href="http' not in page.replace(
        'href="https://github.com', ""
    )


def work_files(folder):
    """Everything a stage made, with the time it was written."""
    return {
        path: path.stat().st_mtime_ns
        for stage in (*STAGES, "random_encoder")
        for path in (folder / stage).rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_the_encoder_of_the_baseline_is_random_in_its_patches_too(story):
    folder, _ = story
    config = load_config("debug", BASELINE)
    torch.manual_seed(config.seed)
    random = Encoder(config.data.image_size, config.encoder).state_dict()
    beside, own = (
        FrozenEncoder.load(path / "features").encoder.state_dict()
        for path in (folder / "random_encoder", folder)
    )
    assert all(torch.equal(beside[name], value) for name, value in random.items())
    assert not torch.equal(own["embed.weight"], random["embed.weight"])


def test_a_second_call_does_nothing_again_and_says_the_same(story, capsys):
    folder, result = story
    before = work_files(folder)
    assert cli.main(["demo", "--config", "debug", "--run", str(folder), "--json", *BASELINE]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result
    assert work_files(folder) == before


def test_a_run_folder_of_another_config_is_refused(story, capsys):
    folder, _ = story
    assert (
        cli.main(
            ["demo", "--config", "debug", "--run", str(folder), *BASELINE, "train.dynamics.lr=0.5"]
        )
        == 2
    )
    assert "train.dynamics.lr: 0.003 -> 0.5" in capsys.readouterr().err


def test_no_plan_knows_the_true_state(story, tmp_path, capsys):
    """States replaced by NaN in the data, all else equal: the probes go blind, the plans stay the
    same to the bit."""
    folder, seen = story
    blind = tmp_path / "blind"
    shutil.copytree(folder / "collect", blind / "collect")
    for part in ("train", "heldout"):
        with h5py.File(blind / "collect" / f"{part}.h5", "r+") as file:
            file["state"][:] = np.nan
    words = ["demo", "--config", "debug", "--run", str(blind), "--json", BASELINE[1]]
    assert cli.main(words) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["probe"]["agent"]["error"] is None and seen["probe"]["agent"]["error"] > 0
    chunks = sorted((folder / "plan" / "main").glob("*.npz"))
    assert chunks
    for chunk in chunks:
        with np.load(chunk) as a, np.load(blind / "plan" / "main" / chunk.name) as b:
            for key in ("track", "cost", "frames"):
                assert np.array_equal(a[key], b[key]), key
            assert np.ptp(a["track"], axis=1).max() > 1, "somebody moved"
    assert result["success"] == seen["success"]
    assert result["stages"]["plan"]["layouts"]["heldout"]["met"] is None, (
        "it cannot be known and is not claimed"
    )


def test_a_random_baseline_starts_from_no_weights(monkeypatch, tmp_path):
    class Opened(Exception):
        pass

    def opened(path, config):
        raise Opened(config.train.pretrain, config.features.weights)

    monkeypatch.setattr(demo.Run, "open", opened)
    config = load_config("debug", ["train.pretrain.start=runs/other"])
    with pytest.raises(Opened) as error:
        demo.random_encoder_baseline(SimpleNamespace(path=tmp_path), config)
    pretrain, weights = error.value.args
    assert (pretrain.start, pretrain.steps, weights) == (None, 0, None)
