"""Collecting: let a policy loose in any world and record what it sees and does; the `collect` stage is one use of it.

B worlds stepped together, L frames an episode, a action numbers, K state numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jepa_wm.act.held_out import check_heldout
from jepa_wm.core.errors import UserError
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Config, Worlds
from jepa_wm.observe.duplicates import common_episodes
from jepa_wm.observe.datasets import data_folder, grouped, open_data
from jepa_wm.observe.trajectories import TrajectoryWriter
from jepa_wm.worlds.make import make_world
from jepa_wm.worlds.policies import RandomHolds, Wanderer
from jepa_wm.worlds.protocol import (
    NewPolicy, Policy, Rewarding, SaysActionKind, SelfScoring, Split, VectorWorld, of_split,
)  # fmt: skip

TOGETHER, MEMORY = 100, 2**28  # worlds stepped together, bytes of their frames, at most; neither changes the content
HELDOUT_SEEDS = 10**6  # episodes of the held-out file are drawn from here on; there are fewer for training


def run(run: RunFolder) -> dict[str, object]:
    """Write `train.h5` and `heldout.h5` of the configured world; files that are there already are kept."""
    return run.once("collect", collect)


def collect(run: RunFolder) -> dict[str, object]:
    """The work of the stage; a part that an interrupted run has finished is kept."""
    config = run.config
    folder = data_folder(run.path, config)
    run.stage_dir("collect")
    if config.observe.path is None:
        record_parts(folder, make_world(config.worlds), collecting(config.worlds), config)
    train, heldout = open_data(run.path, config, "train"), open_data(run.path, config, "heldout")
    result: dict[str, object] = {
        name: {"path": str(data.path), "episodes": data.episodes, "frames": len(data.actions)}
        for name, data in (("train", train), ("heldout", heldout))
    }
    common = {"common_layouts": check_heldout(train, heldout), "common_episodes": common_episodes(train, heldout)}
    return {**result, **common}


def collecting(worlds: Worlds) -> NewPolicy:
    """The policy that collects data: the wanderer in two rooms, else random actions."""
    if worlds.name == "two_rooms":
        return wandering(worlds)
    return lambda seeds: RandomHolds(seeds, hold=worlds.gym.hold)


def wandering(worlds: Worlds) -> NewPolicy:
    """The configured two-rooms wanderer as a policy."""

    def wander(seeds: np.ndarray) -> Policy:
        wanderer = Wanderer(worlds.geometry, seeds, cross=worlds.cross, drift=worlds.drift, blind=worlds.blind)
        return lambda world: wanderer.act(world.state())

    return wander


def record_parts(folder: Path | str, world: VectorWorld, new_policy: NewPolicy, config: Config) -> None:
    """`record` `train.h5` and `heldout.h5` of the sizes in config.observe; a file that is there already is kept.

    Of a world with splits each file shows its own; of others the seeds differ, which is all that can be kept apart.
    """
    observe = config.observe
    if observe.episodes > HELDOUT_SEEDS:
        raise UserError(f"observe.episodes {observe.episodes}: above {HELDOUT_SEEDS} they meet the held-out seeds; lower")
    parts: tuple[tuple[Split, int, int, int], ...] = (
        ("train", observe.episodes, observe.length, 0),
        ("heldout", observe.heldout_episodes, observe.heldout_length, HELDOUT_SEEDS),
    )
    for part, episodes, length, first in parts:
        path, seeds = Path(folder) / f"{part}.h5", config.seed * 10**7 + first + np.arange(episodes)
        if not path.exists():
            drawn = of_split(world, part)
            record(path, drawn, new_policy, seeds, length, shortest=observe.shortest, label=f"collect {part}")


def record(
    path: Path, world: VectorWorld, new_policy: NewPolicy, seeds: np.ndarray, length: int, *, shortest: int = 2,
    label: str = "collect",
) -> None:  # fmt: skip
    """Write one episode of `length` frames per seed, fewer where it ends by itself.

    Columns: pixels and action; state where the world has one; reward and terminated where it pays rewards: what the
    action of a row earned, and whether it ended the episode.
    `new_policy(seeds)` begins the policy of a batch. Episodes that end before `shortest` frames are left out; how many
    there were is the file's attribute `left_out`. An interrupted file leaves nothing behind and is begun again.
    Raises UserError if no episode is left.
    """
    world.reset(seeds[:1])
    frame, names = world.render()[0], world.state_names
    columns = {"pixels": (frame.shape, "u1"), "action": (world.action_bounds[0].shape, "f4")}
    if names:
        columns["state"] = ((len(names),), "f4")
    if isinstance(world, Rewarding) and world.pays:
        columns |= {"reward": ((), "f4"), "terminated": ((), "u1")}
    together = max(1, min(TOGETHER, MEMORY // (length * frame.nbytes)))
    lengths = _lengths(world, new_policy, seeds, length, together)
    kept = lengths >= shortest
    if not kept.any():
        raise UserError(f"no episode has {shortest} frames before it ends, the longest {lengths.max()}; {_SHORTER}")
    seeds, lengths = seeds[kept], lengths[kept]
    writer = TrajectoryWriter(path, lengths, columns)
    try:
        with catching_signals() as stop, Progress(label, len(seeds)) as bar:
            for first in range(0, len(seeds), together):
                some = slice(first, first + together)

                def tell(share: float, first: int = first, count: int = len(seeds[some])) -> None:
                    stop.raise_if_requested()
                    bar.update(first + int(share * count))

                for name, values in _episodes(world, new_policy, seeds[some], length, tell).items():
                    for row, count, episode in zip(writer.offset[some], lengths[some], values, strict=True):
                        writer.write(name, int(row), episode[:count])
                bar.update(min(first + together, len(seeds)))
                stop.raise_if_requested()
    except BaseException:
        writer.abandon()
        raise
    about: dict[str, str | int] = {}
    if names:
        about = {"state_groups": grouped(names), "state_names": " ".join(names)}
    if isinstance(world, SaysActionKind) and world.action_kind != "delta":
        about["action_kind"] = world.action_kind
    if not kept.all():
        about["left_out"] = int((~kept).sum())
    writer.close(**about)


_SHORTER = "lower observe.shortest, or collect with a policy that lasts longer"


def _lengths(world: VectorWorld, new_policy: NewPolicy, seeds: np.ndarray, length: int, together: int) -> np.ndarray:
    """[E] frames until each episode's end. What follows an end is a standing picture whatever is done, and would teach
    that actions do nothing. A file's size must be known before it is written, so worlds with an end are played twice.
    """
    lengths = np.full(len(seeds), length)
    if not isinstance(world, SelfScoring):
        return lengths
    for first in range(0, len(seeds), together):
        some = slice(first, first + together)
        world.reset(seeds[some])
        policy = new_policy(seeds[some])
        for step in range(1, length):
            world.step(np.asarray(policy(world), np.float32))
            lengths[some][world.ended() & (lengths[some] == length)] = step + 1
    return lengths


def _episodes(
    world: VectorWorld, new_policy: NewPolicy, seeds: np.ndarray, length: int, tell: Callable[[float], None]
) -> dict[str, np.ndarray]:
    """{column: [B, L, ...]} of a batch played from its reset; `tell` hears at each step what share is done."""
    world.reset(seeds)
    policy = new_policy(seeds)
    steps: dict[str, list[np.ndarray]] = {name: [] for name in ("pixels", "action", "state", "reward", "terminated")}
    for step in range(length):
        tell(step / length)
        if step:
            world.step(steps["action"][-1])
            _note_pay(world, steps)
        steps["pixels"].append(world.render())
        steps["action"].append(np.asarray(policy(world), np.float32))
        if world.state_names:
            steps["state"].append(world.state().astype(np.float32))
    if steps["reward"]:  # the last action is never taken
        steps["reward"].append(np.zeros(len(seeds), np.float32))
        steps["terminated"].append(np.zeros(len(seeds), np.uint8))
    return {name: np.stack(values, 1) for name, values in steps.items() if values}


def _note_pay(world: VectorWorld, steps: dict[str, list[np.ndarray]]) -> None:
    if isinstance(world, Rewarding) and world.pays:
        steps["reward"].append(world.reward())
        steps["terminated"].append(world.terminated().astype(np.uint8))
