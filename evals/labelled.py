"""Labelled clips for frozen evaluation: images, videos, or a column of trajectories, all as the
same plain samples.

n samples, T frames, Y numbers of a target.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torchvision

from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import PIECE, digest_of, fingerprint
from jepa_wm.core.progress import Progress
from jepa_wm.data.images import rgb
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_set import VideoSet, is_index
from jepa_wm.data.videos import CLASSES, find, without_class
from jepa_wm.evals.settings import ProbeSettings

BUILT_IN = "torchvision/"


@dataclass
class Part:
    """Samples of the training or the test part, in a fixed order.

    `unit` numbers the video or frame that a sample is a clip of, `group` what belongs together: an
    episode, or that video again. Sample i counts as 1 / (clips of its unit)."""

    read: Callable[[int], np.ndarray]  # sample -> [T, h, w, 3] uint8
    target: np.ndarray  # [n] numbers of classes, or [n, Y] float32
    unit: np.ndarray  # [n]
    group: np.ndarray  # [n]
    digest: str = ""  # names the content: targets, and the frames, pictures or files

    def __len__(self) -> int:
        return len(self.target)

    def of(self, rows: np.ndarray) -> Part:
        """The samples at those rows alone."""
        read = self.read
        return Part(
            lambda i: read(int(rows[i])), self.target[rows], self.unit[rows], self.group[rows]
        )

    def split(self, fraction: float, *, by_class: bool) -> tuple[np.ndarray, np.ndarray]:
        """(rows to fit probes on, rows to choose their settings on): the last `fraction` of the
        groups in their order, of each class where there are classes.

        Raises UserError where that leaves none to fit on."""
        chosen = np.zeros(len(self), bool)
        kinds = self.target if by_class else np.zeros(len(self), int)
        for kind in np.unique(kinds):
            rows = np.flatnonzero(kinds == kind)
            groups = self.group[rows]
            # As they first appear.
            order = groups[np.sort(np.unique(groups, return_index=True)[1])]
            last = order[len(order) - max(1, round(fraction * len(order))) :]
            chosen[rows] = np.isin(groups, last)
        if chosen.all():
            raise UserError(
                "the training part is too small to choose settings on a part of it; give more "
                "samples of each class, or more episodes"
            )
        return np.flatnonzero(~chosen), np.flatnonzero(chosen)


@dataclass
class Labelled:
    """Both parts; `classes` are names of classes, or None where targets are numbers: those of a
    part are `unrolled` ones of `quantities`, angles as cosines and sines."""

    train: Part
    test: Part
    classes: list[str] | None
    quantities: Quantities = Quantities()  # of targets
    left_out: list[str] = field(default_factory=list)  # why videos could not be read


def open_labelled(probes: ProbeSettings, data: DataSettings, own: Path) -> Labelled:
    """The data that `probes.train` and `probes.test` name, or the run's own trajectories, which
    lie in the folder `own`."""
    if probes.train is not None and probes.train.startswith(BUILT_IN):
        return _built_in(probes.train, str(probes.test))
    train, test = Path(probes.train or own / "train.h5"), Path(probes.test or own / "heldout.h5")
    if all(path.suffix == ".h5" and not is_index(path) for path in (train, test)):
        return _trajectories(Trajectories(train), Trajectories(test), probes)
    return _videos(train, test, probes, data)


def _trajectories(train: Trajectories, test: Trajectories, probes: ProbeSettings) -> Labelled:
    """Every frame of a spread-out choice, the clip that ends there, and the row of the column that
    is to be read."""
    column = probes.column
    parts = [_frames(data, probes) for data in (train, test)]
    size = parts[0].target.shape[1]
    if parts[1].target.shape[1] != size:
        numbers = parts[1].target.shape[1]
        raise UserError(f"{test.path}: column '{column}' has {numbers} numbers, not {size}")

    # The file says what the numbers of a state are; those of other columns are numbered.
    known = train.quantities if column == "state" else Quantities()
    for part in parts:
        part.target = known.unrolled(part.target)
    if not known.groups:
        known = Quantities({f"{column}_{i}" if size > 1 else column: [i] for i in range(size)})
    return Labelled(parts[0], parts[1], None, known)


def _frames(data: Trajectories, probes: ProbeSettings) -> Part:
    """The samples of one file: frames at equal distances, each the last of its clip."""
    target = data.column(probes.column).astype(np.float32).reshape(len(data.actions), -1)
    count = min(probes.max_samples, len(target))
    rows = np.unique(np.linspace(0, len(target) - 1, count).astype(np.int64))
    if not np.isfinite(target[rows]).all():
        raise UserError(
            f"{data.path}: column '{probes.column}' is not finite everywhere; repair it"
        )

    # Before an episode's first frame that one is repeated.
    episode = np.searchsorted(data.offsets, rows, side="right") - 1
    back = probes.frame_gap * np.arange(probes.num_frames - 1, -1, -1)
    clips = np.maximum(rows[:, None] - back, data.offsets[episode][:, None])
    shown = (data.frames[row] for row in np.unique(clips))
    content = digest_of(target[rows], clips, shown)
    units = np.arange(len(rows))
    return Part(lambda i: data.frames[clips[i]], target[rows], units, episode, content)


def _built_in(train: str, test: str) -> Labelled:
    """A labelled set of torchvision that lies here already, `torchvision/NAME/FOLDER`; nothing is
    fetched."""
    # torchvision's sets name their parts by `train=` or by `split=`.
    parts, classes = [], []
    for text, training in ((train, True), (test, False)):
        name, _, root = text.removeprefix(BUILT_IN).partition("/")
        made: Any = getattr(torchvision.datasets, name, None)
        arguments = inspect.signature(made).parameters if isinstance(made, type) else {}
        which: dict[str, object] = {"train": training} if "train" in arguments else {}
        if not text.startswith(BUILT_IN) or not {"train", "split"} & set(arguments):
            raise UserError(
                f"{text}: give torchvision/NAME/FOLDER for both parts, with a labelled set of "
                "torchvision"
            )
        # `download` is never given: a set that is not there is the user's to fetch.
        try:
            data = made(root, **(which or {"split": "train" if training else "test"}))
        except (RuntimeError, OSError) as error:
            raise UserError(
                f"{text}: is not there or not whole ({error}); download it into the folder first"
            ) from None

        # No clips here: each picture is an episode of its own, so a split may part any two.
        target, rows = np.array([int(data[i][1]) for i in range(len(data))]), np.arange(len(data))
        content = digest_of(target, (_picture(data, i) for i in range(len(data))))
        parts.append(Part(partial(_picture, data), target, rows, rows, content))
        classes = list(getattr(data, "classes", range(int(target.max()) + 1)))
    return Labelled(parts[0], parts[1], [str(name) for name in classes])


def _picture(data: Any, i: int) -> np.ndarray:
    return np.asarray(rgb(data[i][0], f"picture {i} of {type(data).__name__}"))[None]


def _videos(train: Path, test: Path, probes: ProbeSettings, data: DataSettings) -> Labelled:
    """Clips of labelled videos and images, evenly spread over each."""
    sets = []
    for path in (train, test):
        if is_index(path):
            sets.append(VideoSet.open(path, max_unreadable=data.max_unreadable))
            continue
        entries = find(path, single_images=probes.single_images)
        sets.append(
            VideoSet(entries, max_unreadable=data.max_unreadable, folder_fps=data.folder_fps)
        )

    # Every video has a class, and the test has none that training has not.
    classes = sets[0].classes
    for path, videos in zip((train, test), sets, strict=True):
        without = np.flatnonzero(videos.labels < 0)
        if not len(videos) or len(without):
            remedy = without_class(videos.entry(int(without[0]))) if len(without) else CLASSES
            raise UserError(f"{path}: not every video has a class; {remedy}")
        unknown = sorted(set(videos.classes) - set(classes))
        if unknown:
            raise UserError(
                f"{path}: class {unknown[0]!r} is not among those of {train}: {', '.join(classes)}"
            )
    left_out: list[str] = []
    parts = [_clips(videos, classes, probes, data, left_out) for videos in sets]
    return Labelled(parts[0], parts[1], classes, left_out=left_out)


def _clips(
    videos: VideoSet,
    classes: list[str],
    probes: ProbeSettings,
    data: DataSettings,
    left_out: list[str],
) -> Part:
    """Clips at equal distances in each video; videos that cannot be read go to `left_out`."""
    numbers = np.array([classes.index(name) for name in videos.classes])
    unit = np.repeat(np.arange(len(videos)), probes.num_clips)
    left_out += videos.unreadable.why.values()
    target = numbers[videos.labels][unit]
    read = partial(_clip, videos, videos.seconds, probes, data)
    return Part(read, target, unit, unit, _content(videos, numbers))


def _clip(
    videos: VideoSet, seconds: np.ndarray, probes: ProbeSettings, data: DataSettings, i: int
) -> np.ndarray:
    """[T, h, w, 3] the i-th clip of all, its frames about as large as the encoder takes them."""
    number, clip = divmod(i, probes.num_clips)
    interval = 1 / data.fps[0]
    room = max(float(seconds[number]) - probes.num_frames * interval, 0.0)
    start = room * (clip + 0.5) / probes.num_clips
    video = videos.entry(number).open(fps=videos.folder_fps, size=data.image_size)
    try:
        return video.at(start + interval * np.arange(probes.num_frames))
    finally:
        video.close()


def _content(videos: VideoSet, numbers: np.ndarray) -> str:
    """Names what is in the files of a set: their classes, lengths, sizes, and how each begins and
    ends."""
    sha = hashlib.sha256(digest_of(numbers[videos.labels], videos.seconds).encode())
    for i in range(len(videos)):
        entry = videos.entry(i)
        try:
            if entry.span is None:
                sha.update(fingerprint(entry.path, pieces=2).encode())
                continue
            offset, size = entry.span
            for first in (offset, offset + max(0, size - PIECE)):
                sha.update(
                    f"{size} ".encode() + replace(entry, span=(first, min(size, PIECE))).content()
                )
        except (OSError, VideoError):
            sha.update(b"not there")
    return sha.hexdigest()[:16]


def batches(
    part: Part, count: int, name: str, left_out: list[str]
) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """(rows, their clips) of a part, `count` at a time, in order; what cannot be decoded after all
    is left out and its reason added to `left_out`."""
    with catching_signals() as stop, Progress(name, len(part)) as bar:
        for first in range(0, len(part), count):
            rows, clips = [], []
            for i in range(first, min(first + count, len(part))):
                try:
                    clips.append(part.read(i))
                    rows.append(i)
                except VideoError as error:
                    left_out.append(str(error))
            bar.update(min(first + count, len(part)))
            stop.raise_if_requested()
            if rows:
                yield np.array(rows), clips
