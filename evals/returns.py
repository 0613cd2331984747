"""Planning for reward, judged by what the world gives: beside random actions and the best constant
one.

B episodes, J decisions, T environment steps, A action numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jepa_wm.core.config import digest
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.evals.episodes import (
    SUFFIXES,
    Act,
    AgentPolicy,
    Watch,
    play,
    play_in_chunks,
    shard_of,
)
from jepa_wm.evals.scores import bootstrap
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.action_space import space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.proprio import proprio_of
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.world import RandomActions, Rewarding, Splitting, WorldSettings, of_split

JUDGED_SEEDS = 2 * 10**6  # episodes are begun from here on, apart from those of the data
FILMED = 3  # of the first episodes, for the report
CONSTANTS = 81  # constant actions tried, at most; fewer where a grid of them has fewer


def rewarding_world(settings: WorldSettings) -> Rewarding:
    """The configured world; UserError for one without rewards."""
    world = settings.make()
    if not isinstance(world, Rewarding) or not world.has_reward:
        raise UserError(
            f"planner.cost.objective reward: the world {settings.name} has no reward as it is "
            "configured; set its reward_region, or name another world"
        )
    return world


def rewarding_worlds(settings: WorldSettings) -> dict[str, Rewarding]:
    """{what folders and keys of its episodes end in: the configured world}, one for each split
    that it has."""
    world = rewarding_world(settings)
    if not isinstance(world, Splitting):
        return {"": world}
    return {suffix: of_split(world, split) for split, suffix in SUFFIXES.items()}


@dataclass(frozen=True)
class RewardPlay:
    """Episodes for reward of one model.

    Of a world with splits the episodes are on held-out layouts, and what ends in
    `_training_layouts` is the same on those of training."""

    run: Run
    model: WorldModel
    world: WorldSettings
    planner: PlannerSettings
    evaluation: EvaluationSettings
    frameskip: int

    @property
    def seeds(self) -> np.ndarray:
        """[B] of the episodes."""
        evaluation = self.evaluation
        return JUDGED_SEEDS + evaluation.task_seed * 10**5 + np.arange(evaluation.episodes)

    def layouts(self) -> list[np.ndarray]:
        """[B, L] of each split; none where the world keeps none apart."""
        layouts = []
        for world in rewarding_worlds(self.world).values():
            if isinstance(world, Splitting):
                world.reset(self.seeds)
                names = [world.state_names.index(name) for name in world.layout_names]
                layouts.append(world.state()[:, names])
        return layouts

    def judge(self) -> dict[str, object]:
        """What the planner and the baselines earn in the same episodes; the chunks an interrupted
        run has finished are kept.

        The best constant action is the best of a grid on these very episodes, which flatters
        it."""
        result: dict[str, object] = {}
        seconds = []
        for suffix, world in rewarding_worlds(self.world).items():
            played = self._returns(world, suffix)
            result[f"return{suffix}"] = self._figures(played["earned"])
            result[f"baselines{suffix}"] = self._baselines(world)
            seconds.append(played["seconds"])
        # What the episodes are: the world, apart from how data are collected in it, seeds, budget.
        content = {
            "world": self.world.model_dump(mode="json", exclude={"exploration"}),
            "first": int(self.seeds[0]),
            "evaluation": [self.evaluation.episodes, self.evaluation.budget],
        }
        return {
            **result,
            "seconds_per_decision": float(np.median(np.concatenate(seconds))),
            "tasks": {"seed": self.evaluation.task_seed, "digest": digest(content)},
        }

    def share(self, shard: int, shards: int) -> int:
        """Play one of `shards` equal parts of the planner's episodes, for `judge` to find; how
        many they were."""
        rows = shard_of(self.evaluation.episodes, shard, shards)
        worlds = rewarding_worlds(self.world) if rows else {}
        for suffix, world in worlds.items():
            self._returns(world, suffix, rows)
        return len(rows) * len(worlds)

    def _returns(
        self, world: Rewarding, suffix: str, rows: range | None = None
    ) -> dict[str, np.ndarray]:
        """`earned` [B] in all episodes, or in `rows`, and the `seconds` that each decision took
        for one of them."""
        folder = self.run.stage_dir("plan")
        return play_in_chunks(
            folder / f"returns{suffix}",
            range(self.evaluation.episodes) if rows is None else rows,
            partial(self._chunk, world, None if suffix else folder / "film.npz"),
            keys=("earned", "seconds"),
            label="plan reward",
            budget=self.evaluation.budget,
        )

    def _chunk(
        self, world: Rewarding, film: Path | None, first: int, last: int, watch: Watch
    ) -> Mapping[str, np.ndarray]:
        """`earned` and `seconds` of episodes `first` to `last` (excluded); frames of the first
        episodes go into `film`."""
        seeds, repeat = self.seeds[first:last], self.planner.mpc.action_repeat
        space = space_of(world, frameskip=self.frameskip, action_repeat=repeat)
        agent = Agent(self.model, space, self.planner, proprio=proprio_of(self.model, world))
        agent.reset(None, seeds.tolist())
        world.reset(seeds)
        policy = AgentPolicy(agent, watch=watch, filmed=FILMED)
        track = policy.play(world, budget=self.evaluation.budget, every=self.frameskip)
        frames = np.stack(policy.frames[:-1], 1)  # one a decision
        if film is not None and first == 0 and frames.shape[-1] == 3:
            np.savez_compressed(film, frames=frames, earned=track.returns[:FILMED])
        seconds = np.array(policy.seconds) / len(seeds)
        return {"earned": track.returns, "seconds": seconds}

    def _baselines(self, world: Rewarding) -> dict[str, object]:
        random = RandomActions(self.seeds, mean_repeat=self.frameskip)
        drawn = self._earned(world, lambda world: random(world)[:, None])
        by_constant = {
            tuple(map(float, action)): self._earned(world, repeating(action))
            for action in constant_actions(world)
        }
        best = max(by_constant, key=lambda action: by_constant[action].mean())
        return {
            "random": self._figures(drawn),
            "constant": {**self._figures(by_constant[best]), "action": list(best)},
            "random_encoder": None,
        }

    def _earned(self, world: Rewarding, act: Act) -> np.ndarray:
        """[B] what a policy earns in the episodes."""
        world.reset(self.seeds)
        return play(world, act, budget=self.evaluation.budget).returns

    def _figures(self, earned: np.ndarray) -> dict[str, object]:
        """Mean return [B] with its bootstrap 95 % interval."""
        low, high = bootstrap(earned[None])
        figures = {"mean": float(earned.mean()), "low": low, "high": high}
        return {**figures, "episodes": len(earned), "seeds": 1, "budget": self.evaluation.budget}


def repeating(action: np.ndarray) -> Act:
    """Always the same action [A]."""
    return lambda world: np.tile(action, (len(world), 1, 1))


def constant_actions(world: Rewarding) -> np.ndarray:
    """[R, A] actions to be repeated for whole episodes: every choice, or a grid over the box, or
    draws in a wide box."""
    actions = world.action_space
    if actions.choices is not None:
        return np.arange(actions.choices, dtype=np.float32)[:, None]
    low, high = actions.low, actions.high
    levels = next((n for n in (9, 5, 3) if n ** len(low) <= CONSTANTS), 0)
    if levels:
        axes = [np.linspace(a, b, levels) for a, b in zip(low, high, strict=True)]
        return np.array(list(itertools.product(*axes)), np.float32)
    drawn = np.random.default_rng(0).uniform(low, high, (CONSTANTS - 1, len(low)))
    idle = space_of(world, frameskip=1, action_repeat=True).idle_step()
    return np.concatenate([[idle], drawn]).astype(np.float32)
