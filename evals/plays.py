"""What one `plan` plays on the frozen goal tasks: the search toward its objective and those to
compare, and policies alone, each beside the search on the same tasks.

B episodes, T environment steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.held_out import TRAINING
from jepa_wm.evals.scores import paired_difference, success
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.search import Cost
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.worlds.tasks import Episodes, Task, judge
from jepa_wm.worlds.world import World

MAIN = "main"  # folder of the episodes played with the main objective
# The cost of plans at one decision, of the worlds as they stand, the tasks played in them and what
# the agent knows.
MakeCost = Callable[[World, Episodes, PlanningContext], Cost]


class Play(NamedTuple):
    """Episodes that are played with one planner."""

    folder: str  # of these episodes
    planner: PlannerSettings
    episodes: Episodes
    suffix: str = ""  # what the keys of its figures end in
    policy: str | None = None  # that plays alone; None: the search does
    cost: MakeCost | None = None  # of plans, in place of the planner's own

    @property
    def name(self) -> str:
        """What is told to be played."""
        return self.policy or self.planner.cost.objective


def refuse_reward(planner: PlannerSettings, evaluation: str) -> None:
    """UserError where the planner of an evaluation toward goals plans by reward."""
    if planner.cost.objective == "reward":
        raise UserError(
            f"eval {evaluation} plays toward goal images, and planner.cost.objective is reward: "
            "name another objective, such as temporal"
        )


def plays(main: PlannerSettings, policies: tuple[str, ...], episodes: Episodes) -> list[Play]:
    """All that is played. The main objective and the policies on both kinds of layouts, where
    there are two, the objectives to compare on held-out ones."""
    held_out, training = episodes.of("heldout"), episodes.of("train")
    played = [Play(MAIN, main, held_out)]
    for objective in main.mpc.also_evaluate:
        played.append(Play(objective, main.toward(objective), held_out))
    if len(training):
        played.append(Play(f"{MAIN}{TRAINING}", main, training, TRAINING))
    for part, suffix in ((held_out, ""), (training, TRAINING)):
        if len(part):
            played += [
                Play(f"policy_{name}{suffix}", main.alone(name), part, suffix, name)
                for name in policies
            ]
    return played


def beside_search(distance: np.ndarray, by_search: np.ndarray, task: Task) -> dict[str, object]:
    """Success of a policy alone, and `over_search`: the difference of success at the end to the
    search on the same tasks, with its paired 95 % interval; of distances to the goal [B, T+1]
    each."""
    won, searched = (
        judge(one, radius=task.radius).success_final[None] for one in (distance, by_search)
    )
    difference, low, high = paired_difference(won, searched)
    over = {"difference": difference, "low": low, "high": high}
    return {**success(distance, task), "over_search": over}


def beaten_by(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """A sentence on the policies that win more of the tasks than the search does, by intervals
    that lie above 0; empty where none does."""
    better = [
        f"{name} (by {100 * over['difference']:.1f} % of the tasks, paired 95 % interval "
        f"{100 * over['low']:.1f} to {100 * over['high']:.1f} %)"
        for name, over in ((name, one["over_search"]) for name, one in policies.items())
        if over["low"] > 0
    ]
    if not better:
        return ""
    return f"The search is beaten by a policy alone, without a search: {', '.join(better)}."
