"""Our world model in other harnesses: fakes with their signatures, and the real stable-worldmodel,
marked slow."""

import os
import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium import spaces
from planners import planner
from small_models import FACTORED, small_world_model

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.integrations.eb_jepa import EbJepa
from jepa_wm.integrations.stable_worldmodel import CostServer, PolicyServer, serve_to
from jepa_wm.models.latent_settings import TokenLatentSettings
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.worlds.two_rooms.rooms import WALL_HALF

ROOT = Path(__file__).resolve().parents[1]


def world_model(skip=2, *, size=12, tokens=True, window=3):
    latent = TokenLatentSettings() if tokens else FACTORED
    model = small_world_model(latent, size=size, frameskip=skip, context_frames=window)
    for p in model.latent_model.dynamics.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model


def pictures(count, seed, size=12):
    return np.random.default_rng(seed).integers(256, size=(count, size, size, 3), dtype=np.uint8)


# ---------------------------------------------------------------- stable-worldmodel


class FakeSolver:
    """Random shooting with the calls of stable-worldmodel 0.1.1: expanded, read-only views of the
    infos."""

    def __init__(self, model, batch_size=1, num_samples=8, seed=0):
        self.model, self.samples, self.batch = model, num_samples, batch_size
        self.generator = torch.Generator().manual_seed(seed)

    def solve(self, infos, horizon, width):
        best = []
        for first in range(0, len(infos["pixels"]), self.batch):
            part = {k: torch.as_tensor(v[first : first + self.batch]) for k, v in infos.items()}
            wide = {k: v[:, None].expand(-1, self.samples, *v.shape[1:]) for k, v in part.items()}
            wide["id"] = np.zeros((self.batch, self.samples, 1))
            for _ in range(2):
                plans = torch.randn(
                    len(part["pixels"]), self.samples, horizon, width, generator=self.generator
                )
                costs = self.model.get_cost(wide, plans)
                assert isinstance(costs, torch.Tensor) and costs.shape == plans.shape[:2]
            best.append(plans[torch.arange(len(plans)), costs.argmin(1)])
        return torch.cat(best)


class NewerSolver(FakeSolver):
    def __init__(self, cost, num_samples=8):
        super().__init__(cost, num_samples=num_samples)


@pytest.mark.parametrize("solver", [FakeSolver, NewerSolver])
def test_a_solver_of_either_version_is_given_our_costs(solver):
    model = world_model()
    ours = serve_to(
        solver, CostServer(model, planner(objective="l2", steps="last")), num_samples=5
    )
    infos = {"pixels": pictures(3, 0)[:, None], "goal": pictures(3, 1)[:, None]}
    assert ours.solve(infos, 4, 4).shape == (3, 4, 4)

    class Neither:
        def __init__(self, world):
            pass

    with pytest.raises(ValueError, match="neither an argument 'cost' nor 'model'"):
        serve_to(Neither, CostServer(model, PlannerSettings()))


def test_costs_are_those_of_the_agent_and_frames_are_looked_at_once(monkeypatch):
    model = world_model()
    server = CostServer(model, planner(objective="l2", steps="last", memory_mb=1))
    here, there, plans = pictures(2, 0), pictures(2, 1), torch.randn(2, 6, 3, 4)
    wide = {
        name: torch.from_numpy(frames)[:, None, None].expand(-1, 6, 1, -1, -1, -1)
        for name, frames in (("pixels", here), ("goal", there))
    }
    looked = []
    encode = model.encode
    monkeypatch.setattr(
        model, "encode", lambda frames: looked.append(len(frames)) or encode(frames)
    )
    costs = server.get_cost(wide, plans)
    assert torch.equal(server.get_cost(wide, plans), costs) and looked == [2, 2]
    now, goal = encode(torch.from_numpy(here)), encode(torch.from_numpy(there))
    futures = model.imagine(now[:, None], now.new_zeros(2, 0, 4), plans)
    expected = (futures[:, :, -1] - goal[:, None]).square().mean((-2, -1))
    torch.testing.assert_close(costs, expected, atol=1e-5, rtol=1e-5)
    one = server.get_cost({k: v[1] for k, v in wide.items()}, plans[1])
    torch.testing.assert_close(one, expected[1], atol=1e-5, rtol=1e-5)
    space = ActionSpace.of_block((-0.1, -0.1), (0.1, 0.1), block=2, action_repeat=False)
    clipped = CostServer(model, planner(objective="l2", steps="last"), space)
    torch.testing.assert_close(
        clipped.get_cost(wide, plans), server.get_cost(wide, plans.clamp(-0.1, 0.1))
    )
    with pytest.raises(
        ValueError,
        match="6 numbers a step, the model takes 4: set action_block to its frameskip, 2",
    ):
        server.get_cost(wide, torch.zeros(2, 6, 3, 6))
    with pytest.raises(
        ValueError, match="'pixels' is torch.float32.*leave them out of the harness' transforms"
    ):
        server.get_cost({**wide, "pixels": wide["pixels"].float()}, plans)
    with pytest.raises(UserError, match="needs a reward head"):
        CostServer(model, planner(objective="reward"))


def test_what_lasts_is_shared_by_the_newest_frame_and_the_goal():
    model = world_model(tokens=False)
    model.latent.components.fit(torch.randn(40, 9, 16))
    here, there, plans = pictures(2, 0), pictures(2, 1), torch.randn(2, 5, 3, 4)
    costs = CostServer(model, planner(steps="last")).get_cost(
        {"pixels": here[:, None], "goal": there[:, None]}, plans
    )
    latent, (now, goal) = model.latent, (model.encode(torch.from_numpy(x)) for x in (here, there))
    shared = (latent.static_of(now) + latent.static_of(goal)) / 2
    expected = []
    for a, b in ((now, goal), (latent.with_static(now, shared), latent.with_static(goal, shared))):
        futures = model.imagine(a[:, None], a.new_zeros(2, 0, 4), plans)
        expected.append(model.distance(futures, b)[:, :, -1])
    torch.testing.assert_close(costs, expected[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(costs, expected[0], atol=1e-4)


def test_a_policy_acts_in_blocks_and_begins_anew_with_new_goals():
    model = world_model()
    env = SimpleNamespace(num_envs=2, action_space=spaces.Box(-1, 1, (2, 2)))

    def make_agent(env):
        low, high = env.action_space.low[0], env.action_space.high[0]
        space = ActionSpace.of_block(low.tolist(), high.tolist(), block=2, action_repeat=True)
        return Agent(model, space, planner(horizon=2, samples=(6, 1, 2)))

    policy, alone = PolicyServer(make_agent), make_agent(env)
    with pytest.raises(RuntimeError, match="before set_env"):
        policy.get_action({})
    policy.set_env(env)
    for goal_seed in (7, 8):
        goals = pictures(2, goal_seed)
        alone.reset(goals, [0, 1])
        for step in range(2):
            seen = pictures(2, step)
            expected = alone.act(seen)
            for i in range(2):  # between decisions it does not look
                infos = {
                    "pixels": (seen if i == 0 else pictures(2, 99))[:, None],
                    "goal": goals[:, None],
                }
                np.testing.assert_allclose(policy.get_action(infos), expected[:, i], atol=1e-6)
    with pytest.raises(ValueError, match="no 'goal'"):
        policy.get_action({"pixels": seen})


def test_costs_are_told_from_as_many_frames_as_the_model_was_trained_with():
    model = world_model(window=3)
    server = CostServer(model, planner(objective="l2", steps="last", smoothness=0.1))
    frames, there, plans = (
        [pictures(2, i) for i in range(6)],
        pictures(2, 9),
        torch.randn(2, 6, 3, 4),
    )
    actions = torch.randn(2, 6, 2)
    actions[:, 0] = torch.nan  # nothing led to the first frame

    def cost(pixels, action=None):
        stacked = torch.from_numpy(np.stack(pixels, 1))
        info = {
            "pixels": stacked[:, None].expand(-1, 6, *stacked.shape[1:]),
            "goal": there[:, None, None],
        }
        return server.get_cost(
            info if action is None else {**info, "action": action[:, None]}, plans
        )

    def expected(ids, blocks):
        context = torch.stack([model.encode(torch.from_numpy(frames[i])) for i in ids], 1)
        futures = model.imagine(context, blocks, plans)[:, :, -1]
        far = (futures - model.encode(torch.from_numpy(there))[:, None]).square().mean((-2, -1))
        each = plans.unflatten(-1, (-1, 2)).flatten(-3, -2)
        if blocks.shape[1]:
            each = torch.cat([blocks[:, -1, None, None, -2:].expand(-1, 6, -1, -1), each], 2)
        return far + 0.1 * each.diff(dim=2).square().mean((-2, -1))

    blocks = actions[:, 2:].reshape(2, 2, 4)
    none = blocks[:, :0]
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(cost(frames, actions), expected([1, 3, 5], blocks), **close)
    torch.testing.assert_close(cost(frames), expected([5], none), **close)
    torch.testing.assert_close(
        cost(frames[2:], actions[:, 2:]), expected([3, 5], blocks[:, 1:]), **close
    )
    torch.testing.assert_close(cost(frames[-1:], actions[:, -1:]), expected([5], none), **close)
    wide = torch.cat(
        [torch.full((2, 1, 4), torch.nan), blocks], 1
    )  # frames a model step apart, with their blocks
    torch.testing.assert_close(
        cost([frames[i] for i in (1, 3, 5)], wide), expected([1, 3, 5], blocks), **close
    )
    unknown = actions.clone()
    unknown[1, 3] = torch.nan  # of one episode it is not known how it came to frame 3
    torch.testing.assert_close(cost(frames, unknown), expected([3, 5], blocks[:, 1:]), **close)
    one = server.get_cost(
        {
            "pixels": np.stack([f[1] for f in frames])[None],
            "goal": there[1][None, None],
            "action": actions[1][None],
        },
        plans[1],
    )
    torch.testing.assert_close(one, expected([1, 3, 5], blocks)[1], **close)
    with pytest.raises(
        ValueError,
        match=r"'action'\] has shape \(2, 6, 3\) beside 6 frames; give with each the 2 num",
    ):
        cost(frames, torch.zeros(2, 6, 3))


def test_a_policy_shows_its_agent_the_frames_of_every_model_step():
    model = world_model()
    env = SimpleNamespace(num_envs=2, action_space=spaces.Box(-1, 1, (2, 2)))
    space = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=2, action_repeat=True)

    def make_agent(env):
        return Agent(model, space, planner(horizon=3, samples=(6, 1, 2), execute=3))

    policy, alone, goals = PolicyServer(make_agent), make_agent(env), pictures(2, 7)
    policy.set_env(env)
    alone.reset(goals, [0, 1])
    film = [pictures(2, i) for i in range(12)]
    for first in (0, 6):
        expected = alone.act(film[first])
        for step in range(6):
            if step in (2, 4):
                alone.observe(film[first + step])
            infos = {"pixels": film[first + step][:, None], "goal": goals[:, None]}
            np.testing.assert_allclose(policy.get_action(infos), expected[:, step], atol=1e-6)


# ---------------------------------------------------------------- eb_jepa


def observed(world):
    """What eb_jepa's environment shows, [B, 2, 1, h, w]: a bell of sigma 1.3 and the walls, both
    up to 255."""
    axis = np.arange(65, dtype=np.float32)
    bell = [np.exp(-((axis - world.agent[:, i : i + 1]) ** 2) / (2 * 1.3**2)) for i in (1, 0)]
    agent = np.rint(255 * bell[0][:, :, None] * bell[1][:, None])
    agent[agent < 255e-3] = 0
    outside = (axis < 5) | (axis > 59)
    wall = (np.abs(axis - world.wall_x[:, None]) <= WALL_HALF)[:, None] & (
        np.abs(axis - world.door_y[:, None]) > world.geometry.door_half
    )[:, :, None]
    walls = 255.0 * (wall | outside[:, None] | outside[None, :])
    return torch.from_numpy(np.stack([agent, walls], 1)[:, :, None].astype(np.float32))


def test_the_bundled_world_can_show_ebjepas_two_channels():
    config = load_config("two_rooms_ebjepa", [])
    world = config.world.make()
    world.reset(np.arange(20))
    obs, seen = observed(world), torch.from_numpy(world.render())
    assert config.dynamics.frameskip == 1 and not seen[..., 2].any()
    served = EbJepa(world_model(1, size=12))
    assert (served.frames(obs)[:, 0].int() - seen.int()).abs().max() <= 1
    mean, std = (12.0, 90.0), (30.0, 110.0)
    shift, scale = (torch.tensor(v).view(1, 2, 1, 1, 1) for v in (mean, std))
    told = EbJepa(world_model(1), mean=mean, std=std)
    assert (told.frames((obs - shift) / scale)[:, 0].int() - seen.int()).abs().max() <= 1
    for broken in ((obs - shift) / scale, obs / 255):
        with pytest.raises(ValueError, match="instead of 0..255: give EbJepa the mean and std"):
            served.frames(broken)


@pytest.mark.parametrize("tokens", [True, False])
def test_ebjepa_is_given_latents_on_their_grid_and_every_step(tokens):
    model = world_model(1, tokens=tokens)
    served = EbJepa(model)
    obs = (
        torch.from_numpy(pictures(4, 0))
        .movedim(-1, 1)[:, :2]
        .float()
        .unflatten(0, (2, 2))
        .transpose(1, 2)
    )
    shape = (16, 3, 3) if tokens else (5, 1, 1)
    latents = served.encode(obs)  # [2, D, 2, h, w]
    assert latents.shape == (2, shape[0], 2, *shape[1:])
    torch.testing.assert_close(latents[:, :, 1:], served.encode(obs[:, :, 1:]))
    actions = torch.randn(2, 2, 5)
    future, nothing = served.unroll(obs[:, :, :1], actions, nsteps=4, unroll_mode="autoregressive")
    assert nothing is None and future.shape == (2, shape[0], 5, *shape[1:])
    torch.testing.assert_close(future[:, :, :1], latents[:, :, :1])
    plain = model.imagine(
        latents[:, :, 0].flatten(2).transpose(1, 2)[:, None],
        torch.zeros(2, 0, 2),
        actions.movedim(1, 2)[:, None, :4],
    )
    torch.testing.assert_close(
        future[:, :, 1:].flatten(3).permute(0, 2, 3, 1), plain[:, 0], atol=1e-5, rtol=1e-5
    )
    shared, _ = served.unroll(obs[:1, :, :1], actions)
    torch.testing.assert_close(shared[:1], served.unroll(obs[:1, :, :1], actions[:1])[0])
    with pytest.raises(
        UserError, match="frameskip 2: eb_jepa asks for a latent after every action"
    ):
        EbJepa(world_model(2))
    with pytest.raises(ValueError, match=r"\[B, 2, T, h, w\] is wanted"):
        served.encode(obs[:, :1])


# ---------------------------------------------------------------- the real one

SCRIPT = """
import sys; sys.path[:0] = sys.argv[1:3]
import torch, gymnasium, numpy as np
from types import SimpleNamespace
from stable_worldmodel.policy import PlanConfig, WorldModelPolicy
from stable_worldmodel.solver import CEMSolver
from test_interop import world_model, pictures
from jepa_wm.integrations.stable_worldmodel import CostServer, serve_to
from jepa_wm.planning.cost_settings import CostSettings
from jepa_wm.planning.settings import PlannerSettings
settings = PlannerSettings(cost=CostSettings(objective="l2"))
server = CostServer(world_model(), settings)
solver = serve_to(CEMSolver, server, num_samples=16, n_steps=2, topk=4)
plan = PlanConfig(horizon=3, receding_horizon=1, action_block=2)
policy = WorldModelPolicy(solver=solver, config=plan)
one, both = gymnasium.spaces.Box(-1, 1, (2,)), gymnasium.spaces.Box(-1, 1, (2, 2))
env = SimpleNamespace(num_envs=2, action_space=both, single_action_space=one)
policy.set_env(env)
actions = policy.get_action({"pixels": pictures(2, 0)[:, None], "goal": pictures(2, 1)[:, None]})
assert np.asarray(actions).shape == (2, 2) and np.isfinite(np.asarray(actions)).all(), actions
print("planned")
"""


@pytest.mark.slow
def test_the_released_stable_worldmodel_plans_with_our_model(tmp_path):
    """stable-worldmodel 0.1.1 from the registry, in an environment that sees our packages but does
    not change them."""
    venv.create(tmp_path / "env", with_pip=True, system_site_packages=False)
    python = tmp_path / "env" / "bin" / "python"
    ours = next(path for path in sys.path if path.endswith("site-packages"))
    (next((tmp_path / "env" / "lib").iterdir()) / "site-packages" / "ours.pth").write_text(ours)
    # It imports cv2 and imageio without asking for them.
    install = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "stable-worldmodel==0.1.1",
        "opencv-python-headless",
        "imageio",
    ]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"stable-worldmodel cannot be installed here: {done.stderr[-300:]}")
    script = tmp_path / "plan.py"
    script.write_text(SCRIPT)
    words = [python, script, str(ROOT), str(ROOT / "tests")]
    done = subprocess.run(
        words, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0 and "planned" in done.stdout, done.stderr
