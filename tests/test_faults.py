"""What goes wrong outside the library: a disk that fills up, a checkpoint cut short, actions that
do not fit."""

import os
import subprocess

import pytest

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.checkpoint import newest_checkpoint
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.vit import Encoder
from jepa_wm.models.world_model_settings import WorldModelSettings
from jepa_wm.training import loop

STEPS, SAVED = 20, 8
SMALL = [
    "encoder.width=16",
    "encoder.depth=1",
    "jepa.width=16",
    f"train.pretrain.steps={STEPS}",
    "train.pretrain.batch=8",
    f"train.pretrain.save_every={SAVED}",
    "train.pretrain.probe_frames=60",
    "train.pretrain.probe_steps=5",
]


def pretrain(folder, data):
    words = ["pretrain", "--config", "debug", "--run", str(folder), f"data.path={data}", *SMALL]
    return cli.main(words)


def before_step(monkeypatch, step, act):
    """Call `act` in front of a training step of that number; returns the numbers of the steps
    taken."""
    original, taken = loop._one_step, []

    def one_step(task, optimiser, settings, number):
        if number == step:
            act()
        taken.append(number)
        return original(task, optimiser, settings, number)

    monkeypatch.setattr(loop, "_one_step", one_step)
    return taken


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own of 8 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(place)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no permission to mount a file system: {mounted.stderr.decode().strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(file):
    """Write until the disk is full."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT)
    try:
        for size in (1 << 16, 1 << 8):
            while True:
                try:
                    os.write(handle, b"x" * size)
                except OSError:
                    break
    finally:
        os.close(handle)


def test_a_full_disk_is_named_and_the_earlier_checkpoint_is_found_again(
    small_disk, tiny_data, monkeypatch, capsys
):
    run, ballast = small_disk / "run", small_disk / "ballast"
    with monkeypatch.context() as patch:
        before_step(patch, SAVED + 3, lambda: fill(ballast))
        assert pretrain(run, tiny_data) == 1
    said = capsys.readouterr().err
    assert (
        "no space left on the disk" in said
        and str(run) in said
        and "run the same command again" in said
    )
    assert newest_checkpoint(run / "pretrain" / "checkpoints").name == f"step_{SAVED:08d}"
    ballast.unlink()
    taken = before_step(monkeypatch, -1, lambda: None)
    assert pretrain(run, tiny_data) == 0
    assert taken == list(range(SAVED, STEPS))
    assert [line["step"] for line in read_metrics(run, "pretrain")] == [10, STEPS]


def test_a_checkpoint_cut_short_is_passed_over_for_the_one_before(
    tmp_path, tiny_data, monkeypatch
):
    def die():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        before_step(patch, 2 * SAVED + 1, die)
        assert pretrain(tmp_path, tiny_data) == 130
    newest = newest_checkpoint(tmp_path / "pretrain" / "checkpoints")
    assert newest.name == f"step_{2 * SAVED:08d}"
    weights = newest / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    taken = before_step(monkeypatch, -1, lambda: None)
    with pytest.warns(UserWarning, match=f"{newest.name} is passed over: weights.safetensors has"):
        assert pretrain(tmp_path, tiny_data) == 0
    assert taken == list(range(SAVED, STEPS))


@pytest.mark.parametrize("words", [["plan"], ["eval", "planning"]])
def test_a_model_of_other_actions_is_refused_by_name(tmp_path, capsys, words):
    config, encode = (
        load_config("debug"),
        EncoderSettings(patch_size=13, width=16, depth=1, num_heads=1),
    )
    with Run.open(tmp_path, config) as run:
        FrozenEncoder(Encoder(65, encode), 65).save(run.path / "features")
        (tmp_path / "dynamics").mkdir()
        parts = {"latent": config.latent, "dynamics": config.dynamics, "distance": config.distance}
        model = LatentModel(25, 16, 3, WorldModelSettings(**parts))  # 3 numbers an action
        model.save(run.path / "dynamics")
    assert cli.main([*words, "--config", "debug", "--run", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    for part in (
        str(tmp_path),
        "10 numbers a model step",
        "trained on 15",
        "dynamics.frameskip",
        "'two_rooms'",
    ):
        assert part in said, said
    assert not (tmp_path / "plan").exists(), "nothing is begun that could not be finished"
