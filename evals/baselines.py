"""What a model is measured against: random actions and a straight line to the goal below, the same planner in the
true simulator above.

B episodes, S candidates, H horizon, T environment steps.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.config import Config
from jepa_wm.evals.episodes import begin, play, success
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.mpc import RecedingHorizon
from jepa_wm.planning.settings import CEM, PlannerSettings
from jepa_wm.worlds.make import clean
from jepa_wm.worlds.policies import straight_line, through_door
from jepa_wm.worlds.settings import WorldSettings
from jepa_wm.worlds.tasks import Tasks
from jepa_wm.worlds.two_rooms.world import TwoRooms


def baselines_and_oracle(
    tasks: Tasks, space: ActionSpace, config: Config, suffix: str
) -> dict[str, object]:
    """`baselines` and `oracle` in these tasks, both keys with `suffix`."""
    worlds, budget = config.world, config.evaluation.budget
    baselines = {
        "random": random_track(tasks, worlds, budget=budget, hold=config.dynamics.frameskip),
        "straight_line": straight_track(tasks, worlds, budget=budget),
    }
    oracle = simulator_track(tasks, worlds, space, config.planner, budget=budget)
    told: dict[str, object] = {
        name: success(track, tasks, config.evaluation) for name, track in baselines.items()
    }
    told["random_encoder"] = None
    return {
        f"baselines{suffix}": told,
        f"oracle{suffix}": success(oracle, tasks, config.evaluation),
    }


def random_track(tasks: Tasks, worlds: WorldSettings, *, budget: int, hold: int) -> np.ndarray:
    """[B, T+1, 2] of a policy that holds uniformly drawn actions for `hold` steps."""
    world, _ = begin(tasks, clean(worlds))
    low, high, _ = world.action_bounds
    r = np.random.default_rng([tasks.seed, 7])

    def act(frames: np.ndarray) -> np.ndarray:
        action = r.uniform(low, high, (len(frames), 2)).astype(np.float32)
        return np.repeat(action[:, None], hold, 1)

    return play(world, act, budget=budget).track


def straight_track(tasks: Tasks, worlds: WorldSettings, *, budget: int) -> np.ndarray:
    """[B, T+1, 2] of the walker that knows the goal's place but no walls."""
    world, _ = begin(tasks, clean(worlds))
    return play(
        world,
        lambda frames: straight_line(world.state(), tasks.goal, tasks.geometry)[:, None],
        budget=budget,
    ).track


def simulator_track(
    tasks: Tasks,
    worlds: WorldSettings,
    space: ActionSpace,
    settings: PlannerSettings,
    *,
    budget: int,
) -> np.ndarray:
    """[B, T+1, 2] of the same solver with the simulator as its dynamics and the true way to go as
    its cost.

    The simulator has no gradient and knows no policy, so cem stands in for solvers that need one.
    """
    world, _ = begin(tasks, clean(worlds))
    solver = settings.solver
    if solver.needs_gradient or solver.uses_policy:
        solver = CEM()
    search = RecedingHorizon(
        solver.make(space, settings.mpc.horizon), execute=settings.mpc.execute
    )
    search.reset(tasks.seeds.tolist(), device=torch.device("cpu"))

    def cost(blocks: Tensor) -> Tensor:
        b, s, horizon = blocks.shape[:3]
        actions = space.to_env(blocks.flatten(0, 1)).numpy()  # [B*S, H*frameskip, a]
        copies = TwoRooms(tasks.geometry)
        copies.place(np.repeat(world.state(), s, 0))
        goal = np.repeat(tasks.goal, s, 0)
        costs = []
        for step in range(actions.shape[1]):
            copies.step(actions[:, step])
            if (step + 1) % (actions.shape[1] // horizon) == 0:
                costs.append(way_to_go(copies.state(), goal))
        total = np.stack(costs, 1)
        return torch.from_numpy(
            total[:, -1] if settings.cost.steps == "last" else total.mean(1)
        ).view(b, s)

    return play(world, lambda frames: space.to_env(search.plan(cost)).numpy(), budget=budget).track


def way_to_go(state: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """[B] length in pixels of the way from state [B, 4] to goal [B, 2] through the door where it
    is needed."""
    waypoint = through_door(state, goal)
    first = np.linalg.norm(waypoint - state[:, :2], axis=1)
    reached = np.concatenate([waypoint, state[:, 2:]], 1)
    second_stop = through_door(reached, goal)
    second = np.linalg.norm(second_stop - waypoint, axis=1)
    return (first + second + np.linalg.norm(goal - second_stop, axis=1)).astype(np.float32)
