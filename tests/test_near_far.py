"""The temporal distance far from the goal, the latent's own within one plan of it: known answers,
and that it is a cost like others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planners import planner
from small_models import FACTORED, small_world_model

from jepa_wm.core.errors import UserError
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext, PlanningCost, check_cost, plans_at_once
from jepa_wm.planning.near_far import LEAST_DIFFERENCE, SOFTNESS, dynamic_difference, near_far
from jepa_wm.planning.terms import Objective, expected_cost, to_goal

HORIZON, STEPS = 4, 10.0  # of a plan; model steps that a unit of the line below is
DEAD = 9.0  # a static number, which tells nothing


def away(latents, goal):
    """[B, S, H] model steps along the line, a wall being a whole number: passing one costs two."""
    at, to = latents[..., 0, 0], goal[:, None, None, 0, 0]
    return STEPS * (to - at).abs() + 2 * (to.floor() - at.floor()).abs()


class Line:
    """Latents of one dynamic number, a place, and one static one."""

    latent = SimpleNamespace(compared=lambda latents: latents, visual_dim=1)

    def distance(self, latents, goal, *, kind, robust_radius=0.0):
        assert kind == "temporal"
        return away(latents, goal)


def on_the_line(places, static=DEAD):
    """[..., 1, 2] latents of places [...]."""
    places = torch.tensor(places)
    return torch.stack([places, torch.full_like(places, static)], -1)[..., None, :]


def context_on_the_line(now, goal, **keys):
    return PlanningContext(
        model=Line(), settings=planner(objective="near_far", horizon=HORIZON, **keys),
        latents=on_the_line(now)[:, None], past=torch.zeros(len(now), 0, 1),
        goal=on_the_line(goal),
    )  # fmt: skip


def test_far_away_it_is_the_temporal_distance_and_near_the_latents_own():
    """One episode is twenty steps from its goal, one as far as a plan reaches, one a step."""
    context = context_on_the_line([0.1, 0.1, 0.1], [1.9, 0.5, 0.2])
    both, plans = near_far(context, away), on_the_line([[[0.15, 1.2]]]).expand(3, -1, -1, -1, -1)
    assert pytest.approx(2 / 3) == SOFTNESS * HORIZON
    expected = torch.sigmoid(torch.tensor([20.0 - 4, 0.0, 1.0 - 4]) / (2 / 3))
    torch.testing.assert_close(both.weight, expected)
    assert both.weight[0] > 0.9999 and both.weight[2] < 0.02
    priced = both(plans, context.goal)
    torch.testing.assert_close(priced[0], away(plans, context.goal)[0], rtol=1e-4, atol=1e-4)
    # Where the temporal distance counts no wall, both agree: near the goal a wall is no matter.
    own = [10 * ((place - 0.2) ** 2 + LEAST_DIFFERENCE**2) ** 0.5 for place in (0.15, 1.2)]
    weight = both.weight[2].item()
    temporal = away(plans, context.goal)[2, 0]
    for h, distance in enumerate(own):
        mixed = weight * temporal[h].item() + (1 - weight) * distance
        assert priced[2, 0, h].item() == pytest.approx(mixed, rel=0.01)
    assert priced[2, 0, 1] < temporal[1] - 1.9, "passing the wall costs two steps by the other"


def test_both_agree_where_the_episode_stands_and_a_step_is_the_least():
    context = context_on_the_line([0.1, 0.3, 0.3], [1.9, 0.5, 0.3])
    both = near_far(context, away)
    here = both(context.now[:, None, None], context.goal)[:, 0, 0]
    torch.testing.assert_close(here[:2], torch.tensor([20.0, 2.0]))
    assert both.scale[2] == pytest.approx(1 / LEAST_DIFFERENCE), "at the goal: finite, above 0"


def test_the_worst_reading_within_a_radius_switches_no_later():
    """Where a radius reads more steps, a goal is within one plan as it is without."""
    context = context_on_the_line([0.1, 0.1, 0.1], [1.9, 0.5, 0.2])
    plain, worst = (near_far(context, far) for far in (away, lambda *at: away(*at) + 30))
    assert torch.equal(plain.weight, worst.weight)
    here = worst(context.now[:, None, None], context.goal)[:, 0, 0]
    torch.testing.assert_close(here, worst.far(context.now[:, None, None], context.goal)[:, 0, 0])


def test_it_has_a_gradient_at_the_goal_and_at_the_reach():
    context = context_on_the_line([0.1, 0.5], [0.5, 0.5])
    term = to_goal(context)
    for place in (0.5, 0.1):
        plans = on_the_line([[[place]]] * 2).requires_grad_()
        (slope,) = torch.autograd.grad(term(plans, plans[..., 0, :1]).sum(), plans)
        assert torch.isfinite(slope).all() and not slope[..., 1].any()


def test_static_numbers_and_a_map_have_no_part():
    model = small_world_model(FACTORED)
    latents, goal = torch.randn(2, 3, 4, 1, 5), torch.randn(2, 1, 5)
    apart = dynamic_difference(model, latents, goal)
    expected = (latents - goal[:, None, None])[..., 0, :3].square().mean(-1)
    torch.testing.assert_close(apart, (expected + LEAST_DIFFERENCE**2).sqrt())
    latents[..., 3:] += 7
    assert torch.equal(dynamic_difference(model, latents, goal), apart)


def priced(model, plans, **keys):
    """[B, S] costs of plans from two random latents toward two random goals."""
    torch.manual_seed(1)
    latents, goal = torch.randn(2, 1, 1, 5), torch.randn(2, 1, 5)
    goal[..., 3:] = latents[:, 0, :, 3:]
    context = PlanningContext(
        model=model, settings=planner(objective="near_far", horizon=3, **keys), latents=latents,
        past=torch.zeros(2, 0, 4), goal=goal,
    )  # fmt: skip
    return PlanningCost(context)(plans)


@pytest.mark.parametrize("steps", ["last", "all", "rising"])
def test_a_plans_cost_depends_on_no_other_plan_nor_on_the_pieces(steps):
    model = small_world_model(FACTORED, frameskip=2)
    plans = torch.randn(2, 9, 3, 4)
    whole = priced(model, plans, steps=steps)
    each, fixed = model.plan_bytes(3)
    pieces = priced(model, plans, steps=steps, memory_mb=(fixed + 4.5 * each) / 2**20)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(priced(model, plans[:, 5:], steps=steps), whole[:, 5:])
    # Whole as in pieces they have gradients.
    slopes = []
    for memory in (2048, 3 * model.plan_bytes(3, gradients=True)[0] / 2**20):
        leaf = plans.clone().requires_grad_()
        costs = priced(model, leaf, steps=steps, memory_mb=memory)
        slopes.append(torch.autograd.grad(costs.sum(), leaf)[0])
    assert slopes[0].abs().max() > 0
    torch.testing.assert_close(*slopes)


def test_of_several_futures_it_is_the_mean():
    context = context_on_the_line([0.1], [0.5], steps="last")
    futures = on_the_line([[[[0.2, 0.3]]], [[[0.2, 0.6]]]])[None]  # [1, 2, 1, 1, 2, 1, 2]
    term = Objective(((1.0, to_goal(context)),))
    actions = torch.zeros(1, 1, 2, 1)
    each = [term(future, actions) for future in futures[0]]
    torch.testing.assert_close(torch.cat(each), torch.tensor([[2.0], [1.0]]), atol=0.02, rtol=0)
    torch.testing.assert_close(expected_cost(futures, actions, term), sum(each) / 2)


@pytest.mark.parametrize("solver", ["gradient", "cem_gradient"])
@pytest.mark.parametrize("chance", [0, 2])
def test_gradients_and_chance_plan_with_it(solver, chance):
    settings = planner(
        solver=solver, objective="near_far", horizon=3, robust_radius=0.1, num_futures=3
    )
    space = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=2, action_repeat=True)
    model = small_world_model(FACTORED, frameskip=2, mixture_components=chance)
    agent, pictures = Agent(model, space, settings), np.random.default_rng(0)
    agent.reset(pictures.integers(256, size=(2, 12, 12, 3), dtype=np.uint8), [0, 1])
    acted = agent.act(pictures.integers(256, size=(2, 12, 12, 3), dtype=np.uint8))
    assert np.isfinite(acted).all() and np.abs(acted).max() > 0
    assert (agent.mpc.last.trace[:, -1] <= agent.mpc.last.trace[:, 0]).all()


def test_what_it_holds_beside_the_temporal_distance_counts_as_memory():
    model = small_world_model(FACTORED, frameskip=2)
    counts = [
        plans_at_once(model, planner(objective=name, horizon=3, memory_mb=1), gradients=True)
        for name in ("temporal", "near_far")
    ]
    assert counts[1] < counts[0]


def test_a_model_without_a_temporal_distance_is_refused():
    model = small_world_model(FACTORED)
    model.latent_model.distance = None
    with pytest.raises(UserError, match=r"near_far is a learned distance.*objective=l1"):
        check_cost(model, planner(objective="near_far"))
