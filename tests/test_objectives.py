"""Action spaces, the receding horizon, and objectives against naive loops."""

import itertools
import math

import pytest
import torch

from jepa_wm.models.distance import latent_distance
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.search import RecedingHorizon, search
from jepa_wm.planning.settings import CEM, Policy
from jepa_wm.planning.solvers import CEMSolver
from jepa_wm.planning.terms import Objective, ToGoal, effort, over_steps

BOX = ActionSpace((-1.0, -1.0), (1.0, 1.0))
H = 3


def bowl(target):
    """Squared distance of plans [B, S, H, E] to `target`, summed over steps; elementwise, so exact
    in any batch."""
    return lambda plans: (plans - target).square().sum((-2, -1))


# ---------------------------------------------------------------- action space


def test_a_held_action_fills_its_block_in_time_order():
    space = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=3, action_repeat=True)
    plan = torch.tensor([[0.1, 0.2], [0.3, 0.4]])
    assert (space.plan_dim, space.model_action_dim, space.size) == (2, 6, 2)
    assert space.to_model(plan).tolist() == plan.repeat_interleave(3, 0).reshape(2, 6).tolist()
    assert torch.equal(space.to_env(space.to_model(plan)), plan.repeat_interleave(3, 0))
    full = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), block=3, action_repeat=False)
    assert (full.plan_dim, full.model_action_dim, full.size) == (6, 6, 2)
    assert torch.equal(full.to_model(plan), plan)


def test_projection_keeps_what_is_inside_and_the_direction_of_what_is_not():
    space = ActionSpace((-3.0,) * 4, (3.0,) * 4, max_norm=1.0, group=2)
    inside, outside = torch.tensor([0.3, 0.4, 0.0, 0.0]), torch.tensor([3.0, 4.0, 0.0, -9.0])
    assert torch.equal(space.project(inside), inside)
    torch.testing.assert_close(
        space.project(outside), torch.tensor([0.5**0.5, 0.5**0.5, 0.0, -1.0])
    )


@pytest.mark.parametrize(
    ("low", "high", "rest", "message"),
    [
        ((0.0,), (math.inf,), {}, "finite"),
        ((1.0,), (0.0,), {}, "swap"),
        ((0.0,), (1.0, 1.0), {}, "one each"),
        ((1.0,), (2.0,), {"max_norm": 1.0}, "around zero"),
        ((-1.0,), (2.0,), {"max_norm": 0.0}, "max_norm must be positive"),
        ((-1.0,) * 3, (1.0,) * 3, {"group": 2}, "group 2 does not divide"),
        ((-1.0,), (1.0,), {"repeat": 0}, "repeat"),
    ],
    ids=str,
)
def test_spaces_that_cannot_be_searched_are_refused(low, high, rest, message):
    with pytest.raises(ValueError, match=message):
        ActionSpace(low, high, **rest)


# ---------------------------------------------------------------- receding horizon


class Spy(CEMSolver):
    """CEM that remembers what each search began with."""

    def __init__(self):
        super().__init__(CEM(iterations=2), BOX, H)
        self.starts = []

    def begin(self, start, generator):
        self.starts.append(start)
        return super().begin(start, generator)


def test_the_next_search_starts_from_what_is_left():
    agent = RecedingHorizon(Spy(), execute=2)
    starts = agent.solver.starts
    with pytest.raises(RuntimeError, match="before reset"):
        agent.plan(bowl(0.5))
    agent.reset([3, 4], device=torch.device("cpu"))
    first = agent.plan(bowl(0.5))
    mean = agent.last.mean
    assert torch.equal(first, agent.last.actions[:, :2])
    agent.plan(bowl(0.5))
    assert starts[0] is None
    assert torch.equal(starts[1], mean[:, [2, 2, 2]][:, None])
    agent.reset([3, 4], device=torch.device("cpu"))
    assert torch.equal(agent.plan(bowl(0.5)), first) and starts[2] is None


def test_a_point_is_steered_to_its_goal_one_block_at_a_time():
    space = ActionSpace.of_block(
        (-1.0, -1.0), (1.0, 1.0), max_norm=1.0, block=5, action_repeat=True
    )
    agent = RecedingHorizon(CEM(num_samples=64, iterations=4).make(space, 4))
    agent.reset(range(3), device=torch.device("cpu"))
    position, goal = torch.zeros(3, 2), torch.tensor([[20.0, 5.0], [-9.0, 3.0], [0.0, -14.0]])

    def moved(plans):  # [B, S, H, 10] to positions after each model step
        return position[:, None, None] + plans.unflatten(-1, (5, 2)).sum(-2).cumsum(-2)

    for _ in range(6):
        block = agent.plan(
            lambda plans: (moved(plans) - goal[:, None, None]).norm(dim=-1).mean(-1)
        )
        assert block.shape == (3, 1, 10)
        position = position + space.to_env(block).sum(1)
    assert (position - goal).norm(dim=-1).max() < 1.0


def test_a_search_starts_from_a_proposal_and_tries_what_is_left_beside_it():
    agent, proposal = RecedingHorizon(Spy()), torch.full((2, H, 2), 0.25)
    starts = agent.solver.starts
    agent.reset([3, 4], device=torch.device("cpu"))
    agent.plan(bowl(0.5), proposal=proposal)
    left = agent._left[:, 0]
    agent.plan(bowl(0.5), proposal=-proposal)
    assert torch.equal(starts[0], proposal[:, None])
    assert torch.equal(starts[1][:, 0], -proposal) and torch.equal(starts[1][:, 1], left)


def test_cem_tries_every_plan_of_a_warm_start_and_a_proposal_alone_is_taken_as_it_is():
    """Nothing drawn comes near the needle, but one of the plans it was given is there."""
    needle = torch.tensor([[0.9, -0.9], [-0.9, 0.9], [0.9, 0.9]])
    start = torch.stack([torch.zeros(1, H, 2), torch.full((1, H, 2), 0.1), needle[None]], 1)
    tried = CEM(num_samples=8, elites=2, iterations=1).make(BOX, H)
    plan = search(tried, bowl(needle), start=start, generator=[torch.Generator().manual_seed(0)])
    assert torch.equal(plan.actions[0], needle) and plan.cost == 0
    alone = Policy().make(BOX, H)
    plan = search(alone, bowl(needle), start=2 * needle[None], generator=[torch.Generator()])
    assert torch.equal(plan.actions[0], needle.sign()) and plan.trace.shape == (1, 1)
    torch.testing.assert_close(plan.cost, bowl(needle)(needle.sign()[None, None])[0])
    with pytest.raises(ValueError, match="horizon"):
        Policy().make(BOX, 0)


@pytest.mark.parametrize("hold", [True, False])
def test_condensing_undoes_expanding(hold):
    g = torch.Generator().manual_seed(0)
    for space in (
        ActionSpace.of_block((-1.0, -2.0), (1.0, 2.0), max_norm=1.5, block=3, action_repeat=hold),
        DiscreteSpace.of_block(4, block=3, action_repeat=hold),
        DiscreteSpace.of_block(3, block=3, action_repeat=hold, vectors=[[0, 0], [1, 0], [0, 1]]),
    ):
        plan = space.project(torch.randn(2, 5, space.plan_dim, generator=g))
        near = space.to_model(plan) + 0.01 * torch.randn(2, 5, space.model_action_dim, generator=g)
        torch.testing.assert_close(space.to_plan(space.to_model(plan)), plan)
        torch.testing.assert_close(space.to_plan(near), plan, atol=0.05, rtol=0)


def test_what_cannot_be_executed_is_refused():
    with pytest.raises(ValueError, match="execute must lie in 1..horizon"):
        RecedingHorizon(CEM().make(BOX, 2), execute=3)


# ---------------------------------------------------------------- objectives


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine"])
def test_distances_equal_naive_loops(kind):
    latents, goal = torch.randn(2, 3, 4, 5, 6), torch.randn(2, 5, 6)
    expected = torch.empty(2, 3, 4)
    for b, s, h in itertools.product(range(2), range(3), range(4)):
        total = 0.0
        for n in range(5):
            x, g = latents[b, s, h, n], goal[b, n]
            if kind == "cosine":
                total += 1 - float(x @ g / (x.norm() * g.norm()))
            else:
                total += sum(abs(float(d)) ** (1 if kind == "l1" else 2) for d in x - g) / 6
        expected[b, s, h] = total / 5
    torch.testing.assert_close(latent_distance(latents, goal, kind=kind), expected)


def test_steps_are_reduced_as_named():
    costs = torch.randn(2, 3, 4)
    torch.testing.assert_close(
        over_steps(costs, mode="all"), sum(costs[..., k] for k in range(4)) / 4
    )
    rising = sum((k + 1) * costs[..., k] for k in range(4)) / 10
    torch.testing.assert_close(over_steps(costs, mode="rising"), rising)
    assert torch.equal(over_steps(costs, mode="last"), costs[..., 3])
    with pytest.raises(ValueError, match="first.*choose last"):
        over_steps(costs, mode="first")
    with pytest.raises(ValueError, match="l3.*choose one of l1"):
        latent_distance(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), kind="l3")


def test_an_objective_is_the_weighted_sum_of_its_terms_and_takes_a_learned_metric():
    latents, goal, actions = (
        torch.randn(2, 3, 4, 5, 6),
        torch.randn(2, 5, 6),
        torch.randn(2, 3, 4, 2),
    )
    metric = torch.nn.Linear(6, 1)

    def learned(latents, goal):
        return metric(latents - goal[:, None, None]).abs().mean((-2, -1))

    far = ToGoal(goal=goal, distance=learned, mode="all")
    objective = Objective(((1.0, far), (0.1, effort)))
    expected = learned(latents, goal).mean(-1) + 0.1 * actions.square().mean((2, 3))
    torch.testing.assert_close(objective(latents, actions), expected)
    with pytest.raises(ValueError, match="at least one"):
        Objective(())
