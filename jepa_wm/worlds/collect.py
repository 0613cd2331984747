"""Collecting: let a policy loose in any world and record what it sees and does; the `collect`
stage is one use of it.

B worlds stepped together, L frames an episode, A action numbers, X state numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jepa_wm.core.errors import StopFlag, UserError, catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.held_out import check_heldout, check_same_cameras, common_episodes
from jepa_wm.data.quantities import described
from jepa_wm.data.state_columns import StateColumns
from jepa_wm.data.trajectories import EpisodeWriter, open_data
from jepa_wm.worlds.world import (
    Adjusting,
    CollectSettings,
    Ending,
    NewPolicy,
    Rewarding,
    Split,
    Splitting,
    World,
    WorldSettings,
    of_split,
)

# Worlds stepped together, bytes of their frames, at most; neither changes the content.
TOGETHER, MEMORY = 100, 2**28
# Episodes of the held-out file are drawn from here on; there are fewer for training.
HELDOUT_SEEDS = 10**6


@stage(unrecorded=("latent.proprio",))
def collect(
    run: Run, seed: int, world: WorldSettings, data_path: str | None, collect: CollectSettings,
    latent_proprio: tuple[str, ...],
) -> dict[str, object]:  # fmt: skip
    """Write `train.h5` and `heldout.h5` of the configured world; a file that is there already is
    kept. UserError for proprioception that the state has not, before anything is trained."""
    run.stage_dir("collect")
    if data_path is None:
        made = world.make()
        StateColumns.named(
            latent_proprio, made.state_names, made.state_units, whose=f"the world {world.name}"
        )
        record_parts(run.path / "collect", made, world.explore(), collect, seed)
    train, heldout = (open_data(run.path, data_path, part) for part in ("train", "heldout"))
    for data in (train, heldout):
        StateColumns.of_data(latent_proprio, data)
    result: dict[str, object] = {
        name: {"path": str(data.path), "episodes": data.episodes, "frames": len(data.actions)}
        for name, data in (("train", train), ("heldout", heldout))
    }
    check_same_cameras(train, heldout)
    result["common_layouts"] = check_heldout(train, heldout)
    result["common_episodes"] = common_episodes(train, heldout)
    return result


def data_seeds(settings: CollectSettings, seed: int) -> dict[Split, np.ndarray]:
    """The seeds of the episodes of both files, which have none in common."""
    if settings.episodes > HELDOUT_SEEDS:
        raise UserError(
            f"collect.episodes {settings.episodes}: above {HELDOUT_SEEDS} they meet the held-out "
            "seeds; lower it"
        )
    first = seed * 10**7
    return {
        "train": first + np.arange(settings.episodes),
        "heldout": first + HELDOUT_SEEDS + np.arange(settings.heldout_episodes),
    }


def record_parts(
    folder: Path | str, world: World, new_policy: NewPolicy, settings: CollectSettings, seed: int
) -> None:
    """`record` `train.h5` and `heldout.h5` of the configured sizes; a file that is there already
    is kept.

    Of a world with splits each file shows its own; of others the seeds differ, which is all that
    can be kept apart."""
    lengths = {"train": settings.episode_length, "heldout": settings.heldout_episode_length}
    for part, seeds in data_seeds(settings, seed).items():
        path = Path(folder) / f"{part}.h5"
        if not path.exists():
            record(
                path,
                of_split(world, part),
                new_policy,
                seeds,
                lengths[part],
                shortest=settings.min_length,
                label=f"collect {part}",
            )


def record(
    path: Path,
    world: World,
    new_policy: NewPolicy,
    seeds: np.ndarray,
    length: int,
    *,
    shortest: int = 2,
    label: str = "collect",
) -> None:
    """Write one episode of `length` frames per seed, fewer where it ends by itself.

    Columns: pixels and action; state where the world has one; reward and terminated where it has
    rewards: what the action of a row earned, and whether it ended the episode. `new_policy(seeds)`
    begins the policy of a batch. Episodes that end before `shortest` frames are left out; how many
    there were is the file's attribute `left_out`. An interrupted file leaves nothing behind and is
    begun again. Raises UserError if no episode is left."""
    world.reset(seeds[:1])
    frame = world.render()[0]
    together = max(1, min(TOGETHER, MEMORY // (length * frame.nbytes)))
    # Where no episode ends by itself the size of the file is known.
    known = None if isinstance(world, Ending) else np.full(len(seeds), length)
    if known is not None and length < shortest:
        raise UserError(_none_left(shortest, length))
    writer = EpisodeWriter(path, _columns(world, frame), known)
    lengths: list[int] = []  # of all episodes, also of those that are left out
    try:
        with catching_signals() as stop, Progress(label, len(seeds)) as bar:
            for first in range(0, len(seeds), together):
                batch = seeds[first : first + together]
                for episode in _episodes(world, new_policy, batch, length, stop, bar, first):
                    lengths.append(len(episode["pixels"]))
                    if lengths[-1] >= shortest:
                        writer.add(episode)
                bar.update(first + len(batch))
                stop.raise_if_requested()
            if max(lengths) < shortest:
                raise UserError(_none_left(shortest, max(lengths)))
            left_out = sum(count < shortest for count in lengths)
            writer.close(stop.raise_if_requested, **_about(world, left_out))
    except BaseException:
        writer.abandon()
        raise


def _columns(world: World, frame: np.ndarray) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, type) of a row of what is recorded."""
    columns: dict[str, tuple[tuple[int, ...], str]] = {
        "pixels": (frame.shape, "u1"),
        "action": (world.action_space.low.shape, "f4"),
    }
    if world.state_names:
        columns["state"] = ((len(world.state_names),), "f4")
    if isinstance(world, Rewarding) and world.has_reward:
        columns |= {"reward": ((), "f4"), "terminated": ((), "u1")}
    return columns


def _about(world: World, left_out: int) -> dict[str, str | int | float]:
    """The file's attributes."""
    names = world.state_names
    about: dict[str, str | int | float] = {}
    if names:
        about |= described(names, world.state_units)
    if isinstance(world, Splitting):
        about["layout_names"] = " ".join(world.layout_names)
        about["layout_resolution"] = world.layout_resolution
    if world.action_space.kind != "delta":
        about["action_kind"] = world.action_space.kind
    if left_out:
        about["left_out"] = left_out
    return about


def _none_left(shortest: int, longest: int) -> str:
    return (
        f"no episode has {shortest} frames before it ends, the longest {longest}; lower "
        "collect.min_length, or collect with a policy that lasts longer"
    )


def _episodes(
    world: World,
    new_policy: NewPolicy,
    seeds: np.ndarray,
    length: int,
    stop: StopFlag,
    bar: Progress,
    done: int,
) -> list[dict[str, np.ndarray]]:
    """{column: [t, ...]} of each episode of a batch played from its reset, where `done` episodes
    lie before it.

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
        stop.raise_if_requested()
        bar.update(done + int(step / length * len(seeds)))
        if step:
            world.step(steps["action"][-1])
            if isinstance(world, Rewarding) and world.has_reward:
                steps["reward"].append(world.reward())
                steps["terminated"].append(world.terminated().astype(np.uint8))
        # The frame of this step, and the action after it.
        if isinstance(world, Ending):
            lengths[world.ended() & (lengths == length)] = step + 1
        steps["pixels"].append(world.render())
        action = np.asarray(policy(world), np.float32)
        steps["action"].append(world.taken(action) if isinstance(world, Adjusting) else action)
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
