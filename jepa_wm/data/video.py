"""One video file: the frames on screen at given seconds, as PyAV decodes them.

K frames of h x w px, turned the way the file says they are to be shown. Seconds count from the
first frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from jepa_wm.data.video_stream import AMISS, Shown, VideoError, VideoStream

FAR = 2.0  # seconds ahead from which looking for a keyframe is cheaper than decoding on


@dataclass(frozen=True)
class Facts:
    """What a video's header says; `seconds` and `frames` are counted where it says nothing."""

    seconds: float
    fps: float  # on average
    frames: int
    width: int  # px, as shown
    height: int
    codec: str


class Video:
    """An open video file; close it, or use it in a `with`.

    `size` scales frames, antialiased, so that their shorter side has that many px. A frame is on
    screen from its own timestamp until that of the next, whatever the nominal rate; after the last
    frame the last one stays. Alpha is dropped: colours are shown as stored. Pixels are taken for
    square."""

    def __init__(
        self, path: Path | str, *, size: int | None = None, source: BinaryIO | None = None
    ) -> None:
        """`source` holds the file's bytes where the path is only what to call it."""
        self.path, self.size = Path(path), size
        if source is None and not self.path.is_file():
            raise VideoError(f"{path}: no such video file")
        self._now: Shown | None = None  # on screen at the last second asked for
        self._next: Shown | None = None  # the one after it, decoded already
        self._frames: Iterator[Shown] = iter(())
        with _blaming(self.path):
            self._stream = VideoStream(self.path, source)

    def facts(self) -> Facts:
        """Length, rate and size; reads the whole file (without decoding) where the header does not
        tell them."""
        with _blaming(self.path):
            height, width = self._pixels(self._go(0.0)[1]).shape[:2]
            count, end = self._stream.video.frames, self._stream.promised_end
            if not count or end is None:
                self._now = self._next = None  # the file is read on from elsewhere
                count, end = self._stream.counted()
        video = self._stream.video
        rate = float(video.average_rate or (count / end if end else 1.0))
        return Facts(end, rate, count, width, height, video.codec_context.name)

    def at(self, seconds: np.ndarray) -> np.ndarray:
        """[K, h, w, 3] uint8 frames on screen at `seconds` [K], in any order.

        Before the first frame the first is shown, after the last the last. VideoError if the file
        is damaged there, or ends before its header says."""
        return self._each(seconds, lambda second: self._go(second)[1])

    def nearest(self, seconds: np.ndarray, *, within: float) -> np.ndarray:
        """[K, h, w, 3] uint8 frames whose own times are nearest to `seconds` [K], in any order.

        VideoError as of `at`, and where no frame is nearer than `within` seconds: it is missing
        there."""
        return self._each(seconds, lambda second: self._near(second, within))

    def stamps(self) -> np.ndarray:
        """[K] seconds at which frames are shown, in order, from the packets of the whole file:
        nothing is decoded."""
        self._now = self._next = None  # the file is read on from elsewhere
        with _blaming(self.path):
            return self._stream.stamps()

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Video:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _each(self, seconds: np.ndarray, frame_at: Callable[[float], av.VideoFrame]) -> np.ndarray:
        distinct, back = np.unique(np.asarray(seconds, np.float64), return_inverse=True)
        with _blaming(self.path):
            try:
                shown = [self._pixels(frame_at(second)) for second in distinct]
            except AMISS:
                self._now = None  # what is decoded next does not follow it
                raise
        if len({frame.shape for frame in shown}) > 1:
            raise VideoError(f"{self.path}: changes its size on the way; encode it again")
        return np.stack([shown[i] for i in back.reshape(-1)])

    def _near(self, second: float, within: float) -> av.VideoFrame:
        frames = [self._go(second), *([] if self._next is None else [self._next])]
        shown, frame = min(frames, key=lambda frame: abs(frame[0] - second))
        if abs(shown - second) >= within:
            raise VideoError(
                f"{self.path}: has no frame near {second:.3f} s; the nearest is shown at "
                f"{shown:.3f} s"
            )
        return frame

    def _go(self, second: float) -> Shown:
        """Let the frame on screen at `second` be the current one."""
        far = FAR if self._stream.can_seek else math.inf
        if self._now is None or not self._now[0] <= second <= self._now[0] + far:
            self._frames = self._stream.after(second)
            self._now = next(self._frames, None)
            if self._now is None:
                raise VideoError(f"{self.path}: holds no frame that can be decoded; copy it again")
            self._next = next(self._frames, None)
        while self._next is not None and self._next[0] <= second + self._stream.slack:
            self._now, self._next = self._next, next(self._frames, None)
        if self._next is None:
            self._refuse_early_end(second, *self._now)
        return self._now

    def _refuse_early_end(self, second: float, shown: float, frame: av.VideoFrame) -> None:
        promised, lasts = self._stream.promised_end, (frame.duration or 0) * self._stream.tick
        if promised is not None and frame.duration:
            end = shown + lasts
            if end + max(0.5, 2 * lasts) < min(second, promised):
                raise VideoError(
                    f"{self.path}: ends after {end:.1f} s of the {promised:.1f} s it should have; "
                    "it was cut short: copy it again"
                )

    def _pixels(self, frame: av.VideoFrame) -> np.ndarray:
        if self.size is not None:
            width, height = scaled(frame.width, frame.height, self.size)
            frame = frame.reformat(
                width=width, height=height, format="rgb24", interpolation="BILINEAR"
            )
        image = frame.to_ndarray(format="rgb24")
        # counter-clockwise, as the file's display matrix has it
        quarters = round(frame.rotation / 90)
        return np.ascontiguousarray(np.rot90(image, quarters)) if quarters % 4 else image


def scaled(width: int, height: int, size: int) -> tuple[int, int]:
    """px of a frame whose shorter side is made `size`."""
    scale = size / min(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """Whatever PyAV raises for a damaged file becomes a VideoError with the file's name."""
    try:
        yield
    except AMISS as error:
        raise VideoError(
            f"{path}: cannot be decoded ({error}); copy or encode it again"
        ) from error
