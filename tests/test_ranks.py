"""One process equals many: curves and weights of 1, 2 and 4 gloo processes agree to rounding,
sharded or not."""

import json
import shutil
import signal
from datetime import timedelta

import films
import numpy as np
import pytest
import torch
from ranks import CURVES, STEPS, assert_equal_to_rounding, overrides, run_ranks

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core import distributed as world
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.distributed import DistContext
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage

VIDEOS = [
    "data.image_size=24", "data.num_frames=5", "data.fps=[5,10]",
    "data.augment={color_jitter: 0.3}",
    "encoder.patch_size=8", "encoder.width=16", "encoder.depth=1", "jepa.width=16",
    "train.pretrain.batch=8",
    f"train.pretrain.steps={STEPS}", "train.pretrain.eval_every=2",
    "train.pretrain.probe_frames=16",
    "train.precision=fp32",
]  # fmt: skip


def train_together(size, alone, folder, data, **parallel):
    """Both trained stages by `size` ranks; dynamics stands on the features that the single process
    made."""
    words = ["--config", "debug", "--run", str(folder), *overrides(data, **parallel)]
    assert (
        run_ranks(size, ["pretrain", *words], folder.parent / "meet_a", log=folder.parent / "log")
        == [0] * size
    )
    shutil.copytree(alone / "features", folder / "features")
    assert (
        run_ranks(size, ["dynamics", *words], folder.parent / "meet_b", log=folder.parent / "log")
        == [0] * size
    )


@pytest.mark.parametrize(("size", "fsdp"), [(2, False), (4, False), (2, True)])
def test_many_train_what_one_does(tmp_path, alone, tiny_data, size, fsdp):
    train_together(size, alone, tmp_path / "run", tiny_data, fsdp=fsdp)
    assert_equal_to_rounding(tmp_path / "run", alone, curves=CURVES[:4])


@pytest.mark.parametrize("fsdp", [False, True])
def test_many_train_the_heads_that_one_does(tmp_path, alone, tiny_data, fsdp):
    for stage in ("features", "dynamics"):
        shutil.copytree(alone / stage, tmp_path / "run" / stage)
    words = ["heads", "--config", "debug", "--run", str(tmp_path / "run")]
    words += overrides(tiny_data, fsdp=fsdp)
    assert run_ranks(2, words, tmp_path / "meet", log=tmp_path / "log") == [0, 0]
    assert_equal_to_rounding(tmp_path / "run", alone, curves=CURVES[4:])
    assert (tmp_path / "run/heads/heads.safetensors").exists()


def test_a_training_of_no_steps_leaves_the_start_that_one_process_has(tmp_path, tiny_data):
    """The patches are read from the data by one rank, and the checkpoint of shards is whole."""
    own = ["train.pretrain.steps=0", "jepa.patch_init=whitening"]
    own.append("train.pretrain.final_probe_steps=5")
    folders = [tmp_path / "many", tmp_path / "one"]
    for folder, size in zip(folders, (2, 1), strict=True):
        words = [*overrides(tiny_data, fsdp=size > 1), *own]
        command = ["pretrain", "--config", "debug", "--run", str(folder), *words]
        codes = run_ranks(size, command, tmp_path / f"meet_{size}", log=tmp_path / "log")
        assert codes == [0] * size
    many, one = (
        load_checkpoint(newest_checkpoint(folder / "pretrain" / "checkpoints"))[0]
        for folder in folders
    )
    assert many.keys() == one.keys()
    assert all(torch.equal(value, one[name]) for name, value in many.items())


def test_many_train_on_videos_what_one_does(tmp_path):
    """Clips, crops and far frames are those of the whole batch, each decoded by one rank; parts
    are read ahead."""
    # Every batch has several clips of one file, also on different ranks.
    (tmp_path / "films").mkdir()
    for number, colours in enumerate(np.random.default_rng(0).integers(0, 150, (5, 1, 4, 5, 3))):
        pattern = colours.repeat(8, 1).repeat(8, 2) + np.arange(12)[:, None, None, None] * 9
        films.write(tmp_path / "films" / f"{number}.mp4", pattern.astype(np.uint8))
    words = [
        "pretrain", "--config", "debug", *VIDEOS, f"data.videos={tmp_path / 'films'}",
        "jepa.episode_contrast=0.3",
    ]  # fmt: skip
    for size, parts in ((1, 1), (2, 1), (1, 2), (2, 2)):
        folder = tmp_path / f"{size}_{parts}"
        run = [*words, "--run", str(folder), f"train.parallel.accumulate={parts}"]
        assert (
            run_ranks(size, run, folder.with_suffix(".meet"), log=tmp_path / "log") == [0] * size
        )
        assert json.loads((folder / "pretrain/result.json").read_text())["unreadable"] == []
    for one, two in (("1_1", "2_1"), ("1_2", "2_2")):
        assert_equal_to_rounding(tmp_path / two, tmp_path / one, curves=CURVES[:1])


def test_a_signal_to_one_stops_all_and_other_numbers_go_on(tmp_path, alone, tiny_data):
    def words(**parallel):
        return [
            "pretrain",
            "--config",
            "debug",
            "--run",
            str(tmp_path / "run"),
            *overrides(tiny_data, **parallel),
        ]

    stopped = run_ranks(2, words(fsdp=True), tmp_path / "meet_a", log=tmp_path / "log", stop_at=1)
    assert stopped == [128 + signal.SIGUSR2] * 2
    assert newest_checkpoint(tmp_path / "run/pretrain/checkpoints").name == "step_00000002"
    assert (
        run_ranks(4, words(), tmp_path / "meet_b", log=tmp_path / "log", stop_at=3)
        == [128 + signal.SIGUSR2] * 4
    )
    assert newest_checkpoint(tmp_path / "run/pretrain/checkpoints").name == "step_00000004"
    assert cli.main(words(recompute=True)) == 0
    assert_equal_to_rounding(tmp_path / "run", alone, curves=CURVES[:1])


def test_what_is_applied_from_outside_changes_nothing(tmp_path, alone, tiny_data):
    """Recomputed activations and parts of a batch; statistics over a batch are of a part, so
    pretraining differs."""
    folder = tmp_path / "run"
    with Run.open(folder, load_config("debug", overrides(tiny_data, recompute=True))) as run:
        run_stage("pretrain", run)
    assert_equal_to_rounding(folder, alone, curves=CURVES[:1])
    shutil.copytree(alone / "features", folder / "features")
    shutil.copytree(alone / "dynamics/checkpoints/latent", folder / "dynamics/checkpoints/latent")
    with Run.open(
        folder, load_config("debug", overrides(tiny_data, accumulate=2, recompute=True))
    ) as run:
        run_stage("dynamics", run)
    assert_equal_to_rounding(folder, alone, curves=CURVES[2:4])


@pytest.mark.slow
def test_what_stands_on_features_is_sharded_in_bf16(tmp_path, tiny_data):
    """Where some of it is computed in fp32, its weights are there in fp32 too."""
    words = [word for word in overrides(tiny_data) if "precision" not in word]
    words.append("train.precision=bf16")
    folder = tmp_path / "run"
    with Run.open(folder, load_config("debug", words)) as run:
        for stage in ("pretrain", "features"):
            run_stage(stage, run)
    for stage in ("dynamics", "heads"):
        command = [stage, "--config", "debug", "--run", str(folder), *words]
        command.append("train.parallel.fsdp=true")
        meeting = tmp_path / f"meet_{stage}"
        assert run_ranks(2, command, meeting, log=tmp_path / "log") == [0, 0]
    assert (folder / "heads/heads.safetensors").exists()


@pytest.mark.slow
def test_sharded_in_bf16_recomputed_and_compiled_is_the_same_training(tmp_path, alone, tiny_data):
    words = [
        word
        for word in overrides(tiny_data, fsdp=True, recompute=True, compile=True)
        if "precision" not in word
    ]
    words = [
        "pretrain",
        "--config",
        "debug",
        "--run",
        str(tmp_path / "run"),
        *words,
        "train.precision=bf16",
    ]
    assert run_ranks(2, words, tmp_path / "meet", log=tmp_path / "log", seconds=900) == [0, 0]
    curves = [
        [line["loss"] for line in read_metrics(folder, "pretrain")]
        for folder in (tmp_path / "run", alone)
    ]
    assert len(curves[0]) == 4 and curves[0] == pytest.approx(curves[1], rel=0.03)


def test_ranks_draw_what_one_process_would():
    """Every sample is some rank's, in the order of the batch, parts before ranks."""
    batch = list(range(24))
    for size, parts in ((1, 1), (4, 1), (2, 3), (4, 3)):
        drawn = [
            batch[DistContext(r, size).rows(24, part, parts)]
            for part in range(parts)
            for r in range(size)
        ]
        assert sum(drawn, []) == batch and len({len(share) for share in drawn}) == 1
    with pytest.raises(
        UserError, match="a batch of 24 does not divide over 5 ranks .* multiple of 5"
    ):
        DistContext(0, 5).rows(24)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but 'RANK' is not"),
        (
            {
                "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1",
                "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1",
            },
            "rank 1 of 2 could not join the others",
        ),
    ],
)  # fmt: skip
def test_a_failed_start_is_an_error(tmp_path, capsys, monkeypatch, place, said):
    monkeypatch.setattr(world, "JOIN", timedelta(seconds=2))
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["pretrain", "--config", "debug", "--run", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert world.dist().size == 1


def test_a_stage_that_one_process_does_is_not_done_by_many(tmp_path):
    assert run_ranks(
        2, ["collect", "--config", "debug", "--run", str(tmp_path / "run")], tmp_path / "m"
    ) == [2, 2]
    assert not (tmp_path / "run").exists()
