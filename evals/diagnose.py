"""The evaluation `diagnose`: which stage is at fault where plans fail. What of the state features,
latents and imagined latents keep, and what plans gain on the same tasks where one part of the
model is replaced by the true one.

<run>/eval_diagnose/<digest>/              one for each set of settings, with its tasks.json
<run>/eval_diagnose/<digest>/result.json   all of it, once it is done
<run>/eval_diagnose/<digest>/state/        what is kept of the state
<run>/eval_diagnose/<digest>/<plan>/       the episodes of each plan, found again when resumed

B episodes, T environment steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from jepa_wm.core.config import digest
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.trajectories import open_data
from jepa_wm.evals.episodes import Watch, play_in_chunks
from jepa_wm.evals.goal_reaching import GoalPlay, begin
from jepa_wm.evals.oracle import oracle_distances
from jepa_wm.evals.plays import Play, refuse_reward
from jepa_wm.evals.scores import paired_difference, success
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.evals.state_kept import StatesRead
from jepa_wm.evals.true_parts import (
    Drawing,
    ReadCost,
    SimulatedCost,
    why_not_simulated,
    why_refused,
)
from jepa_wm.evals.verdict import verdict
from jepa_wm.features.cache import Features
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.settings import PlannerSettings, SolverSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.tasks import Episodes, HasOracle, judge
from jepa_wm.worlds.world import CollectSettings, World, WorldSettings

STAGE = "eval_diagnose"
EPISODES = 20  # goal tasks at most, the first of those that `plan` plays by the same seed
SIMULATED = 8  # of them with true dynamics, where each frame of each plan is rendered and encoded
TOGETHER = 4  # episodes at a time, and the most that an interrupt can cost
MORE = {"num_samples": 4, "iterations": 2}  # how many times as many `more_search` has


@stage(STAGE, after="heads", keep="own")
def diagnose(
    run: Run,
    seed: int,
    world: WorldSettings,
    data_path: str | None,
    collect: CollectSettings,
    dynamics_frameskip: int,
    planner: PlannerSettings,
    evaluation: EvaluationSettings,
    train_pretrain_final_probe_steps: int,
) -> dict[str, object]:
    """`state`: a row for each group of the state; `plans`: a row for each way to plan, with its
    difference to `search` on the tasks both played; `weakest` and the `sentence` that names it.
    What was measured with the same settings is found again.

    UserError for planning by reward, and for a world without goal tasks."""
    refuse_reward(planner, "diagnose")
    # Whatever it depends on names its folder, so that other settings lie beside it.
    model = WorldModel.load(run.path)
    policies = () if model.heads is None else model.heads.settings.policies
    depends = {"depends": run.recorded(STAGE), "policies": policies}
    place = f"{STAGE}/{digest(depends)}"
    few = {"episodes": min(evaluation.episodes, EPISODES), "policies": ()}

    def work(run: Run) -> dict[str, object]:
        play, _ = begin(
            run, place, seed, world, data_path, collect, dynamics_frameskip, planner,
            evaluation.model_copy(update=few),
        )  # fmt: skip
        assert isinstance(play, GoalPlay)
        made = Diagnosis(run, place, play, data_path, train_pretrain_final_probe_steps)
        kept = run.once(f"{place}/state", lambda run: made.state())
        kept = {key: value for key, value in kept.items() if key not in ("seconds", "commit")}
        plans = made.plans()
        rows: Any = kept["state"]
        weakest, sentence = verdict(rows, plans)
        return {**kept, "plans": plans, "weakest": weakest, "sentence": sentence}

    return run.once(place, work)


class Diagnosis:
    """What is measured of one run, on the held-out episodes of a play."""

    def __init__(
        self, run: Run, place: str, play: GoalPlay, data_path: str | None, probe_steps: int
    ) -> None:
        """`probe_steps` of training a reader of the state."""
        self.run, self.place, self.play, self.data_path = run, place, play, data_path
        self.steps = probe_steps
        self.episodes = play.episodes.of("heldout")

    def state(self) -> dict[str, object]:
        """What is kept of the state, no rows where the data have none."""
        if why := self._stateless():
            return {"state": [], "state_reason": why}
        horizon = self.play.planner.mpc.horizon
        return self.readers.rows(self.play.task, self.episodes, horizon=horizon)

    def plans(self) -> list[dict[str, object]]:
        """A row for each way to plan; one that could not be played has no success, and the
        `reason`."""
        # First what all are compared with.
        planner, task = self.play.planner, self.play.task
        searched = self._distances(Play("search", planner, self.episodes))
        rows = [self._row("search", searched, None)]
        more, why = more_search(planner)
        rows.append(self._played("more_search", more, searched, why))

        # True parts have no gradient and know no policy: what stands in for a solver that needs
        # one has a row of its own, with which they are compared.
        solver, beside = planner.solver.by_costs(), searched
        by_costs = planner.model_copy(update={"solver": solver})
        if solver != planner.solver:
            beside = self._distances(Play("search_by_costs", by_costs, self.episodes))
            rows.append(self._row("search_by_costs", beside, searched))
        oracle = self._oracle() if isinstance(task, HasOracle) else None

        # The true parts, then policies alone.
        why = why_not_simulated(task, self.episodes.part(0, 1))
        few = self.episodes.part(0, SIMULATED)
        simulated = Play("true_dynamics", by_costs, few, cost=self._simulated)
        row = self._played("true_dynamics", simulated, beside, why)
        if oracle is not None and why is None:
            best = self._row("oracle", oracle[: len(few)], beside)
            row |= {f"oracle_{key}": best[key] for key in ("difference", "low_difference")}
        rows.append(row)
        read = Play("true_cost", by_costs, self.episodes, cost=self._read)
        rows.append(self._played("true_cost", read, beside, self._unread()))
        if oracle is None:
            rows.append(_null("oracle", f"task {task.name} has no oracle"))
        else:
            rows.append(self._row("oracle", oracle, beside))
        for name in self._policies():
            alone = Play(f"policy_{name}", planner.alone(name), self.episodes, policy=name)
            rows.append(self._played(name, alone, searched, None))
        return rows

    # ------------------------------------------------------------------ rows

    def _played(
        self, name: str, one: Play | PlannerSettings | None, searched: np.ndarray, why: str | None
    ) -> dict[str, object]:
        """The row of a play, or of a planner on all episodes; without one where `why` says so."""
        if one is None or why is not None:
            return _null(name, why or "it cannot be played")
        if isinstance(one, PlannerSettings):
            one = Play(name, one, self.episodes)
        return self._row(name, self._distances(one), searched)

    def _row(
        self, name: str, distance: np.ndarray, searched: np.ndarray | None
    ) -> dict[str, object]:
        """Success by distances to the goal [B, T+1], and the paired difference to those of the
        search."""
        task, keys = self.play.task, ("success_final", "low", "high", "success_any")
        figures = success(distance, task)
        row: dict[str, object] = {"plan": name, "n": len(distance)}
        row |= {key: figures[key] for key in keys}
        if searched is None:
            return row
        won, beside = (
            judge(each[: len(distance)], radius=task.radius).success_final[None]
            for each in (distance, searched)
        )
        difference, low, high = paired_difference(won, beside)
        return {**row, "difference": difference, "low_difference": low, "high_difference": high}

    def _distances(self, one: Play) -> np.ndarray:
        return self.play.distances(one, together=TOGETHER, label=f"plan {one.folder}")

    def _oracle(self) -> np.ndarray:
        """[B, T+1] to the goal in episodes of the oracle."""
        play = self.play

        def chunk(first: int, last: int, watch: Watch) -> Mapping[str, np.ndarray]:
            watch(0)
            part = self.episodes.part(first, last)
            space = play.space(play.planner)
            return {
                "distance": oracle_distances(
                    play.task, part, space, play.planner, budget=play.budget
                )
            }

        return play_in_chunks(
            play.folder / "oracle", range(len(self.episodes)), chunk, keys=("distance",),
            label="plan oracle", budget=play.budget, together=TOGETHER,
        )["distance"]  # fmt: skip

    def _policies(self) -> tuple[str, ...]:
        """Those that the heads have."""
        heads = self.play.model.heads
        return () if heads is None else tuple(heads.settings.policies)

    # ------------------------------------------------------------------ true parts

    def _simulated(
        self, world: World, episodes: Episodes, context: PlanningContext
    ) -> SimulatedCost:
        task = self.play.task
        assert isinstance(task, HasOracle)
        return SimulatedCost(task, Drawing(self.play.task, episodes), world, context)

    def _read(self, world: World, episodes: Episodes, context: PlanningContext) -> ReadCost:
        task = self.play.task
        assert isinstance(task, HasOracle)
        return ReadCost(task, self.readers.latent.possible, episodes.goal, context)

    def _unread(self) -> str | None:
        """Why the true cost cannot be told from latents; None: it can."""
        task = self.play.task
        world = task.begin(self.episodes.part(0, 1))
        if not isinstance(task, HasOracle):
            return f"task {task.name} has no true cost"
        if why := self._stateless():
            return why
        if world.action_space.choices is not None:
            return "a state that is read from a latent is none that a world of cells can be in"
        if self.readers.names != world.state_names:
            return "the data's state has other numbers than the world's (state_names)"
        return why_refused(task, self.readers.states, self.episodes)

    # ------------------------------------------------------------------ readers of the state

    @cached_property
    def readers(self) -> StatesRead:
        """Of the run's trajectories, which must have a state."""
        train, heldout = Features.both_of_run(self.run.path, self.data_path)
        return StatesRead(self.play.model.latent_model, train, heldout, steps=self.steps)

    def _stateless(self) -> str | None:
        """Why no state can be read; None: it can."""
        if open_data(self.run.path, self.data_path, "train").quantities.groups:
            return None
        return "the trajectories name no groups of a state (column 'state', state_groups)"


def more_search(planner: PlannerSettings) -> tuple[PlannerSettings | None, str | None]:
    """(the planner with more samples and iterations, why there is none)."""
    solver = with_more(planner.solver)
    if solver == planner.solver:
        return None, f"solver {solver.name} has no samples or iterations to be made more"
    return planner.model_copy(update={"solver": solver}), None


def with_more(solver: SolverSettings) -> SolverSettings:
    """The solver with more samples and iterations, those of solvers inside it too."""
    update: dict[str, Any] = {}
    for name in type(solver).model_fields:
        value = getattr(solver, name)
        if isinstance(value, SolverSettings):
            update[name] = with_more(value)
        elif name in MORE:
            update[name] = MORE[name] * value
    return solver.model_copy(update=update)


def _null(name: str, why: str) -> dict[str, object]:
    return {"plan": name, "n": 0, "success_final": None, "reason": why}
