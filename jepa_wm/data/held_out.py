"""Whether held-out layouts are held out, decided on the content of the files and not on seeds.

A layout is what a world draws at a reset and keeps apart, told by some numbers of its state: a
file names them in its attribute `layout_names`, and in `layout_resolution` how near two layouts
are that are the same.

E episodes, R layouts asked for, L numbers of a layout."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories, attribute_text

# what folders and keys end in that are of episodes on training layouts
TRAINING = "_training_layouts"


@dataclass(frozen=True)
class Layouts:
    """The layouts of a file's episodes."""

    names: tuple[str, ...]  # L
    unit: str  # of their numbers; "" where they have several, or none is known
    resolution: float  # layouts that are nearer in every number are the same
    values: np.ndarray  # [E, L]

    @classmethod
    def of(cls, data: Trajectories) -> Layouts | None:
        """Those of a file; None where it does not tell them."""
        text = {
            name: attribute_text(data.attributes.get(name, ""))
            for name in ("state_names", "state_units", "layout_names")
        }
        known, names = text["state_names"].split(), text["layout_names"].split()
        if "state" not in data or not names or not set(names) <= set(known):
            return None
        columns = [known.index(name) for name in names]
        values: np.ndarray = data.column("state")[data.offsets][:, columns]
        if not np.isfinite(values).all():
            return None
        units = text["state_units"].split()
        own = {units[column] for column in columns} if len(units) == len(known) else {""}
        resolution = float(str(data.attributes.get("layout_resolution", 0.0)))
        return cls(tuple(names), own.pop() if len(own) == 1 else "", resolution, values)

    def distance(self, layouts: np.ndarray) -> np.ndarray:
        """[R] from each of layouts [R, L] to the nearest of these, in the number that differs
        most."""
        known = np.unique(self.values, axis=0)
        nearest: np.ndarray = np.abs(layouts[:, None] - known).max(-1).min(1)
        return nearest

    def met(self, layouts: np.ndarray) -> np.ndarray:
        """[R] bool: which of layouts [R, L] are among these."""
        nearest = self.distance(layouts)
        return (nearest == 0) | (nearest < self.resolution)

    def named(self, layout: np.ndarray) -> str:
        """One layout [L] in words."""
        return ", ".join(
            f"{name} {number:g}" for name, number in zip(self.names, layout, strict=True)
        )


def check_heldout(train: Trajectories, heldout: Trajectories) -> int | None:
    """How many layouts the two files of a run have in common, which is 0; None where a file does
    not tell layouts.

    Raises UserError, naming a layout, where there is one in both.
    """
    known, held = Layouts.of(train), Layouts.of(heldout)
    if known is None or held is None:
        return None
    if (inside := known.met(held.values)).any():
        raise UserError(
            f"{heldout.path}: {inside.sum()} of its {len(held.values)} episodes have a layout "
            f"that is in {train.path} too, the first {known.named(held.values[inside][0])}; "
            "delete both files and collect anew, or name other data with data.path"
        )
    return 0


def layouts_met(train: Path, heldout: np.ndarray, training: np.ndarray) -> dict[str, object]:
    """What a training file says of the layouts [R, L] of held-out and of training episodes: for
    each of the two how many `episodes` there are, how many `met` a layout of the file, and how far
    the `nearest` of them is from one, in the `unit` of the layouts.

    Of the held-out none has: one that has raises UserError. The figures are null, which is warned
    of, where the file is not there or does not tell layouts."""
    # A run may be judged where its data no longer lie: that is warned of, not refused.
    known = Layouts.of(Trajectories(train)) if train.exists() else None
    if known is None:
        warnings.warn(
            f"{train} tells no layouts (layout_names): whether the held-out ones are in it is not "
            "checked",
            stacklevel=2,
        )
    result: dict[str, object] = {"unit": "" if known is None else known.unit}
    for part, layouts in (("heldout", heldout), ("training", training)):
        result[part] = {"episodes": len(layouts), "met": None, "nearest": None}
        if known is None:
            continue
        # Held-out layouts must all be new; of training ones it is told how many are, to compare.
        inside = known.met(layouts)
        if part == "heldout" and inside.any():
            raise UserError(
                f"{train}: has the layouts of {inside.sum()} of the {len(layouts)} held-out "
                f"episodes, the first {known.named(layouts[inside][0])}; collect anew in another "
                "--run, or name other data with data.path"
            )
        nearest = float(known.distance(layouts).min())
        result[part] = {"episodes": len(layouts), "met": int(inside.sum()), "nearest": nearest}
    return result
