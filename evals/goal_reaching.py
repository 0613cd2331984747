"""The `plan` stage: goal-image episodes on frozen tasks, judged beside baselines and an oracle; or
episodes for reward.

Whatever is told is of tasks on held-out layouts; what ends in `_training_layouts` is the same on
those of training.

B episodes, K decisions, R solver rounds, T environment steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from jepa_wm.config import Config
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import written_whole
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.held_out import TRAINING, layouts_met
from jepa_wm.evals.baselines import baselines_and_oracle
from jepa_wm.evals.energy_map import energy_maps
from jepa_wm.evals.episodes import Record, begin, play, success
from jepa_wm.evals.returns import play_for_reward, play_shard_for_reward
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.action_space import ActionSpace, space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.make import clean, rooms
from jepa_wm.worlds.settings import WorldSettings
from jepa_wm.worlds.tasks import SPLITS, Tasks, freeze_tasks
from jepa_wm.worlds.two_rooms.world import TwoRooms

MAIN = "main"  # folder of the episodes played with the main objective
CHUNK = 25  # episodes played together, and the most that an interrupt can cost


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
    dynamics_frameskip: int,
    planner: PlannerSettings,
    evaluation: EvaluationSettings,
    shard: tuple[int, int] | None = None,
) -> dict[str, object]:
    """Play all episodes with the main objective and those to compare, then the baselines and the
    oracle; chunks of episodes that an interrupted run has finished are kept.

    `shard` (k, n): only the k-th of n equal parts of the episodes, others playing theirs
    meanwhile."""
    return play_and_judge(run) if shard is None else play_shard(run, *shard)


def play_and_judge(run: Run) -> dict[str, object]:
    """All of the stage."""
    model = WorldModel.load(run.path)
    if run.config.planner.cost.objective == "reward":
        return play_for_reward(run, model)
    space, tasks, folder = _goals(run, model)
    config = run.config
    told: dict[str, object] = {
        "layouts": layouts_met(run, *(tasks.of(split).layout for split in SPLITS))
    }
    by_name: dict[str, dict[str, float | int | str]] = {}
    for name, plan, some, suffix in _plays(config, tasks):
        outcome = success(
            play_all(folder / name, model, some, space, config, plan), some, config.evaluation
        )
        if name.startswith(MAIN):
            told |= {
                f"success{suffix}": outcome,
                **baselines_and_oracle(some, space, config, suffix),
            }
        if not suffix:
            by_name[plan.cost.objective] = outcome
    held_out = tasks.of("heldout")
    gather(folder, held_out, config)
    energy_maps(folder / "energy.npz", model, held_out, config)
    return {
        **told,
        "success_by": by_name,
        "seconds_per_decision": seconds_per_decision(model, held_out, space, config),
        "tasks": {"name": tasks.name, "seed": tasks.seed, "digest": tasks.digest},
    }


def play_shard(run: Run, shard: int, shards: int) -> dict[str, object]:
    """Play one of `shards` equal parts of the episodes, for `play_and_judge` to find; others play
    theirs meanwhile."""
    model = WorldModel.load(run.path)
    if run.config.planner.cost.objective == "reward":
        return play_shard_for_reward(run, model, shard, shards)
    space, tasks, folder = _goals(run, model)
    layouts_met(run, *(tasks.of(split).layout for split in SPLITS))
    played = 0
    for name, plan, some, _ in _plays(run.config, tasks):
        first, last = (len(some) * k // shards for k in (shard, shard + 1))
        play_all(folder / name, model, some, space, run.config, plan, some=range(first, last))
        played += last - first
    return {"shard": shard, "shards": shards, "episodes": played}


def _goals(run: Run, model: WorldModel) -> tuple[ActionSpace, Tasks, Path]:
    config = run.config
    if config.world.name != "two_rooms":
        raise UserError(
            f"planner.cost.objective {config.planner.cost.objective}: the command plan has goal "
            f"tasks for two_rooms alone; in the world {config.world.name} plan for reward "
            "(planner.cost.objective=reward), or toward images through Agent"
        )
    space = fitting_space(run, model)
    folder = run.stage_dir("plan")
    return space, frozen_tasks(folder / "tasks.json", config), folder


def _plays(config: Config, tasks: Tasks) -> list[tuple[str, PlannerSettings, Tasks, str]]:
    """What is played: (folder of its episodes, settings, tasks, what the keys of its figures end
    in).

    The main objective on both kinds of layouts, those to compare on held-out ones.
    """
    held_out, training = tasks.of("heldout"), tasks.of("train")
    compared = [(name, config.planner.toward(name)) for name in config.planner.mpc.also_evaluate]
    return [
        (MAIN, config.planner, held_out, ""),
        *((name, plan, held_out, "") for name, plan in compared),
        (f"{MAIN}{TRAINING}", config.planner, training, TRAINING),
    ]


def fitting_space(run: Run, model: WorldModel) -> ActionSpace:
    """The world's action space; UserError if the run's model was trained on actions of another
    size."""
    try:
        space = action_space(run.config)
        Agent(model, space, run.config.planner)
    except ValueError as error:
        world = run.config.world.name
        raise UserError(
            f"{run.path}: this model cannot act in the world {world!r}: {error}"
        ) from error
    return space


def action_space(config: Config) -> ActionSpace:
    """The space the solver searches in the configured world."""
    space = space_of(
        TwoRooms(config.world.geometry),
        frameskip=config.dynamics.frameskip,
        action_repeat=config.planner.mpc.action_repeat,
    )
    assert isinstance(space, ActionSpace)
    return space


def frozen_tasks(path: Path, config: Config) -> Tasks:
    """The task file at `path`, frozen now if it is not there yet."""
    act = config.evaluation
    if not path.exists():
        freeze_tasks(
            act.task,
            geometry=config.world.geometry,
            episodes=act.episodes,
            seed=act.task_seed,
            radius=act.radius,
        ).save(path)
    return Tasks.load(path)


def play_all(
    folder: Path,
    model: WorldModel,
    tasks: Tasks,
    space: ActionSpace,
    config: Config,
    plan: PlannerSettings,
    *,
    some: range | None = None,
) -> np.ndarray:
    """[B, T+1, 2] tracks of all episodes, or of `some`; each finished chunk is kept, so an
    interrupt costs at most one.

    Chunks that others have played of them, of whatever size, are not played again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    first, last = (0, len(tasks)) if some is None else (some.start, some.stop)
    tracks, won, done = [], 0, 0
    with catching_signals() as stop, Progress(f"plan {plan.cost.objective}", last - first) as bar:
        while first < last:
            file = folder / f"{first:05d}.npz"
            if not file.exists():
                part = tasks.part(first, min(first + CHUNK, last, *_starts_past(folder, first)))
                record, costs, seconds = play_chunk(
                    model, part, space, config, plan, stop.raise_if_requested
                )
                with written_whole(file) as temporary:
                    np.savez_compressed(
                        temporary, frames=record.frames, track=record.track, cost=costs,
                        seconds=seconds, decision_steps=record.decision_steps,
                    )  # fmt: skip
            with np.load(file) as stored:
                tracks.append(stored["track"])
            ends = tasks.part(first, first + len(tracks[-1])).goal
            won += int(
                (np.linalg.norm(tracks[-1][:, -1] - ends, axis=1) < config.evaluation.radius).sum()
            )
            first, done = first + len(tracks[-1]), done + len(tracks[-1])
            bar.update(done, won=f"{won}/{done}")
    return np.concatenate(tracks)


def _starts_past(folder: Path, first: int) -> list[int]:
    """Where the chunks begin that lie behind episode `first`."""
    return [start for file in folder.glob("*[0-9].npz") if (start := int(file.stem)) > first]


def play_chunk(
    model: WorldModel, tasks: Tasks, space: ActionSpace, config: Config, plan: PlannerSettings,
    before_decision: Callable[[], None] = lambda: None,
) -> tuple[Record, np.ndarray, np.ndarray]:  # fmt: skip
    """(record, cost of the best plan after each round [B, K, R], seconds of each decision [K])."""
    agent = Agent(model, space, plan)
    world, goals = begin(tasks, config.world)
    agent.reset(goals, tasks.seeds.tolist())
    traces, seconds = [], []

    def act(frames: np.ndarray) -> np.ndarray:
        before_decision()
        began = time.monotonic()
        actions = agent.act(frames)
        seconds.append(time.monotonic() - began)
        assert agent.mpc.last is not None
        traces.append(agent.mpc.last.trace.numpy())
        return actions

    record = play(
        world,
        act,
        budget=config.evaluation.budget,
        observe=agent.observe,
        every=config.dynamics.frameskip,
    )
    return record, np.stack(traces, 1), np.array(seconds)


def seconds_per_decision(
    model: WorldModel, tasks: Tasks, space: ActionSpace, config: Config, *, count: int = 7
) -> float:
    """Median time of one decision for one episode: look, encode, imagine and search."""
    world, goals = begin(tasks.part(0, 1), config.world)
    agent = Agent(model, space, config.planner)
    agent.reset(goals, [0])
    times = []
    for _ in range(count):
        frames, began = world.render(), time.monotonic()
        agent.act(frames)
        times.append(time.monotonic() - began)
    return float(np.median(times[1:]))


def gather(folder: Path, tasks: Tasks, config: Config, *, most: int = 50) -> None:
    """`episodes.npz` for the report: the first `most` episodes played with the main objective."""
    parts: list[Mapping[str, np.ndarray]] = []
    while (first := sum(len(part["track"]) for part in parts)) < len(tasks):
        parts.append(np.load(folder / MAIN / f"{first:05d}.npz"))
    merged = {k: np.concatenate([p[k] for p in parts])[:most] for k in ("frames", "track", "cost")}
    at, goal = parts[0]["decision_steps"], tasks.goal[:most]
    distance = np.linalg.norm(merged["track"] - goal[:, None], axis=2)
    radius, goals = config.evaluation.radius, rooms(clean(config.world), tasks.geometry)
    goals.reset(tasks.seeds[:most], start=goal, layout=tasks.layout[:most])
    np.savez_compressed(
        folder / "episodes.npz", goal_frame=goals.render(), frames=merged["frames"], positions=merged["track"][:, at],
        goal_position=goal, distance=distance, success_final=distance[:, -1] < radius, success_any=(distance < radius).any(1),
        cost=merged["cost"], radius=radius,
    )  # fmt: skip
