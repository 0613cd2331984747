"""Settings of planners for tests: small searches, keys without their sections."""

from jepa_wm.planning.cost_settings import CostSettings
from jepa_wm.planning.settings import MPCSettings, PlannerSettings


def planner(solver="cem", *, samples=(12, 2, 3), descent=(4, 3), **keys):
    """A solver of `samples` plans, rounds and elites, and of `descent` plans and rounds where it
    follows gradients; further keys go to the section that has them."""
    drawn = dict(zip(("num_samples", "iterations"), samples, strict=False))
    cem = {**drawn, "elites": samples[2]}
    gradient = dict(zip(("num_samples", "iterations"), descent, strict=True))
    sizes = {
        "cem": cem, "icem": cem, "mppi": drawn, "random": drawn, "gradient": gradient,
        "cem_gradient": {"cem": cem, "gradient": gradient}, "policy": {},
    }  # fmt: skip
    sections = {"solver": {"name": solver, **sizes[solver]}, "cost": {}, "mpc": {}}
    for key, value in keys.items():
        in_cost, in_mpc = (key in kind.model_fields for kind in (CostSettings, MPCSettings))
        sections["cost" if in_cost else "mpc" if in_mpc else "solver"][key] = value
    return PlannerSettings.model_validate(sections)
