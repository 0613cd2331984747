"""The training loop: stopped in any way and run again it reaches the same bits; NaN ends it with
nothing lost."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from jepa_wm.config import load_config
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.errors import Interrupted, TrainingDiverged, UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, evaluate, run_stage
from jepa_wm.core.settings import OptimiserSettings
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features import cache
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import TokenLatentSettings
from jepa_wm.training import dynamics, loop, pretrain
from jepa_wm.world_model import rollout_error as rollout_errors
from jepa_wm.worlds.collect import record
from jepa_wm.worlds.two_rooms.world import TwoRooms, TwoRoomsSettings

STAGES = ("collect", "pretrain", "features", "dynamics", "heads")
STEPS, SAVED = 22, 8
SMALL = [
    "encoder.width=16", "encoder.depth=1", "jepa.width=16", "features.num_norm_frames=60",
    "dynamics.width=16",
    *(f"train.{part}.{key}" for part in ("pretrain", "latent", "dynamics", "distance", "heads")
      for key in (f"steps={STEPS}", "batch=8", f"save_every={SAVED}", "eval_every=11",
                  "warmup=3")),
    "train.pretrain.probe_frames=60", "train.pretrain.probe_steps=5",
    # two runs are compared; which precision is faster is measured, and other work decides it
    "train.precision=fp32",
]  # fmt: skip
PARTS = (
    "pretrain/checkpoints",
    *(f"dynamics/checkpoints/{part}" for part in ("latent", "dynamics", "distance")),
    "heads/checkpoints",
)  # fmt: skip


def overrides(data):
    return [f"data.path={data}", *SMALL]


def train(folder, data):
    with Run.open(folder, load_config("debug", overrides(data))) as run:
        for name in STAGES:
            run_stage(name, run)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_data):
    """A run folder that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(folder, tiny_data)
    return folder


def assert_same_bits(a, b):
    """Weights, optimiser and figures of all trainings, the features in between and the saved
    model."""
    for part in PARTS:
        newest = [newest_checkpoint(folder / part) for folder in (a, b)]
        assert [p.name for p in newest] == [f"step_{STEPS:08d}"] * 2
        (weights, state), (other_weights, other_state) = map(load_checkpoint, newest)
        assert weights.keys() == other_weights.keys()
        assert all(torch.equal(v, other_weights[k]) for k, v in weights.items()), part
        moments, other = state["optimiser"]["state"], other_state["optimiser"]["state"]
        assert moments.keys() == other.keys()
        assert all(torch.equal(v, other[i][k]) for i, m in moments.items() for k, v in m.items())
    for file in (
        "features/encoder.safetensors",
        "features/train/features.bf16",
        "dynamics/latent_model.safetensors",
        "heads/heads.safetensors",
    ):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file
    for stage in (
        "pretrain",
        "dynamics_latent",
        "dynamics_dynamics",
        "dynamics_distance",
        "heads",
    ):
        assert read_metrics(a, stage) == read_metrics(b, stage)


def at_steps(monkeypatch, steps, act):
    """Call `act` in the middle of those steps, counted over all trainings of the test."""
    original, taken = loop._one_step, []

    def one_step(*args):
        taken.append(1)
        if len(taken) in steps:
            act()
        return original(*args)

    monkeypatch.setattr(loop, "_one_step", one_step)
    return taken


def test_a_signal_at_any_stage_and_again_gives_the_same_bits(
    tmp_path, tiny_data, whole, monkeypatch
):
    stops = (3, 17, 30, 60, 80, 100)  # twice in pretraining, once in all that follows
    taken = at_steps(monkeypatch, stops, lambda: signal.raise_signal(signal.SIGTERM))
    for _ in stops:
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny_data)
    train(tmp_path / "run", tiny_data)
    assert len(taken) == len(PARTS) * STEPS, "no step is taken twice"
    assert_same_bits(tmp_path / "run", whole)


class Killed(BaseException):
    pass


def test_a_crash_costs_the_steps_since_the_last_checkpoint_only(
    tmp_path, tiny_data, whole, monkeypatch
):
    def die():
        raise Killed

    # Step 12 of pretraining; then, resumed at 8, all of it, and step 19 of the summary; then step
    # 3 of the metric.
    stops = (12, 12 + 14 + 19, 12 + 14 + 19 + 6 + STEPS + 3)
    taken = at_steps(monkeypatch, stops, die)
    for _ in stops:
        with pytest.raises(Killed):
            train(tmp_path / "run", tiny_data)
    train(tmp_path / "run", tiny_data)
    assert len(taken) == stops[-1] + 2 * STEPS
    assert_same_bits(tmp_path / "run", whole)


def test_kill_9_and_the_same_command_again(tmp_path, tiny_data, whole):
    script = (
        "import os, signal, sys\n"
        "from jepa_wm import cli\n"
        "from jepa_wm.training import loop\n"
        "original = loop._one_step\n"
        "def one_step(task, optimiser, settings, step):\n"
        "    if step == 13:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return original(task, optimiser, settings, step)\n"
        "loop._one_step = one_step\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    folder = tmp_path / "run"
    words = ["pretrain", "--config", "debug", "--run", str(folder), *overrides(tiny_data)]
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    ended = subprocess.run(
        [sys.executable, "-c", script, *words], env=threads, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert newest_checkpoint(folder / PARTS[0]).name == f"step_{SAVED:08d}"
    train(folder, tiny_data)
    assert_same_bits(folder, whole)


def test_nan_ends_the_training_and_keeps_the_newest_checkpoint(
    tmp_path, tiny_data, whole, monkeypatch
):
    original = loop._one_step

    def poisoned(task, optimiser, settings, step):
        if step == 13:
            losses = task.losses
            task.losses = lambda *step: {k: v * float("nan") for k, v in losses(*step).items()}
        return original(task, optimiser, settings, step)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "_one_step", poisoned)
        newest = rf"newest whole checkpoint is .*step_{SAVED:08d}\..*"
        message = rf"not finite at step 13 .*{newest}Lower train\.pretrain\.lr"
        with pytest.raises(TrainingDiverged, match=message):
            train(tmp_path / "run", tiny_data)
    newest = newest_checkpoint(tmp_path / "run" / PARTS[0])
    assert newest.name == f"step_{SAVED:08d}"
    weights, _ = load_checkpoint(newest)
    assert all(torch.isfinite(v).all() for v in weights.values())
    train(tmp_path / "run", tiny_data)
    assert_same_bits(tmp_path / "run", whole)


def test_finished_work_is_not_done_again(tiny_data, whole, monkeypatch):
    monkeypatch.setattr(
        loop, "_one_step", lambda *args: pytest.fail("a finished stage was trained again")
    )
    before = {
        p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file() and p.name != ".lock"
    }
    train(whole, tiny_data)
    assert {p: p.stat().st_mtime_ns for p in before} == before


def test_every_evaluation_is_in_the_figures(whole):
    lines = {line["step"]: line for line in read_metrics(whole, "pretrain")}
    assert sorted(lines) == [10, 11, 20, STEPS]
    for step, line in lines.items():
        judged = {"feature_std", "effective_rank", "collapsed", "probe/agent"} <= line.keys()
        assert judged == (step % 11 == 0)


def test_pretraining_and_the_evaluation_tell_of_one_collapse(tiny_data, whole):
    """The same encoder, the same frames: every figure of `jepa-wm eval collapse` is that of
    `pretrain`."""
    seen = json.loads((whole / "pretrain" / "result.json").read_text())
    config = load_config("debug", overrides(tiny_data))
    with Run.open(whole, config) as run:
        measured = evaluate("collapse", run)
    for name in ("feature_std", "effective_rank", "collapsed"):
        assert measured[name] == pytest.approx(seen[name], rel=1e-3), name


def test_results_have_the_promised_keys(whole):
    seen = json.loads((whole / "pretrain" / "result.json").read_text())
    assert {"collapsed", "feature_std", "effective_rank", "probe"} <= seen.keys()
    scores = {"error", "unit", "normalised_error", "random_encoder"}
    for kind in ("probe", "velocity"):
        assert all(scores == set(entry) for entry in seen[kind].values())
    assert seen["probe"].keys() == {"agent", "wall", "door"}
    assert seen["velocity"].keys() == {"agent"}, "walls and doors have no velocity"
    for shares in seen["patch_spectrum"].values():
        assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 1 + 1e-6
    rows = json.loads((whole / "dynamics" / "result.json").read_text())["rollout"]
    assert [row["horizon"] for row in rows] == list(range(1, len(rows) + 1))
    assert all(
        row["relative_error"] > 0 and row["state_errors"]["agent"]["error"] > 0 for row in rows
    )


def test_rollout_errors_count_from_the_last_of_the_frames_an_agent_sees(
    whole, tiny_data, monkeypatch
):
    """One that imagines that nothing moves any more is as bad as copying, which is 1, at every
    horizon."""

    def still(context, past, actions):
        assert (
            context.shape[1] == model.context_frames and past.shape[1] == model.context_frames - 1
        )
        return context[:, -1:].repeat(1, actions.shape[1], 1, 1)

    model, data = LatentModel.load(whole / "dynamics"), Trajectories(tiny_data / "heldout.h5")
    features = cache.Features(whole / "features" / "heldout", data)
    monkeypatch.setattr(model.dynamics, "rollout_one", still)
    rows = rollout_errors.rollout_errors(model, features, features)
    assert len(rows) == (31 - 1) // model.frameskip - model.context_frames + 1
    assert all(
        row["relative_error"] == row["relative_error_shuffled"] == pytest.approx(1) for row in rows
    )


def measured(model, folder, tiny_data):
    """The last row of rollout errors of a model on the features of a run."""
    heldout, train = (
        cache.Features(folder / "features" / part, Trajectories(tiny_data / f"{part}.h5"))
        for part in ("heldout", "train")
    )
    return rollout_errors.rollout_errors(model, heldout, train, windows=40)[-1]


def test_a_rollout_is_measured_on_every_group_of_state_numbers_and_in_the_frozen_features(whole):
    for row in json.loads((whole / "dynamics" / "result.json").read_text())["rollout"]:
        errors = {f"{kind}_error" for kind in ("relative", "feature")}
        errors |= {f"{name}_shuffled" for name in errors}
        assert row.keys() == {"horizon", "state_errors", *errors, "feature_error_encoded"}
        assert row["state_errors"].keys() == {"agent", "wall", "door"}
        for entry in row["state_errors"].values():
            assert (
                entry.keys() == {"error", "shuffled", "unit"}
                and entry["error"] > 0
                and entry["unit"] == "px"
            )


def test_what_the_latent_dropped_is_an_error_in_features_and_none_in_the_latent(
    whole, tiny_data, monkeypatch
):
    """One that imagines nothing but the truth: the latent is perfect, of the features it keeps
    what it keeps."""
    model = LatentModel.load(whole / "dynamics")
    futures = iter([])

    def knows(context, past, actions):
        return model.latent.with_static(next(futures), model.latent.static_of(context[:, -1:]))

    def encode(tokens, proprio=None, original=model.latent.encode):
        nonlocal futures
        latents = original(tokens)
        if latents.dim() == 4:
            futures = iter([latents[:, model.context_frames :]] * 2)
        return latents

    monkeypatch.setattr(model.latent, "encode", encode)
    monkeypatch.setattr(model.dynamics, "rollout_one", knows)
    row = measured(model, whole, tiny_data)
    assert row["relative_error"] == row["relative_error_shuffled"] == 0
    assert (
        row["feature_error"] == pytest.approx(row["feature_error_encoded"])
        and row["feature_error"] > 0.1
    )


def test_all_tokens_as_the_latent_drop_nothing(whole, tiny_data):
    model = LatentModel.load(whole / "dynamics")
    settings = model.settings.model_copy(update={"latent": TokenLatentSettings()})
    torch.manual_seed(0)
    row = measured(LatentModel(**model.sizes, settings=settings).eval(), whole, tiny_data)
    assert row["feature_error_encoded"] == 0
    assert row["feature_error"] == pytest.approx(row["relative_error"])


def test_held_out_episodes_too_short_for_a_step_are_refused_before_the_training(
    whole, tiny_data, tmp_path, monkeypatch
):
    shutil.copytree(tiny_data, tmp_path / "data")
    (tmp_path / "data" / "heldout.h5").unlink()
    record(
        tmp_path / "data" / "heldout.h5", TwoRooms(), TwoRoomsSettings().explore(), np.arange(3), 2
    )
    monkeypatch.setattr(loop, "_one_step", lambda *args: pytest.fail("trained all the same"))
    config = load_config("debug", [*overrides(tmp_path / "data"), "train.pretrain.steps=0"])
    with Run.open(tmp_path / "run", config) as run:
        run_stage("features", run)
        with pytest.raises(
            UserError, match="heldout.h5: no episode is long enough for a model step"
        ):
            run_stage("dynamics", run)


def test_what_stands_on_latents_sees_static_numbers_as_an_agent_does(whole, tiny_data):
    """Each frame has the mean of what the frames up to it tell; dynamic numbers are its own."""
    data, model = Trajectories(tiny_data / "train.h5"), LatentModel.load(whole / "dynamics")
    features = cache.Features(whole / "features" / "train", data)
    latents = dynamics.Latents(model, features)
    frame = np.arange(0, 31, features.stride)
    for e in range(3):
        episode = np.full(len(frame), e)
        with torch.no_grad():
            own = model.latent.encode(features.tokens(episode, frame))
        for t, latent in enumerate(latents.at(episode, frame)):
            believed = model.latent.static_of(own[: t + 1]).mean(0)
            torch.testing.assert_close(latent, model.latent.with_static(own[t], believed))
        assert (model.latent.static_of(own).std(0) > 0).all()


def test_a_stage_without_what_it_needs_says_so(tmp_path, tiny_data):
    with Run.open(tmp_path / "run", load_config("debug", overrides(tiny_data))) as run:
        with pytest.raises(UserError, match="run `jepa-wm pretrain` first"):
            run_stage("features", run)
        with pytest.raises(UserError, match="run `jepa-wm features` first"):
            run_stage("dynamics", run)


def test_no_pretraining_means_the_seeds_random_encoder(tmp_path, tiny_data):
    config = load_config("debug", [*overrides(tiny_data), "train.pretrain.steps=0"])
    with Run.open(tmp_path / "run", config) as run:
        result = run_stage("pretrain", run)
        run_stage("features", run)
    assert all(entry["error"] == entry["random_encoder"] for entry in result["probe"].values())
    torch.manual_seed(config.seed)
    expected = pretrain.JEPA(
        config.data.image_size, config.encoder, config.jepa
    ).encoder.state_dict()
    encoder = cache.FrozenEncoder.load(tmp_path / "run" / "features").encoder.state_dict()
    assert all(torch.equal(v, encoder[k]) for k, v in expected.items())


def line_task():
    """Fit y = 2x + 1."""
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)

    def losses(step, rows):
        x = torch.randn(16, 1, generator=torch.Generator().manual_seed(step))
        return {"loss": (model(x) - 2 * x - 1).square().mean()}

    return loop.TrainingTask("pretrain", model, losses)


def test_the_loop_learns(tmp_path):
    with Run.open(tmp_path, load_config("debug")) as run:
        task = line_task()
        loop.fit(
            run,
            task,
            OptimiserSettings(steps=100, lr=0.1, warmup=5, weight_decay=0.0, final_lr=0.01),
        )
        assert task.model.weight.item() == pytest.approx(2, abs=0.1)
        assert task.model.bias.item() == pytest.approx(1, abs=0.1)
    history = [line["loss"] for line in read_metrics(tmp_path, "pretrain")]
    assert history[-1] < 0.05 * history[0]


def test_losses_on_frozen_features_fall(tmp_path, tiny_data):
    """That of pretraining is looked at in test_predict, with targets that stand still."""
    longer = [
        f"train.{part}.{key}"
        for part in ("dynamics", "distance")
        for key in ("steps=60", "lr=3e-3")
    ]
    with Run.open(tmp_path / "run", load_config("debug", [*overrides(tiny_data), *longer])) as run:
        for name in STAGES:
            run_stage(name, run)
    for stage, figure in (("dynamics_dynamics", "loss"), ("dynamics_distance", "loss")):
        history = [line[figure] for line in read_metrics(tmp_path / "run", stage)]
        assert sum(history[-2:]) < sum(history[:2]), (stage, history)


def test_decay_is_for_matrices_and_nothing_is_left_out():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    model[0].weight.requires_grad_(True)
    frozen = torch.nn.Linear(4, 4).requires_grad_(False)
    matrices, others = loop.make_optimiser(
        torch.nn.Sequential(model, frozen), OptimiserSettings(weight_decay=0.3)
    ).param_groups
    assert [p.shape for p in matrices["params"]] == [(4, 3)] and matrices["weight_decay"] == 0.3
    assert len(others["params"]) == 3 and others["weight_decay"] == 0
