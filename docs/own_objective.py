"""An objective of your own beside those of the config: `python docs/own_objective.py RUN` plans in
a trained run.

A term is a function of imagined latents [B, S, H, N, D] and actions [B, S, H, A] that tells a cost
[B, S]. What it has to know of the episodes, it takes from the context at each decision."""

import sys
from pathlib import Path

import numpy as np

from jepa_wm import load_config
from jepa_wm.evals import episodes
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.terms import Term


def eastward(context: PlanningContext) -> Term:
    """Cheap where the actions lead to the right; `context.now`, `goal` and `last_action` would
    tell where episodes stand."""

    def cost(latents, actions):
        moves = actions.unflatten(-1, (-1, 2))  # [B, S, H, frameskip, 2]
        return -moves[..., 0].mean((-2, -1))

    return cost


def gone(weight: float) -> float:
    """How far to the right agents are after 15 steps, in px, the goal image being of where they
    begin."""
    world = config.world.make()
    agent = Agent.of_run(
        folder, world, config.planner, frameskip=config.dynamics.frameskip,
        extra_costs=((weight, eastward),),
    )  # fmt: skip
    world.reset(np.arange(8), start=np.full((8, 2), 12.0, np.float32))
    agent.reset(world.render(), seeds=range(8))
    track = episodes.play(world, episodes.AgentPolicy(agent), budget=15).state  # [8, 16, 4]
    return float((track[:, -1, 0] - track[:, 0, 0]).mean())


folder = Path(sys.argv[1])
config = load_config(folder / "config.yaml")
alone, with_term = gone(0.0), gone(1000.0)
print(f"px to the right: {alone:.1f} by the goal alone, {with_term:.1f} with a term of our own")
