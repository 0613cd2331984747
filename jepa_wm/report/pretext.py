"""The picture of the pretext task: clips, what the context sees of them, what is predicted of the
rest, and where that is wrong.

T time steps, g tokens on a side of a frame, px its side in pixels."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.data.sampling import spread
from jepa_wm.report.pictures import FAINT, GROUND, TEXT

MAX_STEPS = 10  # of a clip, spread over it
CELL, GAP, SIDE, HEAD = 112, 4, 168, 30  # px: about a frame, between two, of labels, of titles
SCALE = 260  # px, the length of the scale of errors
WORST = 2.0  # relative error at its end; the constant stands in its middle
HIDDEN = (96, 96, 96)  # what the context does not see
FADED = 0.65  # how far what is in view is darkened beside what is predicted
COLOURS = "coolwarm"


@dataclass(frozen=True)
class PretextClip:
    """One clip under one mask type."""

    mask: int  # the number of the mask type, from 1
    frames: np.ndarray  # [T, px, px, 3] uint8
    predicted: np.ndarray  # [T, px, px, 3] the same, predicted patches replaced
    in_view: np.ndarray  # [T, g, g] bool: what the context sees
    error: Mapping[str, np.ndarray]  # by kind [T, g, g], 1: as the constant; NaN: not predicted


def pretext_png(
    clips: Sequence[PretextClip], maps: Mapping[str, Sequence[Sequence[float]]]
) -> bytes:
    """A PNG of clips, rows of frames for each; below them maps [g, g] of the relative error of
    each place, by kind of target, on the scale that all errors share."""
    # Of a small frame every pixel becomes as many; a large one is reduced.
    px = clips[0].frames.shape[1]
    cell = px * round(CELL / px) if px <= CELL else CELL
    count = min(MAX_STEPS, len(clips[0].frames))
    block = HEAD + (3 + len(maps)) * (cell + GAP)
    foot = SIDE + len(maps) * (2 * cell + GAP) + SCALE + 2 * HEAD
    width = max(SIDE + count * (cell + GAP), foot)
    height = len(clips) * block + HEAD + 2 * cell + 2 * GAP
    canvas = Image.new("RGB", (width, height), GROUND)

    # The clips, one below the other, a row for each thing that is shown of them.
    for number, clip in enumerate(clips):
        top, steps = number * block, shown_steps(clip)
        _write(canvas, (GAP, top + HEAD / 2), f"clip {number + 1}, mask type {clip.mask}", TEXT)
        for column, step in enumerate(steps):
            x = SIDE + column * (cell + GAP)
            _write(canvas, (x + cell / 2, top + HEAD / 2), f"time step {step}", anchor="mm")
        for row, (label, pictures) in enumerate(_rows(clip)):
            y = top + HEAD + row * (cell + GAP)
            _write(canvas, (GAP, y + cell / 2), label)
            for column, step in enumerate(steps):
                x = SIDE + column * (cell + GAP)
                canvas.paste(_enlarged(pictures[step], cell), (x, y))

    # The maps over all clips, then the scale.
    top = len(clips) * block
    _write(canvas, (GAP, top + HEAD + cell), "error at each place,\nall clips")
    for number, (kind, values) in enumerate(maps.items()):
        x = SIDE + number * (2 * cell + GAP)
        _write(canvas, (x + cell, top + HEAD / 2), kind, anchor="mm")
        picture = _coloured(np.array(values, np.float32))
        canvas.paste(_enlarged(picture, 2 * cell), (x, top + HEAD))
    _draw_scale(canvas, SIDE + len(maps) * (2 * cell + GAP) + HEAD, top + HEAD + cell)
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def shown_steps(clip: PretextClip) -> np.ndarray:
    """The time steps that are shown, spread over the clip; in image mode the only one in view is
    among them."""
    steps = spread(len(clip.frames), MAX_STEPS)
    in_view = np.flatnonzero(clip.in_view.any((1, 2)))
    if not np.isin(steps, in_view).any():
        steps[np.abs(steps - in_view[0]).argmin()] = in_view[0]
    return steps


def _rows(clip: PretextClip) -> Iterator[tuple[str, np.ndarray]]:
    """(label, frames [T, h, w, 3]) of each row of a clip."""
    side = clip.frames.shape[1] // clip.in_view.shape[1]
    in_view = _over_patches(clip.in_view, side)
    yield "clip", clip.frames
    yield "in view of the context", np.where(in_view, clip.frames, np.array(HIDDEN, np.uint8))
    hidden = np.isfinite(next(iter(clip.error.values())))
    faded = (clip.frames * (1 - FADED)).astype(np.uint8)
    predicted = np.where(_over_patches(hidden, side), clip.predicted, faded)
    yield "predicted, each token\nas the nearest patch\nof other clips", predicted
    for kind, errors in clip.error.items():
        yield f"error of {kind}", _coloured(errors)


def _over_patches(grid: np.ndarray, side: int) -> np.ndarray:
    """[T, px, px, 1] the values [T, g, g] of patches at each of their pixels."""
    return grid.repeat(side, 1).repeat(side, 2)[..., None]


def _coloured(errors: np.ndarray) -> np.ndarray:
    """[..., 3] uint8 colours of relative errors [...]; the ground where there is none."""
    colours = matplotlib.colormaps[COLOURS](np.nan_to_num(errors, nan=0) / WORST, bytes=True)
    ground = np.array(GROUND, np.uint8)
    return np.where(np.isfinite(errors)[..., None], colours[..., :3], ground)


def _draw_scale(canvas: Image.Image, x: int, y: int) -> None:
    """The colours of all errors, and what three of them mean."""
    bar = _coloured(np.linspace(0, WORST, SCALE, dtype=np.float32)[None].repeat(16, 0))
    canvas.paste(Image.fromarray(bar), (x, y - 8))
    _write(canvas, (x, y - HEAD), "error relative to the best constant", TEXT)
    for value, text in ((0, "0"), (WORST / 2, "1: as the constant"), (WORST, f"{WORST:g} +")):
        _write(canvas, (x + SCALE * value / WORST, y + 22), text, anchor="mm")


def _enlarged(picture: np.ndarray, side: int) -> Image.Image:
    """A picture of so many px; of a small one no pixel is smoothed."""
    small = picture.shape[0] <= side
    how = Image.Resampling.NEAREST if small else Image.Resampling.BOX
    return Image.fromarray(np.ascontiguousarray(picture)).resize((side, side), how)


def _write(
    canvas: Image.Image,
    place: tuple[float, float],
    text: str,
    colour: tuple[int, int, int] = FAINT,
    anchor: str = "lm",
) -> None:
    font = ImageFont.load_default(size=13)
    ImageDraw.Draw(canvas).text(place, text, fill=colour, font=font, anchor=anchor)
