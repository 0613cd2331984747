"""Frames laid side by side: episodes as GIFs (start, now, goal) and film strips; pixels are
enlarged, never smoothed.

K decisions, h x w a frame.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.report.artifacts import Episodes
from jepa_wm.report.gif import encode_gif

PANEL = 144  # px, about the side of one of the three pictures
GAP, LINE = 8, 24  # px between pictures, height of the line of text
GROUND, TEXT, FAINT = (18, 20, 26), (232, 234, 238), (139, 147, 160)
TRAIL, TARGET = (250, 214, 150), (120, 220, 170)
FRAME_MS, HOLD_MS = 110, 1800  # each decision, and the start and the end
STRIP_SIDE = 96  # px, larger frames are reduced to this in a strip


def episode_gif(episodes: Episodes, index: int) -> bytes:
    """Start, now and goal side by side, a frame a decision, with a step counter and the distance
    left."""
    frames = episodes.frames[index]
    count, height, width = frames.shape[:3]
    scale = max(1, round(PANEL / width))
    start, goal = _enlarged(frames[0], scale), _enlarged(episodes.goal_frame[index], scale)
    pictures = [
        _side_by_side(
            (start, _with_trail(frames[k], episodes, index, k, scale), goal),
            ("start", _counter(episodes, index, k), "goal"),
        )
        for k in range(count)
    ]
    durations = [FRAME_MS] * count
    durations[0] = durations[-1] = HOLD_MS
    return encode_gif(pictures, durations, exact=(GROUND, TEXT, FAINT, TRAIL, TARGET))


def played_gif(frames: np.ndarray) -> bytes:
    """An episode without a goal: frames [K, h, w, 3] of its decisions, with a counter."""
    scale = max(1, round(PANEL / frames.shape[2]))
    labels = [f"decision {k + 1}/{len(frames)}" for k in range(len(frames))]
    pictures = [
        _side_by_side((_enlarged(frame, scale),), (label,))
        for frame, label in zip(frames, labels, strict=True)
    ]
    durations = [FRAME_MS] * len(frames)
    durations[0] = durations[-1] = HOLD_MS
    return encode_gif(pictures, durations, exact=(GROUND, TEXT, FAINT))


def strip_png(frames: np.ndarray, *, gap: int = 2) -> bytes:
    """A PNG of frames [n, h, w, 3] in a row, each with a transparent margin of `gap` px at either
    side."""
    pictures = [Image.fromarray(frame) for frame in frames]
    side = max(pictures[0].size)
    if side > STRIP_SIDE:
        size = tuple(max(1, round(length * STRIP_SIDE / side)) for length in pictures[0].size)
        pictures = [
            picture.resize((size[0], size[1]), Image.Resampling.BOX) for picture in pictures
        ]
    width, height = pictures[0].size
    row = Image.new("RGBA", ((width + 2 * gap) * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * (width + 2 * gap) + gap, 0))
    return small_png(row)


def small_png(image: Image.Image) -> bytes:
    """The image as a PNG of at most 255 colours, which takes a third of the room and looks the
    same at this size."""
    buffer = io.BytesIO()
    image.quantize(colors=255, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _with_trail(
    frame: np.ndarray, episodes: Episodes, index: int, k: int, scale: int
) -> np.ndarray:
    """The frame with the way so far and the success radius drawn in, for the reader
    only."""
    image = Image.fromarray(_enlarged(frame, scale))
    pen = ImageDraw.Draw(image)
    points = (
        episodes.positions[index, : k + 1] + 0.5
    ) * scale  # the middle of a pixel lies at its whole number
    if k:
        pen.line([(float(x), float(y)) for x, y in points], fill=TRAIL, width=1)
    x, y = (float(value) for value in (episodes.goal_position[index] + 0.5) * scale)
    reach = float(episodes.radius) * scale
    pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=TARGET)
    return np.asarray(image)


def _counter(episodes: Episodes, index: int, k: int) -> str:
    """ "step 40/200, 12.3 px": environment steps where every decision has as many, else
    decisions."""
    decisions, steps = episodes.cost.shape[1], episodes.distance.shape[1] - 1
    left = float(np.linalg.norm(episodes.positions[index, k] - episodes.goal_position[index]))
    if steps % decisions == 0:
        return f"step {k * steps // decisions}/{steps} · {left:.1f} {episodes.unit}"
    return f"decision {k}/{decisions} · {left:.1f} {episodes.unit}"


def _side_by_side(pictures: tuple[np.ndarray, ...], labels: tuple[str, ...]) -> np.ndarray:
    height, width = pictures[0].shape[:2]
    canvas = Image.new("RGB", (len(pictures) * (width + GAP) + GAP, height + GAP + LINE), GROUND)
    pen = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left = GAP + i * (width + GAP)
        canvas.paste(Image.fromarray(picture), (left, GAP))
        colour = TEXT if i == 1 else FAINT
        pen.text(
            (left + width / 2, height + GAP + LINE / 2), label, fill=colour, font=font, anchor="mm"
        )
    return np.asarray(canvas)


def _enlarged(frame: np.ndarray, scale: int) -> np.ndarray:
    return frame.repeat(scale, 0).repeat(scale, 1)
