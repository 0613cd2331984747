"""A model of dynamics.name vjepa2_ac is loaded, planned with and reported; what it cannot do it
says."""

import json

import numpy as np
import pytest
import torch
from planners import planner

from jepa_wm import WorldModel, cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.evals import episodes
from jepa_wm.models.vjepa2_ac import (
    VJEPA2AC,
    change_of,
    difference,
    integrate,
    normalised,
    parted,
    with_pose,
)
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.world_model.latents import Recording
from jepa_wm.worlds.world import Actions

WORDS = [
    "data.image_size=32",
    "encoder.width=24",
    "encoder.depth=1",
    "encoder.num_heads=2",
    "train.pretrain.steps=0",
    "features={stride: 2, num_norm_frames: 40, backbone: null, weights: null}",
    "dynamics.frameskip=2",
    "dynamics.width=24",
    "dynamics.depth=1",
    "dynamics.num_heads=2",
    "train.dynamics.frames=4",
    "train.dynamics.batch=4",
    "train.dynamics.steps=6",
    "planner.solver.num_samples=8",
    "planner.solver.iterations=2",
    "planner.solver.elites=3",
]
SPACE = ActionSpace.of_block([-0.1] * 7, [0.1] * 7, block=2, action_repeat=True)
PLAN = {"objective": "l1", "also_evaluate": (), "horizon": 2, "samples": (8, 2, 3)}


def picture(pose):
    frames = np.zeros((len(pose), 32, 32, 3), np.uint8)
    for frame, (x, y) in zip(frames, (24 * np.clip(pose[:, :2], 0, 1)).astype(int), strict=True):
        frame[y : y + 8, x : x + 8] = 255
    return frames


class Arm:
    """Hands at poses; actions change them."""

    action_space = Actions(np.full(7, -0.1, np.float32), np.full(7, 0.1, np.float32))
    state_names = tuple(f"pose_{i}" for i in range(7))

    def __init__(self, numbers=7):
        self.pose, self.numbers = np.zeros((0, 7), np.float32), numbers

    def __len__(self):
        return len(self.pose)

    def reset(self, seeds, *, start=None):
        drawn = [np.random.default_rng(int(seed)).uniform(0.2, 0.8, 7) for seed in seeds]
        self.pose = np.array(drawn, np.float32)

    def step(self, action):
        self.pose = integrate(
            *(torch.as_tensor(x, dtype=torch.float32) for x in (self.pose, action))
        ).numpy()

    def render(self):
        return picture(self.pose)

    def state(self):
        return self.pose[:, : self.numbers]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(data, run folder, words of its config) of a model trained for a few steps."""
    root, r = tmp_path_factory.mktemp("arm"), np.random.default_rng(0)
    for part, count in (("train", 6), ("heldout", 3)):
        columns = {"pixels": ((32, 32, 3), "u1"), "action": ((7,), "f4"), "state": ((7,), "f4")}
        writer = TrajectoryWriter(root / f"{part}.h5", np.full(count, 20), columns)
        for row in writer.offset:
            change = r.uniform(-0.08, 0.08, (20, 7)).astype(np.float32)
            pose = np.clip(0.5 + np.cumsum(change, 0), 0.05, 0.95).astype(np.float32)
            for name, values in (("pixels", picture(pose)), ("action", change), ("state", pose)):
                writer.write(name, int(row), values)
        writer.close()
    words, folder = [f"data.path={root}", *WORDS], root / "run"
    with Run.open(folder, load_config("vjepa2_ac_droid", words)) as run:
        run_stage("features", run)
        run_stage("dynamics", run)
    return root, folder, words


def test_it_is_loaded_as_every_model_is(trained):
    root, folder, _ = trained
    model = WorldModel.load(folder)
    assert isinstance(model.latent_model.dynamics, VJEPA2AC)
    assert model.block == 14 and model.latent.proprio_size == 7
    data = Trajectories(root / "train.h5")
    states, within = torch.from_numpy(data.column("state")), np.arange(20) < 19
    rows = np.flatnonzero(np.tile(within, 6))
    steps = difference(states[rows], states[rows + 1])
    torch.testing.assert_close(model.latent_model.action_low, steps.amin(0))
    torch.testing.assert_close(model.latent_model.action_high, steps.amax(0))


def imagined(predictor, tokens, poses, plans):
    """(tokens [B, S, H, n, D], poses [B, S, H, 7]) after frames' tokens with their poses."""
    start = with_pose(tokens, poses)[:, None]
    return parted(VJEPA2AC(predictor).rollout(start, start.new_zeros(len(start), 0, 7), plans))


@torch.no_grad()
def test_it_imagines_as_its_predictor_does(trained):
    model = WorldModel.load(trained[1])
    model.encoder.precision = "fp32"
    frames = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    poses, plans = torch.rand(2, 7), 0.1 * torch.randn(2, 5, 3, 14)
    latents = model.encode(frames, poses)
    tokens = normalised(model.encoder.raw(frames))
    torch.testing.assert_close(model.latent.compared(latents), tokens, atol=1e-5, rtol=1e-5)
    assert torch.equal(latents[:, -1, :7], poses)
    futures = model.futures(latents[:, None], latents.new_zeros(2, 0, 14), plans)
    wanted, ways = imagined(model.latent_model.dynamics.predictor, tokens, poses, change_of(plans))
    torch.testing.assert_close(model.latent.compared(futures[0, 0]), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(futures[0, 0, ..., -1, :7], ways)
    with pytest.raises(ValueError, match="frames without a pose tell no future"):
        model.imagine(model.encode(frames)[:, None], latents.new_zeros(2, 0, 14), plans)
    with pytest.raises(ValueError, match=r"proprio has shape \(2, 6\); give \[2, 7\]"):
        model.encode(frames, poses[:, :6])


def test_gradients_reach_the_plans(trained):
    model = WorldModel.load(trained[1])
    latents = model.encode(torch.randint(256, (1, 32, 32, 3), dtype=torch.uint8), torch.rand(1, 7))
    plans = torch.zeros(1, 2, 3, 14, requires_grad=True)
    model.imagine(latents[:, None], latents.new_zeros(1, 0, 14), plans)[
        :, :, -1, :-1
    ].square().sum().backward()
    assert plans.grad is not None and bool((plans.grad.abs().sum((0, 1, 3)) > 0).all())


def test_small_changes_of_pose_add_up_to_one(trained):
    model = WorldModel.load(trained[1]).latent_model
    data = Trajectories(trained[0] / "train.h5")
    episode, frame = np.zeros((1, 3), int), np.array([[0, 2, 4]])
    blocks = Recording(data, model).blocks(episode, frame, np.zeros((1, 2, 14)))
    poses = torch.from_numpy(data.column("state"))
    assert blocks.shape == (1, 2, 14)
    reached = integrate(poses[[0, 2]], change_of(blocks)[0])
    torch.testing.assert_close(reached, poses[[2, 4]], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_several_frames_of_context_are_as_if_they_had_been_imagined(trained):
    """The predictor sees the same frames, poses and actions, whether it imagined them or was shown
    them."""
    predictor = WorldModel.load(trained[1]).latent_model.dynamics.predictor
    tokens, poses, plan = (
        normalised(torch.randn(1, 4, 24)),
        torch.rand(1, 7),
        0.05 * torch.randn(1, 1, 3, 7),
    )
    tokens = tokens.expand(1, predictor.grid**2, 24) if predictor.grid**2 != 4 else tokens
    futures, ways = imagined(predictor, tokens, poses, plan)
    context = torch.cat([tokens[:, None], futures[:, 0, :2]], 1)
    seen = torch.cat([poses[:, None], ways[:, 0, :2]], 1)
    context = with_pose(context, seen)
    after, _ = parted(
        VJEPA2AC(predictor).rollout(context, context.new_zeros(1, 2, 7), plan[:, :, 2:])
    )
    torch.testing.assert_close(after[:, :, 0], futures[:, :, 2], atol=1e-3, rtol=1e-3)


def test_an_agent_plans_changes_of_pose_toward_a_goal_image(trained):
    model, world, goals = WorldModel.load(trained[1]), Arm(), Arm()
    world.reset([0, 1, 2])
    goals.reset([5, 6, 7])
    agent = Agent(model, SPACE, planner(**PLAN), proprio=world.state)
    agent.reset(goals.render(), seeds=[0, 1, 2])
    track = episodes.play(world, lambda world: agent.act(world.render()), budget=6)
    assert track.state.shape == (3, 7, 7)
    actions = agent.act(world.render())
    assert actions.shape == (3, 2, 7) and np.array_equal(actions[:, 0], actions[:, 1]), "held"
    again = Agent(model, SPACE, planner(**PLAN), proprio=world.state)
    again.reset(goals.render(), seeds=[0, 1, 2])
    first = again.act(world.render())
    elsewhere = Agent(model, SPACE, planner(**PLAN), proprio=lambda: world.state() + 1)
    elsewhere.reset(goals.render(), seeds=[0, 1, 2])
    elsewhere.act(world.render())
    assert not torch.equal(again.mpc.last.trace, elsewhere.mpc.last.trace), "the pose counts"
    assert np.abs(first).max() <= 0.1 + 1e-6


def test_the_agent_of_a_run_reads_the_pose_from_the_state_of_the_world(trained):
    _, folder, words = trained
    config = load_config("vjepa2_ac_droid", words)
    skip = config.dynamics.frameskip
    world = Arm()
    world.reset([0, 1])
    agent = Agent.of_run(folder, world, config.planner, frameskip=skip)
    agent.reset(world.render(), seeds=[0, 1])
    assert agent.act(world.render()).shape == (2, 2, 7)
    blind = Arm(numbers=4)
    blind.reset([0, 1])
    agent = Agent.of_run(folder, blind, config.planner, frameskip=skip)
    agent.reset(blind.render(), seeds=[0, 1])
    with pytest.raises(
        UserError, match=r"reads 7 finite numbers of proprioception.* was given \[2, 4\]"
    ):
        agent.act(blind.render())


def test_an_agent_of_several_steps_imagines_or_sees_those_between(trained):
    model, world = WorldModel.load(trained[1]), Arm()
    plan = planner(**PLAN | {"execute": 2})
    world.reset([0])
    agent = Agent(model, SPACE, plan, proprio=world.state)
    agent.reset(world.render(), seeds=[0])
    assert agent.act(world.render()).shape == (1, 4, 7)
    agent.observe(world.render())
    agent.act(world.render())
    assert np.isfinite(agent.act(world.render())).all(), (
        "the frame in between is imagined, with its pose"
    )


def test_what_it_has_not_is_said_with_what_to_do(trained):
    model = WorldModel.load(trained[1])
    for change, message in (
        (
            {"objective": "temporal"},
            "planner.cost.objective temporal is a learned distance.* "
            "set planner.cost.objective=l1",
        ),
        ({"objective": "reward"}, "needs a reward head, and dynamics.name vjepa2_ac has no heads"),
        ({"solver": "policy"}, "needs a policy gcbc, and dynamics.name vjepa2_ac has no heads"),
        (
            {"uncertainty_weight": 1.0},
            "planner.cost.uncertainty_weight 1 needs models that can disagree",
        ),
    ):
        with pytest.raises(UserError, match=message):
            Agent(model, SPACE, planner(**PLAN | change), proprio=Arm().state)
    with pytest.raises(ValueError, match="numbers a model step but the model was trained on 14"):
        Agent(
            model,
            ActionSpace.of_block([-1] * 3, [1] * 3, block=2, action_repeat=True),
            planner(**PLAN),
        )
    agent = Agent(model, SPACE, planner(**PLAN))
    agent.reset(picture(np.full((1, 7), 0.5)), seeds=[0])
    with pytest.raises(UserError, match="give Agent proprio=..., or a world whose state they are"):
        agent.act(picture(np.full((1, 7), 0.5)))
    with pytest.raises(UserError, match="vjepa2_ac is one predictor: set ensemble_size=1"):
        load_config("vjepa2_ac_droid", ["dynamics.ensemble_size=2"])


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi", "random", "gradient", "cem_gradient"])
def test_every_solver_that_searches_plans_with_it(trained, solver):
    model, world = WorldModel.load(trained[1]), Arm()
    world.reset([0])
    agent = Agent(model, SPACE, planner(**PLAN | {"solver": solver}), proprio=world.state)
    agent.reset(world.render(), seeds=[0])
    assert np.isfinite(agent.act(world.render())).all()


def test_its_errors_are_measured_anew_and_it_is_reported(trained, capsys):
    _, folder, words = trained
    with Run.open(folder, load_config("vjepa2_ac_droid", words)) as run:
        learned = run.finished("dynamics")
        told = run_stage("report", run)
        with np.load(folder / "report" / "strips.npz") as strips:
            assert (
                strips["imagined"].shape == strips["true"].shape == (4, *strips["true"].shape[1:])
            )
        assert {"rollout", "imagined"} <= set(told["sections"])
        for measured, trained_on in zip(
            run_stage("eval_rollout", run)["rollout"], learned["rollout"], strict=True
        ):
            assert measured["relative_error"] == pytest.approx(
                trained_on["relative_error"], rel=1e-4
            )
        with pytest.raises(UserError, match="dynamics.name vjepa2_ac has no heads; train with"):
            run_stage("heads", run)
    for command in (["report"], ["eval", "rollout"]):
        assert (
            cli.main(
                [*command, "--config", "vjepa2_ac_droid", "--run", str(folder), "--json", *words]
            )
            == 0
        )
        assert json.loads(capsys.readouterr().out.splitlines()[-1])
    assert cli.main(["plan", "--config", "vjepa2_ac_droid", "--run", str(folder), *words]) == 2
    assert "this model cannot act in the world 'two_rooms'" in capsys.readouterr().err


def test_its_plans_are_judged_on_a_recording(trained):
    """What was done is told by the poses of the frames, and no world is asked."""
    _, folder, words = trained
    words = [*words, "evaluation.episodes=5", "planner.mpc.horizon=2"]
    with Run.open(folder, load_config("vjepa2_ac_droid", words)) as run:
        result = run_stage("eval_offline", run)
    rows = {row["plan"]: row for row in result["rows"]}
    assert result["windows"] == 5 and result["ranking"]["candidates"] == 30
    for name, row in rows.items():
        assert row["final_distance"] > 0 and row["temporal_distance"] is None, name
    assert rows["search"]["action_error"] > 0 and rows["idle"]["action_error"] > 0
