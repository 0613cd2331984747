"""iCEM, gradient, one after the other, and discrete actions: optima, bounds, warm starts, and
plans of one's own."""

import pytest
import torch
from pydantic import ValidationError

from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.search import RecedingHorizon, search
from jepa_wm.planning.settings import CEM, ICEM, CEMGradient, Gradient, Policy
from jepa_wm.planning.solvers import ICEMSolver, coloured

BOX = ActionSpace((-1.0, -1.0), (1.0, 1.0))
H = 3


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def bowl(target):
    return lambda plans: (plans - target).square().sum((-2, -1))


def icem(space=BOX, horizon=H, **settings):
    return ICEM(**{"num_samples": 64, "elites": 8, **settings}).make(space, horizon)


def gradient(space=BOX, horizon=H, **settings):
    return Gradient(**{"num_samples": 8, "iterations": 40, **settings}).make(space, horizon)


def cem_gradient(space=BOX, horizon=H, **settings):
    return CEMGradient(
        cem=CEM(num_samples=32, elites=4, iterations=2),
        gradient=Gradient(num_samples=8, iterations=15, lr=0.05, **settings),
    ).make(space, horizon)


KINDS = pytest.mark.parametrize("kind", [icem, gradient, cem_gradient])


@KINDS
def test_the_bottom_of_a_bowl_is_found_and_the_trace_falls_to_it(kind):
    target = torch.tensor([0.4, -0.3])
    plan = search(kind(), bowl(target), generator=generators(0, 1))
    assert plan.actions.shape == plan.mean.shape == (2, H, 2)
    assert (plan.actions - target).abs().max() < 0.1
    assert torch.equal(plan.cost, bowl(target)(plan.actions[:, None])[:, 0])
    assert (plan.trace.diff(dim=1) <= 0).all() and torch.equal(plan.trace[:, -1], plan.cost)


@KINDS
@pytest.mark.parametrize("hold", [True, False])
def test_no_candidate_leaves_the_box_or_the_ball(kind, hold):
    space = ActionSpace.of_block(
        (-1.0, 0.0), (1.0, 2.0), max_norm=1.2, block=3, action_repeat=hold
    )
    scored = []

    def cost(plans):
        scored.append(plans.detach())
        return -plans.sum((-2, -1))  # pulls into the corner

    shaken = {} if kind is icem else {"noise": 0.2}
    plan = search(kind(space, **shaken), cost, generator=generators(0))
    for plans in [
        *scored,
        space.to_model(plan.actions)[:, None],
        space.to_model(plan.mean)[:, None],
    ]:
        single = space.to_env(plans)
        assert (single >= torch.tensor([-1.0, 0.0])).all() and (
            single <= torch.tensor([1.0, 2.0])
        ).all()
        assert (single.norm(dim=-1) <= 1.2 + 1e-5).all()


@KINDS
def test_an_episode_alone_gets_the_plan_it_gets_in_a_batch(kind):
    space = ActionSpace.of_block(
        (-1.0, -1.0), (1.0, 1.0), max_norm=1.0, block=5, action_repeat=False
    )
    solver, seeds = kind(space, 4), (5, 6, 7)
    targets = torch.randn(3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    starts = 0.3 * torch.randn(
        3, 2, 4, 10, generator=torch.Generator().manual_seed(1)
    )  # with a plan kept
    together = search(solver, bowl(targets), start=starts, generator=generators(*seeds))
    for i, seed in enumerate(seeds):
        alone = search(
            solver, bowl(targets[i : i + 1]), start=starts[i : i + 1], generator=generators(seed)
        )
        for field in ("actions", "mean", "cost", "trace"):
            assert torch.equal(getattr(alone, field)[0], getattr(together, field)[i]), field


@KINDS
def test_a_warm_start_and_kept_plans_are_tried_and_never_lost(kind):
    target, poor = torch.tensor([0.83, -0.77]).expand(H, 2), torch.full((H, 2), -0.9)
    for start in (
        target,
        torch.stack([poor, target]),
    ):  # the mean itself, or a plan kept behind it
        plan = search(kind(), bowl(target), start=start[None], generator=generators(0))
        if kind is not cem_gradient or start.dim() == 2:  # CEM heeds the mean alone
            assert torch.equal(plan.actions[0], target) and plan.cost == 0
    idle = search(kind(), bowl(0.0), start=torch.full((1, H, 2), 0.9), generator=generators(0))
    assert idle.cost == 0, "doing nothing is always considered"
    with pytest.raises(ValueError, match=r"start has shape \(1, 2, 2\)"):
        search(kind(), bowl(0.0), start=torch.zeros(1, 2, 2), generator=generators(0))


# ---------------------------------------------------------------- iCEM


def test_the_population_shrinks_and_elites_compete_again():
    sizes, cheapest = [], []

    def cost(plans):
        costs = bowl(0.3)(plans)
        sizes.append(plans.shape[1])
        cheapest.append((plans[0], costs[0].argsort()[:4]))
        return costs

    solver = icem(num_samples=100, elites=10, iterations=8, population_decay=1.5, keep_elites=0.4)
    plan = search(solver, cost, generator=generators(0))
    assert sizes == [100, 66, 44, 29, 20, 20, 20, 20, 1]
    for (earlier, best), (later, _) in zip(cheapest[:7], cheapest[1:8], strict=True):
        assert torch.equal(later[2:6], earlier[best])
    assert plan.kept.shape == (1, 4, H, 2) and torch.equal(plan.kept[0, 0], plan.actions[0])


@pytest.mark.parametrize("horizon", [1, 2, 5, 16])
def test_coloured_noise_has_unit_spread_and_the_named_spectrum(horizon):
    torch.testing.assert_close(coloured(horizon, 0.0), torch.eye(horizon))
    for colour in (1.0, 2.0, 4.0):
        mixed = coloured(horizon, colour).double()
        torch.testing.assert_close(mixed.square().sum(1), torch.ones(horizon, dtype=torch.float64))
        power = torch.fft.rfft(mixed[:, 0]).abs().square()
        for k in range(2, horizon // 2 + 1):
            assert power[k] / power[1] == pytest.approx(k**-colour, rel=1e-4)


def test_the_horizon_shifts_kept_elites_with_the_mean():
    starts = []

    class Spy(ICEMSolver):
        def begin(self, start, generator):
            starts.append(start)
            return super().begin(start, generator)

    mpc = RecedingHorizon(Spy(ICEM(num_samples=64, elites=8, iterations=2), BOX, H), execute=1)
    mpc.reset([3], device=torch.device("cpu"))
    mpc.plan(bowl(0.5))
    last = mpc.last
    mpc.plan(bowl(0.5))
    assert starts[1].shape == (1, 1 + last.kept.shape[1], H, 2)
    assert torch.equal(starts[1][:, 0, :-1], last.mean[:, 1:]) and torch.equal(
        starts[1][:, 1:, :-1], last.kept[:, :, 1:]
    )
    assert torch.equal(starts[1][:, :, -1], starts[1][:, :, -2])


# ---------------------------------------------------------------- gradient


def test_steps_are_those_of_adam():
    start, target = torch.full((1, H, 2), 0.5), torch.tensor([0.7, 0.9])
    space = ActionSpace((-1.0, -4.0), (1.0, 4.0))  # half widths 1 and 4: lr is a share of each
    plan = search(
        gradient(space, num_samples=2, iterations=5, lr=0.02),
        bowl(target),
        start=start,
        generator=generators(0),
    )
    parameter = (start / torch.tensor([1.0, 4.0])).requires_grad_()
    adam = torch.optim.Adam([parameter], lr=0.02)
    for _ in range(5):
        adam.zero_grad()
        bowl(target)(parameter * torch.tensor([1.0, 4.0])).sum().backward()
        adam.step()
    torch.testing.assert_close(plan.actions, parameter.detach() * torch.tensor([1.0, 4.0]))


def test_restarts_find_the_deeper_of_two_basins_and_noise_changes_the_way():
    def basins(plans):
        x = plans.mean(-2)
        return torch.minimum((x + 0.6).square().sum(-1), (x - 0.6).square().sum(-1) - 0.5)

    poor = torch.full((3, H, 2), -0.6)
    plan = search(
        gradient(num_samples=64, std=1.0), basins, start=poor, generator=generators(0, 1, 2)
    )
    assert (plan.cost < -0.4).all()
    still, shaken = (
        search(gradient(noise=n), basins, start=poor[:1], generator=generators(0))
        for n in (0.0, 0.3)
    )
    assert not torch.equal(still.actions, shaken.actions)


def test_a_cost_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="gives no gradient.*such as cem"):
        search(gradient(), lambda plans: bowl(0.3)(plans.detach()), generator=generators(0))
    with pytest.raises(ValueError, match="gradient of the cost is NaN or infinite"):
        search(gradient(), lambda plans: (plans * 0).sqrt().sum((-2, -1)), generator=generators(0))


def test_the_gradient_never_makes_a_search_worse():
    def cost(plans):
        return (5 * plans).sin().sum((-2, -1)) + bowl(0.2)(plans)

    plan = search(cem_gradient(), cost, generator=generators(0, 1))
    cem = CEM(num_samples=32, elites=4, iterations=2).make(BOX, H)
    alone = search(cem, cost, generator=generators(0, 1))
    assert (plan.cost <= alone.cost).all() and (plan.cost < alone.cost - 1e-3).any()
    assert plan.trace.shape == (2, 17) and torch.equal(plan.trace[:, :2], alone.trace)


# ---------------------------------------------------------------- discrete


@pytest.mark.parametrize("hold", [True, False])
def test_discrete_choices_are_found_and_are_always_choices(hold):
    space = DiscreteSpace.of_block(5, block=2, action_repeat=hold)
    right = torch.randint(5, (H, space.slots), generator=torch.Generator().manual_seed(0))
    target = space.to_model(space.one_hot(right))
    scored = []

    def cost(plans):
        scored.append(plans)
        return bowl(target)(plans)

    solver = CEM(num_samples=128, iterations=8).make(space, H)
    plan = search(solver, cost, generator=generators(0, 1))
    assert (
        torch.equal(space.to_model(plan.actions), target.expand(2, -1, -1)) and not plan.cost.any()
    )
    chosen = space.to_env(target)
    assert torch.equal(chosen[:, 0], right.repeat_interleave(space.repeat, -1).flatten())
    for plans in scored:
        each = plans.unflatten(-1, (-1, 5))
        assert (each.sum(-1) == 1).all() and ((each == 0) | (each == 1)).all()
    torch.testing.assert_close(
        plan.mean.unflatten(-1, (-1, 5)).sum(-1), torch.ones(2, H, space.slots)
    )
    assert (plan.mean > 0).all(), "no choice dies out"


def test_discrete_plans_are_ones_own_and_warm_starts_are_probabilities():
    space = DiscreteSpace.of_block(4, block=2, action_repeat=False)
    solver = CEM(num_samples=16, iterations=3, elites=4).make(space, H)
    targets = torch.rand(
        3, 1, H, space.model_action_dim, generator=torch.Generator().manual_seed(0)
    )
    together = search(solver, bowl(targets), generator=generators(1, 2, 3))
    alone = search(solver, bowl(targets[1:2]), generator=generators(2))
    assert torch.equal(alone.actions[0], together.actions[1]) and torch.equal(
        alone.mean[0], together.mean[1]
    )
    again = search(solver, bowl(targets), start=together.mean, generator=generators(1, 2, 3))
    assert (again.cost <= together.cost).all()
    mpc = RecedingHorizon(solver)
    mpc.reset([1], device=torch.device("cpu"))
    assert mpc.plan(bowl(0.0)).shape == mpc.plan(bowl(0.0)).shape == (1, 1, 8)
    with pytest.raises(ValueError, match="start must hold probabilities"):
        search(
            solver, bowl(targets), start=torch.full((3, H, 8), 0.3), generator=generators(1, 2, 3)
        )


def test_choices_have_numbers_that_the_model_takes():
    space = DiscreteSpace.of_block(
        3, block=2, action_repeat=True, vectors=[[0.0, 0.0], [1.0, 0.5], [0.0, -2.0]]
    )
    plan = space.one_hot(torch.tensor([[2], [0]]))
    assert (space.plan_dim, space.model_action_dim, space.size) == (3, 4, 2)
    assert space.to_model(plan).tolist() == [[0.0, -2.0, 0.0, -2.0], [0.0] * 4]
    assert space.to_env(space.to_model(plan)).flatten().tolist() == [2, 2, 0, 0]
    assert space.project(torch.zeros(2, 3)).tolist() == [[1.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("vectors", "rest", "message"),
    [
        (((1.0,),), {}, "at least two"),
        (((1.0,), (1.0, 2.0)), {}, "all of one length"),
        (((1.0,), (1.0,)), {}, "could not tell them apart"),
        (((1.0,), (float("nan"),)), {}, "finite"),
        (((1.0,), (2.0,)), {"repeat": 0}, "repeat must be at least 1"),
    ],
)
def test_choices_that_are_none_are_refused(vectors, rest, message):
    with pytest.raises(ValueError, match=message):
        DiscreteSpace(vectors, **rest)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (ICEM, {"elites": 40, "num_samples": 64}, "elites 40 with num_samples 64: solver icem"),
        (ICEM, {"elites": 1}, "elites"),
        (ICEM, {"population_decay": 0.5}, "population_decay"),
        (ICEM, {"keep_elites": 1.5}, "keep_elites"),
        (Gradient, {"num_samples": 1}, "num_samples"),
        (Gradient, {"lr": 0.0}, "lr"),
        (CEM, {"explore": 2}, "explore"),
        (CEM, {"elites": 0}, "elites"),
    ],
)
def test_settings_that_make_no_search_are_refused(kind, settings, message):
    with pytest.raises(ValidationError, match=message):
        kind(**settings)


def test_where_there_are_costs_alone_a_solver_that_needs_no_more_stands_in():
    cem = CEM(num_samples=32)
    assert cem.by_costs() is cem and CEMGradient(cem=cem).by_costs() is cem
    for other in (Gradient(), Policy()):
        assert other.by_costs() == CEM()
