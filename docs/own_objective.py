"""An objective of your own beside those of the config: `python docs/own_objective.py RUN` plans in a trained run.

A term is a function of imagined latents [B, S, H, N, D] and actions [B, S, H, A] that tells a cost [B, S]. What it has
to know of the episodes, it takes from the scene at each decision.
"""

import sys
from pathlib import Path

import numpy as np

from jepa_wm import RunFolder, load_config
from jepa_wm.act import episodes
from jepa_wm.act.agent import Agent
from jepa_wm.act.objective import Scene
from jepa_wm.plan.objectives import Term
from jepa_wm.worlds.two_rooms import TwoRooms


def curiosity(scene: Scene) -> Term:
    """Cheap where the imagined end is far from what is seen now."""

    def cost(latents, actions):
        return -(latents[:, :, -1] - scene.now[:, None]).square().mean((-2, -1))

    return cost


def way(weight: float, run: RunFolder) -> float:
    """How far agents get from where they begin, in px, with the goal image of that very place and this much of it."""
    world = TwoRooms(run.config.worlds.geometry)
    agent = Agent.of_run(run, world, more=((weight, curiosity),))
    world.reset(np.arange(8))
    agent.reset(world.render(), seeds=range(8))
    track = episodes.play(world, agent.act, budget=25).track  # [8, 26, 2]
    return float(np.linalg.norm(track - track[:, :1], axis=2).max(1).mean())


folder = Path(sys.argv[1])
with RunFolder.open(folder, load_config(folder / "config.yaml")) as run:
    print(f"px from the start: {way(0.0, run):.1f} without curiosity, {way(1000.0, run):.1f} with it")
