"""Policies toward goals: each learns what it says on data whose right answer is known, and the
plan stage plays them beside the search."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planners import planner
from pydantic import ValidationError
from rooms import rooms_task
from small_models import small_world_model

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import pipeline
from jepa_wm.data.windows import GoalSampler
from jepa_wm.evals.plays import beaten_by, beside_search, plays
from jepa_wm.evals.scores import paired_difference
from jepa_wm.features.cache import Features
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.policies import DISCOUNT, GCBC, GCIDM, GCIVL, Legs, PolicySizes
from jepa_wm.planning.action_space import DiscreteSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.training.legs import ALLOWANCE, SLACK, LegSampler
from jepa_wm.training.samples import Samples
from jepa_wm.world_model.world_model import WorldModel

SIZES = HeadSettings(width=64, policy_steps=3)


def legs(start, goal, blocks, *, counts=None, steps=None, efficient=None, **values):
    """Legs of latents [B, F] and blocks [B, H, A]; what is not given is one model step."""
    count = len(start)
    given = {
        "after": goal, "value_goal": goal, "at_value_goal": torch.zeros(count, dtype=torch.bool),
        "after_at_value_goal": torch.zeros(count, dtype=torch.bool), **values,
    }  # fmt: skip
    return Legs(
        start=start,
        goal=goal,
        blocks=blocks,
        counts=torch.ones(blocks.shape[:2]) if counts is None else counts,
        steps=torch.ones(count) if steps is None else steps,
        remaining=torch.ones(count) if steps is None else steps.float(),
        efficient=torch.ones(count) if efficient is None else efficient,
        fast=torch.ones(count),
        **given,
    )


def fit(policy, drawn, steps=600, lr=1e-2):
    """Train on the legs that are drawn; the rate falls to 0, as heads' does."""
    optimiser = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=lr)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps)
        optimiser.zero_grad()
        torch.stack(list(policy.losses(drawn(step)).values())).sum().backward()
        optimiser.step()
        if isinstance(policy, GCIVL):
            policy.update_target()


# ---------------------------------------------------------------- what each learns


def test_cloning_learns_which_actions_lead_toward_a_goal():
    """On a line, with steps of at most 1: full speed until the goal is near, then what is left,
    then nothing counts."""
    torch.manual_seed(0)
    policy, g = GCBC(PolicySizes(1, 1, 1), SIZES), torch.Generator().manual_seed(0)

    def ways(count):
        here, gap = torch.randn(count, 1, generator=g), 4 * torch.rand(count, 1, generator=g) - 2
        left = [gap.abs() - step for step in range(3)]
        blocks = torch.stack([gap.sign() * part.clamp(0, 1) for part in left], 1)  # [B, 3, 1]
        counts = torch.stack([(part > 0).float()[:, 0] for part in left], 1)
        return legs(here, here + gap, blocks, counts=counts)

    fit(policy, lambda step: ways(128), steps=400)
    drawn = ways(500)
    with torch.no_grad():
        wrong = (policy(drawn.start, drawn.goal) - drawn.blocks)[drawn.counts > 0].abs()
    assert wrong.mean() < 0.12 and (drawn.counts.sum(1) < 3).any()


def test_inverse_dynamics_tells_a_slow_leg_from_a_fast_one_to_the_same_goal():
    """Cloning answers with the mean of both; told the steps, each is its own. What is not
    efficient is not learned from."""
    torch.manual_seed(0)
    idm, cloned, g = (
        GCIDM(PolicySizes(1, 1, 1), SIZES),
        GCBC(PolicySizes(1, 1, 1), SIZES),
        torch.Generator().manual_seed(0),
    )
    idm.most.fill_(6)

    def ways(step):
        start, goal = torch.zeros(256, 1), torch.ones(256, 1)
        steps = torch.tensor([2.0, 6.0])[torch.randint(2, (256,), generator=g)]
        away = torch.rand(256, generator=g) < 0.5  # walks off at first
        action = torch.where(away, -1.0, 1 / steps)
        blocks = action[:, None, None].expand(-1, 3, 1)
        return legs(start, goal, blocks, steps=steps, efficient=(~away).float())

    fit(idm, ways, steps=300)
    fit(cloned, ways, steps=300)
    with torch.no_grad():
        start, goal = torch.zeros(4, 1), torch.ones(4, 1)
        steps = torch.tensor([2.0, 6.0, 50.0, 0.0])
        answered = idm(start, goal, steps)[:, 0, 0]
        torch.testing.assert_close(answered[:2], 1 / steps[:2], atol=0.03, rtol=0)
        assert answered[2] == answered[1], "cut to what was met"
        assert abs(cloned(start, goal)[0, 0, 0] + 1 / 3) < 0.08, "the mean of all four"


def on_a_chain(g, count=256, length=12, forward=1.0):
    """Legs on a chain of places, one model step from each to the next, or back."""
    places, along = torch.eye(length), torch.arange(count)
    start = torch.randint(length, (count,), generator=g)
    step = torch.where(torch.rand(count, generator=g) < forward, 1, -1)
    after = (start + step).clamp(0, length - 1)
    goal = (start + torch.randint(1, length, (count,), generator=g)).clamp(max=length - 1)
    value_goal = torch.where(along % 2 == 0, goal, torch.randint(length, (count,), generator=g))
    return legs(
        places[start], places[goal], step.float()[:, None, None].expand(-1, 3, 1),
        steps=(goal - start).clamp(min=1), after=places[after], value_goal=places[value_goal],
        at_value_goal=start == value_goal, after_at_value_goal=after == value_goal,
    )  # fmt: skip


def test_values_are_those_of_a_chain_and_tell_the_steps():
    torch.manual_seed(0)
    policy, g, length = GCIVL(PolicySizes(12, 12, 1), SIZES), torch.Generator().manual_seed(0), 12
    fit(policy, lambda step: on_a_chain(g, forward=0.7), steps=1500, lr=1e-3)
    places = torch.eye(length)
    start, goal = torch.triu_indices(length, length)
    left = goal - start
    exact = -(1 - DISCOUNT**left) / (1 - DISCOUNT)
    with torch.no_grad():
        value = policy.value(places[start], places[goal]).mean(0)
        steps = policy.steps(places[start], places[goal])
    torch.testing.assert_close(value, exact.float(), atol=1.0, rtol=0.1)
    torch.testing.assert_close(steps, left.float(), atol=1.0, rtol=0.1)


def test_implicit_values_take_the_shorter_of_two_ways_where_the_data_have_both():
    """From place 0 the goal is two steps away by 1, and five by 2, 3, 4, 5; the long way is taken
    four times of five."""
    torch.manual_seed(0)
    after = {0: (1, 2), 1: (6, 6), 2: (3, 3), 3: (4, 4), 4: (5, 5), 5: (6, 6)}
    table = torch.tensor([after[place] for place in range(6)])
    places, g = torch.eye(7), torch.Generator().manual_seed(0)
    implicit, cloned = GCIVL(PolicySizes(7, 7, 1), SIZES), GCBC(PolicySizes(7, 7, 1), SIZES)

    def ways(step):
        start = torch.randint(6, (256,), generator=g)
        longer = (torch.rand(256, generator=g) < 0.8).long()
        there, goal = table[start, longer], torch.full((256,), 6)
        action = torch.where(longer > 0, -1.0, 1.0)[:, None, None].expand(-1, 3, 1)
        return legs(
            places[start], places[goal], action, after=places[there],
            steps=torch.where(there == 6, 1, 2), after_at_value_goal=there == 6,
        )  # fmt: skip

    for policy in (implicit, cloned):
        fit(policy, ways, steps=600, lr=3e-3)
    with torch.no_grad():
        fork, goal = places[:1], places[6:]
        assert cloned(fork, goal)[0, 0, 0] < -0.4, "what was done most"
        assert implicit(fork, goal)[0, 0, 0] > 0.8, "what leads there sooner"


# ---------------------------------------------------------------- efficient legs


class Line(torch.nn.Module):
    """The distance between places on a line."""

    def __init__(self, measure):
        super().__init__()
        self.settings = SimpleNamespace(measure=measure)

    def forward(self, start, goal):
        return (goal - start).norm(dim=-1)


class Recorded:
    """Latents of episodes that are places on a line."""

    def __init__(self, places):
        self.places, self.count = places, len(places[0])
        self.features = SimpleNamespace(index=lambda episode, frame: episode * self.count + frame)

    def flat_together(self, episode, frames, standing, goal, *, of):
        return torch.tensor(self.places)[of, frames][..., None].float()

    def moved(self):
        ways = np.abs(np.diff(self.places, axis=1)).cumsum(1)
        return torch.from_numpy(np.pad(ways, ((0, 0), (1, 0)))).flatten(), 1.0


def line_legs(measure, count=400):
    """(legs of batch 0, the sampler, what was drawn) of a straight walk, one that waits half way,
    one that goes there and back, and a slow one."""
    straight = np.arange(12.0)
    waits = np.minimum(straight, 5) + np.maximum(straight - 9, 0)
    back = 5 - np.abs(straight - 5)
    places = np.stack([straight, waits, back, straight / 4])
    data = SimpleNamespace(
        path="x.h5", lengths=np.full(4, 12), offsets=12 * np.arange(4), episodes=4,
        actions=np.zeros((48, 1), np.float32),
    )  # fmt: skip
    model = SimpleNamespace(
        frameskip=1, latent=SimpleNamespace(map_dim=0), scaled=lambda blocks: blocks,
        distance=None if measure is None else Line(measure),
    )  # fmt: skip
    pairs = GoalSampler(data, steps=3, frameskip=1, stride=1, seed=0)
    samples = Samples(data, Recorded(places), model, "fp32", {}, None, pairs, None)
    sampler = LegSampler(samples)
    return sampler.batch(0, count), sampler, places, pairs.batch(0, count)


def test_inverse_dynamics_of_legs_that_go_nowhere_is_finite():
    """By the path of a latent that hardly moves nothing remains of any leg."""
    start = torch.randn(8, 2)
    drawn = legs(start, start, torch.randn(8, 3, 2), steps=torch.zeros(8))
    policy = GCIDM(PolicySizes(2, 2, 2), SIZES)
    policy.fit(drawn, fast_step=1.0)
    assert policy.most == 1 and torch.isfinite(policy.losses(drawn)[""])


@pytest.mark.parametrize("measure", ["steps", "path", None])
def test_exactly_the_efficient_legs_are_kept(measure):
    """By steps: no waiting, no way back, not slowly. By the path: no way back, at any speed."""
    drawn, _, places, (episode, (first, last), _, _) = line_legs(measure)
    for i, (e, a, b) in enumerate(zip(episode, first, last, strict=True)):
        apart = abs(places[e, b] - places[e, a])
        path = np.abs(np.diff(places[e, a : b + 1])).sum()
        passed = b - a if measure == "steps" else path
        assert drawn.efficient[i] == (passed <= (1 + SLACK) * apart + ALLOWANCE), (e, a, b)
        assert drawn.fast[i] == (b - a <= (1 + SLACK) * apart + ALLOWANCE)
        assert drawn.steps[i] == b - a and drawn.start[i] == pytest.approx(places[e, a])
    by_episode = [drawn.efficient[torch.from_numpy(episode == e)].mean() for e in range(4)]
    assert by_episode[0] == 1 and 0 < by_episode[2] < 1
    assert (by_episode[1] < 1 and by_episode[3] < 0.5) == (measure == "steps")


def test_goals_of_values_are_the_start_later_and_anything_and_a_part_of_a_batch_is_the_same():
    drawn, sampler, places, (episode, (first, _), _, _) = line_legs("steps")
    start, goal, here = drawn.start, drawn.goal, drawn.at_value_goal
    later = (drawn.value_goal == goal).all(-1)
    assert here.float().mean() == pytest.approx(0.2, abs=0.08)
    assert later.float().mean() == pytest.approx(0.5, abs=0.12)
    assert (drawn.value_goal[here] == start[here]).all()
    near = drawn.after_at_value_goal
    assert near.any() and (drawn.value_goal[near] == drawn.after[near]).all()
    after = torch.tensor(places[episode, first + 1])[:, None].float()
    assert torch.equal(drawn.after, after)
    parts = [sampler.batch(0, 400, part) for part in (slice(0, 150), slice(150, 400))]
    for name, whole in vars(drawn).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), whole), name


# ---------------------------------------------------------------- settings


def test_heads_are_trained_where_policies_are_evaluated():
    assert "heads" not in pipeline(load_config("debug"))
    for word in ("evaluation.policies=[gcivl]", "planner.mpc.warm_start=gc_idm"):
        assert "heads" in pipeline(load_config("debug", [word]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluation.policies=[gcbc,gc_idm]", "train.heads.sizes.policies=[gcbc]"],
            r"evaluation.policies asks for gc_idm, which is not among train.heads.sizes.policies "
            r"\[gcbc\]: add it there",
        ),
        (
            ["planner.solver={name: policy, policy: gcivl}", "train.heads.sizes.policies=[]"],
            "planner.solver.policy asks for gcivl",
        ),
        (["planner.mpc.warm_start=gcbc", "train.heads.sizes.policies=[]"], "mpc.warm_start asks"),
        (
            ["planner.mpc.warm_start=gcbc", "planner.solver={name: policy}"],
            "mpc.warm_start gcbc is where a search starts.*set mpc.warm_start=null",
        ),
        (
            ["evaluation.policies=[gcbc]", "planner.cost.objective=reward"],
            "play toward goal images.*set evaluation.policies=",
        ),
        (["planner.mpc.warm_start=true"], "warm_start"),
        (
            ["train.heads.sizes.policy_frames=4"],
            "policy_frames 4 are more than the 3 of dynamics.context_frames.*set it to 3",
        ),
        (
            ["evaluation.policies=[gcbd]"],
            "evaluation.policies.*no policy is named 'gcbd'; nearest: gcbc; there are gc_idm",
        ),
        (["planner.mpc.warm_start=gcdm"], "mpc.warm_start.*'gcdm'; nearest: gc_idm"),
        (["train.heads.sizes.policies=[gcivk]"], "sizes.policies.*nearest: gcivl"),
        (
            ["planner.solver={name: policy, policy: gcibl}"],
            "planner.solver.*no policy is named 'gcibl'; nearest: gcivl",
        ),
    ],
)
def test_policies_that_are_not_trained_or_do_not_fit_are_refused(words, message):
    with pytest.raises(UserError, match=f"(?s){message}"):
        load_config("debug", words)


def test_a_policy_alone_takes_the_place_of_the_search():
    main = PlannerSettings.model_validate({"mpc": {"warm_start": "gcbc", "horizon": 4}})
    alone = main.alone("gc_idm")
    assert main.policy == "gcbc" and alone.policy == "gc_idm" and alone.needs_heads
    assert alone.mpc.warm_start is None and alone.mpc.horizon == 4
    assert not alone.mpc.action_repeat, "each action is its own"
    with pytest.raises(ValidationError):
        PlannerSettings.model_validate({"solver": {"name": "policy", "policy": "bc"}})


@pytest.mark.parametrize("name", ["gcbc", "gc_idm", "gcivl"])
@pytest.mark.parametrize("role", ["alone", "warm start"])
def test_discrete_actions_are_those_nearest_to_what_a_policy_answers(name, role):
    model = small_world_model(frameskip=2)
    width, block = model.latent_model.policy_inputs, model.block
    model.heads = Heads(width, block, Present(), HeadSettings(width=8)).eval()
    vectors = [[0, 0], [1, 0], [0, 1]]
    space = DiscreteSpace.of_block(3, block=2, action_repeat=False, vectors=vectors)
    main = planner(horizon=3, warm_start=name if role == "warm start" else None)
    agent = Agent(model, space, main.alone(name) if role == "alone" else main)
    goals, seen = np.random.default_rng(0).integers(256, size=(2, 2, 12, 12, 3), dtype=np.uint8)
    agent.reset(goals, [0, 1])
    chosen = agent.act(seen)
    assert chosen.shape == (2, 2, 1) and set(chosen.flatten()) <= {0, 1, 2}
    if role == "alone":
        start, goal = (model.encode(torch.from_numpy(frames)) for frames in (seen, goals))
        start, goal = model.latent.believed_together(torch.stack([start, goal], 1)).unbind(1)
        answered = model.propose(start[:, None], goal, 3, policy=name)[:, 0].unflatten(-1, (2, 2))
        gaps = (answered[..., None, :] - torch.tensor(vectors)).norm(dim=-1)
        assert np.array_equal(chosen[..., 0], gaps.argmin(-1))


# ---------------------------------------------------------------- beside the search


def test_a_policy_stands_beside_the_search_by_the_paired_difference():
    task = rooms_task()
    near, far = np.zeros((40, 3)), np.full((40, 3), 99.0)
    won, half = near, np.concatenate([near[:20], far[20:]])
    better = beside_search(won, half, task)
    difference, low, high = paired_difference(np.ones((1, 40), bool), (np.arange(40) < 20)[None])
    assert better["success_final"] == 1 and better["success_any"] == 1
    assert better["over_search"] == {"difference": difference, "low": low, "high": high}
    assert difference == 0.5 and low > 0
    text = beaten_by({"gcbc": better, "gcivl": beside_search(half, half, task)})
    assert text.startswith("The search is beaten by a policy alone") and "gcbc (by 50.0 %" in text
    assert "gcivl" not in text
    assert beaten_by({"gcbc": beside_search(half, won, task)}) == ""


SMALL = [
    "train.pretrain.steps=0", "train.pretrain.final_probe_steps=5", "collect.episodes=40",
    "train.latent.steps=20", "train.dynamics.steps=20", "train.distance.steps=20",
    "train.heads={steps: 20, batch: 32, warmup: 2}", "train.heads.sizes.width=16",
    "evaluation.episodes=4", "evaluation.budget=10", "planner.mpc.also_evaluate=[]",
    "evaluation.policies=[gcbc,gc_idm,gcivl]",
]  # fmt: skip


MAP = [
    "latent={name: keypoints, dynamic_points: 2, static_points: 0, map_channels: 2}",
    "dynamics={name: mlp, width: 16}",
    "distance.field_depth=1",
]


def trained(folder, *words):
    """An open run with heads, of SMALL settings and others."""
    run = Run.open(folder, load_config("debug", [*SMALL, *words]))
    with run:
        for name in ("collect", "features", "dynamics", "heads"):
            run_stage(name, run)
    return run


@pytest.mark.filterwarnings("ignore:heads of rewards", "ignore:latent.name keypoints")
@pytest.mark.parametrize("words", [[], MAP, ["distance=null", "planner.cost.objective=l1"]])
def test_a_planner_asks_policies_what_they_were_taught(words, tmp_path):
    """The same answer on the way from recorded frames to legs, and from latents to a plan; with a
    map, and without a distance."""
    run = trained(tmp_path / "run", "train.precision=fp32", *words)
    model, features = WorldModel.load(run.path), Features.both_of_run(run.path, None)[1]
    model.encoder.precision = "fp32"
    sizes = {"policy_steps": 6, "seed": 3, "precision": "fp32"}
    samples = Samples.of(features, model.latent_model, **sizes)
    count, skip = model.context_frames, model.frameskip
    assert model.heads.policy_frames == count == 3
    drawn = LegSampler(samples, frames=count).batch(0, 16)
    episode, frames, _, _ = samples.pairs.batch(0, 16)
    # What an agent has seen that began where the episode did: of the first frames fewer.
    back = [np.maximum(frames[0] - skip * i, frames[0] % skip) for i in (2, 1)]
    seen, goal = samples.latents.together(episode, np.stack([*back, *frames], 1), *frames).split(
        [count, 1], 1
    )
    start, goal = seen[:, -1], goal[:, 0]
    new = torch.from_numpy(frames[0] < skip)
    assert new.any() and (drawn.start[new, model.latent_model.policy_inputs :] == 0).all()
    assert (drawn.start[~new, model.latent_model.policy_inputs :] != 0).any()
    for name in ("gcbc", "gc_idm", "gcivl"):
        policy = model.needed_policy(name)
        inputs = [drawn.start, drawn.goal]
        if name == "gc_idm" and words[:1] == ["distance=null"]:
            inputs.append(policy.straight(*map(model.latent_model.flat, (start, goal))))
            assert policy.fast_step > 0 and policy.most > 1
        elif name == "gc_idm":
            inputs.append(model.distance(start[:, None], goal)[:, 0])
        with torch.no_grad():
            answered = model.latent_model.unscaled(policy(*inputs))
        proposed = model.propose(seen, goal, 6, policy=name)
        torch.testing.assert_close(proposed, answered, atol=1e-5, rtol=1e-5)
        first = model.propose(start[new, None], goal[new], 6, policy=name)
        torch.testing.assert_close(first, answered[new], atol=1e-5, rtol=1e-5)
    if words[:1] == ["distance=null"]:
        config = load_config("debug", [*SMALL, "train.precision=fp32", *words])
        with Run.open(run.path, config) as again:
            assert run_stage("plan", again)["policies"].keys() == {"gcbc", "gc_idm", "gcivl"}


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """(run folder, result of plan) of a debug run with the three policies."""
    folder = tmp_path_factory.mktemp("policies") / "run"
    trained(folder)
    with Run.open(folder, load_config("debug", SMALL)) as run:
        return folder, run_stage("plan", run)


def test_policies_play_the_tasks_of_the_search(played):
    folder, result = played
    for suffix in ("", "_training_layouts"):
        policies = result[f"policies{suffix}"]
        assert list(policies) == ["gcbc", "gc_idm", "gcivl"]
        for name, one in policies.items():
            assert one["episodes"] == result[f"success{suffix}"]["episodes"]
            over = one["over_search"]
            assert over["low"] <= over["difference"] <= over["high"]
            gap = one["success_final"] - result[f"success{suffix}"]["success_final"]
            assert over["difference"] == pytest.approx(gap)
            kept = folder / "plan" / f"policy_{name}{suffix}" / "00000.npz"
            assert np.load(kept)["distance"].shape == (4, 11)
    assert result["success_by"].keys() == {"temporal"}, "policies are no objectives"
    assert json.loads((folder / "plan/result.json").read_text())["policies"].keys()


def test_the_page_shows_policies_beside_the_baselines(played):
    folder, result = played
    beaten = "The search is beaten by a policy alone, without a search: gcbc (by 9 %)."
    with Run.open(folder, load_config("debug", SMALL)) as run:
        plan = run.finished("plan")
        plan["policies"]["gcbc"]["over_search"] = {"difference": 0.09, "low": 0.01, "high": 0.2}
        run.write_result("plan", {**plan, "search_beaten": beaten})
        run_stage("report", run)
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    section = text.split('<section id="success">')[1].split("</section>")[0]
    for part in ("policy gc_idm, no search", "beats the search", "+9.0 %", "+1.0 to +20.0 %"):
        assert part in section, part
    assert beaten in text.split("<section")[0] and beaten in section


def test_every_play_has_a_folder_of_its_own_which_another_process_may_have_filled(played):
    folder, _ = played
    config = load_config("debug", SMALL)
    with Run.open(folder, config) as run:
        episodes = SimpleNamespace(of=lambda split: range(4))
        each = plays(config.planner, config.evaluation.policies, episodes)
        assert len({one.folder for one in each}) == 8
        assert run_stage("plan", run, shard=(0, 2))["episodes"] == 4 * len(each)


def test_the_policies_of_a_run_are_named_where_one_is_asked_that_was_not_trained(played):
    model = WorldModel.load(played[0])
    del model.heads.policies["gcivl"]
    with pytest.raises(UserError, match="needs policy gcivl.*train.heads.sizes.policies"):
        model.needed_policy("gcivl")
