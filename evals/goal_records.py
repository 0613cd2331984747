"""What the report shows of goal episodes: the first of them as they were played, and maps of the
energy that the planner descends.

B episodes, J decisions, T environment steps, P numbers of a position, G grid side.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from jepa_wm.evals.episodes import read_chunks
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import Episodes, HasPlane, Task, judge


def gather(folder: Path, chunks: Path, task: Task, episodes: Episodes, *, most: int = 50) -> None:
    """`episodes.npz`: the first `most` episodes of a folder of chunks."""
    keys = ("frames", "track", "distance", "cost", "decision_steps")
    shown = episodes.part(0, most)
    played = read_chunks(chunks, range(len(shown)), keys)
    steps = np.unique(played.pop("decision_steps"))  # the same in each chunk
    played = {key: values[:most] for key, values in played.items()}

    # Goals without the world's distractions: these pictures are for people.
    outcome = judge(played["distance"], radius=task.radius)
    np.savez_compressed(
        folder / "episodes.npz",
        goal_frame=task.goal_images(shown, clean=True),
        frames=played["frames"],
        positions=played["track"][:, steps],
        goal_position=shown.goal,
        distance=played["distance"],
        success_final=outcome.success_final,
        success_any=outcome.success_any,
        cost=played["cost"],
        radius=task.radius,
    )


@torch.no_grad()
def energy_maps(
    path: Path,
    model: WorldModel,
    task: Task,
    episodes: Episodes,
    planner: PlannerSettings,
    *,
    maps: int = 3,
    grid: int = 28,
) -> None:
    """Energy of every position of the first episodes against their goal images, the learned
    distance beside the raw L2 one; nothing for a task whose positions lie in no plane."""
    if not isinstance(task, HasPlane):
        return
    xs, ys = task.axes(grid)
    places = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)  # rows along y
    shown = episodes.part(0, maps)
    learned, raw = [], []
    for i in range(len(shown)):
        one = shown.part(i, i + 1)
        latents = model.encode(torch.from_numpy(task.pictures(one, places)))
        goal = model.encode(torch.from_numpy(task.goal_images(one)))
        # All as believed by an agent that has seen them all.
        believed = model.latent.believed_together(torch.cat([goal, latents])[None])[0]
        goal, latents = believed[:1], believed[1:]
        steps = model.distance(
            latents[None], goal, robust_radius=planner.cost.robust_radius
        )[0]
        learned.append(steps.view(grid, grid).cpu().numpy())
        raw.append((latents - goal).square().mean((1, 2)).view(grid, grid).cpu().numpy())
    np.savez_compressed(
        path,
        learned=np.stack(learned),
        raw=np.stack(raw),
        xs=xs,
        ys=ys,
        frame=task.goal_images(shown, clean=True),
        goal=shown.goal,
    )
