"""Starts the ranks of one training as processes of their own, as a launcher does, and compares
what they learned."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
from test_train import SMALL

from jepa_wm import cli
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.progress import read_metrics

context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(
    ["jepa_wm.training.pretrain", "jepa_wm.training.dynamics", "torch.utils.tensorboard"]
)


def run_ranks(size, words, meeting, *, log=None, stop_at=None, seconds=300):
    """Run `jepa-wm <words>` on `size` ranks that meet by the file `meeting`; returns their exit
    codes.

    At training step `stop_at` the last rank, and only that one, gets a SIGUSR2.
    """
    shared = (size, words, meeting, log, stop_at)
    processes = [context.Process(target=_rank, args=(rank, *shared)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _rank(rank, size, words, meeting, log, stop_at):
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ["JEPA_WM_RENDEZVOUS"] = str(meeting)
    if log is not None:
        said = os.open(Path(log).with_suffix(f".{rank}"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
    import torch

    torch.set_num_threads(1)
    if stop_at is not None and rank == size - 1:
        from jepa_wm.training import loop

        one_step = loop._one_step

        def stopping(task, optimiser, settings, step):
            if step == stop_at:
                signal.raise_signal(signal.SIGUSR2)
            return one_step(task, optimiser, settings, step)

        loop._one_step = stopping
    sys.exit(cli.main(words))


STEPS = 8
CURVES = ("pretrain", "dynamics_latent", "dynamics_dynamics", "dynamics_distance", "heads")


# Whatever looks at the whole batch: other clips, its means and its spread.
EVERY_TERM = (
    "episode_contrast=0.3",
    "temporal_contrast=0.3",
    "masks=[{frames: 1}, {num_blocks: 2, image: true}]",
    "inverse_dynamics=3",
    "center_targets=true",
)


def overrides(data, **parallel):
    words = [
        word
        for word in SMALL
        if "steps=" not in word and "save_every" not in word and "eval_every" not in word
    ]
    for part in ("pretrain", "latent", "dynamics", "distance", "heads"):
        keys = (f"steps={STEPS}", "save_every=5", "eval_every=2")
        words += [f"train.{part}.{key}" for key in keys]
    words += [
        "train.pretrain.probe_steps=5",
        "train.precision=fp32",
        "jepa.depth=1",
        f"data.path={data}",
    ]
    words += [f"jepa.{term}" for term in EVERY_TERM]
    return words + [
        f"train.parallel.{key}={str(value).lower()}" for key, value in parallel.items()
    ]


# Loss (relative), weights (root mean square of a tensor, which a whole training moves by about
# 1e-2). Adam makes a step of full size of the smallest gradient, so that what stands on an earlier
# training differs by more than a bit.
TOLERANCE = {
    "pretrain": (1e-6, 1e-5), "dynamics_latent": (1e-4, 2e-4), "dynamics_dynamics": (1e-3, 1e-4),
    "dynamics_distance": (1e-4, 5e-4), "heads": (1e-5, 1e-4),
}  # fmt: skip
# The loss does not depend on them (a shift that is subtracted again, or that all keys share):
# their steps are noise.
WITHOUT_GRADIENT = ("read.bias", "key_value.bias", "pool.norm.bias")


def assert_equal_to_rounding(folder, alone, *, curves=CURVES):
    for curve in curves:
        of_loss, of_weights = TOLERANCE[curve]
        mine, its = read_metrics(folder, curve), read_metrics(alone, curve)
        assert [line["step"] for line in mine] == [line["step"] for line in its] and its[-1][
            "step"
        ] == STEPS
        for a, b in zip(mine, its, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=of_loss), (curve, a["step"])
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=100 * of_loss), (
                curve,
                a["step"],
            )
            shares = {name: b[name] for name in b if name.startswith("gradient_share/")}
            assert {name: a.get(name) for name in shares} == pytest.approx(shares, abs=1e-3)
        assert shares or curve != "pretrain", "which loss trains the encoder is told of every run"
        stage, _, of_stage = curve.partition("_")
        part = f"{stage}/checkpoints/{of_stage}"
        (weights, state), (expected, other) = (
            load_checkpoint(newest_checkpoint(f / part)) for f in (folder, alone)
        )
        assert weights.keys() == expected.keys() and state["step"] == other["step"] == STEPS
        for name, value in expected.items():
            if not name.endswith(WITHOUT_GRADIENT):
                assert (weights[name] - value).square().mean().sqrt() < of_weights, (curve, name)
