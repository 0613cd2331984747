"""Animated GIFs with one palette for all frames, kept under a size.

F frames, h x w pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

Colour = tuple[int, int, int]  # red, green, blue

# (colours, every n-th frame), best first: the first that fits is taken. Noise does not compress,
# so it needs the last.
QUALITIES = ((128, 1), (64, 1), (32, 1), (16, 1), (16, 2), (16, 4), (8, 8))
SAMPLED_FRAMES = 12  # frames that the common palette is chosen from


def encode_gif(
    frames: Sequence[np.ndarray],
    durations_ms: Sequence[int],
    *,
    exact: Sequence[Colour] = (),
    max_bytes: int = 450_000,
) -> bytes:
    """A GIF of `frames` [F][h, w, 3] uint8 that loops for ever, each shown for its duration.

    Colours are given up first, then frames in between (the durations are added up, first and last
    frame stay), until the file fits `max_bytes`; if none does, the smallest. The few colours in
    `exact` are never altered. Equal neighbours are merged. Raises ValueError without frames."""
    if len(frames) == 0 or len(frames) != len(durations_ms):
        raise ValueError(
            f"frames: {len(frames)} frames with {len(durations_ms)} durations; one each is needed"
        )
    images = [Image.fromarray(frame) for frame in frames]
    smallest = b""
    for colours, stride in QUALITIES:
        kept, shown = _thin_out(len(images), durations_ms, stride)
        file = _encode([images[i] for i in kept], shown, _palette(images, colours, exact))
        if len(file) <= max_bytes:
            return file
        if not smallest or len(file) < len(smallest):
            smallest = file
    return smallest


def _thin_out(count: int, durations_ms: Sequence[int], stride: int) -> tuple[list[int], list[int]]:
    """Every stride-th index and the last one, and how long each is shown so that the whole lasts
    as long as before."""
    kept = [*range(0, count - 1, stride), count - 1]
    ends = [*kept[1:], count]
    return kept, [sum(durations_ms[a:b]) for a, b in zip(kept, ends, strict=True)]


def _encode(images: list[Image.Image], durations_ms: list[int], palette: Image.Image) -> bytes:
    # Without dithering still parts stay equal from frame to frame, and only what moved is stored.
    first, *rest = (image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images)
    buffer = io.BytesIO()
    first.save(
        buffer,
        "GIF",
        save_all=True,
        append_images=rest,
        duration=durations_ms,
        loop=0,
        optimize=True,
    )
    return buffer.getvalue()


def _palette(images: list[Image.Image], colours: int, exact: Sequence[Colour]) -> Image.Image:
    """One that covers the range of colours in frames spread over the whole, small bright things
    included."""
    chosen = np.unique(
        np.linspace(0, len(images) - 1, min(SAMPLED_FRAMES, len(images))).astype(int)
    )
    mosaic = Image.fromarray(np.concatenate([np.asarray(images[i]) for i in chosen]))
    found = (
        mosaic.quantize(
            colors=max(2, colours - len(exact)), method=Image.Quantize.MAXCOVERAGE
        ).getpalette()
        or []
    )
    palette = Image.new("P", (1, 1))
    palette.putpalette([*found[: 3 * colours], *(value for colour in exact for value in colour)])
    return palette
