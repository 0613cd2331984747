"""Killed at random moments again and again, and a disk that is full at every third save: nothing
is lost."""

import os
import random
import shutil
import signal
import time

import pytest
import torch
from ranks import context
from test_faults import fill, small_disk  # noqa: F401  (a fixture)
from test_train import PARTS, SMALL

from jepa_wm import cli
from jepa_wm.core import saver
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint

STEPS = 60
PIPELINE = ("pretrain", "features", "dynamics", "heads")


def words(folder, data, **more):
    kept = [
        word
        for word in SMALL
        if not any(part in word for part in ("steps=2", "save_every", "eval_every"))
    ]
    kept += [
        f"train.{part}.{key}"
        for part in ("pretrain", "latent", "dynamics", "distance", "heads")
        for key in (f"steps={STEPS}", f"save_every={more.get('save_every', 3)}", "eval_every=30")
    ]
    return ["--config", "debug", "--run", str(folder), f"data.path={data}", *kept]


def pipeline(folder, data):
    """All trainings of a run, in a process of its own."""
    torch.set_num_threads(1)
    for command in PIPELINE:
        code = cli.main([command, *words(folder, data)])
        if code:
            os._exit(code)


def assert_same_bits(a, b):
    for part in PARTS:
        (mine, state), (its, other) = (
            load_checkpoint(newest_checkpoint(folder / part)) for folder in (a, b)
        )
        assert state["step"] == other["step"] == STEPS
        assert mine.keys() == its.keys() and all(
            torch.equal(value, its[name]) for name, value in mine.items()
        ), part
    assert (a / "dynamics/latent_model.safetensors").read_bytes() == (
        b / "dynamics/latent_model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_fifty_kills_at_random_moments_reach_the_same_bits(tmp_path, tiny_data):
    """Until fifty kills are through; a run that finishes in between is compared and begun
    again."""
    whole, run, chance = tmp_path / "whole", tmp_path / "run", random.Random(0)
    undisturbed = context.Process(target=pipeline, args=(whole, tiny_data))
    undisturbed.start()
    began = time.monotonic()
    undisturbed.join()
    assert undisturbed.exitcode == 0
    usual, kills, finished = time.monotonic() - began, 0, 0
    while kills < 50 or not finished:
        process = context.Process(target=pipeline, args=(run, tiny_data))
        process.start()
        process.join(chance.expovariate(4 / usual) if kills < 50 else None)
        if process.is_alive():
            process.kill()
            process.join()
            assert process.exitcode == -signal.SIGKILL
            kills += 1
        else:
            assert process.exitcode == 0
            assert_same_bits(run, whole)
            finished += 1
            if kills < 50:
                shutil.rmtree(run)


class FullAtEveryThird:
    """In the place of `save_checkpoint`: at every third call the disk is full, and has room again
    afterwards."""

    def __init__(self, disk):
        self.ballast, self.calls, self.save = disk / "ballast", 0, saver.save_checkpoint

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls % 3:
            return self.save(*args, **kwargs)
        fill(self.ballast)
        try:
            return self.save(*args, **kwargs)
        finally:
            self.ballast.unlink()


@pytest.mark.parametrize(("save_every", "saves", "code"), [(6, 10, 0), (7, 9, 1)])
def test_a_disk_that_is_full_at_every_third_save(
    small_disk, tmp_path, tiny_data, monkeypatch, capsys, save_every, saves, code  # noqa: F811
):  # fmt: skip
    """Training goes on and says so; the newest whole checkpoint stays; only a last save that fails
    ends it."""
    run, full = tmp_path / "run", FullAtEveryThird(small_disk)
    (run / "pretrain").mkdir(parents=True)
    (small_disk / "checkpoints").mkdir()
    (run / "pretrain" / "checkpoints").symlink_to(small_disk / "checkpoints")
    monkeypatch.setattr(saver, "save_checkpoint", full)
    with pytest.warns(
        UserWarning, match="could not be written to .*; training goes on, the newest whole"
    ) as said:
        assert cli.main(["pretrain", *words(run, tiny_data, save_every=save_every)]) == code
    assert (
        full.calls == saves
        and len([w for w in said if "training goes on" in str(w.message)]) == (saves - 1) // 3
    )
    newest = newest_checkpoint(run / PARTS[0])
    assert newest.name == f"step_{STEPS if code == 0 else 56:08d}"
    if code:
        assert "no space left on the disk" in capsys.readouterr().err
        monkeypatch.setattr(saver, "save_checkpoint", full.save)
        assert cli.main(["pretrain", *words(run, tiny_data, save_every=save_every)]) == 0
    cli.main(["pretrain", *words(tmp_path / "whole", tiny_data, save_every=save_every)])
    mine, its = (
        load_checkpoint(newest_checkpoint(f / PARTS[0]))[0] for f in (run, tmp_path / "whole")
    )
    assert all(torch.equal(value, its[name]) for name, value in mine.items())
