"""Planning for reward, judged by what the world pays: beside random actions and the best constant
one.

B episodes, K decisions, T environment steps, a action numbers.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jepa_wm.config import Config
from jepa_wm.core.config import digest
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import written_whole
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.data.held_out import NAMES, TRAINING, layouts_met
from jepa_wm.evals.intervals import bootstrap
from jepa_wm.planning.action_space import space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.collect import HELDOUT_SEEDS
from jepa_wm.worlds.make import make_world
from jepa_wm.worlds.policies import RandomHolds
from jepa_wm.worlds.protocol import Rewarding, Splitting, of_split

CHUNK = 25  # episodes played together, and the most that an interrupt can cost
JUDGED_SEEDS = 2 * 10**6  # episodes are begun from here on, apart from those of the data
FILMED = 3  # of the first episodes, for the report
CONSTANTS = 81  # constant actions tried, at most; fewer where a grid of them has fewer

Act = Callable[
    [Rewarding], np.ndarray
]  # the worlds as they stand to actions [B, k, a]; who looks, renders


def play_for_reward(run: Run, model: WorldModel) -> dict[str, object]:
    """What the planner and the baselines earn in the same episodes; the chunks an interrupted run has
    finished are kept.

    Of a world with splits the episodes are on held-out layouts, and what ends in
    `_training_layouts` is the same on those of training. The best constant action is the best of a
    grid on these very episodes, which flatters it."""
    config, seeds, seconds = run.config, _seeds(run.config), []
    told = _checked(run)
    for world, suffix in _worlds(config):
        earned, times = planned_returns(_folder(run, suffix), model, world, seeds, config)
        told |= {
            f"return{suffix}": summary(earned, config),
            f"baselines{suffix}": _baselines(world, seeds, config),
        }
        seconds.append(times)
    return {
        **told,
        "seconds_per_decision": float(np.median(np.concatenate(seconds))),
        "tasks": {"seed": config.evaluation.task_seed, "digest": _digest(config)},
    }


def _digest(config: Config) -> str:
    """Of what the episodes are: the world, apart from how data are collected in it, seeds and
    budget."""
    worlds = config.world.model_dump(
        mode="json", exclude={"cross": True, "drift": True, "blind": True, "gym": {"hold"}}
    )
    return digest(
        {
            "worlds": worlds,
            "first": int(_seeds(config)[0]),
            "act": [config.evaluation.episodes, config.evaluation.budget],
        }
    )


def _baselines(world: Rewarding, seeds: np.ndarray, config: Config) -> dict[str, object]:
    policy, budget = RandomHolds(seeds, hold=config.dynamics.frameskip), config.evaluation.budget
    random = play_rewards(world, seeds, lambda world: policy(world)[:, None], budget=budget)
    by_constant = {
        tuple(map(float, action)): play_rewards(world, seeds, holding(action), budget=budget)
        for action in constant_actions(world)
    }
    best = max(by_constant, key=lambda action: by_constant[action].mean())
    return {
        "random": summary(random, config),
        "constant": summary(by_constant[best], config) | {"action": list(best)},
        "random_encoder": None,
    }


def play_shard_for_reward(
    run: Run, model: WorldModel, shard: int, shards: int
) -> dict[str, object]:
    """Play every `shards`-th chunk of the planner's episodes, for `play_for_reward` to find;
    others play theirs."""
    seeds, played = _seeds(run.config), 0
    _checked(run)
    some = range(shard * CHUNK, len(seeds), shards * CHUNK)
    for world, suffix in _worlds(run.config) if some else ():
        planned_returns(_folder(run, suffix), model, world, seeds, run.config, some=some)
        played += sum(len(seeds[first : first + CHUNK]) for first in some)
    return {"shard": shard, "shards": shards, "episodes": played}


def _seeds(config: Config) -> np.ndarray:
    return (
        JUDGED_SEEDS + config.evaluation.task_seed * 10**5 + np.arange(config.evaluation.episodes)
    )


def _folder(run: Run, suffix: str) -> Path:
    return run.stage_dir("plan") / f"returns{suffix}"


def _worlds(config: Config) -> list[tuple[Rewarding, str]]:
    """(world, what the keys of its figures end in): of each split, or the one world that has
    none."""
    world = rewarding_world(config)
    if not isinstance(world, Splitting):
        return [(world, "")]
    return [(of_split(world, "heldout"), ""), (of_split(world, "train"), TRAINING)]


def _checked(run: Run) -> dict[str, object]:
    """`layouts`: that none of the held-out episodes' is in the training file, of a world that
    tells its layouts.

    Raises UserError for one that is, and in a world without splits for episodes with the seeds of
    the data's."""
    config, seeds = run.config, _seeds(run.config)
    worlds = _worlds(config)
    if len(worlds) > 1 and set(NAMES) <= set(worlds[0][0].state_names):
        layouts = []
        for world, _ in worlds:
            world.reset(seeds)
            layouts.append(world.state()[:, [world.state_names.index(name) for name in NAMES]])
        return {"layouts": layouts_met(run, *layouts)}
    first, amounts = config.seed * 10**7, config.collect
    for begin, count in (
        (first, amounts.episodes),
        (first + HELDOUT_SEEDS, amounts.heldout_episodes),
    ):
        if config.data.path is None and len(np.intersect1d(seeds, begin + np.arange(count))):
            raise UserError(
                f"evaluation.task_seed {config.evaluation.task_seed}: its episodes are in the data; choose another"
            )
    return {}


def rewarding_world(config: Config) -> Rewarding:
    """The configured world; UserError for one that pays nothing."""
    world = make_world(config.world)
    if not isinstance(world, Rewarding) or not world.has_reward:
        raise UserError(
            f"planner.cost.objective reward: the world {config.world.name} has none; set world.reward_region, or name another world"
        )
    return world


def planned_returns(
    folder: Path, model: WorldModel, world: Rewarding, seeds: np.ndarray, config: Config,
    *, some: range | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """(returns [B] of all episodes, seconds of each decision); of `some` chunks only, named by
    their first episodes."""
    folder.mkdir(exist_ok=True)
    space = space_of(
        world, frameskip=config.dynamics.frameskip, action_repeat=config.planner.mpc.action_repeat
    )
    returns, seconds = [], []
    with catching_signals() as stop, Progress("plan reward", len(seeds)) as bar:
        for first in range(0, len(seeds), CHUNK) if some is None else some:
            file, chunk = folder / f"{first:05d}.npz", seeds[first : first + CHUNK]
            if not file.exists():
                agent = Agent(model, space, config.planner)
                agent.reset(None, chunk.tolist())

                def tell(share: float, first: int = first, count: int = len(chunk)) -> None:
                    stop.raise_if_requested()
                    bar.update(first + int(share * count))

                earned, times, film = _played(agent, world, chunk, config.evaluation.budget, tell)
                if first == 0 and film.shape[-1] == 3 and not folder.name.endswith(TRAINING):
                    np.savez_compressed(
                        folder.parent / "film.npz", frames=film, earned=earned[:FILMED]
                    )
                with written_whole(file) as temporary:
                    np.savez(temporary, earned=earned, seconds=times)
            with np.load(file) as stored:
                returns.append(stored["earned"])
                seconds.append(stored["seconds"])
            bar.update(first + len(chunk), earned=float(np.concatenate(returns).mean()))
    return np.concatenate(returns), np.concatenate(seconds)


def _played(
    agent: Agent, world: Rewarding, seeds: np.ndarray, budget: int, tell: Callable[[float], None]
) -> tuple[np.ndarray, list[float], np.ndarray]:
    """(returns [B], seconds of each decision, frames [FILMED or fewer, K, h, w, c] of the first
    episodes); `tell` hears before each decision what share is done."""
    times: list[float] = []
    film: list[np.ndarray] = []
    taken = 0

    def act(world: Rewarding) -> np.ndarray:
        nonlocal taken
        tell(taken / budget)
        frames = world.render()
        film.append(frames[:FILMED].copy())
        began = time.monotonic()
        actions = agent.act(frames)
        times.append((time.monotonic() - began) / len(world))
        taken += actions.shape[1]
        return actions

    def observe(world: Rewarding) -> None:
        agent.observe(world.render())

    skip = agent.model.latent.settings.frameskip
    earned = play_rewards(world, seeds, act, budget=budget, observe=observe, every=skip)
    return earned, times, np.stack(film, 1)


def play_rewards(
    world: Rewarding, seeds: np.ndarray, act: Act, *, budget: int, observe: Callable[[Rewarding], None] | None = None,
    every: int = 1,
) -> np.ndarray:  # fmt: skip
    """[B] float64 sums of what episodes from `seeds` pay within `budget` steps; `observe` meets
    the worlds after each `every` steps of a longer answer of `act`."""
    world.reset(seeds)
    earned, taken = np.zeros(len(seeds)), 0
    while taken < budget:
        actions = np.moveaxis(act(world), 1, 0)
        for number, action in enumerate(actions[: budget - taken], 1):
            world.step(action)
            earned += world.reward()
            taken += 1
            if (
                observe is not None
                and number % every == 0
                and number < len(actions)
                and taken < budget
            ):
                observe(world)
    return earned


def constant_actions(world: Rewarding) -> np.ndarray:
    """[n, a] actions to be held for whole episodes: every choice, or a grid over the box, or draws
    in a wide box."""
    if world.choices is not None:
        return np.arange(world.choices, dtype=np.float32)[:, None]
    low, high, _ = world.action_bounds
    levels = next((n for n in (9, 5, 3) if n ** len(low) <= CONSTANTS), 0)
    if levels:
        axes = [np.linspace(a, b, levels) for a, b in zip(low, high, strict=True)]
        return np.array(list(itertools.product(*axes)), np.float32)
    drawn = np.random.default_rng(0).uniform(low, high, (CONSTANTS - 1, len(low)))
    idle = space_of(world, frameskip=1, action_repeat=True).idle_step()
    return np.concatenate([[idle], drawn]).astype(np.float32)


def holding(action: np.ndarray) -> Act:
    """Always the same action [a]."""
    return lambda world: np.tile(action, (len(world), 1, 1))


def summary(earned: np.ndarray, config: Config) -> dict[str, object]:
    """Mean return [B] with its bootstrap 95 % interval."""
    low, high = bootstrap(earned)
    episodes = {"episodes": len(earned), "seeds": 1, "budget": config.evaluation.budget}
    return {"mean": float(earned.mean()), "low": low, "high": high, **episodes}
