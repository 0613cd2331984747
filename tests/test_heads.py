"""Heads on frozen latents: each learns what it says, is better than a constant, and the planner
asks for it by name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from planners import planner

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import GoalSampler
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.heads import (
    Heads,
    Present,
    RewardHead,
    StateHead,
    TerminationHead,
    symexp,
    symlog,
    two_hot,
)
from jepa_wm.planning.action_space import ActionSpace, space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost_settings import Limits
from jepa_wm.training import samples
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.two_rooms.world import TwoRooms

SETTINGS = [
    "train.pretrain.steps=0",
    "latent.name=tokens",
    "world.reward_region={radius: 12}",
    "collect.episodes=300",
    "planner.cost.robust_radius=0",
    "train.dynamics.steps=400",
    "train.distance.steps=20",
    "train.heads.steps=600",
    "train.heads.batch=128",
    "train.heads.warmup=20",
    "train.heads.sizes.width=64",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(run folder, result of the heads stage) of a debug run whose two rooms pay a reward; the
    encoder is random."""
    folder = tmp_path_factory.mktemp("heads") / "run"
    with Run.open(folder, load_config("debug", SETTINGS)) as run:
        for name in ("collect", "features", "dynamics"):
            run_stage(name, run)
        return folder, run_stage("heads", run)


# ---------------------------------------------------------------- each head


def fit(model, loss, steps=400, lr=1e-2):
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        optimiser.zero_grad()
        loss(step).backward()
        optimiser.step()


def test_two_hot_keeps_the_mean_and_uses_two_neighbours():
    bins = symexp(torch.linspace(-3, 4, 30))
    values = torch.cat([torch.linspace(float(bins[0]), float(bins[-1]), 101), bins])
    shares = two_hot(values, bins)
    torch.testing.assert_close(shares @ bins, values, atol=1e-4, rtol=1e-4)
    assert ((shares > 0).sum(-1) <= 2).all() and (shares >= 0).all()
    torch.testing.assert_close(shares.sum(-1), torch.ones(len(values)))
    assert torch.equal(two_hot(torch.tensor([1e9]), bins)[0], torch.eye(30)[-1]), (
        "cut to the range"
    )
    torch.testing.assert_close(symexp(symlog(values)), values, atol=1e-4, rtol=1e-4)


def test_the_reward_head_learns_means_over_orders_of_magnitude_and_of_noise():
    """Small rewards beside large ones, and a coin whose two sides pay 0 and 10: its mean is 5, not
    a side."""
    torch.manual_seed(0)
    head = RewardHead(2, 1, 32, 41)
    head.span(0, 1000)
    places = torch.eye(2)
    pay = torch.tensor([1.0, 1000.0])
    g = torch.Generator().manual_seed(0)

    def loss(step):
        here, coin = torch.randint(2, (128,), generator=g), torch.randint(2, (128,), generator=g)
        acted = torch.randint(2, (128,), generator=g)  # action 1 throws the coin instead
        reward = torch.where(acted == 1, 10.0 * coin, pay[here])
        return head.loss(places[here], places[here], acted[:, None].float(), reward)

    fit(head, loss)
    with torch.no_grad():
        plain, coin = (head(places, places, torch.full((2, 1), float(a))) for a in (0, 1))
    torch.testing.assert_close(plain, pay, rtol=0.1, atol=0)
    torch.testing.assert_close(coin, torch.full((2,), 5.0), rtol=0.2, atol=0)


def test_the_hazard_is_the_share_that_ends_and_states_are_read_in_their_units():
    torch.manual_seed(0)
    places, g = torch.eye(3), torch.Generator().manual_seed(0)
    hazard, state = TerminationHead(3, 1, 16), StateHead(3, 1, 16)
    chance, where = torch.tensor([0.02, 0.5, 0.9]), torch.tensor([[100.0], [250.0], [900.0]])
    state.mean.copy_(where.mean(0))
    state.scale.copy_(where.std(0))
    none = torch.zeros(256, 1)

    def loss(step):
        there = torch.randint(3, (256,), generator=g)
        ended = torch.rand(256, generator=g) < chance[there]
        ends = hazard.loss(places[0].expand(256, 3), places[there], none, ended)
        return ends + state.loss(places[there], where[there])

    fit(torch.nn.ModuleList([hazard, state]), loss)
    with torch.no_grad():
        told = hazard(places[:1].expand(3, 3), places, none[:3])
        torch.testing.assert_close(told, chance, atol=0.06, rtol=0)
        torch.testing.assert_close(state(places), where, atol=15, rtol=0)


def test_goals_are_later_frames_and_actions_count_until_them(tiny_data):
    data = Trajectories(tiny_data / "train.h5")
    sampler = GoalSampler(data, steps=4, frameskip=3, stride=3, seed=0)
    episode, frames, blocks, counts = sampler.batch(2, 200)
    gap = frames[1] - frames[0]
    assert (gap >= 3).all() and (gap % 3 == 0).all() and (frames[1] < data.lengths[episode]).all()
    assert np.array_equal(counts.sum(1), np.minimum(gap // 3, 4)) and gap.max() > 12
    for e, first, row, used in zip(episode, frames[0], blocks, counts, strict=True):
        start, steps = data.offsets[e] + first, int(used.sum())
        assert np.array_equal(row[:steps].reshape(-1, 2), data.actions[start : start + 3 * steps])


# ---------------------------------------------------------------- the stage


def test_every_head_beats_a_constant_on_heldout_trajectories(trained):
    folder, result = trained
    scores = result["heads"]
    assert scores.keys() == {
        "reward",
        "termination",
        "policy/gcbc",
        "policy/gc_idm",
        "policy/gcivl",
        "value/gcivl",
        "state/agent",
        "state/wall",
        "state/door",
    }
    for name, share in (
        ("reward", 0.8),
        ("state/agent", 0.5),
        ("state/wall", 0.3),
        ("state/door", 0.9),
    ):
        assert 0 < scores[name]["error"] < share * scores[name]["constant"], name
    for name in ("gcbc", "gc_idm", "gcivl"):
        score = scores[f"policy/{name}"]
        assert score["error"] > 0 and score["constant"] == pytest.approx(1, abs=0.2)
    assert scores["termination"]["constant"] < 1e-4, "nothing ever ends in two rooms"
    loaded = Heads.load(folder / "heads")
    assert loaded.present == Present(True, True, ("agent_x", "agent_y", "wall_x", "door_y"))


def test_rewards_are_summed_over_a_model_step():
    rewards = np.array([1.0, 2.0, 3.0, 4.0])
    assert samples.block_sums(rewards, 2, cut=False).tolist() == [3, 5, 7]
    assert samples.block_sums(rewards, 2, cut=True).tolist() == [3, 5, 7, 4]
    assert sorted(samples.block_sums(rewards, 9, cut=True).tolist()) == [4, 7, 9, 10]


def test_only_what_the_file_teaches_is_trained_and_the_plan_says_what_is_missing(
    trained, tmp_path
):
    folder, _ = trained
    data = tmp_path / "data"
    data.mkdir()
    for part in ("train", "heldout"):
        (data / f"{part}.h5").write_bytes((folder / "collect" / f"{part}.h5").read_bytes())
        with h5py.File(data / f"{part}.h5", "r+") as file:
            del file["reward"], file["terminated"], file["state"]
            file.attrs.pop("state_groups")
    settings = [*SETTINGS[:2], *SETTINGS[4:], "train.heads.steps=3", f"data.path={data}"]
    with Run.open(tmp_path / "run", load_config("debug", settings)) as run:
        for name in ("collect", "features", "dynamics"):
            run_stage(name, run)
        space = ActionSpace.of_block([-1.0] * 2, [1.0] * 2, block=5, action_repeat=True)
        nothing = torch.zeros(1, 25, 64)
        with pytest.raises(
            UserError, match=r"needs policy gcbc.*\(trained: none\).*jepa-wm heads"
        ):
            WorldModel.load(run.path).propose(nothing, nothing, 2, policy="gcbc")
        known = {"policy/gcbc", "policy/gc_idm", "policy/gcivl", "value/gcivl"}
        assert run_stage("heads", run)["heads"].keys() == known
        model = WorldModel.load(run.path)
        for wanted, name in (("reward", "reward"), ("state", "state")):
            with pytest.raises(
                UserError, match=f"needs a {name} head.*jepa-wm heads.*column '{name}'"
            ):
                Agent(model, space, planner(objective=wanted))
            with pytest.raises(UserError, match=f"needs a {name} head"):
                Agent(model, space, planner(**{wanted: 0.1}))


def test_a_broken_column_is_named(tiny_data, tmp_path):
    (tmp_path / "a.h5").write_bytes((tiny_data / "train.h5").read_bytes())
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["state"][3] = np.nan
        file["reward"] = np.zeros((len(file["action"]), 2), np.float32)
    with pytest.raises(UserError, match="'reward' holds 2 numbers"):
        samples.teaching_columns(Trajectories(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["reward"]
    with pytest.raises(UserError, match="'state' is not finite"):
        samples.teaching_columns(Trajectories(tmp_path / "a.h5"))


# ---------------------------------------------------------------- objectives from heads


def agent(folder, **plan):
    model = WorldModel.load(folder)
    space = space_of(TwoRooms(), frameskip=5, action_repeat=True)
    return Agent(
        model, space, planner(**{"horizon": 3, "samples": (16, 2, 4), "descent": (16, 20), **plan})
    )


@pytest.mark.parametrize(
    "plan",
    [
        {"objective": "reward"},
        {"objective": "reward", "solver": "gradient"},
        {"objective": "state"},
        {"solver": "policy"},
        {"solver": "policy", "policy": "gc_idm"},
        {"solver": "policy", "policy": "gcivl"},
        {"warm_start": "gcbc"},
        {"warm_start": "gc_idm", "solver": "icem"},
        {
            "reward": 0.5,
            "state": 0.1,
            "state_names": ["agent_x", "agent_y"],
            "effort": 0.1,
            "smoothness": 0.1,
        },
    ],
    ids=str,
)
def test_reward_and_state_plan_as_goals_do(trained, plan):
    a = agent(trained[0], **plan)
    world = TwoRooms()
    world.reset(np.arange(2))
    goals = None if plan.get("objective") == "reward" else world.render()
    a.reset(goals, [0, 1])
    for _ in range(2):
        actions = a.act(world.render())
        assert actions.shape == (2, 5, 2) and np.isfinite(actions).all()


def test_the_policy_alone_hands_out_what_it_proposes(trained):
    a = agent(trained[0], solver="policy")
    world = TwoRooms()
    world.reset(np.arange(2))
    seen = world.render()
    world.reset(np.arange(2, 4))
    a.reset(world.render(), [0, 1])
    here, there = (a.model.encode(torch.from_numpy(frames)) for frames in (seen, world.render()))
    proposed = a.model.propose(here[:, None], there, 3, policy="gcbc")
    held = proposed[:, 0].unflatten(-1, (5, 2)).mean(1)
    units = a.model.latent_model  # in the box of the world and of the data, then in the ball
    held = held.clamp(units.action_low, units.action_high).clamp(-2.45, 2.45)
    norm = held.norm(dim=-1, keepdim=True)
    np.testing.assert_allclose(a.act(seen)[:, 0], held * (2.45 / norm).clamp(max=1), atol=1e-4)
    longer = a.model.propose(here[:, None], there, 9, policy="gcbc")
    assert longer.shape == (2, 9, 10), "the last block is repeated"
    with pytest.raises(UserError, match="a policy toward goals needs a goal image"):
        b = agent(trained[0], objective="reward", warm_start="gcbc")
        b.reset(None, [0, 1])
        b.act(seen)


def test_terms_without_goal_or_with_unknown_names_are_refused(trained):
    a = agent(trained[0])
    a.reset(None, [0])
    world = TwoRooms()
    world.reset(np.arange(1))
    with pytest.raises(UserError, match="objective temporal needs a goal image"):
        a.act(world.render())
    with pytest.raises(
        UserError,
        match="state_names 'agent_z' is not known; the state head reads agent_x, agent_y",
    ):
        agent(trained[0], state=1.0, state_names=["agent_z"])
    with pytest.raises(UserError, match="limits.matrix has rows of 3 numbers"):
        agent(trained[0], limits=Limits(matrix=[[1, 1, 1]], bound=[1]))
    with pytest.raises(ValueError, match="2 goal images for 1 seeds"):
        a.reset(np.zeros((2, 65, 65, 3), np.uint8), [0])


def test_limits_hold_for_every_environment_action(trained):
    """x + y of each action at most -1: the plan keeps it though the objective knows nothing of
    it."""
    a = agent(trained[0], limits={"matrix": [[1, 1]], "bound": [-1]}, samples=(64, 4, 4))
    world = TwoRooms()
    world.reset(np.arange(2))
    a.reset(world.render(), [0, 1])
    assert (a.act(world.render()).sum(-1) <= -1 + 1e-3).all()


def test_the_reward_of_a_plan_is_discounted_and_cut_by_the_hazard(trained):
    """The search's cost against a plain loop over the heads."""
    folder, _ = trained
    model = WorldModel.load(folder)
    model.encoder.precision = "fp32"  # as in the loop, whichever was the faster here
    a = agent(folder, objective="reward", discount=0.9)
    world = TwoRooms()
    world.reset(np.arange(2))
    now = model.encode(torch.from_numpy(world.render()))
    plans = torch.randn(2, 3, 4, 10)
    futures = model.imagine(now[:, None], now.new_zeros(2, 0, 10), plans)
    expected = torch.zeros(2, 3)
    with torch.no_grad():
        for b in range(2):
            for s in range(3):
                before, on = now[b].flatten(), 1.0
                for h in range(4):
                    after, act = (
                        futures[b, s, h].flatten(),
                        model.latent_model.scaled(plans[b, s, h]),
                    )
                    expected[b, s] -= 0.9**h * on * model.heads.reward(before, after, act)
                    on = on * (1 - model.heads.termination(before, after, act))
                    before = after
    from jepa_wm.planning.cost import PlanningContext, objective_of

    context = PlanningContext(
        model=model, settings=a.settings, latents=now[:, None], past=plans[:, 0, :0]
    )
    cost = objective_of(context)(futures, plans)
    torch.testing.assert_close(cost, expected, atol=1e-4, rtol=1e-4)


def test_sizes_of_heads_are_refused_where_they_make_none():
    with pytest.raises(ValueError):
        HeadSettings(bins=1)
    assert Heads(4, 2, Present(), HeadSettings(width=8)).reward is None


def test_the_example_of_an_own_objective_does_what_it_says(trained):
    """In docs/own_objective.py the goal is to stay; with a term for going right, agents go as far
    as they can."""
    example = Path(__file__).resolve().parents[1] / "docs" / "own_objective.py"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(example.parents[1])}
    done = subprocess.run(
        [sys.executable, example, str(trained[0])], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stderr
    alone, drawn = map(float, re.findall(r"-?\d+\.\d", done.stdout))
    assert drawn > alone + 4, done.stdout
