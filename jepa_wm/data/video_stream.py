"""The frames of one video file in the order they are shown, from the keyframe before any second
on.

A seek is trusted where the frame it leads to is a keyframe at or before that second; else the file
is read on from an earlier place, in the end from its start. Seconds count from the first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.stream import Disposition

from jepa_wm.core.errors import UserError

FINEST = 2e-6  # seconds, what a second rounded to microseconds may be off
# seconds before the one asked for that are sought, as a file without an index leads anywhere near
BACK = (0.0, 2.0, 8.0)
AMISS = (av.error.FFmpegError, OSError, EOFError)  # what PyAV raises for damaged files
# These have the palette in every frame; others get it once, as the first packet of the file is
# read.
OWN_PALETTE = frozenset(("apng", "bmp", "gif", "pcx", "png", "sunrast", "targa", "tiff", "webp"))
# These number frames as they are stored, which is not the order of showing where there are
# B-frames.
BY_STORAGE = frozenset(("asf", "avi", "mxf"))
# An MPEG program stream times one frame of several; those between are counted from the start on.
UNTIMED = "mpeg"

Shown = tuple[float, av.VideoFrame]  # from which second on it is on screen


class VideoError(UserError):
    """A video that cannot be read, or not up to its end."""


class VideoStream:
    """The video of an open file, its frames in the order they are shown; covers and thumbnails
    that a file may hold beside it are passed over.

    Raises what PyAV raises (`AMISS`) for a damaged file, VideoError for one without a video."""

    def __init__(self, path: Path, source: BinaryIO | None) -> None:
        """`source` holds the file's bytes where the path is only what to call it."""
        self.path, self._source = path, source
        self._first: int | None = None  # the stamp of the first frame
        self._open()

    def close(self) -> None:
        self._container.close()

    def counted(self) -> tuple[int, float]:
        """(frames, the second at which the last one leaves the screen), from the packets of the
        whole file."""
        start = self.video.start_time or 0
        count, last = 0, start
        for packet in self._packets():
            if packet.pts is not None:
                count, last = count + 1, max(last, packet.pts + (packet.duration or 0))
        return count, (last - start) * self.tick

    def stamps(self) -> np.ndarray:
        """[K] seconds at which frames are shown, in order, from the packets of the whole file."""
        ticks: list[int] = []
        for packet in self._packets():
            tick = packet.dts if self._by_storage else packet.pts
            if packet.size and not packet.is_discard and tick is not None:
                ticks.append(tick)
        ordered = np.sort(np.array(ticks, np.int64))
        first = ordered[:1] if self._by_storage else self.video.start_time or 0
        return (ordered - first) * self.tick

    def after(self, second: float) -> Iterator[Shown]:
        """Frames in order; the first is on screen at `second` or before, if the video has begun
        then."""
        second = max(second, 0.0)
        if self.can_seek:
            # Notes what its first frame is stamped.
            if self._by_storage and self._first is None:
                next(self._timed(self._container.decode(self.video)), None)
            for back in BACK:
                frames = self._keyframe_before(second, max(second - back, 0.0))
                if frames is not None:
                    yield from frames
                    return
                if back >= second:
                    break
        self._restart()
        whole = self.can_seek or self._in_order
        decoded = self._container.decode(self.video) if whole else self._read_up_to(second)
        yield from self._timed(decoded)

    @property
    def can_seek(self) -> bool:
        """Whether the file can be entered anywhere; else it is read from its start."""
        return not self._in_order and self._container.format.name != UNTIMED

    @property
    def slack(self) -> float:
        """Seconds; containers round timestamps to ticks: one early is on time, if a tick is short
        beside a frame."""
        interval = 1 / float(self.video.average_rate or 25)
        return min(max(self.tick, FINEST), interval / 4)

    @property
    def promised_end(self) -> float | None:
        """Seconds at which the last frame leaves the screen, by the header."""
        if self.video.duration:
            return self.video.duration * self.tick
        streams = [stream for stream in self._container.streams if not _is_cover(stream)]
        if len(streams) == 1 and self._container.duration:  # else the sound may be what lasts
            return self._container.duration / av.time_base
        return None

    def _open(self) -> None:
        # The one stream that is no cover, and that FFmpeg has a decoder for.
        if self._source is not None:
            self._source.seek(0)
        self._container = av.open(self._source or str(self.path), "r")
        streams = [stream for stream in self._container.streams.video if not _is_cover(stream)]
        if not streams or streams[0].codec_context is None:  # FFmpeg knows no decoder
            self._container.close()
            unknown = (
                f"its codec is unknown to the FFmpeg that PyAV {av.__version__} brings; update "
                "av, or encode the file again, as H.264 for one"
            )
            raise VideoError(f"{self.path}: {unknown if streams else 'has no video stream'}")

        # How it is entered and timed.
        self.video = streams[0]
        self.video.thread_count = 1  # several loaders share the machine
        self.tick = float(self.video.time_base or 0)
        context = self.video.codec_context
        self._in_order = context.pix_fmt == "pal8" and context.name not in OWN_PALETTE
        self._by_storage = self._container.format.name in BY_STORAGE

    def _restart(self) -> None:
        """Back to the start, with a decoder that knows nothing."""
        self.close()
        self._open()

    def _packets(self) -> Iterator[av.Packet]:
        """Those of the whole file; it is entered anew afterwards."""
        self._restart()
        yield from self._container.demux(self.video)
        self._restart()

    def _keyframe_before(self, second: float, sought: float) -> Iterator[Shown] | None:
        """Frames from a keyframe on that the seek leads to, None where that comes too late or is
        none."""
        try:
            target = (self.video.start_time or 0) + int(sought / self.tick)
            self._container.seek(target, stream=self.video, backward=True)
            frames = self._timed(self._container.decode(self.video))
            first = next(frames, None)
        except AMISS:
            return None
        if first is None or not first[1].key_frame or first[0] > second + self.slack:
            return None
        return chain((first,), frames)

    def _read_up_to(self, second: float) -> Iterator[av.VideoFrame]:
        """Frames from the last keyframe before `second` on, found by reading, without decoding
        what precedes it."""
        packets, group = self._container.demux(self.video), list[av.Packet]()
        for packet in packets:
            if packet.is_keyframe and packet.pts is not None:
                if self._seconds(packet.pts) > second and group:
                    group.append(packet)
                    break
                group.clear()
            group.append(packet)
        for packet in chain(group, packets):
            yield from packet.decode()

    def _timed(self, frames: Iterable[av.VideoFrame]) -> Iterator[Shown]:
        before = None
        for frame in frames:
            stamp = frame.pts if frame.pts is not None and not self._by_storage else frame.dts
            # What the decoder held back up to the end of the file has none.
            if stamp is None and before is not None:
                stamp = before + (frame.duration or 1)
            if stamp is None:
                raise VideoError(f"{self.path}: its frames have no timestamps; encode it again")
            before = stamp
            yield self._seconds(stamp), frame

    def _seconds(self, stamp: int) -> float:
        if self._first is None:
            self._first = stamp if self._by_storage else self.video.start_time or 0
        return (stamp - self._first) * self.tick


def _is_cover(stream: av.stream.Stream) -> bool:
    """Whether a stream is one picture beside the video: cover art or thumbnails."""
    return bool(stream.disposition & Disposition.attached_pic)
