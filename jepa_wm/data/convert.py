"""Any trajectory format to our own HDF5 (command convert): frames of one size, float actions,
statistics of the actions.

L frames of an episode, A action numbers, E episodes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.data.converted import about, columns_of, refuse_one_camera, rows_of
from jepa_wm.data.held_out import refuse_parted
from jepa_wm.data.readers.channels import UNITS
from jepa_wm.data.readers.registry import formats, open_trajectories
from jepa_wm.data.readers.view import Chosen, View
from jepa_wm.data.trajectories import ACTION_KINDS, ActionKind, TrajectoryWriter


@dataclass(frozen=True)
class Conversion:
    """What is written and how; episodes are called by the numbers that the source has for them."""

    target: Path  # an .h5 file; FOLDER/train.h5 where a part is held out
    size: int | None = None  # px, side of the square that frames are made; None: as they are
    # below 1: that share of the episodes, drawn; a whole number k: every k-th episode
    heldout: float = 0.0
    without: tuple[int, ...] = ()  # episodes to leave out
    shortest: int = 2  # episodes of fewer frames are left out
    # moves or places to go to; None: what the source says, else moves
    action_kind: ActionKind | None = None
    join_cameras: bool = False  # all cameras in one picture, instead of a column each

    def __post_init__(self) -> None:
        if self.target.suffix != ".h5":
            raise UserError(f"{self.target}: the target is one file; let its name end in .h5")
        if self.heldout and self.target.name != "train.h5":
            raise UserError(
                f"{self.target}: with --heldout name it FOLDER/train.h5; heldout.h5 is written "
                "beside it"
            )
        if self.heldout < 0 or (self.heldout >= 1 and (self.heldout < 2 or self.heldout % 1)):
            raise UserError(
                f"--heldout {self.heldout:g}: give a share below 1, or a whole number k >= 2: "
                "every k-th"
            )
        if self.shortest < 2:
            raise UserError(
                f"--shortest {self.shortest}: an episode needs 2 frames for an action between them"
            )
        if self.size is not None and self.size < 1:
            raise UserError(f"--size {self.size}: frames need at least 1 px")

    @property
    def files(self) -> dict[str, Path]:
        """The files to write by the name of their part."""
        held = {"heldout": self.target.with_name("heldout.h5")} if self.heldout else {}
        return {"train": self.target, **held}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words of `jepa-wm convert`."""
    # From where to where, and which columns.
    add = parser.add_argument
    add("source", metavar="SOURCE", help="a trajectory file or folder")
    add("into", metavar="TARGET.h5", help="the file to write; with --heldout FOLDER/train.h5")
    add_column_arguments(parser)

    # What of it is written, and how.
    add("--size", type=int, metavar="N", help="make frames N x N px; default: as they are")
    add(
        "--join-cameras", action="store_true",
        help="all of --camera in one picture of --size, from left to right, each as high as the "
        "picture and narrowed to its share of the width; default: a column each",
    )  # fmt: skip
    add(
        "--heldout", type=float, default=0.0, metavar="SHARE_OR_K",
        help="episodes for heldout.h5: a share such as 0.1, or every k-th",
    )  # fmt: skip
    add(
        "--without", type=int, nargs="+", default=[], metavar="EPISODE",
        help="episodes to leave out",
    )  # fmt: skip
    add("--shortest", type=int, default=2, metavar="L", help="leave out episodes of fewer frames")
    add(
        "--action-kind", choices=ACTION_KINDS,
        help="whether actions are moves, which add up (the default), or places to go to",
    )  # fmt: skip


def add_column_arguments(parser: argparse.ArgumentParser, *more_formats: str) -> None:
    """The words that say what a source is and which of its columns are used."""
    # The columns.
    add = parser.add_argument
    known = [*formats(), *more_formats]
    add("--format", choices=known, help="default: recognised from the files")
    add("--pixels", metavar="COLUMN", help="the column of frames")
    add("--action", metavar="COLUMN")
    add("--state", metavar="COLUMN")
    add(
        "--names", nargs="+", default=[], metavar="NAME",
        help="of the state's numbers; what stands before the last underscore groups them: "
        "block_x block_y angle",
    )  # fmt: skip
    add(
        "--units", nargs="+", default=[], metavar="UNIT",
        help="of the state's numbers, - where there is none: px px rad; rad and deg are angles",
    )  # fmt: skip
    add(
        "--camera", nargs="+", default=[], metavar="NAME",
        help="cameras by name: pixels, then pixels_NAME for more",
    )  # fmt: skip

    # How pictures and rows are to be read.
    add(
        "--channels", choices=list(UNITS),
        help="what one frame of the pictures is, where it does not show; more channels are "
        "stacked frames, newest last",
    )  # fmt: skip
    add(
        "--action-row", choices=["leaving", "arriving"],
        help="whether a row holds the action taken at its frame or the one that led to it",
    )  # fmt: skip


def chosen(a: argparse.Namespace) -> Chosen:
    """The columns that the command line names."""
    return Chosen(
        pixels=a.pixels, action=a.action, state=a.state, cameras=tuple(a.camera),
        names=tuple(a.names), units=tuple(a.units), channels=a.channels, action_row=a.action_row,
    )  # fmt: skip


def run(a: argparse.Namespace) -> dict[str, object]:
    """The command: open, convert, tell what was written."""
    conversion = Conversion(
        Path(a.into), a.size, a.heldout, tuple(a.without), a.shortest, a.action_kind,
        a.join_cameras,
    )  # fmt: skip
    return convert(View(open_trajectories(a.source, a.format), chosen(a)), conversion)


def convert(view: View, conversion: Conversion) -> dict[str, object]:
    """Write the parts; each file appears whole, all at the end of one pass over the source.

    Columns: pixels (and one for each further camera that is not in it), action; state, reward and
    terminated where the source has them. Both files carry `action_mean`, `action_std`,
    `action_min` and `action_max` of the training part. Raises UserError for a target that is there
    already, for a broken episode, for copies of one in both parts, and where a part would have no
    episode."""
    for path in conversion.files.values():
        if path.exists():
            raise UserError(f"{path}: is there already; delete it or choose another target")
    parts, left_out = split(view.source.lengths, conversion, numbers=view.source.numbers)

    # All actions first: they are small, and what is wrong with them is found before the long work.
    actions = {e: view.actions(e) for e in sorted(sum(parts.values(), []))}
    view.check_all(list(actions))
    refuse_parted(view, parts, actions)
    size, together = conversion.size, conversion.join_cameras
    if together:
        refuse_one_camera(view, size)
    columns = columns_of(view, size, next(iter(actions)), together=together)
    statistics = action_statistics([actions[e] for e in parts["train"]])
    attributes = {**statistics, **about(view, conversion.action_kind, together=together)}

    with ExitStack() as on_failure:
        # The file of each episode, and its first row there.
        writers: list[TrajectoryWriter] = []
        jobs: dict[int, tuple[TrajectoryWriter, int]] = {}
        for part, path in conversion.files.items():
            writer = TrajectoryWriter(path, view.source.lengths[parts[part]], columns)
            writers.append(writer)
            on_failure.callback(writer.abandon)
            jobs.update({e: (writer, int(writer.offset[i])) for i, e in enumerate(parts[part])})

        # In the source's order: some can only be streamed.
        with catching_signals() as stop, Progress("convert", len(jobs)) as bar:
            for done, e in enumerate(actions, 1):
                writer, row = jobs[e]
                writer.write("action", row, actions[e])
                for start, name, values in rows_of(view, size, e, columns, together=together):
                    writer.write(name, row + start, values)
                    stop.raise_if_requested()
                bar.update(done)

        # The target last: once it is there, all is.
        for writer in reversed(writers):
            writer.close(**attributes)
        on_failure.pop_all()

    result: dict[str, object] = {"left_out": [view.called(e) for e in left_out]}
    for part, path in conversion.files.items():
        lengths = view.source.lengths[parts[part]]
        frames = int(lengths.sum())
        result[part] = {"path": str(path), "episodes": len(lengths), "frames": frames}
    return result


def lines(result: dict[str, Any]) -> list[str]:
    """The result for reading."""
    parts = [result[part] for part in ("train", "heldout") if part in result]
    text = [f"{p['path']}: {p['episodes']} episodes, {p['frames']} frames" for p in parts]
    left_out = ", ".join(map(str, result["left_out"]))
    return [*text, *([f"left out: episodes {left_out}"] if left_out else [])]


def split(
    lengths: np.ndarray, conversion: Conversion, *, numbers: np.ndarray | None = None
) -> tuple[dict[str, list[int]], list[int]]:
    """({part: episodes}, episodes left out), by place, of a source with `lengths` [E] whose
    episodes are called `numbers` [E], default 0, 1, ...; the draw is always the same."""
    # What is left out by its number, or because it is short.
    called = (np.arange(len(lengths)) if numbers is None else numbers).tolist()
    wrong = sorted(set(conversion.without) - set(called))
    if wrong:
        gaps = ", not all of them" if called[-1] - called[0] >= len(called) else ""
        span = f"{called[0]} to {called[-1]}{gaps}"
        raise UserError(f"--without {wrong[0]}: the episodes are {span}")
    short = lengths < conversion.shortest
    left_out = [e for e, number in enumerate(called) if number in conversion.without or short[e]]
    usable = np.setdiff1d(np.arange(len(lengths)), left_out)

    # Every k-th of the rest is held out, or a share of them.
    if conversion.heldout >= 1:
        held = usable[usable % int(conversion.heldout) == 0]
    else:
        count = max(1, round(conversion.heldout * len(usable))) if conversion.heldout else 0
        held = np.random.default_rng(0).permutation(usable)[:count]
    parts = {"train": np.setdiff1d(usable, held).tolist()}
    if conversion.heldout:
        parts["heldout"] = sorted(held.tolist())
    for part, episodes in parts.items():
        if not episodes:
            raise UserError(
                f"{len(usable)} episodes of at least {conversion.shortest} frames leave none for "
                f"{part}.h5"
            )
    return parts, left_out


def action_statistics(episodes: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """`action_mean`, `action_std`, `action_min`, `action_max` [A] over episodes [L, A]; the last
    action of each leads nowhere and does not count."""
    actions = np.concatenate([actions[:-1] for actions in episodes]).astype(np.float64)
    return {f"action_{name}": getattr(actions, name)(0) for name in ("mean", "std", "min", "max")}
