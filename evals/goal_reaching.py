"""The `plan` stage: goal-image episodes on frozen tasks, judged beside baselines and an oracle; or
episodes for reward.

Every figure is of episodes on held-out layouts; what ends in `_training_layouts` is the same on
those of training.

B episodes, J decisions, I solver iterations, T environment steps, P numbers of a position, L of a
layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.held_out import TRAINING, layouts_met
from jepa_wm.evals.baselines import baselines, oracle
from jepa_wm.evals.episodes import AgentPolicy, Watch, play_in_chunks, shard_of, success
from jepa_wm.evals.goal_records import energy_maps, gather
from jepa_wm.evals.returns import RewardPlay, judged_seeds, rewarding_worlds
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.action_space import Space, space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.collect import data_seeds
from jepa_wm.worlds.protocol import Splitting
from jepa_wm.worlds.registry import CollectSettings, WorldSettings, make_task
from jepa_wm.worlds.tasks import SPLITS, Episodes, Task

MAIN = "main"  # folder of the episodes played with the main objective


@stage(
    after="heads",
    headline=(
        "success", "success_by", "success_training_layouts", "return", "return_training_layouts",
        "baselines", "baselines_training_layouts", "oracle", "oracle_training_layouts",
        "seconds_per_decision",
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
    """Play all episodes with the main objective and those to compare, then the baselines and the
    oracle; chunks of episodes that an interrupted run has finished are kept.

    `shard` (k, n): only the k-th of n equal parts of the episodes, others playing theirs
    meanwhile."""
    asked = PlanStage(
        run, seed, world, data_path, collect, dynamics_frameskip, planner, evaluation
    )
    model = WorldModel.load(run.path)
    return asked.judge(model) if shard is None else asked.share(model, *shard)


@dataclass(frozen=True)
class PlanStage:
    """What the stage is given."""

    run: Run
    seed: int
    world: WorldSettings
    data_path: str | None
    collect: CollectSettings
    frameskip: int  # of the dynamics
    planner: PlannerSettings
    evaluation: EvaluationSettings

    def judge(self, model: WorldModel) -> dict[str, object]:
        """All of the stage."""
        if self.for_reward:
            return {**self.checked_rewards(), **self.rewards(model).judge()}
        goals = self.goals(model)
        episodes = self.episodes(goals.task)
        checked = self.checked(episodes.seeds, _layouts(episodes))
        return {**checked, **judge_goals(goals, episodes, self.planner)}

    def share(self, model: WorldModel, shard: int, shards: int) -> dict[str, object]:
        """One of `shards` equal parts of the episodes, for `judge` to find."""
        played = 0
        if self.for_reward:
            self.checked_rewards()
            played = self.rewards(model).share(shard, shards)
        else:
            goals = self.goals(model)
            episodes = self.episodes(goals.task)
            self.checked(episodes.seeds, _layouts(episodes))
            for name, planner, part, _ in plays(self.planner, episodes):
                rows = shard_of(len(part), shard, shards)
                played += len(goals.distances(name, part, planner, rows)) if rows else 0
        return {"shard": shard, "shards": shards, "episodes": played}

    @property
    def for_reward(self) -> bool:
        """Whether it plans for reward instead of toward goals."""
        return self.planner.cost.objective == "reward"

    def rewards(self, model: WorldModel) -> RewardPlay:
        """Its episodes for reward."""
        folder = self.run.stage_dir("plan")
        return RewardPlay(model, self.world, self.planner, self.evaluation, self.frameskip, folder)

    def goals(self, model: WorldModel) -> GoalPlay:
        """Its goal episodes."""
        task = make_task(self.world, self.evaluation.task)
        return GoalPlay(
            model, task, self.space(model), self.evaluation.budget, self.frameskip,
            self.run.stage_dir("plan"),
        )  # fmt: skip

    def space(self, model: WorldModel) -> Space:
        """The world's action space; UserError if the run's model was trained on actions of another
        size."""
        try:
            space = space_of(
                self.world.make(),
                frameskip=self.frameskip,
                action_repeat=self.planner.mpc.action_repeat,
            )
            Agent(model, space, self.planner)
        except ValueError as error:
            raise UserError(
                f"{self.run.path}: this model cannot act in the world {self.world.name!r}: {error}"
            ) from error
        return space

    def episodes(self, task: Task) -> Episodes:
        """Those in the stage's folder, frozen now if they are not there yet."""
        path, evaluation = self.run.stage_dir("plan") / "tasks.json", self.evaluation
        if not path.exists():
            task.sample(evaluation.episodes, evaluation.task_seed).save(path)
        return Episodes.load(path)

    def checked_rewards(self) -> dict[str, object]:
        """`checked` for the episodes for reward."""
        seeds, layouts = judged_seeds(self.evaluation), []
        for world, _ in rewarding_worlds(self.world):
            if isinstance(world, Splitting):
                world.reset(seeds)
                names = [world.state_names.index(name) for name in world.layout_names]
                layouts.append(world.state()[:, names])
        return self.checked(seeds, layouts)

    def checked(self, seeds: np.ndarray, layouts: list[np.ndarray]) -> dict[str, object]:
        """`layouts` [B, L] of held-out and of training episodes: how many of each the training
        file has; {} for a world that keeps none apart.

        Raises UserError for a held-out one that it has, and in a world without layouts for
        episodes with the seeds of the data's."""
        folder = Path(self.data_path) if self.data_path else self.run.path / "collect"
        if layouts:
            return {"layouts": layouts_met(folder / "train.h5", *layouts)}
        for taken in data_seeds(self.collect, self.seed).values():
            if self.data_path is None and len(np.intersect1d(seeds, taken)):
                raise UserError(
                    f"evaluation.task_seed {self.evaluation.task_seed}: its episodes are in the "
                    "data; choose another"
                )
        return {}


def judge_goals(goals: GoalPlay, episodes: Episodes, main: PlannerSettings) -> dict[str, object]:
    """Success of the main objective and of those to compare, beside baselines and oracle; what the
    report shows is written down."""
    result: dict[str, object] = {}
    by_objective: dict[str, object] = {}
    for name, planner, part, suffix in plays(main, episodes):
        reached = success(goals.distances(name, part, planner), goals.task)
        # Baselines and oracle stand beside the main objective, on both kinds of layouts.
        if name.startswith(MAIN):
            result[f"success{suffix}"] = reached
            result[f"baselines{suffix}"] = baselines(
                goals.task, part, budget=goals.budget, repeat=goals.frameskip
            )
            result[f"oracle{suffix}"] = oracle(
                goals.task, part, goals.space, planner, budget=goals.budget
            )
        if not suffix:
            by_objective[planner.cost.objective] = reached
    # The report shows held-out layouts.
    held_out = episodes.of("heldout")
    gather(goals.folder, goals.folder / MAIN, goals.task, held_out)
    energy_maps(goals.folder / "energy.npz", goals.model, goals.task, held_out, main)
    return {
        **result,
        "success_by": by_objective,
        "seconds_per_decision": goals.seconds_per_decision(held_out, main),
        "tasks": {"name": episodes.name, "seed": episodes.seed, "digest": episodes.digest},
    }


def plays(
    main: PlannerSettings, episodes: Episodes
) -> list[tuple[str, PlannerSettings, Episodes, str]]:
    """What is played: (folder of its episodes, settings, episodes, what the keys of its figures
    end in).

    The main objective on both kinds of layouts, where there are two, those to compare on held-out
    ones."""
    held_out, training = episodes.of("heldout"), episodes.of("train")
    played = [(MAIN, main, held_out, "")]
    for objective in main.mpc.also_evaluate:
        played.append((objective, main.toward(objective), held_out, ""))
    if len(training):
        played.append((f"{MAIN}{TRAINING}", main, training, TRAINING))
    return played


def _layouts(episodes: Episodes) -> list[np.ndarray]:
    """[B, L] of both splits; none where the world keeps none apart."""
    return [episodes.of(split).layout for split in SPLITS] if episodes.layout.shape[1] else []


@dataclass(frozen=True)
class GoalPlay:
    """Goal episodes of one model."""

    model: WorldModel
    task: Task
    space: Space
    budget: int  # environment steps
    frameskip: int
    folder: Path  # of the stage

    def distances(
        self, name: str, episodes: Episodes, planner: PlannerSettings, rows: range | None = None
    ) -> np.ndarray:
        """[B, T+1] to the goal in all episodes, or in `rows`, played in the folder `name`."""
        played = play_in_chunks(
            self.folder / name,
            range(len(episodes)) if rows is None else rows,
            _Chunk(self, episodes, planner).play,
            keys=("distance",),
            label=f"plan {planner.cost.objective}",
            budget=self.budget,
        )
        return played["distance"]

    def agent(self, episodes: Episodes, planner: PlannerSettings, seeds: list[int]) -> Agent:
        """An agent that was shown the goals."""
        agent = Agent(self.model, self.space, planner)
        agent.reset(self.task.goal_images(episodes), seeds)
        return agent

    def seconds_per_decision(
        self, episodes: Episodes, planner: PlannerSettings, *, count: int = 7
    ) -> float:
        """Median time of one decision for one episode: encode, imagine and search."""
        first = episodes.part(0, 1)
        world, policy = self.task.begin(first), AgentPolicy(self.agent(first, planner, [0]))
        for _ in range(count):
            policy(world)
        return float(np.median(policy.seconds[1:]))


@dataclass(frozen=True)
class _Chunk:
    """Plays the episodes of one chunk file."""

    goals: GoalPlay
    episodes: Episodes
    planner: PlannerSettings

    def play(self, first: int, last: int, watch: Watch) -> Mapping[str, np.ndarray]:
        """What is kept of episodes `first` to `last` (excluded)."""
        goals, task, part = self.goals, self.goals.task, self.episodes.part(first, last)
        agent = goals.agent(part, self.planner, part.seeds.tolist())
        policy = AgentPolicy(agent, watch=watch)
        track = policy.play(task.begin(part), budget=goals.budget, every=goals.frameskip)
        position = task.position(track.state)
        return {
            "frames": np.stack(policy.frames, 1),  # [B, J+1, h, w, 3]
            "track": position,  # [B, T+1, P]
            "distance": task.distance(position, part.goal[:, None]),  # [B, T+1]
            "cost": np.stack(policy.traces, 1),  # [B, J, I]
            "seconds": np.array(policy.seconds),  # [J]
            "decision_steps": track.decision_steps,  # [J+1]
        }
