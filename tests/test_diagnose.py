"""Which stage is at fault where plans fail: the verdict's rules, each part replaced by the true
one, and the whole evaluation on a tiny run."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from jepa_wm.config import load_config
from jepa_wm.core.commands import parse
from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.quantities import Quantities
from jepa_wm.evals import diagnose, goal_reaching
from jepa_wm.evals.state_kept import StateReader, groups_of_task
from jepa_wm.evals.true_parts import (
    Drawing,
    ReadCost,
    SimulatedCost,
    _apart,
    why_not_simulated,
    why_refused,
)
from jepa_wm.evals.verdict import verdict
from jepa_wm.planning.action_space import space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import make_task
from jepa_wm.worlds.two_rooms.tasks import OtherRoom, TwoRoomsTask
from jepa_wm.worlds.world import RandomActions

SMALL = [
    "train.pretrain.steps=0", "train.pretrain.final_probe_steps=20", "collect.episodes=40",
    "train.latent.steps=20", "train.dynamics.steps=20", "train.distance.steps=20",
    "train.heads={steps: 20, batch: 32, warmup: 2}", "train.heads.sizes.width=16",
    "evaluation.episodes=3", "evaluation.budget=10", "planner.mpc.horizon=2",
    "planner.solver.num_samples=8", "planner.solver.elites=3", "planner.solver.iterations=2",
]  # fmt: skip
CONFIG = load_config("debug", SMALL)


# ---------------------------------------------------------------- the verdict


def state(features=0.01, latent=0.02, *, of_task=True):
    return [
        {"group": "agent", "of_task": of_task, "features": features, "latent": latent},
        {"group": "wall", "of_task": False, "features": 0.9, "latent": 0.9},
    ]


def dead():
    """The agent is kept by the latent and lost when it is imagined."""
    return [state()[0] | {"imagined": 0.95, "shuffled": 0.96}]


def plans(reached=0.4, **differences):
    """A search that reaches so many of the tasks, and rows with (low, difference, high) to it."""
    rows = [{"plan": "search", "n": 20, "success_final": reached}]
    for name, values in differences.items():
        if isinstance(values, str):
            rows.append({"plan": name, "n": 0, "success_final": None, "reason": values})
            continue
        named = zip(("low_difference", "difference", "high_difference"), values, strict=True)
        rows.append({"plan": name, "n": 20, "success_final": reached + values[1], **dict(named)})
        if name == "true_dynamics" and isinstance(differences.get("oracle"), tuple):
            low, middle, _ = differences["oracle"]
            rows[-1] |= {"oracle_difference": middle, "oracle_low_difference": low}
    return rows


GOOD, SAME, BAD = (0.3, 0.6, 0.8), (-0.2, 0.0, 0.2), (-0.6, -0.3, -0.1)


@pytest.mark.parametrize(
    ("kept", "played", "weakest", "words"),
    [
        # The search is about as good as can be: nothing else counts.
        (state(0.9), plans(0.9, oracle=(-0.1, 0.04, 0.2)), "none", "no fewer than the oracle"),
        (state(), plans(oracle=(-0.3, -0.1, 0.1), more_search=GOOD), "search", "more samples"),
        (state(), plans(oracle=(-0.3, -0.1, 0.1)), "unknown", "wins few itself"),
        (state(0.05, 0.2), plans(oracle=GOOD, true_cost=GOOD), "cost", "+60 %"),
        (dead(), plans(oracle="none"), "dynamics", "with shuffled actions 0.96"),
        (dead(), plans(oracle="none", true_dynamics=SAME), "unknown", "no part"),
        # A group of the task is not in the features, or only not in the latent.
        (state(0.3, 0.4), plans(oracle=GOOD, more_search=GOOD), "encoder", "0.30"),
        (state(0.1, 0.4), plans(oracle=GOOD), "latent", "0.40 (0.10 in the features)"),
        (state(0.3, 0.4, of_task=False), plans(oracle=GOOD, more_search=GOOD), "search", "+60 %"),
        (state(0.3), plans(oracle=GOOD, true_dynamics=GOOD), "dynamics", "the true dynamics"),
        (state(None, None), plans(oracle=GOOD, true_cost=GOOD), "cost", "the true cost"),
        # What wins the most by a clear interval.
        (state(), plans(oracle=GOOD, more_search=GOOD, true_dynamics=SAME), "search", "samples"),
        (
            state(),
            plans(oracle=GOOD, more_search=(0.1, 0.2, 0.4), true_dynamics=(0.2, 0.5, 0.7)),
            "dynamics",
            "+50 % of 20 tasks (95 % interval +20 to +70 %)",
        ),
        (state(), plans(oracle=GOOD, true_cost=(0.2, 0.5, 0.7), true_dynamics=BAD), "cost", "+60"),
        # True dynamics are as bad as the search while the oracle is good.
        (state(), plans(oracle=GOOD, true_dynamics=SAME, true_cost=BAD), "cost", "oracle wins"),
        # Without intervals above 0 the largest difference, and that is said.
        (state(), plans(oracle="none", more_search=(-0.1, 0.2, 0.5)), "search", "play more"),
        (state(), plans(oracle="none", true_cost=(-0.1, 0.04, 0.2)), "unknown", "no part"),
        ([], plans(oracle=GOOD, true_dynamics="none"), "unknown", "the oracle +60 %"),
    ],
)  # fmt: skip
def test_the_verdict_names_the_weakest_stage_and_its_evidence(kept, played, weakest, words):
    stage, sentence = verdict(kept, played)
    assert stage == weakest
    reached = f"reaches {100 * played[0]['success_final']:.0f} %"
    assert words in sentence and reached in sentence and sentence.endswith(".")
    assert stage in ("none", "unknown") or f"the weakest stage is the {stage}" in sentence


def test_a_verdict_needs_the_search():
    with pytest.raises(ValueError, match="no row 'search'"):
        verdict([], plans()[1:])


# ---------------------------------------------------------------- a tiny run


def diagnosed(folder, *words):
    with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
        return run_stage("eval_diagnose", run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with heads."""
    folder = tmp_path_factory.mktemp("diagnose") / "run"
    with Run.open(folder, CONFIG) as run:
        for name in ("collect", "features", "dynamics", "heads"):
            run_stage(name, run)
    return folder


def test_an_interrupted_diagnosis_finds_its_rows_again(folder, monkeypatch):
    played, distances = [], goal_reaching.GoalPlay.distances

    def stopping(self, one, *args, **how):
        played.append(one.folder)
        if one.folder == "true_dynamics" and played.count(one.folder) == 1:
            raise Interrupted(15)
        return distances(self, one, *args, **how)

    monkeypatch.setattr(goal_reaching.GoalPlay, "distances", stopping)
    with pytest.raises(Interrupted):
        diagnosed(folder)
    (before,) = folder.glob("eval_diagnose/*/search/00000.npz")
    first = before.stat().st_mtime_ns
    result = diagnosed(folder)
    assert before.stat().st_mtime_ns == first

    # All rows are of the same tasks, each beside the search.
    rows = {row["plan"]: row for row in result["plans"]}
    policies = list(WorldModel.load(folder).heads.settings.policies)
    assert list(rows) == [
        "search", "more_search", "true_dynamics", "true_cost", "oracle", *policies
    ] and policies  # fmt: skip
    for name, row in rows.items():
        assert row["n"] == 3 and 0 <= row["success_final"] <= row["success_any"] <= 1
        if name != "search":
            assert row["low_difference"] <= row["difference"] <= row["high_difference"]
            gap = row["success_final"] - rows["search"]["success_final"]
            assert row["difference"] == pytest.approx(gap)
    groups = {row["group"]: row for row in result["state"]}
    assert groups["agent"]["of_task"] and not groups["wall"]["of_task"]
    for row in groups.values():
        for read in ("features", "latent", "imagined", "shuffled"):
            assert row[read] > 0 and row[f"{read}_error"] > 0
        assert row["unit"] == "px"
    assert result["horizon"] == 2 and result["feature_variance_kept"] < 1
    assert "2 dynamic numbers and 4 static numbers" in result["latent_read"]
    assert result["weakest"] in ("none", "unknown") or result["weakest"] in result["sentence"]

    # What was measured is stored by its settings; other settings are measured beside it.
    count = len(played)
    assert diagnosed(folder) == result and len(played) == count
    (tasks,) = folder.glob("eval_diagnose/*/tasks.json")
    assert json.loads(tasks.read_text())["seed"] == CONFIG.evaluation.task_seed
    monkeypatch.setattr(diagnose, "EPISODES", 2)
    other = diagnosed(folder, "planner.solver.iterations=1", "planner.cost.steps=last")
    assert {row["n"] for row in other["plans"]} == {2}
    assert len(list(folder.glob("eval_diagnose/*/tasks.json"))) == 2
    with Run.open(folder, CONFIG) as run:
        assert "diagnosis" in run_stage("report", run)["sections"]


def test_planning_by_reward_is_refused(folder):
    with pytest.raises(UserError, match="plays toward goal images"):
        diagnosed(folder, "planner.cost.objective=reward")


def test_it_is_an_evaluation_of_the_command_line():
    assert parse(["eval", "diagnose", "--run", "x"]).stage == "eval_diagnose"


# ---------------------------------------------------------------- true parts


@pytest.fixture(scope="module")
def played(folder):
    """(model, task, two held-out episodes, their worlds, what an agent knows after a frame)."""
    model, task = WorldModel.load(folder), make_task(CONFIG.world, None)
    part = task.sample(2, 0).of("heldout")
    world, contexts = task.begin(part), []

    def noted(context: PlanningContext):
        contexts.append(context)
        return lambda plans: plans.square().sum((-2, -1))

    space = space_of(world, frameskip=model.frameskip, action_repeat=True)
    agent = Agent(model, space, CONFIG.planner, cost=noted)
    agent.reset(task.goal_images(part), [0, 1])
    agent.act(world.render())
    return model, task, part, world, contexts[0]


def made_plans(context, samples=3, horizon=2):
    generator = torch.Generator().manual_seed(0)
    plans = torch.rand(2, samples, horizon, context.space.plan_dim, generator=generator)
    return context.space.to_model(context.space.project(2 * plans - 1))


@pytest.mark.parametrize("steps", ["last", "all"])
def test_the_learned_cost_in_the_simulator_is_that_of_its_frames(played, steps):
    model, task, part, world, context = played
    settings = context.settings
    cost = settings.cost.model_copy(update={"steps": steps, "objective": "l2"})
    context = replace(context, settings=settings.model_copy(update={"cost": cost}))
    plans = made_plans(context)
    priced = SimulatedCost(task, Drawing(task, part), world, context)(plans)
    assert priced.shape == (2, 3)

    # By hand: the world itself is stepped, rendered, encoded and compared with the goal.
    copy = task.begin(part)
    for action in context.space.to_env(plans[:, 1]).numpy().swapaxes(0, 1)[: model.frameskip]:
        copy.step(action)
    first = model.encode(torch.from_numpy(copy.render()))
    for action in context.space.to_env(plans[:, 1]).numpy().swapaxes(0, 1)[model.frameskip :]:
        copy.step(action)
    last = model.encode(torch.from_numpy(copy.render()))
    each = []
    for latents in (first, last):
        believed = model.latent.with_static(latents, model.latent.static_of(context.now))
        each.append(model.distance(believed[:, None], context.goal, kind="l2")[:, 0])
    expected = each[1] if steps == "last" else (each[0] + each[1]) / 2
    torch.testing.assert_close(priced[:, 1], expected)
    assert np.array_equal(world.state(), task.begin(part).state())  # nothing was acted out


class Line:
    """An identity-like world model: a latent is a place on a line, which actions add to."""

    def futures(self, latents, past, plans, *, num_futures):
        return (latents[:, -1, None, None] + plans.cumsum(2)[..., None])[None, None]


def test_the_true_cost_of_a_perfect_reader_picks_the_right_plan(monkeypatch):
    monkeypatch.setattr("jepa_wm.evals.true_parts.plans_at_once", lambda *args, **how: 4)
    model = Line()
    model.device = torch.device("cpu")
    settings = SimpleNamespace(cost=SimpleNamespace(num_futures=1, steps="last"))
    context = PlanningContext(
        model=model, settings=settings, latents=torch.tensor([[[[1.0]]], [[[5.0]]]]),
        past=torch.zeros(2, 0, 1),
    )  # fmt: skip
    goal = np.array([[4.0], [3.0]], np.float32)
    task = SimpleNamespace(oracle_cost=lambda state, goal: np.abs(state - goal)[:, 0])
    plans = torch.tensor([[1.0, 2.0], [-1.0, -1.0], [5.0, 5.0]])[..., None].expand(2, 3, 2, 1)
    cost = ReadCost(task, lambda latents: latents.flatten(1).numpy(), goal, context)
    assert cost(plans).tolist() == [[0, 5, 7], [5, 0, 12]]
    # A state that is none costs much, and does not break the search.
    nowhere = SimpleNamespace(oracle_cost=lambda state, goal: np.full(len(state), np.inf))
    assert torch.isfinite(ReadCost(nowhere, cost.read, goal, context)(plans)).all()


class Altered:
    """A world with something that its state does not tell, or that its reset does not set."""

    def __init__(self, world, fault):
        self.world, self.fault, self.age, self.first = world, fault, 0, None

    def __getattr__(self, name):
        return getattr(self.world, name)

    def __len__(self):
        return len(self.world)

    def reset(self, seeds, *, start=None):
        if self.fault == "reset" and self.first is not None:
            start = self.first[np.arange(len(seeds)) % len(self.first)]
        self.first, self.age = start, 0
        self.world.reset(seeds, start=start)

    def step(self, action):
        self.age += 1
        self.world.step(action)

    def render(self):
        return self.world.render() // (2 if self.fault == "look" and self.age else 1)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("none", None),
        ("look", "begins in the same state after 10 steps looks otherwise"),
        ("reset", "begins in the same state after 10 steps is in another one"),
    ],
)
def test_what_a_reset_does_not_set_shows_after_true_steps(played, fault, says):
    _, task, part, _, _ = played
    altered = SimpleNamespace(
        name="mine", begin=lambda episodes: Altered(task.begin(episodes), fault),
        simulate=task.simulate, oracle_cost=task.oracle_cost,
    )  # fmt: skip
    why = why_not_simulated(altered, part)
    assert why is None if says is None else says in why


def test_noise_in_pictures_is_no_reason():
    config = load_config("two_rooms_noisy")
    task = make_task(config.world, None)
    assert why_not_simulated(task, task.sample(2, 0).of("heldout")) is None


def test_a_whole_turn_is_no_other_state():
    state = np.array([[6.28, 300.0]], np.float32)
    assert _apart(state, state - np.float32(2 * np.pi), ("rad", "px")) > 0.01, "px are no angle"
    turned = state - np.array([[2 * np.pi, 0]], np.float32)
    assert _apart(state, turned, ("rad", "px")) < 1e-6 < _apart(state, turned, ())


def test_more_search_is_of_solvers_inside_a_solver_too():
    both = {"name": "cem_gradient", "cem": {"num_samples": 32, "iterations": 3}}
    both["gradient"] = {"num_samples": 6, "iterations": 5}
    more, why = diagnose.more_search(PlannerSettings.model_validate({"solver": both}))
    assert why is None
    sizes = [(one.num_samples, one.iterations) for one in (more.solver.cem, more.solver.gradient)]
    assert sizes == [(128, 6), (24, 10)]
    more, _ = diagnose.more_search(CONFIG.planner)
    assert (more.solver.num_samples, more.solver.iterations) == (32, 4)
    assert more.solver.elites == CONFIG.planner.solver.elites


def test_a_world_without_an_oracle_gives_reasons(played):
    _, task, part, _, _ = played
    assert why_not_simulated(task, part) is None
    blind = SimpleNamespace(name="mine", begin=task.begin)
    assert "task mine has no simulator" in why_not_simulated(blind, part)


class NoOracle(OtherRoom):
    """The task in a world that cannot be copied."""

    simulate = None


def test_rows_that_cannot_be_played_have_no_success(folder, monkeypatch):
    """A task without an oracle, data without groups of a state, a solver that is no sampler."""
    monkeypatch.setattr(
        goal_reaching, "make_task", lambda world, task: NoOracle(TwoRoomsTask(), world)
    )
    monkeypatch.setattr(diagnose.Diagnosis, "_stateless", lambda self: "no state")
    solver = "planner.solver={name: policy, policy: gcbc}"
    words = [word for word in SMALL if not word.startswith("planner.solver")]
    with Run.open(folder, load_config("debug", [*words, solver])) as run:
        result = run_stage("eval_diagnose", run)
    rows = {row["plan"]: row for row in result["plans"]}
    for name in ("more_search", "true_dynamics", "true_cost", "oracle"):
        assert rows[name]["success_final"] is None and rows[name]["n"] == 0
        assert rows[name]["reason"]
    assert "has no samples" in rows["more_search"]["reason"]
    assert result["state"] == [] and result["state_reason"] == "no state"
    with Run.open(folder, CONFIG) as run:
        assert run_stage("report", run)["report"]


def test_states_that_a_cost_refuses_are_a_reason(played):
    _, task, part, _, _ = played
    states = np.random.default_rng(0).uniform(10, 50, (20, 4)).astype(np.float32)
    assert why_refused(task, states, part) is None

    def strict(state, goal):
        raise ValueError("in a wall")

    assert "in a wall" in why_refused(SimpleNamespace(oracle_cost=strict), states, part)


@pytest.mark.parametrize("world", ["four_rooms", "point_maze", "reacher", "pusht", "minigrid"])
def test_simulated_copies_look_as_the_world_does(world):
    pytest.importorskip(
        {"reacher": "dm_control", "pusht": "pymunk", "minigrid": "minigrid"}.get(world, "numpy")
    )
    words = [f"world={{name: {world}}}"]
    words += ["evaluation.task={name: pusht, oracle: true}"] if world == "pusht" else []
    config = load_config("debug", words)
    task = make_task(config.world, config.evaluation.task)
    part = task.sample(2, 0).of("heldout")
    assert why_not_simulated(task, part) is None
    drawing, begun = Drawing(task, part), task.begin(part)
    copies = task.simulate(begun, 3)
    pictures = drawing(copies.state(), begun.state())
    assert np.array_equal(pictures[::3], begun.render())
    # After true steps as well, and in copies that begin there, as far as contacts are repeated.
    act = RandomActions(part.seeds)
    for _ in range(2):
        for _ in range(7):
            action = act(begun)
            begun.step(action), copies.step(np.repeat(action, 3, 0))
        assert np.array_equal(drawing(begun.state(), begun.state()), begun.render())
        np.testing.assert_allclose(copies.state()[::3], begun.state(), rtol=1e-3, atol=0.01)
        copies = task.simulate(begun, 3)


def test_the_groups_that_a_distance_depends_on(played):
    _, task, part, _, _ = played
    states = np.random.default_rng(0).uniform(10, 50, (20, 4)).astype(np.float32)
    known = Quantities({"agent": [0, 1], "wall": [2], "door": [3]})
    names = task.begin(part.part(0, 1)).state_names
    assert groups_of_task(task, part, states, known, names) == {"agent"}
    assert groups_of_task(task, part, states, known, names[::-1]) == set(), "it is not known"


def test_an_angle_is_read_in_the_range_of_the_data():
    """The data count it from 0 to a whole turn, a reader from minus half a turn to half a one."""
    known = Quantities({"angle": [0], "place": [1]}, {"angle": "rad"})
    truth = np.array([[0.1, 3.0], [3.0, 1.0], [4.0, 2.0], [6.2, 0.5]], np.float32)

    class Probe:
        def predict(self, tokens):
            return torch.from_numpy(known.unrolled(tokens.numpy()))

    reader = StateReader(Probe(), known, np.concatenate([truth, [[0.0, 0.5], [6.28, 3.0]]]))
    possible = reader.possible(torch.from_numpy(truth))
    assert possible == pytest.approx(truth, abs=1e-5)
