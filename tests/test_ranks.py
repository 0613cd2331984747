"""One process equals many: curves and weights of 1, 2 and 4 gloo processes agree to rounding, sharded or not."""

import shutil
import signal
from datetime import timedelta

import pytest
from ranks import run_ranks
from test_train import SMALL, STAGES

from jepa_wm import cli
from jepa_wm.core import world
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import RunFolder
from jepa_wm.core.world import World
from jepa_wm.train import dynamics, pretrain

STEPS = 8
CURVES = ("pretrain", "dynamics_summary", "dynamics_dynamics", "dynamics_metric")


def overrides(data, **parallel):
    words = [word for word in SMALL if "steps=" not in word and "save_every" not in word and "eval_every" not in word]
    words += [f"train.{part}.{key}" for part in ("pretrain", "summary", "dynamics", "metric")
              for key in (f"steps={STEPS}", "save_every=5", "eval_every=2")]  # fmt: skip
    words += ["train.pretrain.probe_steps=5", "train.precision=fp32", "predict.depth=1", f"observe.path={data}"]
    return words + [f"train.parallel.{key}={str(value).lower()}" for key, value in parallel.items()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_data):
    """The run folder of a single process, up to dynamics."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with RunFolder.open(folder, load_config("debug", overrides(tiny_data))) as run:
        for stage in STAGES.values():
            stage(run)
    return folder


def train_together(size, alone, folder, data, **parallel):
    """Both trained stages by `size` ranks; dynamics stands on the features that the single process made."""
    words = ["--config", "debug", "--run", str(folder), *overrides(data, **parallel)]
    assert run_ranks(size, ["pretrain", *words], folder.parent / "meet_a", log=folder.parent / "log") == [0] * size
    shutil.copytree(alone / "encode", folder / "encode")
    assert run_ranks(size, ["dynamics", *words], folder.parent / "meet_b", log=folder.parent / "log") == [0] * size


# Loss (relative), weights (root mean square of a tensor, which a whole training moves by about 1e-2). Adam makes a step
# of full size of the smallest gradient, so that what stands on an earlier training differs by more than a bit.
TOLERANCE = {
    "pretrain": (1e-6, 1e-5), "dynamics_summary": (1e-4, 2e-4), "dynamics_dynamics": (1e-3, 1e-4),
    "dynamics_metric": (1e-4, 5e-4),
}  # fmt: skip
# The loss does not depend on them (a shift that is subtracted again, or that all keys share): their steps are noise.
WITHOUT_GRADIENT = ("read.bias", "key_value.bias", "pool.norm.bias")


def assert_equal_to_rounding(folder, alone, *, curves=CURVES):
    for curve in curves:
        of_loss, of_weights = TOLERANCE[curve]
        mine, its = read_metrics(folder, curve), read_metrics(alone, curve)
        assert [line["step"] for line in mine] == [line["step"] for line in its] and its[-1]["step"] == STEPS
        for a, b in zip(mine, its, strict=True):
            assert a["loss"] == pytest.approx(b["loss"], rel=of_loss), (curve, a["step"])
            assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=100 * of_loss), (curve, a["step"])
        part = {"pretrain": "pretrain/checkpoints"}.get(curve, f"dynamics/checkpoints/{curve.split('_')[-1]}")
        (weights, state), (expected, other) = (load_checkpoint(newest_checkpoint(f / part)) for f in (folder, alone))
        assert weights.keys() == expected.keys() and state["step"] == other["step"] == STEPS
        for name, value in expected.items():
            if not name.endswith(WITHOUT_GRADIENT):
                assert (weights[name] - value).square().mean().sqrt() < of_weights, (curve, name)


@pytest.mark.parametrize(("size", "fsdp"), [(2, False), (4, False), (2, True)])
def test_many_train_what_one_does(tmp_path, alone, tiny_data, size, fsdp):
    train_together(size, alone, tmp_path / "run", tiny_data, fsdp=fsdp)
    assert_equal_to_rounding(tmp_path / "run", alone)


def test_a_signal_to_one_stops_all_and_other_numbers_go_on(tmp_path, alone, tiny_data):
    def words(**parallel):
        return ["pretrain", "--config", "debug", "--run", str(tmp_path / "run"), *overrides(tiny_data, **parallel)]

    stopped = run_ranks(2, words(fsdp=True), tmp_path / "meet_a", log=tmp_path / "log", stop_at=1)
    assert stopped == [128 + signal.SIGUSR2] * 2
    assert newest_checkpoint(tmp_path / "run/pretrain/checkpoints").name == "step_00000002"
    assert run_ranks(4, words(), tmp_path / "meet_b", log=tmp_path / "log", stop_at=3) == [128 + signal.SIGUSR2] * 4
    assert newest_checkpoint(tmp_path / "run/pretrain/checkpoints").name == "step_00000004"
    assert cli.main(words(recompute=True)) == 0
    assert_equal_to_rounding(tmp_path / "run", alone, curves=CURVES[:1])


def test_what_is_applied_from_outside_changes_nothing(tmp_path, alone, tiny_data):
    """Recomputed activations and parts of a batch; statistics over a batch are of a part, so pretraining differs."""
    folder = tmp_path / "run"
    with RunFolder.open(folder, load_config("debug", overrides(tiny_data, recompute=True))) as run:
        pretrain.run(run)
    assert_equal_to_rounding(folder, alone, curves=CURVES[:1])
    shutil.copytree(alone / "encode", folder / "encode")
    shutil.copytree(alone / "dynamics/checkpoints/summary", folder / "dynamics/checkpoints/summary")
    with RunFolder.open(folder, load_config("debug", overrides(tiny_data, accumulate=2, recompute=True))) as run:
        dynamics.run(run)
    assert_equal_to_rounding(folder, alone, curves=CURVES[2:])


def test_ranks_draw_what_one_process_would():
    """Every sample is some rank's, in the order of the batch, parts before ranks."""
    batch = list(range(24))
    for size, parts in ((1, 1), (4, 1), (2, 3), (4, 3)):
        drawn = [batch[World(r, size).rows(24, part, parts)] for part in range(parts) for r in range(size)]
        assert sum(drawn, []) == batch and len({len(share) for share in drawn}) == 1
    with pytest.raises(UserError, match="a batch of 24 does not divide over 5 ranks .* multiple of 5"):
        World(0, 5).rows(24)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set but 'RANK' is not"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "no.such.host.invalid", "MASTER_PORT": "1"},
         "rank 1 of 2 could not join the others"),
    ],
)  # fmt: skip
def test_a_failed_start_is_an_error(tmp_path, capsys, monkeypatch, place, said):
    monkeypatch.setattr(world, "JOIN", timedelta(seconds=2))
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["pretrain", "--config", "debug", "--run", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err
    assert world.here().size == 1


def test_a_stage_that_one_process_does_is_not_done_by_many(tmp_path):
    assert run_ranks(2, ["collect", "--config", "debug", "--run", str(tmp_path / "run")], tmp_path / "m") == [2, 2]
    assert not (tmp_path / "run").exists()
