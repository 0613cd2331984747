"""A solver of your own: plans ever nearer to the best. `planner.solver.name=nearby`."""

from dataclasses import replace
from typing import Literal

from jepa_wm import register
from jepa_wm.planning.search import Solver, noise
from jepa_wm.planning.settings import Sampling


class NearbySolver(Solver):
    def __init__(self, settings, space, horizon):
        super().__init__(space, horizon)
        self.settings, self.iterations = settings, settings.iterations

    def propose(self, state, generator):  # [B, S, H, A]
        drawn = noise(state.mean, self.settings.num_samples, generator)
        return self.space.project(state.mean[:, None] + drawn * 0.5**state.round)

    def update(self, state, plans, costs):  # [B, S, H, A] cost [B, S]; the best is kept already
        return replace(state, mean=state.best)


@register("solvers", "nearby")
class Nearby(Sampling):
    name: Literal["nearby"] = "nearby"

    def make(self, space, horizon):
        return NearbySolver(self, space, horizon)
