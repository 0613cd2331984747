"""Whether held-out layouts are held out, decided on the content of the files and not on seeds.

E episodes, L layouts, a pair each: wall x and door y in pixels.
"""

from __future__ import annotations

import warnings

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.data.datasets import data_folder
from jepa_wm.data.trajectories import Trajectories

NAMES = ("wall_x", "door_y")  # the state numbers that tell a layout
TRAINING = (
    "_training_layouts"  # what folders and keys end in that are of episodes on training layouts
)
SAME = 1.0  # px; layouts that are nearer in both numbers look the same


def layouts_of(data: Trajectories) -> np.ndarray | None:
    """[E, 2] layouts of a file's episodes; None for a file whose state does not tell them."""
    names = str(data.attributes.get("state_names", "")).split()
    if "state" not in data or not set(NAMES) <= set(names):
        return None
    first = data.column("state")[data.offsets]
    layouts: np.ndarray = first[:, [names.index(name) for name in NAMES]]
    return layouts if np.isfinite(layouts).all() else None


def met(layouts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[L] bool: which layouts [L, 2] are among others [M, 2]."""
    return distance(layouts, others) < SAME


def distance(layouts: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[L] px from each of layouts [L, 2] to the nearest of others [M, 2], in the number that
    differs more."""
    known = np.unique(others, axis=0)
    nearest: np.ndarray = np.abs(layouts[:, None] - known).max(-1).min(1)
    return nearest


def check_heldout(train: Trajectories, heldout: Trajectories) -> int | None:
    """How many layouts the two files of a run have in common, which is 0; None where a file does
    not tell layouts.

    Raises UserError, naming a layout, where there is one in both.
    """
    known, held = layouts_of(train), layouts_of(heldout)
    if known is None or held is None:
        return None
    if (inside := met(held, known)).any():
        raise UserError(
            f"{heldout.path}: {inside.sum()} of its {len(held)} episodes have a layout that is "
            f"in {train.path} too, "
            f"the first {_words(held[inside][0])}; delete both files and collect anew, or name "
            "other data with "
            "data.path"
        )
    return 0


def layouts_met(run: Run, heldout: np.ndarray, training: np.ndarray) -> dict[str, object]:
    """What a run's training file says of the layouts [L, 2] of held-out and of training episodes:
    for each of the two how many `episodes` there are, how many `met` a layout of the file, and the
    px from the `nearest` of them to one.

    Of the held-out none has: one that has raises UserError. The figures are null, which is warned
    of, where the file is not there or does not tell layouts."""
    train = data_folder(run.path, run.config) / "train.h5"
    known = layouts_of(Trajectories(train)) if train.exists() else None
    if known is None:
        warnings.warn(
            f"{train} tells no layouts ({', '.join(NAMES)}): whether the held-out ones are in it "
            "is not checked",
            stacklevel=2,
        )
    told: dict[str, object] = {}
    for part, layouts in (("heldout", heldout), ("training", training)):
        told[part] = {"episodes": len(layouts), "met": None, "nearest": None}
        if known is None:
            continue
        inside = met(layouts, known)
        if part == "heldout" and inside.any():
            raise UserError(
                f"{train}: has the layouts of {inside.sum()} of the {len(layouts)} held-out "
                "episodes, the first "
                f"{_words(layouts[inside][0])}; collect anew in another --run, or name other "
                "data with data.path"
            )
        nearest = float(distance(layouts, known).min())
        told[part] = {"episodes": len(layouts), "met": int(inside.sum()), "nearest": nearest}
    return told


def _words(layout: np.ndarray) -> str:
    return f"wall x {layout[0]:g}, door y {layout[1]:g}"
