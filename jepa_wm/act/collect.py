"""The `collect` stage: let a scripted wanderer loose in many layouts and record what it sees and does."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Worlds
from jepa_wm.observe.datasets import data_folder, open_data
from jepa_wm.observe.trajectories import TrajectoryWriter
from jepa_wm.worlds.policies import Wanderer
from jepa_wm.worlds.two_rooms import TwoRooms

CHUNK = 100  # worlds stepped together; it bounds the memory, not the content
HELDOUT_SEEDS = 10**6  # layouts of the held-out file are drawn from here on, never met in training


def run(run: RunFolder) -> dict[str, object]:
    """Write `train.h5` and `heldout.h5`; files that are there already are kept."""
    done = run.finished("collect")
    if done is not None:
        return done
    config, began = run.config, time.monotonic()
    folder = data_folder(run.path, config)
    run.stage_dir("collect")
    if config.observe.path is None:
        for part, episodes, length, first in (
            ("train", config.observe.episodes, config.observe.length, 0),
            ("heldout", config.observe.heldout_episodes, config.observe.heldout_length, HELDOUT_SEEDS),
        ):
            if not (folder / f"{part}.h5").exists():
                seeds = config.seed * 10**7 + first + np.arange(episodes)
                record(folder / f"{part}.h5", config.worlds, seeds, length, label=f"collect {part}")
    result: dict[str, object] = {"seconds": time.monotonic() - began}
    for name in ("train", "heldout"):
        data = open_data(run.path, config, "train" if name == "train" else "heldout")
        result[name] = {"path": str(data.path), "episodes": data.episodes, "frames": len(data.actions)}
    run.write_result("collect", result)
    return result


def record(path: Path, worlds: Worlds, seeds: np.ndarray, length: int, *, label: str = "collect") -> None:
    """Write one episode of `length` frames per seed. An interrupted file leaves nothing behind and is begun again."""
    columns = {"pixels": ((worlds.geometry.size,) * 2 + (3,), "u1"), "action": ((2,), "f4"), "state": ((4,), "f4")}
    writer = TrajectoryWriter(path, np.full(len(seeds), length), columns)
    try:
        with catching_signals() as stop, Progress(label, len(seeds)) as bar:
            for first in range(0, len(seeds), CHUNK):
                _record_chunk(writer, worlds, seeds[first : first + CHUNK], length, row=first * length)
                bar.update(min(first + CHUNK, len(seeds)))
                stop.raise_if_requested()
    except BaseException:
        writer.abandon()
        raise
    writer.close(
        state_groups="dot:0,1 wall:2 door:3",
        state_names="dot_x dot_y wall_x door_y",
        digest=f"{worlds.model_dump_json()}-{seeds[0]}-{len(seeds)}-{length}",
    )


def _record_chunk(writer: TrajectoryWriter, worlds: Worlds, seeds: np.ndarray, length: int, *, row: int) -> None:
    world = TwoRooms(worlds.geometry, worlds.noise)
    world.reset(seeds)
    policy = Wanderer(worlds.geometry, seeds, cross=worlds.cross, drift=worlds.drift)
    steps: dict[str, list[np.ndarray]] = {"pixels": [], "action": [], "state": []}
    for _ in range(length):
        state = world.state()
        action = policy.act(state)
        for name, value in (("pixels", world.render()), ("action", action), ("state", state)):
            steps[name].append(value)
        world.step(action)
    for name, values in steps.items():
        stacked = np.stack(values, 1)  # [worlds, length, ...]
        writer.write(name, row, stacked.reshape(-1, *stacked.shape[2:]))


