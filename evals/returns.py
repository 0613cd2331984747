"""Planning for reward, judged by what the world gives: beside random actions and the best constant
one.

B episodes, J decisions, T environment steps, A action numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_wm.core.config import digest
from jepa_wm.core.errors import UserError
from jepa_wm.data.held_out import TRAINING
from jepa_wm.evals.episodes import Act, AgentPolicy, Watch, play, play_in_chunks, shard_of
from jepa_wm.evals.scores import bootstrap
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.planning.action_space import space_of
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.protocol import Rewarding, Splitting, of_split
from jepa_wm.worlds.registry import RandomActions, WorldSettings

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


def rewarding_worlds(settings: WorldSettings) -> list[tuple[Rewarding, str]]:
    """(world, what the keys of its figures end in): of each split, or the one world that has
    none."""
    world = rewarding_world(settings)
    if not isinstance(world, Splitting):
        return [(world, "")]
    return [(of_split(world, "heldout"), ""), (of_split(world, "train"), TRAINING)]


def judged_seeds(evaluation: EvaluationSettings) -> np.ndarray:
    """[B] the seeds of the episodes."""
    return JUDGED_SEEDS + evaluation.task_seed * 10**5 + np.arange(evaluation.episodes)


@dataclass(frozen=True)
class RewardPlay:
    """Episodes for reward of one model."""

    model: WorldModel
    world: WorldSettings
    planner: PlannerSettings
    evaluation: EvaluationSettings
    frameskip: int
    folder: Path  # of the stage

    def judge(self) -> dict[str, object]:
        """What the planner and the baselines earn in the same episodes; the chunks an interrupted
        run has finished are kept.

        Of a world with splits the episodes are on held-out layouts, and what ends in
        `_training_layouts` is the same on those of training. The best constant action is the best
        of a grid on these very episodes, which flatters it."""
        result: dict[str, object] = {}
        seconds = []
        for world, suffix in rewarding_worlds(self.world):
            played = self.returns(world, suffix)
            result[f"return{suffix}"] = self._figures(played["earned"])
            result[f"baselines{suffix}"] = self._baselines(world)
            seconds.append(played["seconds"])
        return {
            **result,
            "seconds_per_decision": float(np.median(np.concatenate(seconds))),
            "tasks": {"seed": self.evaluation.task_seed, "digest": self._digest()},
        }

    def share(self, shard: int, shards: int) -> int:
        """Play one of `shards` equal parts of the planner's episodes, for `judge` to find; how
        many they were."""
        rows = shard_of(self.evaluation.episodes, shard, shards)
        worlds = rewarding_worlds(self.world) if rows else []
        for world, suffix in worlds:
            self.returns(world, suffix, rows)
        return len(rows) * len(worlds)

    def returns(
        self, world: Rewarding, suffix: str, rows: range | None = None
    ) -> dict[str, np.ndarray]:
        """`earned` [B] in all episodes, or in `rows`, and the `seconds` that each decision took
        for one of them."""
        chunk = _Chunk(self, world, film=None if suffix else self.folder / "film.npz")
        return play_in_chunks(
            self.folder / f"returns{suffix}",
            range(self.evaluation.episodes) if rows is None else rows,
            chunk.play,
            keys=("earned", "seconds"),
            label="plan reward",
            budget=self.evaluation.budget,
        )

    def _baselines(self, world: Rewarding) -> dict[str, object]:
        seeds, budget = judged_seeds(self.evaluation), self.evaluation.budget
        world.reset(seeds)
        random = RandomActions(seeds, mean_repeat=self.frameskip)
        drawn = play(world, one_step(random), budget=budget).returns
        by_constant = {}
        for action in constant_actions(world):
            world.reset(seeds)
            by_constant[tuple(map(float, action))] = play(
                world, repeating(action), budget=budget
            ).returns
        best = max(by_constant, key=lambda action: by_constant[action].mean())
        return {
            "random": self._figures(drawn),
            "constant": {**self._figures(by_constant[best]), "action": list(best)},
            "random_encoder": None,
        }

    def _figures(self, earned: np.ndarray) -> dict[str, object]:
        """Mean return [B] with its bootstrap 95 % interval."""
        low, high = bootstrap(earned[None])
        figures = {"mean": float(earned.mean()), "low": low, "high": high}
        return {**figures, "episodes": len(earned), "seeds": 1, "budget": self.evaluation.budget}

    def _digest(self) -> str:
        """Of what the episodes are: the world, apart from how data are collected in it, seeds and
        budget."""
        return digest(
            {
                "world": self.world.model_dump(mode="json", exclude={"exploration"}),
                "first": int(judged_seeds(self.evaluation)[0]),
                "evaluation": [self.evaluation.episodes, self.evaluation.budget],
            }
        )


@dataclass(frozen=True)
class _Chunk:
    """Plays the episodes of one chunk file."""

    whole: RewardPlay
    world: Rewarding
    film: Path | None  # where frames of the first episodes go

    def play(self, first: int, last: int, watch: Watch) -> Mapping[str, np.ndarray]:
        """`earned` and `seconds` of episodes `first` to `last` (excluded)."""
        whole, seeds = self.whole, judged_seeds(self.whole.evaluation)[first:last]
        space = space_of(
            self.world, frameskip=whole.frameskip, action_repeat=whole.planner.mpc.action_repeat
        )
        agent = Agent(whole.model, space, whole.planner)
        agent.reset(None, seeds.tolist())
        self.world.reset(seeds)
        policy = AgentPolicy(agent, watch=watch, filmed=FILMED)
        track = policy.play(self.world, budget=whole.evaluation.budget, every=whole.frameskip)
        frames = np.stack(policy.frames[:-1], 1)  # one a decision
        if self.film is not None and first == 0 and frames.shape[-1] == 3:
            np.savez_compressed(self.film, frames=frames, earned=track.returns[:FILMED])
        seconds = np.array(policy.seconds) / len(seeds)
        return {"earned": track.returns, "seconds": seconds}


def one_step(policy: RandomActions) -> Act:
    """A policy of single steps as one of `play`."""
    return lambda world: policy(world)[:, None]


def repeating(action: np.ndarray) -> Act:
    """Always the same action [A]."""
    return lambda world: np.tile(action, (len(world), 1, 1))


def constant_actions(world: Rewarding) -> np.ndarray:
    """[R, A] actions to be repeated for whole episodes: every choice, or a grid over the box, or
    draws in a wide box."""
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
