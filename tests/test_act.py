"""The agent: remembers as many frames as the model's window, and plans for each episode as if it
were alone."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from planners import planner
from small_models import small_world_model

from jepa_wm.core.errors import UserError
from jepa_wm.evals.episodes import play
from jepa_wm.planning import settings as planning_settings
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningCost
from jepa_wm.planning.search import Solver, noise
from jepa_wm.planning.settings import ICEM, PlannerSettings, SolverSettings
from jepa_wm.world_model.world_model import WorldModel

SKIP = 2
SPACE = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=SKIP, action_repeat=True)
SOLVERS = ("cem", "icem", "mppi", "random", "gradient", "cem_gradient")


def world_model(window=3, **changes):
    return small_world_model(frameskip=SKIP, context_frames=window, **changes)


def agent(window=3, model=None, **plan):
    return Agent(model or world_model(window), SPACE, planner(**{"horizon": 3, **plan}))


def frames(count, seed):
    return np.random.default_rng(seed).integers(256, size=(count, 12, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("window", [1, 2, 3, 4, 6])
def test_the_memory_is_the_window_and_its_actions_fit_between(window, monkeypatch):
    a, seen = agent(window), []
    imagine = a.model.futures

    def look(context, past, actions, **rest):
        seen.append((context.shape[1], past.shape[1]))
        return imagine(context, past, actions, **rest)

    monkeypatch.setattr(a.model, "futures", look)
    a.reset(frames(2, 0), [0, 1])
    taken = []
    for step in range(8):
        taken.append(a.act(frames(2, step + 1)))
        assert taken[-1].shape == (2, SKIP, 2) and np.abs(taken[-1]).max() <= 1
        remembered = min(step + 1, window)
        assert seen[-1] == (remembered, remembered - 1)
        past = [block.numpy().reshape(2, SKIP, 2) for block in a._past[-window:]]
        assert all(np.array_equal(x, y) for x, y in zip(past, taken[-len(past) :], strict=True)), (
            "the latest, in order"
        )


def test_one_that_followed_stands_where_one_that_acted_does():
    contexts = []

    def noted(context):
        contexts.append(context)
        return PlanningCost(context)

    model, settings = world_model(3), planner(horizon=3)
    acting, following = (Agent(model, SPACE, settings, cost=noted) for _ in range(2))
    for one in (acting, following):
        one.reset(frames(2, 0), [0, 1])
    for step in range(4):
        taken = acting.act(frames(2, step + 1))
        following.follow(frames(2, step + 1), torch.from_numpy(taken).flatten(1))
    for one in (acting, following):
        one.act(frames(2, 5))
    for name in ("latents", "past", "goal", "last_action"):
        first, second = (getattr(context, name) for context in contexts[-2:])
        assert torch.equal(first, second), name

    # Nobody else acts while a plan is carried out.
    longer = Agent(model, SPACE, planner(horizon=3, execute=2))
    longer.reset(frames(2, 0), [0, 1])
    longer.act(frames(2, 1))
    with pytest.raises(RuntimeError, match="hand its frames to observe"):
        longer.follow(frames(2, 2), torch.zeros(2, 4))


def test_what_lasts_is_the_mean_of_all_that_was_seen_in_the_context_and_in_the_goal(monkeypatch):
    a, contexts, towards = agent(2), [], []
    a.model.latent.components.fit(torch.randn(40, 9, 16))
    imagine, steps = a.model.futures, a.model.distance
    monkeypatch.setattr(
        a.model, "futures", lambda c, *r, **k: contexts.append(c) or imagine(c, *r, **k)
    )
    monkeypatch.setattr(
        a.model, "distance", lambda z, goal, **k: towards.append(goal) or steps(z, goal, **k)
    )
    for _ in range(2):  # a reset forgets the first episodes
        goals, seen = frames(2, 0), [frames(2, step + 1) for step in range(4)]
        a.reset(goals, [0, 1])
        for now in seen:
            a.act(now)
        latents = [a.model.encode(torch.from_numpy(x)) for x in (goals, *seen)]
        mean = torch.stack([x[..., 3:] for x in latents]).mean(0)
        for got, own in ((contexts[-1][:, 0], latents[-2]), (contexts[-1][:, 1], latents[-1])):
            assert torch.equal(got[..., :3], own[..., :3]) and not torch.equal(own[..., 3:], mean)
            torch.testing.assert_close(got[..., 3:], mean)
        goal = towards[-1].flatten(0, -3)[:2]
        assert torch.equal(goal[..., :3], latents[0][..., :3])
        torch.testing.assert_close(goal[..., 3:], mean)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_episode_plans_as_if_it_were_alone(solver):
    together, alone = agent(solver=solver), agent(solver=solver)
    together.reset(frames(3, 0), [5, 6, 7])
    alone.reset(frames(3, 0)[1:2], [6])
    for step in range(3):
        seen = frames(3, step + 1)
        np.testing.assert_allclose(together.act(seen)[1:2], alone.act(seen[1:2]), atol=1e-4)


@pytest.mark.parametrize("objective", ["temporal", "l1", "l2", "cosine", "near_far"])
@pytest.mark.parametrize("execute", [1, 2])
def test_every_objective_plans_and_several_steps_can_be_taken_at_once(objective, execute):
    a = agent(objective=objective, execute=execute)
    for _ in range(2):  # a reset forgets
        a.reset(frames(2, 0), [0, 1])
        first = a.act(frames(2, 1))
        assert first.shape == (2, execute * SKIP, 2)
        a.act(frames(2, 2))
    a.reset(frames(2, 0), [0, 1])
    assert np.array_equal(a.act(frames(2, 1)), first)


def test_what_does_not_fit_is_refused():
    wider = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=SKIP + 1, action_repeat=True)
    with pytest.raises(ValueError, match="6 numbers a model step but the model was trained on 4"):
        Agent(world_model(), wider, PlannerSettings())
    a = agent()
    a.reset(frames(2, 0), [0, 1])
    with pytest.raises(ValueError, match="3 frames for 2 episodes"):
        a.act(frames(3, 1))


def test_the_memory_bound_changes_the_pieces_and_not_the_plan(monkeypatch):
    plans, largest = [], []
    each, fixed = world_model().plan_bytes(3)
    for most in (1000, 7):
        a = agent(memory_mb=(fixed + (most + 0.5) * each) / 2**20)
        imagine, seen = a.model.futures, []

        def look(context, past, actions, imagine=imagine, seen=seen, **rest):
            seen.append(actions.shape[0] * actions.shape[1])
            return imagine(context, past, actions, **rest)

        monkeypatch.setattr(a.model, "futures", look)
        a.reset(frames(2, 0), [0, 1])
        plans.append(a.act(frames(2, 1)))
        largest.append(max(seen))
    assert largest == [24, 6]
    judged, more = (
        world_model().plan_bytes(3, gradients=True, robust_radius=m)[0] for m in (0.0, 0.1)
    )
    assert more - judged > 4 * 3 * 5 * 12 * 8, (
        "a gradient keeps the layers of all six readings, of width 8"
    )
    np.testing.assert_allclose(plans[0], plans[1], atol=1e-5)
    with pytest.raises(
        UserError,
        match="planner.mpc.memory_mb 0.001 is below one plan.*raise planner.mpc.memory_mb",
    ):
        agent(memory_mb=0.001)


def test_goals_of_another_size_and_frames_that_are_no_pictures_are_refused():
    a = agent()
    a.reset(frames(2, 0), [0, 1])
    with pytest.raises(ValueError, match="frames are 13 x 13 px, the goal images 12 x 12"):
        a.act(np.zeros((2, 13, 13, 3), np.uint8))
    broken = frames(2, 1).astype(np.float32)
    broken[0, 3] = np.nan
    with pytest.raises(ValueError, match="frames are torch.float32.*give uint8 pictures.*no NaN"):
        a.act(broken)
    with pytest.raises(ValueError, match="frames are torch.float32"):
        a.reset(broken, [0, 1])
    with pytest.raises(
        UserError,
        match="planner.cost.uncertainty_weight 1 needs models that can disagree.*ensemble_size",
    ):
        agent(uncertainty_weight=1.0)


def resident():
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system tells no memory in /proc"
)
def test_a_thousand_decisions_take_no_memory_beyond_the_first_few_hundred():
    """A leak grows in every stretch of decisions; an allocator that takes a few MiB once does so
    in one of them."""
    a = agent(horizon=2, samples=(4, 1, 2))
    a.reset(frames(2, 0), [0, 1])
    seen = frames(2, 1)
    grown = []
    for stretch in range(5):  # the first warms up
        before, objects = resident(), len(gc.get_objects())
        for _ in range(250):
            a.act(seen)
        gc.collect()
        if stretch:
            grown.append((resident() - before, len(gc.get_objects()) - objects))
    assert min(taken for taken, _ in grown) < 2**20, grown
    assert min(made for _, made in grown) < 125, grown


def planned(a):
    a.reset(frames(2, 0), [0, 1])
    return np.stack([a.act(frames(2, step + 1)) for step in range(3)]), a.mpc.last


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("inductor", marks=pytest.mark.slow),
    ],  # eager: captured as a graph, not compiled
)
def test_compiled_layers_give_the_same_plan(backend, monkeypatch):
    plain, compiled = agent(), agent()
    compiled.model.compile(backend=backend)
    (actions, plan), (others, other) = planned(plain), planned(compiled)
    np.testing.assert_allclose(others, actions, atol=1e-4)
    torch.testing.assert_close(other.trace, plan.trace, atol=1e-4, rtol=1e-4)
    asked = []
    monkeypatch.setattr(WorldModel, "compile", lambda self: asked.append(self))
    assert agent(compile=True).model is asked[0] and not agent().model.compiled


def test_an_ensemble_and_outcomes_plan_and_doubt_is_shunned():
    cases = (
        ({"ensemble_size": 2}, {"uncertainty_weight": 0.5}),
        ({"mixture_components": 2}, {"num_futures": 3}),
        ({"ensemble_size": 2, "mixture_components": 1}, {}),
    )
    for changes, plan in cases:
        a = Agent(world_model(**changes), SPACE, planner(horizon=3, **plan))
        a.reset(frames(2, 0), [0, 1])
        first = a.act(frames(2, 1))
        a.reset(frames(2, 0), [0, 1])
        assert np.isfinite(first).all() and np.array_equal(a.act(frames(2, 1)), first), (
            "chance is the same every time"
        )
    model = world_model(ensemble_size=2)
    context, plans = torch.randn(2, 1, 1, 5), torch.randn(2, 4, 3, 4)
    futures = model.futures(context, context.new_zeros(2, 0, 4), plans)
    assert futures.shape == (2, 1, 2, 4, 3, 1, 5)
    for member, future in zip(model.latent_model.ensemble, futures[:, 0], strict=True):
        alone = member.fast_rollout(
            context, context.new_zeros(2, 0, 4), model.latent_model.scaled(plans)
        )
        torch.testing.assert_close(future, alone)
    assert model.plan_bytes(3)[0] > 1.7 * world_model().plan_bytes(3)[0]


def test_effort_and_smoothness_calm_the_plan():
    wild, still, even = agent(), agent(effort=1e3), agent(smoothness=1e3)
    acted = []
    for a in (wild, still, even):
        a.reset(frames(2, 0), [0, 1])
        first = a.act(frames(2, 1))
        acted.append((first, a.act(frames(2, 2))))
    assert not acted[1][0].any() and acted[0][0].any(), "doing nothing is cheapest"
    jump = [np.abs(second[:, 0] - first[:, -1]).max() for first, second in acted]
    assert jump[2] < jump[0]


def test_with_a_margin_the_worst_reading_nearby_counts():
    model, margin = world_model(), 0.3
    latents, goal = torch.randn(2, 7, 4, 1, 5), torch.randn(2, 1, 5)
    plain, worst = (
        model.distance(latents, goal),
        model.distance(latents, goal, robust_radius=margin),
    )
    by_hand = []
    for number in range(3):  # the dynamic ones
        for sign in (1, -1):
            start, end = latents.clone(), goal.clone()
            start[..., number] += sign * margin
            end[..., number] += sign * margin
            by_hand.append(model.distance(start, end))
    torch.testing.assert_close(worst, torch.stack(by_hand).amax(0))
    assert (worst - plain).abs().max() > 1e-3
    assert model.distance(goal[:, None], goal, robust_radius=margin).abs().max() == 0
    a, b = (agent(robust_radius=m) for m in (0.0, 5.0))
    plans = []
    for one in (a, b):
        one.reset(frames(2, 0), [0, 1])
        plans.append(one.act(frames(2, 1)))
    assert not np.array_equal(*plans), "the search minimises what is read with the margin"


def test_discrete_actions_are_chosen_by_number():
    space = DiscreteSpace.of_block(
        3, block=SKIP, action_repeat=False, vectors=[[0, 0], [1, 0], [0, 1]]
    )
    a = Agent(world_model(), space, planner(horizon=3))
    a.reset(frames(2, 0), [0, 1])
    for step in range(2):
        chosen = a.act(frames(2, step + 1))
        assert chosen.shape == (2, SKIP, 1) and set(chosen.flatten()) <= {0, 1, 2}
    with pytest.raises(
        ValueError,
        match="planner.solver icem searches continuous actions; set planner.solver.name=cem",
    ):
        ICEM().make(space, 3)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_world_model_gives_gradients_where_they_are_wanted(precision):
    model = world_model()
    model.encoder.precision = precision
    context, past = torch.randn(2, 2, 1, 5), torch.randn(2, 1, 4)
    actions = torch.randn(2, 3, 4, 4)
    plain = model.imagine(context, past, actions)
    steps = model.distance(plain, context[:, 0])
    assert not plain.requires_grad and not steps.requires_grad
    wanted = model.imagine(context, past, actions.requires_grad_())
    costs = model.distance(wanted, context[:, 0])
    (slope,) = torch.autograd.grad(costs.sum(), actions)
    assert torch.isfinite(slope).all() and slope.any()
    near = 1e-5 if precision == "fp32" else 0.1
    torch.testing.assert_close(wanted, plain, atol=near, rtol=near)
    with torch.no_grad():
        assert not model.imagine(context, past, actions).requires_grad


def watched(model, monkeypatch):
    """Contexts and pasts that the model imagines from, one a decision."""
    seen, imagine = [], model.futures

    def look(context, past, actions, **rest):
        if not seen or seen[-1][0] is not context:
            seen.append((context, past))
        return imagine(context, past, actions, **rest)

    monkeypatch.setattr(model, "futures", look)
    return seen


@pytest.mark.parametrize("window", [1, 2, 3, 4])
@pytest.mark.parametrize("execute", [2, 3])
@pytest.mark.parametrize("shown", ["all", "none", "first"])
def test_the_context_goes_on_while_several_steps_are_executed(window, execute, shown, monkeypatch):
    model = world_model(window)
    model.latent.components.fit(torch.randn(40, 9, 16))
    a = agent(model=model, execute=execute, memory_mb=2048)
    seen, latent = watched(model, monkeypatch), model.latent
    a.reset(frames(2, 0), [0, 1])
    film, blocks = [], []  # what an agent that decides at every step would hold
    for decision in range(3):
        now = frames(2, 10 * decision + 1)
        film.append(a.model.encode(torch.from_numpy(now)))
        seen.clear()
        taken = a.act(now)
        context, past = next((c, p) for c, p in seen)
        count = min(len(film), window)
        assert context.shape[:2] == (2, count) and past.shape[:2] == (2, count - 1)
        torch.testing.assert_close(context[..., :3], torch.stack(film[-count:], 1)[..., :3])
        assert count == 1 or torch.equal(past, torch.stack(blocks[-count + 1 :], 1))
        belief, context = a._belief, torch.stack(film[-window:], 1)
        steps = torch.from_numpy(taken).reshape(2, execute, -1)
        guesses = model.imagine(
            latent.believed(context, belief),
            torch.stack(blocks[-context.shape[1] + 1 :], 1)
            if context.shape[1] > 1
            else past[:, :0],
            steps[:, None],
        )[:, 0]
        for step in range(1, execute):
            between = frames(2, 10 * decision + 1 + step)
            if shown == "all" or (shown == "first" and step == 1):
                a.observe(between)
                film.append(a.model.encode(torch.from_numpy(between)))
            elif shown == "none":
                film.append(guesses[:, step - 1])
            else:  # from what was shown on
                known = [latent.believed(x, a._belief) for x in film[-window:]]
                past = torch.stack(
                    [*blocks, *steps.unbind(1)][: len(film) - 1][-len(known) + 1 :], 1
                )
                past = past if len(known) > 1 else past[:, :0]
                film.append(
                    model.imagine(torch.stack(known, 1), past, steps[:, None, step - 1 : step])[
                        :, 0, 0
                    ]
                )
        blocks += steps.unbind(1)
        if shown == "all":
            with pytest.raises(RuntimeError, match="hand them to act"):
                a.observe(now)


def test_a_loop_shows_the_frames_of_every_model_step_of_a_plan():
    class Counter:
        """Its frames and rewards are the number of steps taken."""

        def __len__(self):
            return len(self.now)

        def reset(self, seeds):
            self.now = np.zeros((len(seeds), 1), np.float32)

        def step(self, action):
            self.now = self.now + 1

        def render(self):
            return self.now[:, 0].copy()

        state = reward = render

    world, acted, seen = Counter(), [], []
    world.state = lambda: world.now.repeat(2, 1)
    for budget, expected in (
        (12, ([0, 6], [2, 4, 8, 10])),
        (9, ([0, 6], [2, 4, 8])),
        (8, ([0, 6], [2, 4])),
    ):
        world.reset([0])
        acted.clear(), seen.clear()
        answer = np.zeros((1, 6, 1))
        act = lambda world, answer=answer: acted.append(world.now[0, 0]) or answer  # noqa: E731
        look = lambda world: seen.append(world.now[0, 0])  # noqa: E731
        play(world, act, budget=budget, observe=look, every=2)
        assert (acted, seen) == expected, budget


def test_a_solver_and_a_term_of_ones_own_plan(restore):
    """From outside of the package: the solver draws corners, the term pays for going right."""
    table = planning_settings.SOLVERS
    restore(table)

    class CornerSolver(Solver):
        iterations = 2

        def propose(self, state, generator):
            drawn = noise(state.mean, 32, generator, uniform=True)
            return self.space.project(4 * drawn.round() - 2)

        def update(self, state, plans, costs):
            return replace(state, mean=state.best)

    @table.register("corners")
    class Corners(SolverSettings):
        name: Literal["corners"] = "corners"

        def make(self, space, horizon):
            return CornerSolver(space, horizon)

    contexts = []

    def rightward(context):
        contexts.append(context)
        return lambda latents, actions: -actions.unflatten(-1, (-1, 2))[..., 0].mean((-2, -1))

    sections = {"solver": {"name": "corners"}, "mpc": {"horizon": 1}}
    settings = PlannerSettings.model_validate(sections)
    for weight, goes_right in ((1e3, True), (-1e3, False)):
        a = Agent(world_model(), SPACE, settings, extra_costs=((weight, rightward),))
        a.reset(frames(2, 0), [0, 1])
        taken = a.act(frames(2, 1))
        assert (np.abs(taken) == 1).all(), "corners alone are drawn"
        assert ((taken[..., 0] > 0) == goes_right).all()
    assert contexts[0].now.shape == contexts[0].goal.shape and contexts[0].last_action is None
