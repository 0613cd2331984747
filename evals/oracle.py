"""What bounds a model from above in goal tasks: the same planner in the true simulator.

B episodes, T environment steps, S plan samples, H horizon, A action numbers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.evals.episodes import distances_of
from jepa_wm.evals.scores import success
from jepa_wm.planning.action_space import Space
from jepa_wm.planning.cost_settings import Reduction
from jepa_wm.planning.search import RecedingHorizon
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.planning.terms import over_steps
from jepa_wm.worlds.tasks import Episodes, HasOracle, Task
from jepa_wm.worlds.world import World


def oracle(
    task: Task, episodes: Episodes, space: Space, planner: PlannerSettings, *, budget: int
) -> dict[str, float | int | str] | None:
    """Success of the same solver with the simulator as its dynamics and the true cost to go as its
    cost; None for a task that knows none."""
    if not isinstance(task, HasOracle):
        return None
    return success(oracle_distances(task, episodes, space, planner, budget=budget), task)


def oracle_distances(
    task: Task, episodes: Episodes, space: Space, planner: PlannerSettings, *, budget: int
) -> np.ndarray:
    """[B, T+1] to the goal in episodes of the oracle of a task that has one.

    The simulator has no gradient and knows no policy, so cem stands in for solvers that need
    one."""
    assert isinstance(task, HasOracle)
    solver = planner.solver.by_costs()
    search = RecedingHorizon(solver.make(space, planner.mpc.horizon), execute=planner.mpc.execute)
    search.reset(episodes.seeds.tolist(), device=torch.device("cpu"))
    act = Oracle(task, space, search, episodes.goal, steps=planner.cost.steps)
    return distances_of(task, episodes, act, budget=budget)


class Oracle:
    """The planner in the true simulator as a policy of `play`."""

    def __init__(
        self,
        task: HasOracle,
        space: Space,
        search: RecedingHorizon,
        goal: np.ndarray,
        *,
        steps: Reduction,
    ) -> None:
        self.task, self.space, self.search, self.goal = task, space, search, goal
        self.steps = steps  # of a plan that count
        self._world: World | None = None  # as it stands at this decision

    def __call__(self, world: World) -> np.ndarray:
        """[B, k, A] of the plan whose true cost is least."""
        self._world = world
        steps: np.ndarray = self.space.to_env(self.search.plan(self.cost)).numpy()
        return steps

    def cost(self, plans: Tensor) -> Tensor:
        """[B, S] true cost to go of plans [B, S, H, A * frameskip]."""
        assert self._world is not None
        b, s, horizon = plans.shape[:3]
        actions = self.space.to_env(plans.flatten(0, 1)).numpy()  # [B*S, H*frameskip, A]
        copies = self.task.simulate(self._world, s)
        goal = np.repeat(self.goal, s, 0)
        # The cost is read after each model step.
        costs = []
        for step in range(actions.shape[1]):
            copies.step(actions[:, step])
            if (step + 1) % (actions.shape[1] // horizon) == 0:
                costs.append(self.task.oracle_cost(copies.state(), goal))
        total = torch.from_numpy(np.stack(costs, 1)).view(b, s, horizon)
        return over_steps(total, mode=self.steps)
