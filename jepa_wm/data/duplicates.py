"""Episodes that are there twice, which must not be parted into training and held-out ones.

Two are the same if their lengths, their first frames and their actions are, the last action apart,
which leads nowhere."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.view import View
from jepa_wm.data.trajectories import Trajectories

E = TypeVar("E")  # what an episode is called by


def refuse_parted(
    view: View, parts: Mapping[str, list[int]], actions: Mapping[int, np.ndarray]
) -> None:
    """UserError where copies of an episode of a source are parted; it names all copies there are
    to leave out."""
    if len(parts) < 2:
        return
    picture = next(iter(view.pictures))
    groups = list(_same(actions.items(), lambda e: view.frames(picture, e, 0, 1)))
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
    # Episodes of both files, known by (part, number), with their actions.
    files = (train, heldout)
    actions: list[tuple[tuple[int, int], np.ndarray]] = []
    for part, data in enumerate(files):
        for number, (first, length) in enumerate(zip(data.offsets, data.lengths, strict=True)):
            actions.append(((part, number), data.actions[first : first + length]))

    def first_frame(episode: tuple[int, int]) -> np.ndarray:
        data = files[episode[0]]
        frame: np.ndarray = data.frames[data.offsets[episode[1]]]
        return frame

    # Held-out episodes in groups that have one of training too, which stands first.
    common = [
        number
        for group in _same(actions, first_frame)
        if group[0][0] == 0
        for part, number in group
        if part == 1
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
    actions: Iterable[tuple[E, np.ndarray]], first_frame: Callable[[E], np.ndarray]
) -> Iterable[list[E]]:
    """Groups of two and more episodes that are the same; frames are read only where actions are
    equal."""
    alike: dict[bytes, list[E]] = defaultdict(list)
    for episode, values in actions:
        taken = np.ascontiguousarray(values[:-1], np.float32) + 0.0  # -0 is 0
        alike[b"%d " % len(values) + taken.tobytes()].append(episode)
    for episodes in alike.values():
        if len(episodes) < 2:
            continue
        by_frame: dict[bytes, list[E]] = defaultdict(list)
        for episode in episodes:
            by_frame[np.ascontiguousarray(first_frame(episode)).tobytes()].append(episode)
        yield from (group for group in by_frame.values() if len(group) > 1)
