"""Lays out the sign-language digits and the donkey-car tub, as their sources pack them, for the
commands.

`python docs/real_data.py SHARED/data data` writes below data/: signs/train and signs/test, photos
in a folder a digit, split by camera file number; and donkeycar/train.h5 and heldout.h5, the first
70 % and the last 28 % of the time line."""

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from jepa_wm.data.convert import action_statistics
from jepa_wm.data.trajectories import TrajectoryWriter

PAUSE = 150  # ms; a longer one between two frames begins a new episode
LENGTH = 16  # frames that an episode has at least


def pictures(packed):
    """The bytes of every JPEG of an archive that holds them end to end."""
    return [
        packed["jpeg"][a:b].tobytes()
        for a, b in zip(packed["offsets"], packed["offsets"][1:], strict=False)
    ]


def signs(source, target, training=1500):
    """Photos of hands as JPEG files: the first by camera file number for training, the rest for
    the test."""
    packed = np.load(source / "sign_language_digits" / "sign_digits_100x100.npz")
    photos = pictures(packed)
    for place, row in enumerate(np.argsort(packed["number"], kind="stable")):
        folder = (
            target
            / "signs"
            / ("train" if place < training else "test")
            / str(packed["label"][row])
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{packed['number'][row]}_{row}.jpg").write_bytes(photos[row])


def donkeycar(source, target, size=96):
    """Front camera frames as squares; steering and throttle as actions, and as the state to be
    read."""
    packed = np.load(source / "donkeycar_real" / "tub_data_2.npz")
    drive = np.stack([packed["angle"], packed["throttle"]], 1).astype(np.float32)
    photos = (Image.open(io.BytesIO(photo)).convert("RGB") for photo in pictures(packed))
    frames = [np.asarray(photo.resize((size, size))) for photo in photos]
    new = (np.diff(packed["timestamp_ms"]) > PAUSE) | (np.diff(packed["timestamp_ms"]) < 0)
    for name in ("session", "deleted"):
        new |= packed[name][1:] != packed[name][:-1]
    runs = np.split(np.arange(len(drive)), np.flatnonzero(new) + 1)
    runs = [run for run in runs if not packed["deleted"][run[0]]]
    count = len(drive)
    for part, first, last in (("train", 0, 0.7 * count), ("heldout", 0.72 * count, count)):
        episodes = [run[(run >= first) & (run < last)] for run in runs]
        episodes = [run for run in episodes if len(run) >= LENGTH]
        columns = {
            "pixels": ((size, size, 3), "u1"),
            "action": ((2,), "f4"),
            "state": ((2,), "f4"),
        }
        lengths = np.array([len(run) for run in episodes])
        writer = TrajectoryWriter(target / "donkeycar" / f"{part}.h5", lengths, columns)
        for row, run in zip(writer.offset, episodes, strict=True):
            shown = np.stack([frames[i] for i in run])
            for name, values in (("pixels", shown), ("action", drive[run]), ("state", drive[run])):
                writer.write(name, int(row), values)
        about = action_statistics([drive[run] for run in episodes])
        writer.close(
            state_groups="steering:0 throttle:1",
            state_names="steering throttle",
            fps=20.0,
            action_kind="delta",
            **about,
        )
        print(
            f"donkeycar {part}: {len(episodes)} episodes, {lengths.sum()} frames, "
            f"{lengths.min()} to {lengths.max()}"
        )


if __name__ == "__main__":
    shared, here = map(Path, sys.argv[1:3])
    signs(shared, here)
    donkeycar(shared, here)
