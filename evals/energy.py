"""The energy of every position of a plane against a goal image, for the report.

n positions, G grid side, P numbers of a position."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import Episodes, HasPlane, Task


@torch.no_grad()
def map_energy(
    file: Path, task: Task, model: WorldModel, episodes: Episodes, *, robust_radius: float,
    maps: int = 3, grid: int = 28,
) -> None:  # fmt: skip
    """`file` (npz): energy of every position of the first episodes against their goal images, the
    learned distance beside the raw L2 one; nothing for a task whose positions lie in no plane, or
    where no distance was learned."""
    if not isinstance(task, HasPlane) or model.latent_model.distance is None:
        return
    xs, ys = task.axes(grid)
    places = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)  # along y
    shown = episodes.part(0, maps)
    learned, raw = [], []
    for i in range(len(shown)):
        one = shown.part(i, i + 1)
        latents = model.encode(torch.from_numpy(task.pictures(one, places)))
        goal = model.encode(torch.from_numpy(task.goal_images(one)))
        # All as believed by an agent that has seen them all.
        believed = model.latent.believed_together(torch.cat([goal, latents])[None])[0]
        goal, latents = believed[:1], believed[1:]
        steps = model.distance(latents[None], goal, robust_radius=robust_radius)[0]
        learned.append(steps.view(grid, grid).cpu().numpy())
        apart = model.latent.compared(latents) - model.latent.compared(goal)
        raw.append(apart.square().mean((1, 2)).view(grid, grid).cpu().numpy())
    np.savez_compressed(
        file,
        learned=np.stack(learned),
        raw=np.stack(raw),
        xs=xs,
        ys=ys,
        frame=task.goal_images(shown, clean=True),
        goal=shown.goal,
    )
