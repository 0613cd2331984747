"""Collecting: let a policy loose in any world and record what it sees and does; the `collect`
stage is one use of it.

B worlds stepped together, L frames an episode, a action numbers, K state numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from jepa_wm.config import Config
from jepa_wm.core.errors import UserError
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import data_folder, open_data
from jepa_wm.data.duplicates import common_episodes
from jepa_wm.data.held_out import check_heldout
from jepa_wm.data.quantities import described
from jepa_wm.data.trajectories import EpisodeWriter
from jepa_wm.worlds.make import make_world
from jepa_wm.worlds.policies import ExplorationPolicy, RandomHolds
from jepa_wm.worlds.protocol import (
    Adjusting,
    NewPolicy,
    Policy,
    Rewarding,
    SaysActionKind,
    SelfScoring,
    Split,
    VectorWorld,
    of_split,
)  # fmt: skip
from jepa_wm.worlds.settings import CollectSettings, WorldSettings

TOGETHER, MEMORY = (
    100,
    2**28,
)  # worlds stepped together, bytes of their frames, at most; neither changes the content
HELDOUT_SEEDS = (
    10**6
)  # episodes of the held-out file are drawn from here on; there are fewer for training


@stage()
def collect(
    run: Run, seed: int, world: WorldSettings, data_path: str | None, collect: CollectSettings
) -> dict[str, object]:
    """Write `train.h5` and `heldout.h5` of the configured world; a file that is there already is
    kept."""
    config = run.config
    folder = data_folder(run.path, config)
    run.stage_dir("collect")
    if config.data.path is None:
        record_parts(folder, make_world(config.world), collecting(config.world), config)
    train, heldout = open_data(run.path, config, "train"), open_data(run.path, config, "heldout")
    result: dict[str, object] = {
        name: {"path": str(data.path), "episodes": data.episodes, "frames": len(data.actions)}
        for name, data in (("train", train), ("heldout", heldout))
    }
    common = {
        "common_layouts": check_heldout(train, heldout),
        "common_episodes": common_episodes(train, heldout),
    }
    return {**result, **common}


def collecting(worlds: WorldSettings) -> NewPolicy:
    """The policy that collects data: the scripted one in two rooms, else random actions."""
    if worlds.name == "two_rooms":
        return exploring(worlds)
    return lambda seeds: RandomHolds(seeds, hold=worlds.gym.hold)


def exploring(worlds: WorldSettings) -> NewPolicy:
    """The configured exploration of two rooms as a policy."""

    def explore(seeds: np.ndarray) -> Policy:
        explorer = ExplorationPolicy(
            worlds.geometry, seeds, cross=worlds.cross, drift=worlds.drift, blind=worlds.blind
        )
        return lambda world: explorer.act(world.state())

    return explore


def record_parts(
    folder: Path | str, world: VectorWorld, new_policy: NewPolicy, config: Config
) -> None:
    """`record` `train.h5` and `heldout.h5` of the sizes in config.collect; a file that is there
    already is kept.

    Of a world with splits each file shows its own; of others the seeds differ, which is all that
    can be kept apart."""
    settings = config.collect
    if settings.episodes > HELDOUT_SEEDS:
        raise UserError(
            f"collect.episodes {settings.episodes}: above {HELDOUT_SEEDS} they meet the held-out seeds; lower it"
        )
    parts: tuple[tuple[Split, int, int, int], ...] = (
        ("train", settings.episodes, settings.episode_length, 0),
        ("heldout", settings.heldout_episodes, settings.heldout_episode_length, HELDOUT_SEEDS),
    )
    for part, episodes, length, first in parts:
        path, seeds = (
            Path(folder) / f"{part}.h5",
            config.seed * 10**7 + first + np.arange(episodes),
        )
        if not path.exists():
            drawn = of_split(world, part)
            record(
                path,
                drawn,
                new_policy,
                seeds,
                length,
                shortest=settings.min_length,
                label=f"collect {part}",
            )


def record(
    path: Path, world: VectorWorld, new_policy: NewPolicy, seeds: np.ndarray, length: int, *, shortest: int = 2,
    label: str = "collect",
) -> None:  # fmt: skip
    """Write one episode of `length` frames per seed, fewer where it ends by itself.

    Columns: pixels and action; state where the world has one; reward and terminated where it pays
    rewards: what the action of a row earned, and whether it ended the episode. `new_policy(seeds)`
    begins the policy of a batch. Episodes that end before `shortest` frames are left out; how many
    there were is the file's attribute `left_out`. An interrupted file leaves nothing behind and is
    begun again. Raises UserError if no episode is left."""
    world.reset(seeds[:1])
    frame, names = world.render()[0], world.state_names
    columns = {"pixels": (frame.shape, "u1"), "action": (world.action_bounds[0].shape, "f4")}
    if names:
        columns["state"] = ((len(names),), "f4")
    if isinstance(world, Rewarding) and world.has_reward:
        columns |= {"reward": ((), "f4"), "terminated": ((), "u1")}
    together = max(1, min(TOGETHER, MEMORY // (length * frame.nbytes)))
    known = None if isinstance(world, SelfScoring) else np.full(len(seeds), length)
    if known is not None and length < shortest:
        raise UserError(_none_left(shortest, length))
    writer = EpisodeWriter(path, columns, known)
    lengths: list[int] = []  # of all episodes, also of those that are left out
    try:
        with catching_signals() as stop, Progress(label, len(seeds)) as bar:
            for first in range(0, len(seeds), together):
                some = seeds[first : first + together]

                def tell(share: float, first: int = first, count: int = len(some)) -> None:
                    stop.raise_if_requested()
                    bar.update(first + int(share * count))

                for episode in _episodes(world, new_policy, some, length, tell):
                    lengths.append(len(episode["pixels"]))
                    if lengths[-1] >= shortest:
                        writer.add(episode)
                bar.update(min(first + together, len(seeds)))
                stop.raise_if_requested()
            if max(lengths) < shortest:
                raise UserError(_none_left(shortest, max(lengths)))
            writer.close(
                stop.raise_if_requested, **_about(world, sum(n < shortest for n in lengths))
            )
    except BaseException:
        writer.abandon()
        raise


def _about(world: VectorWorld, left_out: int) -> dict[str, str | int]:
    """The file's attributes."""
    names = world.state_names
    about: dict[str, str | int] = {**described(names, world.state_units)} if names else {}
    if isinstance(world, SaysActionKind) and world.action_kind != "delta":
        about["action_kind"] = world.action_kind
    if left_out:
        about["left_out"] = left_out
    return about


def _none_left(shortest: int, longest: int) -> str:
    return (
        f"no episode has {shortest} frames before it ends, the longest {longest}; lower collect.min_length, or collect "
        "with a policy that lasts longer"
    )


def _episodes(
    world: VectorWorld,
    new_policy: NewPolicy,
    seeds: np.ndarray,
    length: int,
    tell: Callable[[float], None],
) -> list[dict[str, np.ndarray]]:
    """{column: [t, ...]} of each episode of a batch played from its reset; `tell` hears at each
    step how far it is.

    t is `length`, or less where the episode ends by itself. What follows an end is a standing
    picture whatever is done, and would teach that actions do nothing. Played once: a second play
    need not be the same."""
    world.reset(seeds)
    policy = new_policy(seeds)
    lengths = np.full(len(seeds), length)
    steps: dict[str, list[np.ndarray]] = {
        name: [] for name in ("pixels", "action", "state", "reward", "terminated")
    }
    for step in range(length):
        tell(step / length)
        if step:
            world.step(steps["action"][-1])
            _note_pay(world, steps)
        if isinstance(world, SelfScoring):
            lengths[world.ended() & (lengths == length)] = step + 1
        steps["pixels"].append(world.render())
        steps["action"].append(_taken(world, np.asarray(policy(world), np.float32)))
        if world.state_names:
            steps["state"].append(world.state().astype(np.float32))
        if (lengths <= step + 1).all():
            break
    if steps["reward"]:  # the last action is never taken
        steps["reward"].append(np.zeros(len(seeds), np.float32))
        steps["terminated"].append(np.zeros(len(seeds), np.uint8))
    whole = {name: np.stack(values, 1) for name, values in steps.items() if values}
    return [
        {name: values[i, :count] for name, values in whole.items()}
        for i, count in enumerate(lengths)
    ]


def _taken(world: VectorWorld, action: np.ndarray) -> np.ndarray:
    """[B, a] float32: what the world makes of the actions of a policy."""
    return world.taken(action) if isinstance(world, Adjusting) else action


def _note_pay(world: VectorWorld, steps: dict[str, list[np.ndarray]]) -> None:
    if isinstance(world, Rewarding) and world.has_reward:
        steps["reward"].append(world.reward())
        steps["terminated"].append(world.terminated().astype(np.uint8))
