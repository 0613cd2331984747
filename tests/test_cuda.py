"""On a GPU: the numbers of the CPU to rounding, the same plans, and the whole pipeline to its
end."""

import json

import numpy as np
import pytest
import torch
from planners import planner
from small_models import ACTION, LATENT, loud_dynamics
from test_act import SKIP, SOLVERS, SPACE, frames, world_model
from test_solvers import BOX, H, bowl, cem_gradient, generators, gradient, icem
from test_train import Killed, at_steps, overrides

from jepa_wm.config import load_config
from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import KINDS, autocast, matmul_rate
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.settings import OptimiserSettings
from jepa_wm.features.store import weights_digest
from jepa_wm.models import fast_rollout
from jepa_wm.models.distance import TemporalDistance
from jepa_wm.models.dynamics import Noise
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.masks import draw_masks
from jepa_wm.models.predictor import ActionPredictor, ActionPredictorSizes
from jepa_wm.models.vit import Encoder
from jepa_wm.models.vjepa2_ac import VJEPA2AC, normalised, with_pose
from jepa_wm.models.world_model_settings import DistanceSettings
from jepa_wm.planning.action_space import DiscreteSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.search import search
from jepa_wm.planning.settings import CEM, MPPI, RandomShooting
from jepa_wm.training import head_scores, loop

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

GPU = torch.device("cuda", 0)
EXACT, COARSE = 1e-4, 2e-2  # relative to the size of what is compared: fp32 without tf32, and bf16
PRECISIONS = pytest.mark.parametrize(("precision", "allowed"), [("fp32", EXACT), ("bf16", COARSE)])


def assert_near(there, known, allowed=EXACT):
    """What the GPU made, beside what the CPU made in fp32."""
    assert there.device == GPU and there.shape == known.shape
    apart = (
        there.detach().cpu().double() - known.detach().double()
    ).norm() / known.detach().double().norm()
    assert apart < allowed, f"{apart:.1e} apart"


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def on_gpu(*tensors):
    return [x.to(GPU) for x in tensors]


def both(model, *inputs):
    """(the model's outputs on the CPU, and those on the GPU), without gradients."""
    with torch.no_grad():
        known = model(*inputs)
        return known, model.to(GPU)(*on_gpu(*inputs))


def test_this_process_computes_on_the_gpu_and_measures_it():
    assert dist().device == GPU and not torch.backends.cuda.matmul.allow_tf32
    assert (
        matmul_rate(KINDS["bf16"], rows=4096, inner=4096, columns=4096)
        > 2 * matmul_rate(KINDS["fp32"])
        > 0
    )


@PRECISIONS
@pytest.mark.parametrize("rope", ["rotation", "vjepa2"])
@pytest.mark.parametrize("attention", ["clip", "frame"])
def test_the_encoder_sees_the_same(attention, rope, precision, allowed):
    torch.manual_seed(0)
    settings = EncoderSettings(
        patch_size=4,
        tubelet_size=2,
        width=64,
        depth=3,
        num_heads=2,
        attention=attention,
        rope=rope,
    )
    encoder, clip = (Encoder(16, settings).requires_grad_(False), drawn(3, 6, 3, 16, 16))
    keep = (
        torch.rand(3, 48, generator=torch.Generator().manual_seed(1))
        .argsort(1)[:, :20]
        .sort(1)
        .values
    )
    known = encoder(clip), encoder(clip, keep), encoder(clip, levels=3)
    encoder, (clip, keep) = encoder.to(GPU), on_gpu(clip, keep)
    with autocast(GPU, precision):
        there = encoder(clip), encoder(clip, keep), encoder(clip, levels=3)
    for mine, its in zip(there, known, strict=True):
        assert_near(mine, its, allowed)


def jepa():
    """(model, batch) of the debug setting."""
    config = load_config("debug", [])
    torch.manual_seed(0)
    model = JEPA(config.data.image_size, config.encoder, config.jepa, action_size=2)
    length, size = config.data.num_frames, config.data.image_size
    count, shape = config.jepa.num_distant_frames, (6, length, model.encoder.grid)
    batch = Batch(
        drawn(6, length, 3, size, size),
        drawn(6, count, 3, size, size, seed=1),
        draw_masks(config.jepa, shape, torch.Generator().manual_seed(3)),
        drawn(6, length + count, 2),
    )
    return model, batch


def batch_on(device, batch):
    masks = [mask.to(device) for mask in batch.masks]
    clip, distant, actions = (x.to(device) for x in (batch.clip, batch.distant, batch.actions))
    return Batch(clip, distant, masks, actions)


@pytest.mark.parametrize(
    ("precision", "allowed", "of_gradient"), [("fp32", EXACT, 1e-3), ("bf16", COARSE, 0.1)]
)
def test_the_pretraining_loss_and_its_gradient_are_the_same(precision, allowed, of_gradient):
    model, batch = jepa()
    parameters = [p for p in model.parameters() if p.requires_grad]

    def losses_and_slope(batch):
        losses = model(batch)
        slope = torch.autograd.grad(losses["loss"], parameters, allow_unused=True)
        return losses, torch.cat([s.flatten() for s in slope if s is not None])

    known, slope = losses_and_slope(batch)
    model.to(GPU)
    parameters = [p for p in model.parameters() if p.requires_grad]
    with autocast(GPU, precision):
        there, its_slope = losses_and_slope(batch_on(GPU, batch))
    assert there.keys() == known.keys()
    for name, value in known.items():
        assert there[name].item() == pytest.approx(value.item(), rel=allowed, abs=allowed), name
    assert_near(its_slope, slope, of_gradient)


def test_training_takes_the_same_steps():
    """Optimiser, clipping and the moving average included."""

    def history(device):
        model, batch = jepa()
        model, batch = model.to(device), batch_on(device, batch)
        task = loop.TrainingTask("pretrain", model, lambda step, rows: model(batch))
        settings, found = OptimiserSettings(batch=6, steps=8, warmup=2), []
        optimiser = loop.make_optimiser(model, settings)
        for step in range(8):
            found.append(loop._one_step(task, optimiser, settings, step))
            model.update_target(0.9)
        return [[figures[name] for name in ("loss", "gradient_norm", "lr")] for figures in found]

    np.testing.assert_allclose(history(GPU), history(torch.device("cpu")), rtol=5e-3)


@pytest.mark.parametrize("tokens", [4, 5])
def test_dynamics_and_their_cache_are_the_same(tokens):
    model = loud_dynamics(tokens=tokens)
    assert_near(*reversed(both(model, drawn(2, 7, tokens, LATENT), drawn(2, 7, ACTION))))
    context, past, actions = drawn(2, 3, tokens, LATENT), drawn(2, 2, ACTION), drawn(2, 5, ACTION)
    with torch.no_grad():
        known = model.cpu().rollout_one(context, past, actions)
        there = model.to(GPU).rollout_one(*on_gpu(context, past, actions))
    assert_near(there, known)


@PRECISIONS
@pytest.mark.parametrize(("seen", "horizon"), [(3, 5), (1, 1), (1, 2), (6, 3)])
def test_candidates_are_imagined_alike_in_any_pieces(
    seen, horizon, precision, allowed, monkeypatch
):
    model = loud_dynamics(tokens=9)
    inputs = drawn(2, seen, 9, LATENT), drawn(2, seen - 1, ACTION), drawn(2, 6, horizon, ACTION)
    known = model.fast_rollout(*inputs)
    model.to(GPU)
    inputs = on_gpu(*inputs)
    for at_once in (fast_rollout.TOKENS_ON_GPU, 45):
        monkeypatch.setattr(fast_rollout, "TOKENS_ON_GPU", at_once)
        assert_near(model.fast_rollout(*inputs, precision=precision), known, 2 * allowed)


def test_what_chance_decides_is_the_same():
    torch.manual_seed(0)
    model = world_model(mixture_components=3).latent_model.dynamics
    chance = [
        Noise.seeded(1, horizon=4, tokens=1, width=5, device=d) for d in (torch.device("cpu"), GPU)
    ]
    inputs = drawn(2, 2, 1, 5), drawn(2, 1, 2 * SKIP), drawn(2, 6, 4, 2 * SKIP)
    known = model.fast_rollout(*inputs, noise=chance[0])
    assert_near(model.to(GPU).fast_rollout(*on_gpu(*inputs), noise=chance[1]), known)


def test_futures_blame_the_same_actions():
    def slope(model, context, past, actions):
        actions = actions.requires_grad_()
        return torch.autograd.grad(model.rollout(context, past, actions).square().sum(), actions)[
            0
        ]

    model = loud_dynamics()
    inputs = drawn(2, 2, 4, LATENT), drawn(2, 1, ACTION), drawn(2, 3, 4, ACTION)
    known = slope(model, *inputs)
    assert_near(slope(model.to(GPU), *on_gpu(*[x.detach() for x in inputs])), known, 1e-3)


def test_a_robots_futures_are_the_same():
    torch.manual_seed(0)
    sizes = ActionPredictorSizes(encoder_width=8, grid=2, width=24, depth=2, num_heads=2)
    model = ActionPredictor(sizes)
    start = with_pose(normalised(drawn(2, 4, 8)), 0.1 * drawn(2, 7))[:, None]
    inputs, model = (start, drawn(2, 0, 7), 0.1 * drawn(2, 3, 4, 7)), VJEPA2AC(model)
    known = model.fast_rollout(*inputs)
    assert_near(model.to(GPU).fast_rollout(*on_gpu(*inputs)), known)


def test_the_metric_and_the_heads_read_the_same():
    torch.manual_seed(0)
    known, there = both(
        TemporalDistance(12, DistanceSettings(groups=4, components=4, width=32)),
        drawn(20, 12),
        drawn(20, 12, seed=1),
    )
    assert_near(there, known)
    read = Heads(12, 4, Present(True, True, ("x", "y")), HeadSettings(width=32, bins=9))
    read.reward.span(-2.0, 3.0)
    before, after, actions, reward = drawn(20, 12), drawn(20, 12, seed=1), drawn(20, 4), drawn(20)
    for head in (read.reward, read.termination):
        known, there = both(head.cpu(), before, after, actions)
        assert_near(there, known)
        truth = reward if head is read.reward else (reward > 0).float()
        known = head.cpu().loss(before, after, actions, truth)
        assert_near(head.to(GPU).loss(*on_gpu(before, after, actions, truth)), known)
    steps = torch.arange(20.0)
    for head, inputs in (
        (read.state, (before,)),
        (read.policy("gcbc"), (before, after)),
        (read.policy("gc_idm"), (before, after, steps)),
        (read.policy("gcivl"), (before, after)),
    ):
        known, there = both(head.cpu(), *inputs)
        assert_near(there, known)


def test_chances_are_judged_in_mixed_precision_too():
    guess, truth = (
        torch.rand(50, generator=torch.Generator().manual_seed(0)),
        (drawn(50) > 0).float(),
    )
    with autocast(GPU, "bf16"):
        there = head_scores._log_loss(*on_gpu(guess, truth))
    assert_near(there, head_scores._log_loss(guess, truth))


def cem(**changes):
    return CEM(num_samples=64, elites=8, **changes).make(BOX, H)


def mppi():
    return MPPI(num_samples=64).make(BOX, H)


def shooting():
    return RandomShooting(num_samples=64).make(BOX, H)


def choosing():
    space = DiscreteSpace.of_block(3, block=2, action_repeat=False)
    return CEM(num_samples=64, elites=8).make(space, H)


@pytest.mark.parametrize("kind", [cem, icem, mppi, shooting, gradient, cem_gradient, choosing])
def test_a_seed_draws_the_same_plan_wherever_the_cost_is(kind):
    solver = kind()
    target = torch.rand(solver.space.model_action_dim, generator=torch.Generator().manual_seed(1))
    known = search(solver, bowl(target), generator=generators(0, 1))
    cost = bowl(target.to(GPU))
    there = search(solver, lambda plans: cost(plans.to(GPU)).cpu(), generator=generators(0, 1))
    for name in ("actions", "mean", "cost", "trace"):
        torch.testing.assert_close(
            getattr(there, name), getattr(known, name), atol=2e-3, rtol=2e-3
        )


@pytest.mark.parametrize("kind", [cem, icem, mppi, shooting, gradient, cem_gradient, choosing])
def test_generators_of_the_gpu_draw_there_and_again_the_same(kind):
    solver = kind()
    cost = bowl(torch.rand(solver.space.model_action_dim, device=GPU))
    plans = [
        search(solver, cost, generator=[torch.Generator(GPU).manual_seed(s) for s in (0, 1)])
        for _ in range(2)
    ]
    assert plans[0].actions.device == GPU and torch.equal(plans[0].actions, plans[1].actions)
    assert torch.equal(plans[0].trace, plans[1].trace) and (plans[0].trace.diff(dim=1) <= 0).all()


def planned(device, *, decisions=4, compile=False, **plan):
    """[decisions, B, K, a] of an agent whose model is there."""
    settings = planner(**{"horizon": 3, "compile": compile, **plan})
    agent = Agent(world_model().to(device), SPACE, settings)
    agent.reset(frames(2, 0), [5, 6])
    return np.stack([agent.act(frames(2, step + 1)) for step in range(decisions)])


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_agent_acts_alike_wherever_its_model_is(solver):
    np.testing.assert_allclose(
        planned(GPU, solver=solver), planned("cpu", solver=solver), atol=2e-3
    )


@pytest.mark.parametrize(
    "plan",
    [
        {"smoothness": 0.1, "effort": 0.1},
        {"limits": {"matrix": [[1.0, 0.0]], "bound": [0.2]}},
        {"execute": 2},
    ],
)
def test_every_term_finds_what_it_needs_on_the_gpu(plan):
    np.testing.assert_allclose(planned(GPU, **plan), planned("cpu", **plan), atol=2e-3)


def test_compiled_layers_give_the_same_plan():
    known = planned(GPU, decisions=2)
    np.testing.assert_allclose(planned(GPU, decisions=2, compile=True), known, atol=2e-3)


def test_frames_from_anywhere_are_seen_and_the_encoder_is_known_by_its_weights():
    model = world_model()
    seen, digest = torch.from_numpy(frames(5, 0)), weights_digest(model.encoder)
    known = model.encode(seen)
    model.to(GPU)
    assert_near(model.encode(seen), known)
    assert_near(model.encode(seen.to(GPU)), known)
    assert weights_digest(model.encoder) == digest


def test_a_stopped_pretraining_goes_on(tmp_path, tiny_data, monkeypatch):
    def pretrained(folder):
        words = [*overrides(tiny_data), "train.precision=fp32"]
        with Run.open(folder, load_config("debug", words)) as run:
            run_stage("collect", run)
            run_stage("pretrain", run)
        return read_metrics(folder, "pretrain")

    def die():
        raise Killed

    whole = pretrained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_steps(patch, (12,), die)
        with pytest.raises(Killed):
            pretrained(tmp_path / "run")
    stopped = pretrained(tmp_path / "run")
    assert [line["step"] for line in stopped] == [line["step"] for line in whole]
    for name in ("loss", "masked_prediction"):
        np.testing.assert_allclose(
            [line[name] for line in stopped], [line[name] for line in whole], rtol=1e-3
        )


def test_the_whole_story_ends_as_promised(tmp_path):
    pytest.importorskip("av")
    pytest.importorskip("faiss")
    from test_pipeline import PROMISED, assert_success

    from jepa_wm.demo import demo
    from jepa_wm.world_model.world_model import WorldModel

    config = load_config("debug", ["train.precision=auto"])
    with Run.open(tmp_path / "run", config) as run:
        result = demo(run, config)
        again = demo(run, config)
        learned = run_stage("heads", run)
    assert result.keys() == PROMISED and again == result
    assert_success(result["success"])
    assert all(entry["error"] > 0 for entry in result["probe"].values())
    assert all(
        row["relative_error"] > 0 and row["state_errors"]["agent"]["error"] > 0
        for row in result["rollout"]
    )
    assert learned["heads"]["policy/gcbc"]["error"] > 0
    for stage in ("collect", "pretrain", "features", "dynamics", "plan"):
        assert json.loads((tmp_path / "run" / stage / "result.json").read_text())
    assert json.loads((tmp_path / "run" / "precision.json").read_text())["precision"] == "bf16"
    assert WorldModel.load(tmp_path / "run").device == GPU
    assert np.load(tmp_path / "run" / "plan" / "main" / "00000.npz")["seconds"].min() > 0
