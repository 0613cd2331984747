"""Solvers find known optima inside their bounds, reproducibly, and refuse what is no search."""

import math

import pytest
import torch
from pydantic import ValidationError

from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.search import search
from jepa_wm.planning.settings import CEM, MPPI, RandomShooting
from jepa_wm.planning.solvers import RandomSolver

BOX = ActionSpace((-1.0, -1.0), (1.0, 1.0))
H = 3


def solvers(**settings):
    elites = max(2, settings["num_samples"] // 8)
    kinds = CEM(elites=elites, **settings), MPPI(**settings), RandomShooting(**settings)
    return [kind.make(BOX, H) for kind in kinds]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def bowl(target):
    """Squared distance of plans [B, S, H, E] to `target`, summed over steps; elementwise, so exact
    in any batch."""
    return lambda plans: (plans - target).square().sum((-2, -1))


def names(value):
    return type(value).__name__ if not isinstance(value, str) else value


@pytest.mark.parametrize("solver", solvers(num_samples=256, iterations=10), ids=names)
def test_every_solver_finds_the_bottom_of_a_bowl(solver):
    target = torch.tensor([0.4, -0.3])
    plan = search(solver, bowl(target), generator=generators(0, 1))
    # Random shooting in 6 dimensions only gets near; the others converge.
    tolerance = 0.5 if isinstance(solver, RandomSolver) else 0.1
    assert plan.actions.shape == plan.mean.shape == (2, H, 2)
    assert (plan.actions - target).abs().max() < tolerance
    assert torch.equal(plan.cost, bowl(target)(plan.actions[:, None])[:, 0])


@pytest.mark.parametrize("kind", [CEM, MPPI])
def test_a_curved_valley_is_followed_to_its_end(kind):
    def rosenbrock(plans):
        x, y = 2 * plans[..., 0], 2 * plans[..., 1]
        return ((1 - x).square() + 10 * (y - x.square()).square()).sum(-1)

    solver = kind(num_samples=256, iterations=25).make(BOX, 1)
    plan = search(solver, rosenbrock, generator=generators(3))
    assert plan.cost.item() < 0.01
    assert (plan.actions - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("solver", solvers(num_samples=256, iterations=8), ids=names)
def test_of_two_basins_the_deeper_one_is_taken(solver):
    def basins(plans):
        x = plans.mean(-2)
        shallow = (x + 0.6).square().sum(-1)
        deep = (x - 0.6).square().sum(-1) - 0.5
        return torch.minimum(shallow, deep)

    plan = search(solver, basins, generator=generators(0, 1, 2))
    assert (plan.cost < -0.3).all()


@pytest.mark.parametrize("solver", solvers(num_samples=64, iterations=4), ids=names)
def test_best_never_rises_and_ends_at_the_cost(solver):
    plan = search(solver, bowl(0.7), generator=generators(0, 1))
    assert plan.trace.shape == (2, 4)
    assert (plan.trace.diff(dim=1) <= 0).all()
    assert torch.equal(plan.trace[:, -1], plan.cost)


@pytest.mark.parametrize("kind", [CEM, MPPI, RandomShooting])
@pytest.mark.parametrize("hold", [True, False])
def test_no_candidate_leaves_the_box_or_the_ball(kind, hold):
    space = ActionSpace.of_block(
        (-1.0, -0.5), (1.0, 2.0), max_norm=1.2, block=5, action_repeat=hold
    )
    scored = []

    def cost(plans):
        assert plans.shape[2:] == (H, 10)
        scored.append(plans)
        return -plans.sum((-2, -1))  # pulls into the corner

    plan = search(kind(num_samples=32, iterations=4).make(space, H), cost, generator=generators(0))
    for plans in [
        *scored,
        space.to_model(plan.actions)[:, None],
        space.to_model(plan.mean)[:, None],
    ]:
        single = space.to_env(plans)
        assert single.shape[-2:] == (H * 5, 2)
        assert (single >= torch.tensor([-1.0, -0.5])).all() and (
            single <= torch.tensor([1.0, 2.0])
        ).all()
        assert (single.norm(dim=-1) <= 1.2 + 1e-5).all()


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_samples": 37, "iterations": 3}, {"num_samples": 300, "iterations": 2}],
    ids=str,
)
@pytest.mark.parametrize("kind", [CEM, MPPI, RandomShooting])
def test_an_episode_alone_gets_the_plan_it_gets_in_a_batch(kind, settings):
    space = ActionSpace.of_block(
        (-1.0, -1.0), (1.0, 1.0), max_norm=1.0, block=5, action_repeat=False
    )
    solver = kind(**settings).make(space, 6 if settings.get("num_samples") == 300 else 4)
    seeds = (5, 6, 7, 8, 9)
    targets = torch.randn(5, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    starts = 0.3 * torch.randn(5, solver.horizon, 10, generator=torch.Generator().manual_seed(1))
    together = search(solver, bowl(targets), start=starts, generator=generators(*seeds))
    for i, seed in enumerate(seeds):
        alone = search(
            solver, bowl(targets[i : i + 1]), start=starts[i : i + 1], generator=generators(seed)
        )
        for field in ("actions", "mean", "cost", "trace"):
            assert torch.equal(getattr(alone, field)[0], getattr(together, field)[i]), field


@pytest.mark.parametrize("solver", solvers(num_samples=32, iterations=3), ids=names)
def test_the_generator_alone_decides(solver):
    a, b, other = (search(solver, bowl(0.5), generator=generators(seed)) for seed in (1, 1, 2))
    assert torch.equal(a.actions, b.actions) and torch.equal(a.mean, b.mean)
    assert not torch.equal(a.actions, other.actions)


@pytest.mark.parametrize("solver", solvers(num_samples=16, iterations=1), ids=names)
def test_a_warm_start_helps_and_is_never_lost(solver):
    target = torch.tensor([0.83, -0.77])
    cold = search(solver, bowl(target), generator=generators(0))
    warm = search(solver, bowl(target), start=target.expand(1, H, 2), generator=generators(0))
    assert warm.cost < cold.cost
    assert torch.equal(warm.actions, target.expand(1, H, 2))


@pytest.mark.parametrize("solver", solvers(num_samples=8, iterations=2), ids=names)
def test_doing_nothing_is_always_considered(solver):
    plan = search(solver, bowl(0.0), start=torch.full((1, H, 2), 0.9), generator=generators(0))
    assert plan.cost.item() == 0.0


@pytest.mark.parametrize("solver", solvers(num_samples=16, iterations=3), ids=names)
def test_every_round_tries_the_mean_and_the_best_so_far(solver):
    scored, cheapest = [], []

    def cost(plans):
        costs = bowl(0.4)(plans)
        scored.append(plans)
        cheapest.append(plans[0, costs[0].argmin()])
        return costs

    start = torch.full((1, H, 2), -0.5)
    plan = search(solver, cost, start=start, generator=generators(0))
    assert torch.equal(scored[0][0, 0], start[0]) and torch.equal(
        scored[0][0, 1], torch.zeros(H, 2)
    )
    for earlier, later in zip(cheapest, scored[1:3], strict=False):
        assert torch.equal(later[0, 1], earlier)
    if not isinstance(solver, RandomSolver):
        assert scored[-1].shape == (1, 1, H, 2) and torch.equal(scored[-1][:, 0], plan.mean)
    assert len(scored) <= 4 and all(plans.shape[1] == 16 for plans in scored[:3])


def test_momentum_slows_the_mean():
    target, start = torch.tensor([0.9, 0.9]), torch.full((1, H, 2), -0.9)
    quick, slow = (
        search(
            CEM(iterations=1, momentum=m).make(BOX, H),
            bowl(target),
            start=start,
            generator=generators(0),
        )
        for m in (0.0, 0.8)
    )
    assert (slow.mean - start).norm() < 0.5 * (quick.mean - start).norm()


def test_mppi_noise_falls_when_told_and_cold_weights_follow_the_cheapest():
    annealed = MPPI(std=0.8, min_std=0.05, iterations=5).make(BOX, H)
    assert annealed.std(0) == 0.8 and annealed.std(4) == pytest.approx(0.05)
    steady = MPPI(std=0.8, min_std=0.8, iterations=5).make(BOX, H)
    assert steady.std(4) == steady.std(0) == 0.8
    costs = torch.tensor([[3.0, 1.0, 2.0]])
    assert MPPI(temperature=1e-3).make(BOX, H).weights(costs)[0, 1] > 0.999
    flat = MPPI().make(BOX, H).weights(torch.ones(1, 4))
    torch.testing.assert_close(flat, torch.full((1, 4), 0.25, dtype=torch.float64))


@pytest.mark.parametrize("solver", solvers(num_samples=8, iterations=2), ids=names)
def test_costs_that_are_not_finite_are_refused_with_their_share(solver):
    def cost(plans):
        costs = bowl(0.0)(plans)
        costs[1, : plans.shape[1] // 2] = math.nan
        return costs

    with pytest.raises(ValueError, match=r"25\.0% of 16 plans \(first episodes: \[1\]\)"):
        search(solver, cost, generator=generators(0, 1))
    with pytest.raises(ValueError, match=r"returned shape \(1, 8, 3\) for \(1, 8\) plans"):
        search(solver, lambda plans: plans.sum(-1), generator=generators(0))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (CEM, {"elites": 65, "num_samples": 64}, "elites 65 exceed num_samples 64"),
        (CEM, {"momentum": 1.0}, "momentum"),
        (CEM, {"std": 0.1, "min_std": 0.2}, "min_std 0.2 exceeds std 0.1"),
        (MPPI, {"temperature": 0.0}, "temperature"),
        (MPPI, {"min_std": 0.0}, "min_std"),
        (MPPI, {"std": math.nan}, "std"),
        (RandomShooting, {"num_samples": 1}, "num_samples"),
        (RandomShooting, {"iterations": 0}, "iterations"),
    ],
    ids=str,
)
def test_settings_that_make_no_search_are_refused(kind, settings, message):
    with pytest.raises(ValidationError, match=message):
        kind(**settings)


def test_a_plan_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="horizon must be at least 1"):
        CEM().make(BOX, 0)


def test_a_warm_start_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"start has shape \(1, 2, 2\).*\(1, 3, 2\)"):
        search(CEM().make(BOX, H), bowl(0.0), start=torch.zeros(1, 2, 2), generator=generators(0))
    with pytest.raises(ValueError, match="one torch.Generator per episode"):
        search(CEM().make(BOX, H), bowl(0.0), generator=[])
