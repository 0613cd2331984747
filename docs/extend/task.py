"""A task of your own, with a baseline and an oracle: bring the puck to a place on the table."""

from typing import Literal

import numpy as np

from jepa_wm import register
from jepa_wm.worlds.position_task import PositionTask
from jepa_wm.worlds.tasks import TaskSettings


class Reach(PositionTask):
    def baselines(self):
        return {"straight_line": lambda world, goal: (goal - world.state()).clip(-3, 3)}

    def simulate(self, world, times):  # as many copies of each, for the oracle's plans
        copies = self.world.make()
        copies.reset(np.zeros(len(world) * times), start=np.repeat(world.state(), times, 0))
        return copies

    def oracle_cost(self, state, goal):
        return self.distance(state, goal)


@register("tasks", "puck")
class PuckTask(TaskSettings):
    name: Literal["puck"] = "puck"
    radius: float = 2.0  # px

    def make(self, world):
        return Reach(self, world)
