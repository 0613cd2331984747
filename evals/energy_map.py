"""Maps of the energy the planner descends: where in a layout it is low, seen by the metric and by
raw distance.

G grid side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jepa_wm.config import Config
from jepa_wm.evals.episodes import begin
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.make import clean, rooms
from jepa_wm.worlds.tasks import Tasks


@torch.no_grad()
def energy_maps(
    path: Path, model: WorldModel, tasks: Tasks, config: Config, *, maps: int = 3, grid: int = 28
) -> None:
    """Energy of every agent position of a layout against a goal image, learned metric beside raw
    L2 distance."""
    g = tasks.geometry
    axis = np.linspace(g.low, g.high, grid)
    starts = (
        np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2).astype(np.float32)
    )  # rows run along y
    chosen = tasks.part(0, maps)
    goals, (_, goal_frames) = rooms(clean(config.world), g), begin(chosen, config.world)
    goals.reset(chosen.seeds, start=chosen.goal, layout=chosen.layout)
    learned, raw = [], []
    for i in range(len(chosen)):
        world = rooms(config.world, g)
        seeds = np.repeat(chosen.seeds[i : i + 1], len(starts))
        layout = np.repeat(chosen.layout[i : i + 1], len(starts), 0)
        world.reset(seeds, start=starts, layout=layout, noise_seeds=np.arange(len(starts)))
        latents = model.encode(torch.from_numpy(world.render()))
        goal = model.encode(torch.from_numpy(goal_frames[i : i + 1]))
        static = model.latent.static(torch.cat([goal, latents])).mean(
            0
        )  # settled, as an agent's that has seen much
        latents, goal = (
            model.latent.with_static(latents, static),
            model.latent.with_static(goal, static),
        )
        steps = model.temporal_distance(
            latents[None], goal, margin=config.planner.cost.robust_radius
        )[0]
        learned.append(steps.view(grid, grid).cpu().numpy())
        raw.append((latents - goal).square().mean((1, 2)).view(grid, grid).cpu().numpy())
    np.savez_compressed(path, learned=np.stack(learned), raw=np.stack(raw), xs=axis, ys=axis, frame=goals.render(),
                        goal=chosen.goal)  # fmt: skip
