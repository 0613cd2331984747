"""`jepa-wm bench`: ends with JSON, leaves nothing behind, and compares what is the same."""

import json

import pytest
import torch
from small_models import small_dynamics

from jepa_wm import cli
from jepa_wm.evals.bench import train as bench_train
from jepa_wm.evals.bench.plan import Case, flops
from jepa_wm.evals.bench.reference import peer_forward, peer_losses, peer_rollout


def test_planning_is_measured_and_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "plan", "--quick"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] > 0 and 0 < result["share_of_matmul"] < 1.5
    assert result["precision"] == max(result["matmul_gflops"], key=result["matmul_gflops"].get)
    assert len(result["cases"]) == 2 and result["ratio"] == min(
        case["ratio"] for case in result["cases"]
    )
    for case in result["cases"]:
        assert case["ours_s"] > 0 and case["reference_s"] > 0 and case["first_frame"] < 0.05
    large = result["large"]
    assert (
        large["seconds"].keys() == {"fast_rollout", "compiled"}
        and large["best_s"] == min(large["seconds"].values()) > 0
    )
    assert large["best_s"] > large["floor_s"] > 0 and large["methods_differ"] < 0.05
    assert not list(tmp_path.iterdir())


def test_the_reference_is_the_same_model():
    torch.manual_seed(0)
    model = small_dynamics(
        tokens=5, latent_width=6, action_size=4, width=16, depth=2, num_heads=2, context_frames=3
    ).eval()
    context, past, plans = torch.randn(2, 3, 5, 6), torch.randn(2, 2, 4), torch.randn(2, 4, 5, 4)
    with torch.no_grad():
        actions = torch.cat([past, plans[:, 0, :1]], 1)
        torch.testing.assert_close(
            peer_forward(model, context, actions), model(context, actions), atol=1e-5, rtol=1e-5
        )
        theirs = torch.stack(
            [peer_rollout(model, context[b], past[b], plans[b]) for b in range(2)]
        )
        ours = model.fast_rollout(context, past, plans)
    assert theirs.shape == ours.shape
    torch.testing.assert_close(theirs[:, :, 0], ours[:, :, 0], atol=1e-5, rtol=1e-5)


def test_operations_are_counted_by_hand():
    case = Case(
        tokens=2,
        episodes=3,
        num_samples=4,
        horizon=5,
        depth=1,
        width=6,
        num_heads=1,
        context_frames=2,
        iterations=7,
    )
    linear = 2 * (6 * 18 + 6 * 6 + 6 * 24 + 24 * 6)  # qkv, projection, MLP
    attention = 2 * 2 * (2 * 2) * 6  # scores and their use, over a window of 2 frames of 2 tokens
    ends = 2 * 2 * 6 * 6  # in and out
    assert flops(case) == 7 * 3 * (4 * 5 + 1) * 2 * (linear + attention + ends)


def test_training_is_measured_and_printed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench", "train", "--quick"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ratio"] == min(result["reference_s"].values()) / result["ours_s"] > 0
    assert result["clips_per_second"] == bench_train.QUICK.batch / result["ours_s"]
    assert set(result["split"]) == {
        "data", "forward", "backward", "optimiser", "ema", "checkpoint", "written"
    } and all(seconds > 0 for seconds in result["split"].values())  # fmt: skip
    assert (
        0 < result["share_of_matmul"] < 1.5
        and result["ranks"]["ddp"] > 0 < result["ranks"]["fsdp"]
    )
    assert 0 < result["large"]["utilisation"] < 1.5 and result["large"]["clips_per_second"] > 0
    assert not list(tmp_path.iterdir())


def test_the_training_reference_computes_the_same_loss_and_gradient():
    case = bench_train.QUICK
    model, pixels = bench_train.fresh(case)
    batch = pixels.batch(case.side)
    ours, theirs = model(batch)["loss"], peer_losses(model, batch)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    parameters = [p for p in model.encoder.parameters() if p.requires_grad]
    for mine, its in zip(
        torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True
    ):
        torch.testing.assert_close(mine, its, atol=1e-6, rtol=1e-3)


def test_an_unknown_bench_is_refused(capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "dance"])
    assert "invalid choice" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["planner.solver.num_samples=999"],
        ["--config", "pendulum"],
        ["data.num_workers=4", "seed=3"],
    ],
)
def test_settings_that_a_bench_does_not_read_are_refused(capsys, words):
    assert cli.main(["bench", "data", *words]) == 2
    said = capsys.readouterr().err
    assert "reads train.threads alone; leave out " in said and len(said) < 300
