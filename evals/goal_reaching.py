"""The `plan` stage: goal-image episodes on frozen tasks, judged beside baselines, policies and an
oracle; or episodes for reward.

Every figure is of episodes on held-out layouts; what ends in `_training_layouts` is the same on
those of training.

B episodes, J decisions, I solver iterations, T environment steps, P numbers of a position, L of a
layout, G grid side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import states_read
from jepa_wm.data.held_out import layouts_met
from jepa_wm.evals.energy import map_energy
from jepa_wm.evals.episodes import (
    CHUNK,
    AgentPolicy,
    Watch,
    baselines,
    goal_proprio,
    play_in_chunks,
    read_chunks,
    shard_of,
    showing_goals,
)
from jepa_wm.evals.frozen_tasks import frozen_tasks, refuse_recording_of_data, refuse_seeds_of_data
from jepa_wm.evals.oracle import oracle
from jepa_wm.evals.plays import MAIN, Play, beaten_by, beside_search, plays
from jepa_wm.evals.returns import RewardPlay
from jepa_wm.evals.scores import success
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.action_space import Space, space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.cost import PlanningContext
from jepa_wm.planning.search import Cost
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.proprio import proprio_of
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.recorded import RecordedTask
from jepa_wm.worlds.tasks import SPLITS, Episodes, judge, make_task
from jepa_wm.worlds.world import CollectSettings, World, WorldSettings


@stage(
    after="heads",
    headline=(
        "success", "success_by", "success_training_layouts", "return", "return_training_layouts",
        "baselines", "baselines_training_layouts", "policies", "policies_training_layouts",
        "search_beaten", "search_beaten_training_layouts", "oracle", "oracle_training_layouts",
        "seconds_per_decision", "states_read",
    ),
)  # fmt: skip
def plan(
    run: Run,
    seed: int,
    world: WorldSettings,
    data_path: str | None,
    collect: CollectSettings,
    dynamics_frameskip: int,
    planner: PlannerSettings,
    evaluation: EvaluationSettings,
    shard: tuple[int, int] | None = None,
) -> dict[str, object]:
    """Play all episodes with the main objective and those to compare, and with policies alone,
    then the baselines and the oracle; chunks of episodes that an interrupted run has finished are
    kept.

    `shard` (k, n): only the k-th of n equal parts of the episodes, others playing theirs
    meanwhile."""
    play, met = begin(
        run, "plan", seed, world, data_path, collect, dynamics_frameskip, planner, evaluation
    )
    if shard is not None:
        return {"shard": shard[0], "shards": shard[1], "episodes": play.share(*shard)}
    return {**met, **play.judge()}


def begin(
    run: Run,
    place: str,
    seed: int,
    world: WorldSettings,
    data_path: str | None,
    collect: CollectSettings,
    frameskip: int,
    planner: PlannerSettings,
    evaluation: EvaluationSettings,
) -> tuple[GoalPlay | RewardPlay, dict[str, object]]:
    """(the episodes of a run's model, kept in its folder `place`; which layouts its data met and
    which states are read, for its result). UserError for tasks of what was trained on."""
    model = WorldModel.load(run.path)
    data = Path(data_path) if data_path else run.path / "collect"
    if evaluation.task is not None:
        task = evaluation.task.of_data(data / "heldout.h5")
        evaluation = evaluation.model_copy(update={"task": task})
        if isinstance(task, RecordedTask):
            refuse_recording_of_data(data / "train.h5", Path(str(task.path)))
    play: GoalPlay | RewardPlay
    if planner.cost.objective == "reward":
        play = RewardPlay(run, model, world, planner, evaluation, frameskip)
    else:
        play = GoalPlay(run, model, world, planner, evaluation, frameskip, place=place)
    reads = states_read(model.latent_model.settings.latent.read_states)
    if layouts := play.layouts():
        return play, {"layouts": layouts_met(data / "train.h5", *layouts), **reads}
    if data_path is None:
        refuse_seeds_of_data(play.seeds, collect, seed, evaluation)
    return play, reads


class GoalPlay:
    """Goal episodes of one model: those frozen in the folder `place`, drawn now if there are none.

    Raises UserError for a world without goal tasks, and for a model that was trained on actions of
    another size than the world's."""

    def __init__(
        self,
        run: Run,
        model: WorldModel,
        world: WorldSettings,
        planner: PlannerSettings,
        evaluation: EvaluationSettings,
        frameskip: int,
        *,
        place: str,
    ) -> None:
        self.model, self.planner, self.policies = model, planner, evaluation.policies
        self.budget, self.frameskip, self.world = evaluation.budget, frameskip, world.make()
        self.task = make_task(world, evaluation.task)
        try:
            for settings in (planner, *map(planner.alone, self.policies)):
                Agent(model, self.space(settings), settings)
            proprio_of(model, self.world)
        except ValueError as error:
            raise UserError(
                f"{run.path}: this model cannot act in the world {world.name!r}: {error}"
            ) from error
        if planner.cost.proprio:
            showing_goals(self.task)
        # The stage is begun once all of this is known to fit.
        self.folder = run.stage_dir(place)
        self.episodes = frozen_tasks(self.folder / "tasks.json", self.task, evaluation)

    @property
    def seeds(self) -> np.ndarray:
        """[B] of all episodes."""
        return self.episodes.seeds

    def layouts(self) -> list[np.ndarray]:
        """[B, L] of both splits; none where the world keeps none apart."""
        if not self.episodes.layout.shape[1]:
            return []
        return [self.episodes.of(split).layout for split in SPLITS]

    def judge(self) -> dict[str, object]:
        """Success of the main objective and of those to compare, beside baselines and oracle; what
        the report shows is written down."""
        result: dict[str, object] = {}
        by_objective: dict[str, object] = {}
        by_search: dict[str, np.ndarray] = {}  # distances of the main objective, by suffix
        alone: dict[str, dict[str, dict[str, object]]] = {}  # policies, by suffix
        for one in plays(self.planner, self.policies, self.episodes):
            distance = self.distances(one)
            if one.policy is not None:
                beside = beside_search(distance, by_search[one.suffix], self.task)
                alone.setdefault(one.suffix, {})[one.policy] = beside
                continue
            reached = success(distance, self.task)
            # Baselines and oracle stand beside the main objective, on both kinds of layouts.
            if one.folder.startswith(MAIN):
                by_search[one.suffix] = distance
                result[f"success{one.suffix}"] = reached
                result |= self._beside(one)
            if not one.suffix:
                by_objective[one.planner.cost.objective] = reached
        for suffix, policies in alone.items():
            result[f"policies{suffix}"] = policies
            if text := beaten_by(policies):
                result[f"search_beaten{suffix}"] = text
        # The report shows held-out layouts.
        tasks, held_out = self.episodes, self.episodes.of("heldout")
        self._keep_first(held_out)
        map_energy(
            self.folder / "energy.npz", self.task, self.model, held_out,
            robust_radius=self.planner.cost.robust_radius,
        )  # fmt: skip
        return {
            **result,
            "success_by": by_objective,
            "seconds_per_decision": self._seconds_per_decision(held_out.part(0, 1)),
            "tasks": {"name": tasks.name, "seed": tasks.seed, "digest": tasks.digest},
        }

    def share(self, shard: int, shards: int) -> int:
        """Play one of `shards` equal parts of the episodes, for `judge` to find; how many they
        were."""
        played = 0
        for one in plays(self.planner, self.policies, self.episodes):
            rows = shard_of(len(one.episodes), shard, shards)
            played += len(self.distances(one, rows)) if rows else 0
        return played

    def _beside(self, one: Play) -> dict[str, object]:
        """Baselines and oracle on the episodes of the main objective."""
        task, episodes, budget = self.task, one.episodes, self.budget
        beside = baselines(task, episodes, budget=budget, repeat=self.frameskip)
        best = oracle(task, episodes, self.space(one.planner), one.planner, budget=budget)
        return {f"baselines{one.suffix}": beside, f"oracle{one.suffix}": best}

    def distances(
        self, one: Play, rows: range | None = None, *, together: int = CHUNK, label: str = ""
    ) -> np.ndarray:
        """[B, T+1] to the goal in all its episodes, or in `rows`; `together` at a time."""
        played = play_in_chunks(
            self.folder / one.folder, range(len(one.episodes)) if rows is None else rows,
            partial(self._chunk, one), keys=("distance",), label=label or f"plan {one.name}",
            budget=self.budget, together=together,
        )  # fmt: skip
        return played["distance"]

    def _chunk(self, one: Play, first: int, last: int, watch: Watch) -> Mapping[str, np.ndarray]:
        """What is kept of episodes `first` to `last` (excluded)."""
        part = one.episodes.part(first, last)
        world = self.task.begin(part)
        cost = None if one.cost is None else partial(one.cost, world, part)
        agent = self._agent(one.planner, part, part.seeds.tolist(), world, cost)
        policy = AgentPolicy(agent, watch=watch)
        track = policy.play(world, budget=self.budget, every=self.frameskip)
        position = self.task.position(track.state)
        return {
            "frames": np.stack(policy.frames, 1),  # [B, J+1, h, w, 3]
            "track": position,  # [B, T+1, P]
            "distance": self.task.distance(position, part.goal[:, None]),  # [B, T+1]
            "cost": np.stack(policy.traces, 1),  # [B, J, I]
            "seconds": np.array(policy.seconds),  # [J]
            "decision_steps": track.decision_steps,  # [J+1]
        }

    def _agent(
        self,
        planner: PlannerSettings,
        episodes: Episodes,
        seeds: list[int],
        world: World,
        cost: Callable[[PlanningContext], Cost] | None = None,
    ) -> Agent:
        """An agent that was shown the goals, and of the state of `world` what its model reads."""
        read = proprio_of(self.model, world)
        agent = Agent(self.model, self.space(planner), planner, cost=cost, proprio=read)
        carried = goal_proprio(self.model, self.task, episodes) if planner.cost.proprio else None
        agent.reset(self.task.goal_images(episodes), seeds, goal_proprio=carried)
        return agent

    def space(self, planner: PlannerSettings) -> Space:
        """What is searched of the world's actions."""
        repeat = planner.mpc.action_repeat
        return space_of(self.world, frameskip=self.frameskip, action_repeat=repeat)

    def _seconds_per_decision(self, episode: Episodes) -> float:
        """Median time of one decision for one episode: encode, imagine and search."""
        world = self.task.begin(episode)
        policy = AgentPolicy(self._agent(self.planner, episode, [0], world))
        for _ in range(7):
            policy(world)
        return float(np.median(policy.seconds[1:]))

    def _keep_first(self, episodes: Episodes, *, most: int = 50) -> None:
        """`episodes.npz`: the first `most` episodes as they were played, for the report."""
        shown = episodes.part(0, most)
        keys = ("frames", "track", "distance", "cost", "decision_steps")
        played = read_chunks(self.folder / MAIN, range(len(shown)), keys)
        steps = np.unique(played.pop("decision_steps"))  # the same in each chunk
        played = {key: values[:most] for key, values in played.items()}

        # Goals without the world's distractions: these pictures are for people.
        outcome = judge(played["distance"], radius=self.task.radius)
        np.savez_compressed(
            self.folder / "episodes.npz",
            goal_frame=self.task.goal_images(shown, clean=True),
            frames=played["frames"],
            positions=played["track"][:, steps],
            goal_position=shown.goal,
            distance=played["distance"],
            success_final=outcome.success_final,
            success_any=outcome.success_any,
            cost=played["cost"],
            radius=self.task.radius,
        )
