"""The solver that the config names, for a space of continuous or of discrete actions."""

from __future__ import annotations

from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.categorical import CategoricalCEM
from jepa_wm.planning.gradient import Gradient, InTurn
from jepa_wm.planning.icem import ICEM
from jepa_wm.planning.search import Solver
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.planning.solvers import CEM, MPPI, AsProposed, RandomShooting

DESCENDING = ("gradient", "cem_gradient")  # solvers that need the cost's gradient


def make_solver(space: ActionSpace | DiscreteSpace, settings: PlannerSettings) -> Solver:
    """The solver the config names, for the space. Raises ValueError for one that cannot search
    it."""
    s = settings
    if s.solver == "amortised":
        return AsProposed(space=space, horizon=s.horizon)
    if isinstance(space, DiscreteSpace):
        if s.solver != "cem":
            raise ValueError(
                f"planner.solver {s.solver} searches continuous actions; set planner.solver cem for discrete ones"
            )
        return CategoricalCEM(
            space=space,
            horizon=s.horizon,
            candidates=s.candidates,
            rounds=s.rounds,
            elites=s.elites,
        )
    if s.solver == "icem":
        return ICEM(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds, elites=s.elites, std=s.std,
            min_std=s.min_std, momentum=s.icem.momentum, colour=s.icem.colour, shrink=s.icem.shrink, kept=s.icem.kept,
        )  # fmt: skip
    if s.solver == "mppi":
        return MPPI(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
            temperature=s.temperature, std=s.std, min_std=s.min_std,
        )  # fmt: skip
    if s.solver == "random":
        return RandomShooting(
            space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds
        )
    descent = Gradient(
        space=space, horizon=s.horizon, restarts=s.gradient.restarts, rounds=s.gradient.steps,
        lr=s.gradient.lr, std=s.gradient.std, noise=s.gradient.noise,
    )  # fmt: skip
    if s.solver == "gradient":
        return descent
    search = CEM(
        space=space, horizon=s.horizon, candidates=s.candidates, rounds=s.rounds,
        elites=s.elites, std=s.std, min_std=s.min_std,
    )  # fmt: skip
    return search if s.solver == "cem" else InTurn(search, descent)
