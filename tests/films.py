"""Small videos made for tests: the brightness of a frame tells its number."""

import struct
from fractions import Fraction

import av
import numpy as np

TICKS = 12800  # a second, where the rate varies


def grey(number):
    """What a frame of this number shows, far enough from its neighbours to survive compression."""
    return 20 + 9 * number % 220


def frames(count, *, height=48, width=64):
    return np.stack(
        [np.full((height, width, 3), grey(number), np.uint8) for number in range(count)]
    )


def number_of(picture):
    """The number of a decoded frame (of the first 24; then they repeat)."""
    levels = np.array([grey(number) for number in range(24)])
    return int(np.abs(levels - np.median(picture)).argmin())


def write(
    path,
    pictures,
    *,
    fps=10,
    seconds=None,
    codec="libx264",
    gop=12,
    pix_fmt="yuv420p",
    options=None,
):
    """Encode pictures [n, h, w, 3]; `seconds` [n] gives each its own time, else they are 1/fps
    apart."""
    ticks = fps if seconds is None else TICKS
    seconds = np.arange(len(pictures)) / fps if seconds is None else seconds
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = pictures.shape[1:3]
        stream.pix_fmt, stream.gop_size, stream.thread_count = pix_fmt, gop, 1
        stream.codec_context.time_base = Fraction(1, ticks)
        for picture, second in zip(pictures, seconds, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(second * ticks), Fraction(1, ticks)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def turn(path):
    """Let an mp4 say that it is to be shown turned by a quarter, clockwise."""
    content = path.read_bytes()
    at = content.index(b"tkhd") + 4 + 40  # behind times, track, duration, layer and volume
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + matrix + content[at + 36 :])
    return path


def cut(path, share):
    """Cut a file short."""
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
