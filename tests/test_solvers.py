"""iCEM, gradient, one after the other, and discrete actions: optima, bounds, warm starts, and
plans of one's own."""

import pytest
import torch

from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.categorical import CategoricalCEM
from jepa_wm.planning.gradient import Gradient, InTurn
from jepa_wm.planning.icem import ICEM, colour_filter
from jepa_wm.planning.receding import RecedingHorizon
from jepa_wm.planning.solvers import CEM

BOX = ActionSpace((-1.0, -1.0), (1.0, 1.0))
H = 3


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def bowl(target):
    return lambda plans: (plans - target).square().sum((-2, -1))


def icem(space=BOX, horizon=H, **settings):
    return ICEM(**{"space": space, "horizon": horizon, "candidates": 64, "elites": 8, **settings})


def gradient(space=BOX, horizon=H, **settings):
    return Gradient(
        **{"space": space, "horizon": horizon, "restarts": 8, "rounds": 40, **settings}
    )


def cem_gradient(space=BOX, horizon=H, **settings):
    return InTurn(
        CEM(space=space, horizon=horizon, candidates=32, elites=4, rounds=2),
        gradient(space, horizon, rounds=15, lr=0.05, **settings),
    )


KINDS = pytest.mark.parametrize("kind", [icem, gradient, cem_gradient])


@KINDS
def test_the_bottom_of_a_bowl_is_found_and_the_trace_falls_to_it(kind):
    target = torch.tensor([0.4, -0.3])
    plan = kind().solve(bowl(target), generator=generators(0, 1))
    assert plan.actions.shape == plan.mean.shape == (2, H, 2)
    assert (plan.actions - target).abs().max() < 0.1
    assert torch.equal(plan.cost, bowl(target)(plan.actions[:, None])[:, 0])
    assert (plan.trace.diff(dim=1) <= 0).all() and torch.equal(plan.trace[:, -1], plan.cost)


@KINDS
@pytest.mark.parametrize("hold", [True, False])
def test_no_candidate_leaves_the_box_or_the_ball(kind, hold):
    space = ActionSpace.of_block((-1.0, 0.0), (1.0, 2.0), max_norm=1.2, block=3, hold=hold)
    seen = []

    def cost(plans):
        seen.append(plans.detach())
        return -plans.sum((-2, -1))  # pulls into the corner

    shaken = {} if kind is icem else {"noise": 0.2}
    plan = kind(space, **shaken).solve(cost, generator=generators(0))
    for plans in [*seen, space.expand(plan.actions)[:, None], space.expand(plan.mean)[:, None]]:
        single = space.steps(plans)
        assert (single >= torch.tensor([-1.0, 0.0])).all() and (
            single <= torch.tensor([1.0, 2.0])
        ).all()
        assert (single.norm(dim=-1) <= 1.2 + 1e-5).all()


@KINDS
def test_an_episode_alone_gets_the_plan_it_gets_in_a_batch(kind):
    space = ActionSpace.of_block((-1.0, -1.0), (1.0, 1.0), max_norm=1.0, block=5, hold=False)
    solver, seeds = kind(space, 4), (5, 6, 7)
    targets = torch.randn(3, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    starts = 0.3 * torch.randn(
        3, 2, 4, 10, generator=torch.Generator().manual_seed(1)
    )  # with a plan kept
    together = solver.solve(bowl(targets), start=starts, generator=generators(*seeds))
    for i, seed in enumerate(seeds):
        alone = solver.solve(
            bowl(targets[i : i + 1]), start=starts[i : i + 1], generator=generators(seed)
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
        plan = kind().solve(bowl(target), start=start[None], generator=generators(0))
        if kind is not cem_gradient or start.dim() == 2:  # CEM heeds the mean alone
            assert torch.equal(plan.actions[0], target) and plan.cost == 0
    idle = kind().solve(bowl(0.0), start=torch.full((1, H, 2), 0.9), generator=generators(0))
    assert idle.cost == 0, "doing nothing is always considered"
    with pytest.raises(ValueError, match=r"start has shape \(1, 2, 2\)"):
        kind().solve(bowl(0.0), start=torch.zeros(1, 2, 2), generator=generators(0))


# ---------------------------------------------------------------- iCEM


def test_the_population_shrinks_and_elites_compete_again():
    sizes, cheapest = [], []

    def cost(plans):
        costs = bowl(0.3)(plans)
        sizes.append(plans.shape[1])
        cheapest.append((plans[0], costs[0].argsort()[:4]))
        return costs

    solver = icem(candidates=100, elites=10, rounds=8, shrink=1.5, kept=0.4)
    plan = solver.solve(cost, generator=generators(0))
    assert sizes == [100, 66, 44, 29, 20, 20, 20, 20, 1]
    for (earlier, best), (later, _) in zip(cheapest[:7], cheapest[1:8], strict=True):
        assert torch.equal(later[2:6], earlier[best])
    assert plan.kept.shape == (1, 4, H, 2) and torch.equal(plan.kept[0, 0], plan.actions[0])


@pytest.mark.parametrize("horizon", [1, 2, 5, 16])
def test_coloured_noise_has_unit_spread_and_the_named_spectrum(horizon):
    torch.testing.assert_close(colour_filter(horizon, 0.0), torch.eye(horizon))
    for colour in (1.0, 2.0, 4.0):
        mixed = colour_filter(horizon, colour).double()
        torch.testing.assert_close(mixed.square().sum(1), torch.ones(horizon, dtype=torch.float64))
        power = torch.fft.rfft(mixed[:, 0]).abs().square()
        for k in range(2, horizon // 2 + 1):
            assert power[k] / power[1] == pytest.approx(k**-colour, rel=1e-4)


def test_the_horizon_shifts_kept_elites_with_the_mean():
    starts = []

    class Spy:
        space, horizon = BOX, H

        def solve(self, cost, *, start, generator):
            starts.append(start)
            return icem(rounds=2).solve(cost, start=start, generator=generator)

    search = RecedingHorizon(Spy(), execute=1, fill="zero")
    search.reset([3], device=torch.device("cpu"))
    search.plan(bowl(0.5))
    last = search.last
    search.plan(bowl(0.5))
    assert starts[1].shape == (1, 1 + last.kept.shape[1], H, 2)
    assert torch.equal(starts[1][:, 0, :-1], last.mean[:, 1:]) and torch.equal(
        starts[1][:, 1:, :-1], last.kept[:, :, 1:]
    )
    assert not starts[1][:, :, -1].any()


# ---------------------------------------------------------------- gradient


def test_steps_are_those_of_adam():
    start, target = torch.full((1, H, 2), 0.5), torch.tensor([0.7, 0.9])
    space = ActionSpace((-1.0, -4.0), (1.0, 4.0))  # half widths 1 and 4: lr is a share of each
    plan = gradient(space, restarts=2, rounds=5, lr=0.02).solve(
        bowl(target), start=start, generator=generators(0)
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
    plan = gradient(restarts=64, std=1.0).solve(basins, start=poor, generator=generators(0, 1, 2))
    assert (plan.cost < -0.4).all()
    still, shaken = (
        gradient(noise=n).solve(basins, start=poor[:1], generator=generators(0))
        for n in (0.0, 0.3)
    )
    assert not torch.equal(still.actions, shaken.actions)


def test_a_cost_without_a_gradient_is_refused():
    with pytest.raises(ValueError, match="gives no gradient.*such as cem"):
        gradient().solve(lambda plans: bowl(0.3)(plans.detach()), generator=generators(0))
    with pytest.raises(ValueError, match="gradient of the cost is NaN or infinite"):
        gradient().solve(lambda plans: (plans * 0).sqrt().sum((-2, -1)), generator=generators(0))


def test_the_gradient_never_makes_a_search_worse():
    def cost(plans):
        return (5 * plans).sin().sum((-2, -1)) + bowl(0.2)(plans)

    both = cem_gradient()
    plan, alone = (s.solve(cost, generator=generators(0, 1)) for s in (both, both.first))
    assert (plan.cost <= alone.cost).all() and (plan.cost < alone.cost - 1e-3).any()
    assert plan.trace.shape == (2, 17) and torch.equal(plan.trace[:, :2], alone.trace)


# ---------------------------------------------------------------- discrete


@pytest.mark.parametrize("hold", [True, False])
def test_discrete_choices_are_found_and_are_always_choices(hold):
    space = DiscreteSpace.of_block(5, block=2, hold=hold)
    right = torch.randint(5, (H, space.slots), generator=torch.Generator().manual_seed(0))
    wanted = space.expand(space.one_hot(right))
    seen = []

    def cost(plans):
        seen.append(plans)
        return bowl(wanted)(plans)

    solver = CategoricalCEM(space=space, horizon=H, candidates=128, rounds=8)
    plan = solver.solve(cost, generator=generators(0, 1))
    assert (
        torch.equal(space.expand(plan.actions), wanted.expand(2, -1, -1)) and not plan.cost.any()
    )
    chosen = space.steps(wanted)
    assert torch.equal(chosen[:, 0], right.repeat_interleave(space.repeat, -1).flatten())
    for plans in seen:
        each = plans.unflatten(-1, (-1, 5))
        assert (each.sum(-1) == 1).all() and ((each == 0) | (each == 1)).all()
    torch.testing.assert_close(
        plan.mean.unflatten(-1, (-1, 5)).sum(-1), torch.ones(2, H, space.slots)
    )
    assert (plan.mean > 0).all(), "no choice dies out"


def test_discrete_plans_are_ones_own_and_warm_starts_are_probabilities():
    space = DiscreteSpace.of_block(4, block=2, hold=False)
    solver = CategoricalCEM(space=space, horizon=H, candidates=16, rounds=3, elites=4)
    targets = torch.rand(3, 1, H, space.expanded, generator=torch.Generator().manual_seed(0))
    together = solver.solve(bowl(targets), generator=generators(1, 2, 3))
    alone = solver.solve(bowl(targets[1:2]), generator=generators(2))
    assert torch.equal(alone.actions[0], together.actions[1]) and torch.equal(
        alone.mean[0], together.mean[1]
    )
    again = solver.solve(bowl(targets), start=together.mean, generator=generators(1, 2, 3))
    assert (again.cost <= together.cost).all()
    search = RecedingHorizon(solver)
    search.reset([1], device=torch.device("cpu"))
    assert search.plan(bowl(0.0)).shape == search.plan(bowl(0.0)).shape == (1, 1, 8)
    with pytest.raises(ValueError, match="start must hold probabilities"):
        solver.solve(
            bowl(targets), start=torch.full((3, H, 8), 0.3), generator=generators(1, 2, 3)
        )


def test_choices_have_numbers_that_the_model_takes():
    space = DiscreteSpace.of_block(
        3, block=2, hold=True, vectors=[[0.0, 0.0], [1.0, 0.5], [0.0, -2.0]]
    )
    plan = space.one_hot(torch.tensor([[2], [0]]))
    assert (space.searched, space.expanded, space.size) == (3, 4, 2)
    assert space.expand(plan).tolist() == [[0.0, -2.0, 0.0, -2.0], [0.0] * 4]
    assert space.steps(space.expand(plan)).flatten().tolist() == [2, 2, 0, 0]
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
    ("make", "message"),
    [
        (lambda: icem(elites=40), "elites must lie in 2..candidates/2"),
        (lambda: icem(elites=1), "elites must lie in 2"),
        (lambda: icem(shrink=0.5), "shrink must be at least 1"),
        (lambda: icem(kept=1.5), "kept lie in 0..1"),
        (lambda: gradient(restarts=1), "restarts must be at least 2"),
        (lambda: gradient(lr=0.0), "lr and std must be positive"),
        (lambda: InTurn(icem(), gradient(horizon=H + 1)), "differ in space or horizon"),
        (
            lambda: CategoricalCEM(
                space=DiscreteSpace.of_block(2, block=1, hold=True), horizon=1, explore=2
            ),
            "explore",
        ),
        (
            lambda: CategoricalCEM(
                space=DiscreteSpace.of_block(2, block=1, hold=True), horizon=1, elites=0
            ),
            "elites",
        ),
    ],
)
def test_settings_that_make_no_search_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
