"""The solver that the config names, for a space of continuous or of discrete actions."""

from __future__ import annotations

from jepa_wm.planning import settings as s
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace, Space
from jepa_wm.planning.categorical import CategoricalCEM
from jepa_wm.planning.gradient import Gradient, InTurn
from jepa_wm.planning.icem import ICEM
from jepa_wm.planning.search import Solver
from jepa_wm.planning.solvers import CEM, MPPI, AsProposed, RandomShooting


def make_solver(one: s.SolverSettings, space: Space, horizon: int) -> Solver:
    """The solver of the settings, for the space. Raises ValueError for one that cannot search
    it."""
    if isinstance(one, s.Policy):
        return AsProposed(space=space, horizon=horizon)
    if isinstance(space, DiscreteSpace):
        if not isinstance(one, s.CEM):
            raise ValueError(
                f"planner.solver {one.name} searches continuous actions; set "
                "planner.solver.name=cem for discrete ones"
            )
        return CategoricalCEM(
            space=space, horizon=horizon, candidates=one.num_samples, rounds=one.iterations,
            elites=one.elites, momentum=one.momentum, explore=one.explore,
        )  # fmt: skip
    assert isinstance(space, ActionSpace)
    if isinstance(one, s.ICEM):
        return ICEM(
            space=space, horizon=horizon, candidates=one.num_samples, rounds=one.iterations,
            elites=one.elites, std=one.std, min_std=one.min_std, momentum=one.momentum,
            colour=one.noise_beta, shrink=one.population_decay, kept=one.keep_elites,
        )  # fmt: skip
    if isinstance(one, s.MPPI):
        return MPPI(
            space=space, horizon=horizon, candidates=one.num_samples, rounds=one.iterations,
            temperature=one.temperature, std=one.std, min_std=one.min_std,
        )  # fmt: skip
    if isinstance(one, s.RandomShooting):
        return RandomShooting(
            space=space, horizon=horizon, candidates=one.num_samples, rounds=one.iterations
        )
    if isinstance(one, s.Gradient):
        return Gradient(
            space=space, horizon=horizon, restarts=one.num_samples, rounds=one.iterations,
            lr=one.lr, std=one.std, noise=one.noise,
        )  # fmt: skip
    if isinstance(one, s.CEMGradient):
        return InTurn(
            make_solver(one.cem, space, horizon), make_solver(one.gradient, space, horizon)
        )
    assert isinstance(one, s.CEM)
    return CEM(
        space=space, horizon=horizon, candidates=one.num_samples, rounds=one.iterations,
        elites=one.elites, std=one.std, min_std=one.min_std, momentum=one.momentum,
    )  # fmt: skip
