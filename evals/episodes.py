"""Closed-loop episodes on frozen tasks: what happened, and who won.

B episodes, K decisions, T environment steps, a action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from jepa_wm.evals.intervals import wilson
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.worlds.make import rooms
from jepa_wm.worlds.protocol import VectorWorld
from jepa_wm.worlds.settings import WorldSettings
from jepa_wm.worlds.tasks import UNIT, Tasks, judge
from jepa_wm.worlds.two_rooms.world import TwoRooms

GOAL_NOISE = 10**9  # goal images have a distraction of their own


@dataclass
class Record:
    """What a batch of episodes left."""

    frames: np.ndarray  # [B, K+1, h, w, 3] uint8, at decisions and at the end
    track: (
        np.ndarray
    )  # [B, T+1, 2] the first two state numbers (px in two rooms) at every environment step
    decision_steps: np.ndarray  # [K+1]


def begin(tasks: Tasks, worlds: WorldSettings) -> tuple[TwoRooms, np.ndarray]:
    """(worlds at their starts, goal images [B, h, w, 3] uint8)."""
    goals = rooms(worlds, tasks.geometry)
    goals.reset(
        tasks.seeds, start=tasks.goal, layout=tasks.layout, noise_seeds=tasks.seeds + GOAL_NOISE
    )
    world = rooms(worlds, tasks.geometry)
    world.reset(tasks.seeds, start=tasks.start, layout=tasks.layout)
    return world, goals.render()


def play(
    world: VectorWorld, act: Callable[[np.ndarray], np.ndarray], *, budget: int,
    observe: Callable[[np.ndarray], None] | None = None, every: int = 1,
) -> Record:  # fmt: skip
    """Let `act` see frames [B, h, w, 3] and answer with actions [B, k, a] until `budget` steps are
    taken.

    `observe`, such as an agent's, is shown the frames after each `every` of the k steps but the
    last, of a plan that is longer. The worlds must be reset; a world without state leaves a track
    of no numbers."""
    frames, track, at = [world.render()], [world.state()[:, :2]], [0]
    taken = 0
    while taken < budget:
        actions = np.moveaxis(act(frames[-1]), 1, 0)
        for number, action in enumerate(actions[: budget - taken], 1):
            world.step(action)
            track.append(world.state()[:, :2])
            taken += 1
            if (
                observe is not None
                and number % every == 0
                and number < len(actions)
                and taken < budget
            ):
                observe(world.render())
        frames.append(world.render())
        at.append(taken)
    return Record(np.stack(frames, 1), np.stack(track, 1), np.array(at))


def success(
    track: np.ndarray, tasks: Tasks, act: EvaluationSettings
) -> dict[str, float | int | str]:
    """Success at the end and at any step with Wilson's 95 % interval of the former, for tracks [B,
    T+1, 2]."""
    outcome = judge(track, tasks.goal, radius=act.radius)
    low, high = wilson(int(outcome.success_final.sum()), len(track))
    close = judge(track, tasks.goal, radius=act.strict_radius)
    return {
        "success_final": float(outcome.success_final.mean()), "low": low, "high": high,
        "success_any": float(outcome.success_any.mean()),
        "success_final_strict": float(close.success_final.mean()),
        "success_any_strict": float(close.success_any.mean()),
        "episodes": len(track), "seeds": 1, "budget": track.shape[1] - 1, "radius": act.radius,
        "strict_radius": act.strict_radius, "unit": UNIT,
    }  # fmt: skip
