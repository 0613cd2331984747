"""What a model is measured against in goal tasks: random actions and the task's scripted policies
below, the same planner in the true simulator above.

B episodes, S plan samples, H horizon, A action numbers, T environment steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.evals.episodes import play, success
from jepa_wm.planning.action_space import Space
from jepa_wm.planning.search import RecedingHorizon
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.worlds.protocol import World
from jepa_wm.worlds.tasks import Episodes, GoalPolicy, HasOracle, Task


def baselines(task: Task, episodes: Episodes, *, budget: int, repeat: int) -> dict[str, object]:
    """Success of random actions, each repeated `repeat` steps, and of the task's own baselines;
    that of a random encoder is left for `demo` to fill in."""
    random = UniformActions(episodes.seed, repeat)
    measured: dict[str, object] = {"random": _success(task, episodes, random, budget)}
    for name, policy in task.baselines().items():
        act = Scripted(policy, episodes.goal)
        measured[name] = _success(task, episodes, act, budget)
    return {**measured, "random_encoder": None}


def oracle(
    task: Task, episodes: Episodes, space: Space, planner: PlannerSettings, *, budget: int
) -> dict[str, float | int | str] | None:
    """Success of the same solver with the simulator as its dynamics and the true cost to go as its
    cost; None for a task that knows none.

    The simulator has no gradient and knows no policy, so cem stands in for solvers that need
    one."""
    if not isinstance(task, HasOracle):
        return None
    solver = planner.solver.by_costs()
    search = RecedingHorizon(solver.make(space, planner.mpc.horizon), execute=planner.mpc.execute)
    search.reset(episodes.seeds.tolist(), device=torch.device("cpu"))
    act = Oracle(task, space, search, episodes.goal, last=planner.cost.steps == "last")
    return _success(task, episodes, act, budget)


def _success(
    task: Task, episodes: Episodes, act: Scripted | UniformActions | Oracle, budget: int
) -> dict[str, float | int | str]:
    track = play(task.begin(episodes), act, budget=budget)
    return success(task.distance(task.position(track.state), episodes.goal[:, None]), task)


class Scripted:
    """A task's policy toward goals [B, P] as one of `play`."""

    def __init__(self, policy: GoalPolicy, goal: np.ndarray) -> None:
        self.policy, self.goal = policy, goal

    def __call__(self, world: World) -> np.ndarray:
        """[B, 1, A]."""
        return self.policy(world, self.goal)[:, None]


class UniformActions:
    """Uniformly drawn actions, each repeated; of a choice the largest number wins."""

    def __init__(self, seed: int, repeat: int) -> None:
        self.repeat = repeat
        self._generator = np.random.default_rng([seed, 7])

    def __call__(self, world: World) -> np.ndarray:
        """[B, repeat, A]."""
        low, high, _ = world.action_bounds
        action = self._generator.uniform(low, high, (len(world), len(low))).astype(np.float32)
        return np.repeat(action[:, None], self.repeat, 1)


class Oracle:
    """The planner in the true simulator as a policy of `play`."""

    def __init__(
        self,
        task: HasOracle,
        space: Space,
        search: RecedingHorizon,
        goal: np.ndarray,
        *,
        last: bool,
    ) -> None:
        self.task, self.space, self.search, self.goal = task, space, search, goal
        self.last = last  # the cost is of the last step of a plan, instead of the mean over all
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
        total = np.stack(costs, 1)  # [B*S, H]
        return torch.from_numpy(total[:, -1] if self.last else total.mean(1)).view(b, s)
