"""Whether what is held out is: layouts that are in no training file, episodes that are there
twice. Decided on the content of the files and not on seeds.

E episodes, R layouts asked for, L numbers of a layout."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.view import View
from jepa_wm.data.trajectories import Trajectories

# what folders and keys end in that are of episodes on training layouts
TRAINING = "_training_layouts"


@dataclass(frozen=True)
class Layouts:
    """The layouts of a file's episodes: what a world draws at a reset and keeps apart, told by
    some numbers of its state. The file names these in its attribute `layout_names`, and in
    `layout_resolution` how near two layouts are that are the same."""

    names: tuple[str, ...]  # L
    unit: str  # of their numbers; "" where they have several, or none is known
    resolution: float  # layouts that are nearer in every number are the same
    values: np.ndarray  # [E, L]

    @classmethod
    def of(cls, data: Trajectories) -> Layouts | None:
        """Those of a file; None where it does not tell them."""
        known, names = data.text("state_names").split(), data.text("layout_names").split()
        if "state" not in data or not names or not set(names) <= set(known):
            return None
        columns = [known.index(name) for name in names]
        values: np.ndarray = data.column("state")[data.offsets][:, columns]
        if not np.isfinite(values).all():
            return None
        units = data.text("state_units").split()
        own = {units[column] for column in columns} if len(units) == len(known) else {""}
        resolution = float(data.text("layout_resolution") or 0)
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
    not tell layouts. Raises UserError, naming a layout, where there is one in both."""
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
    the `nearest` of them is from one, in the `unit` of the layouts; of no
    episodes the last two are null.

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
        if known is None or not len(layouts):
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


def check_same_state(train: Trajectories, heldout: Trajectories) -> None:
    """UserError where held-out states have other numbers than those of training."""
    if train.state_size != heldout.state_size:
        raise UserError(
            f"{heldout.path}: the state has {heldout.state_size} numbers, in {train.path} "
            f"{train.state_size}; convert or collect both parts alike"
        )


def check_same_cameras(train: Trajectories, other: Trajectories) -> None:
    """UserError where a file is known to show other cameras than that of training, by the
    attribute `cameras` of both."""
    known, shown = train.text("cameras"), other.text("cameras")
    if known != shown and known and shown:
        raise UserError(
            f"{other.path}: its frames are of the cameras {shown}, those of {train.path} of "
            f"{known}; convert both with the same --camera and --join-cameras"
        )


def refuse_parted(
    view: View, parts: Mapping[str, list[int]], actions: Mapping[int, np.ndarray]
) -> None:
    """UserError where copies of an episode of a source are parted; it names all copies there are
    to leave out."""
    if len(parts) < 2:
        return
    picture = next(iter(view.pictures))
    groups = list(_same(actions, lambda e: view.frames(picture, e, 0, 1)))
    of = {e: part for part, episodes in parts.items() for e in episodes}
    parted = [group for group in groups if len({of[e] for e in group}) > 1]
    if parted:
        copies = " ".join(
            str(view.called(e)) for e in sorted(e for group in groups for e in group[1:])
        )
        first = " and ".join(str(view.called(e)) for e in parted[0])
        raise UserError(
            f"{view.source.path}: episodes {first} are the same (first frame and actions), and "
            "one copy would be held out and another trained on; leave copies out with --without "
            f"{copies}"
        )


def common_episodes(train: Trajectories, heldout: Trajectories) -> int:
    """How many held-out episodes are in the training file too, which is warned of."""
    # Episodes of both files in one row, those of training first.
    files = [(data, number) for data in (train, heldout) for number in range(data.episodes)]
    actions = {}
    for e, (data, number) in enumerate(files):
        first = data.offsets[number]
        actions[e] = data.actions[first : first + data.lengths[number]]

    def first_frame(e: int) -> np.ndarray:
        data, number = files[e]
        frame: np.ndarray = data.frames[data.offsets[number]]
        return frame

    # Held-out episodes in groups that have one of training too.
    common = [
        e - train.episodes
        for group in _same(actions, first_frame)
        if group[0] < train.episodes
        for e in group
        if e >= train.episodes
    ]
    if common:
        warnings.warn(
            f"{heldout.path}: {len(common)} of its {heldout.episodes} episodes are in "
            f"{train.path} too (first frame and actions), the first is {min(common)}: what is "
            "told of held-out episodes is flattered",
            stacklevel=2,
        )
    return len(common)


def _same(
    actions: Mapping[int, np.ndarray], first_frame: Callable[[int], np.ndarray]
) -> Iterator[list[int]]:
    """Groups of two and more episodes of the same length, first frame and actions, the last one
    apart, which leads nowhere; frames are read only where actions are equal."""
    alike: dict[bytes, list[int]] = defaultdict(list)
    for e, values in actions.items():
        taken = np.ascontiguousarray(values[:-1], np.float32) + 0.0  # -0 is 0
        alike[b"%d " % len(values) + taken.tobytes()].append(e)
    for episodes in alike.values():
        by_frame: dict[bytes, list[int]] = defaultdict(list)
        for e in episodes if len(episodes) > 1 else ():
            by_frame[np.ascontiguousarray(first_frame(e)).tobytes()].append(e)
        yield from (group for group in by_frame.values() if len(group) > 1)
