"""Pictures for the page: episodes as GIFs (start, now, goal side by side), film strips, energy
maps; pixels are enlarged, never smoothed.

E episodes, K decisions, h x w a frame.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from jepa_wm.report.artifacts import Energy, Episodes

Colour = tuple[int, int, int]  # red, green, blue
NO_DITHER = Image.Dither.NONE

# (colours, every n-th frame), best first: the first that fits is taken. Noise does not compress,
# so it needs the last.
QUALITIES = ((128, 1), (64, 1), (32, 1), (16, 1), (16, 2), (16, 4), (8, 8))
SAMPLED_FRAMES = 12  # frames that the common palette is chosen from
PANEL = 144  # px, about the side of one of the three pictures
GAP, LINE = 8, 24  # px between pictures, height of the line of text
GROUND, TEXT, FAINT = (18, 20, 26), (232, 234, 238), (139, 147, 160)
TRAIL, TARGET = (250, 214, 150), (120, 220, 170)
FRAME_MS, HOLD_MS = 110, 1800  # each decision, and the start and the end
STRIP_SIDE, MARGIN = 96, 2  # px: larger frames are reduced to this in a strip; beside each


def episode_gif(episodes: Episodes, index: int) -> bytes:
    """Start, now and goal side by side, a frame a decision, with a step counter and the distance
    left."""
    frames = episodes.frames[index]
    scale = max(1, round(PANEL / frames.shape[2]))
    start, goal = _enlarged(frames[0], scale), _enlarged(episodes.goal_frame[index], scale)
    pictures = [
        _side_by_side(
            (start, _with_trail(frames[k], episodes, index, k, scale), goal),
            ("start", _counter(episodes, index, k), "goal"),
        )
        for k in range(len(frames))
    ]
    exact = (GROUND, TEXT, FAINT, TRAIL, TARGET)
    return encode_gif(pictures, _durations(len(frames)), exact=exact)


def played_gif(frames: np.ndarray) -> bytes:
    """An episode without a goal: frames [K, h, w, 3] of its decisions, with a counter."""
    scale = max(1, round(PANEL / frames.shape[2]))
    pictures = [
        _side_by_side((_enlarged(frame, scale),), (f"decision {k}/{len(frames)}",))
        for k, frame in enumerate(frames, 1)
    ]
    return encode_gif(pictures, _durations(len(frames)), exact=(GROUND, TEXT, FAINT))


def _durations(count: int) -> list[int]:
    """ms of so many decisions."""
    return [HOLD_MS, *[FRAME_MS] * (count - 2), HOLD_MS][:count]


def strip_png(frames: np.ndarray) -> bytes:
    """A PNG of frames [n, h, w, 3] in a row, each with a transparent margin at either side."""
    pictures = [Image.fromarray(frame) for frame in frames]
    for picture in pictures:
        picture.thumbnail((STRIP_SIDE, STRIP_SIDE), Image.Resampling.BOX, reducing_gap=None)
    width, height = pictures[0].size
    cell = width + 2 * MARGIN
    row = Image.new("RGBA", (cell * len(pictures), height))
    for i, picture in enumerate(pictures):
        row.paste(picture, (i * cell + MARGIN, 0))
    # At most 255 colours take a third of the room and look the same at this size.
    buffer = io.BytesIO()
    row.quantize(colors=255, method=Image.Quantize.FASTOCTREE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def energy_map(values: np.ndarray | None, energy: Energy, index: int) -> bytes:
    """A PNG of the world at map `index`, the goal ringed; with values [G, G] as colours over it:
    bright is near the goal, thin lines join equal values."""
    frame, goal = energy.frame[index], energy.goal[index]
    height, width = frame.shape[:2]
    figure = Figure(figsize=(4, 4 * height / width), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    if values is None:
        axes.imshow(frame, interpolation="nearest")
    else:
        axes.imshow(frame.mean(2), cmap="gray", vmin=0, vmax=255)
        _draw_energy(axes, values, energy)
    axes.set_xlim(-0.5, width - 0.5)
    axes.set_ylim(height - 0.5, -0.5)
    for colour, thickness in (("#10131a", 4), ("white", 1.8)):  # a ring in a darker ring
        axes.plot(*goal, "o", ms=13, mfc="none", mec=colour, mew=thickness)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _draw_energy(axes: Axes, values: np.ndarray, energy: Energy) -> None:
    """Colours, and lines of equal energy where there is anything to tell apart."""
    axes.pcolormesh(
        energy.xs, energy.ys, values, cmap="viridis_r", shading="nearest", alpha=0.8,
        edgecolors="none", linewidth=0,
    )  # fmt: skip
    finite = values[np.isfinite(values)]
    if min(values.shape) > 1 and finite.size and np.ptp(finite) > 0:
        axes.contour(
            energy.xs, energy.ys, values, levels=8, colors="white", linewidths=0.6, alpha=0.55
        )


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
    files: list[bytes] = []
    for colours, stride in QUALITIES:
        # Every stride-th frame and the last one, each shown until the next.
        kept = [*range(0, len(images) - 1, stride), len(images) - 1]
        ends = [*kept[1:], len(images)]
        shown = [sum(durations_ms[a:b]) for a, b in zip(kept, ends, strict=True)]

        # Without dithering still parts stay equal, and only what moved is stored.
        palette = _palette(images, colours, exact)
        first, *rest = (images[i].quantize(palette=palette, dither=NO_DITHER) for i in kept)
        buffer = io.BytesIO()
        first.save(
            buffer, "GIF", save_all=True, append_images=rest, duration=shown, loop=0,
            optimize=True,
        )  # fmt: skip
        files.append(buffer.getvalue())
        if len(files[-1]) <= max_bytes:
            return files[-1]
    return min(files, key=len)


def _palette(images: list[Image.Image], colours: int, exact: Sequence[Colour]) -> Image.Image:
    """One that covers the range of colours in frames spread over the whole, small bright things
    included."""
    chosen = np.unique(
        np.linspace(0, len(images) - 1, min(SAMPLED_FRAMES, len(images))).astype(int)
    )
    mosaic = Image.fromarray(np.concatenate([np.asarray(images[i]) for i in chosen]))
    count = max(2, colours - len(exact))
    common = mosaic.quantize(colors=count, method=Image.Quantize.MAXCOVERAGE).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette([*common[: 3 * colours], *(value for colour in exact for value in colour)])
    return palette


def _with_trail(
    frame: np.ndarray, episodes: Episodes, index: int, k: int, scale: int
) -> np.ndarray:
    """The frame with the path so far and the success radius drawn in, for the reader only; as it
    is where a position is no place in the frame."""
    if not in_frame(episodes):
        return _enlarged(frame, scale)
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
    """ "step 40/200 · 12.3 px": environment steps where every decision has as many, else
    decisions, with the distance that is left where a place in the frame or the step tells it."""
    decisions, steps = episodes.cost.shape[1], episodes.distance.shape[1] - 1
    even = steps % decisions == 0
    step = k * steps // decisions
    text = f"step {step}/{steps}" if even else f"decision {k}/{decisions}"
    if in_frame(episodes):
        apart = episodes.positions[index, k] - episodes.goal_position[index]
        return f"{text} · {np.linalg.norm(apart):.1f} px"
    if not even:
        return text
    return f"{text} · {episodes.distance[index, step]:.3g} {episodes.unit}".rstrip()


def in_frame(episodes: Episodes) -> bool:
    """Whether positions are places in the frames, which can be drawn into them."""
    return episodes.positions.shape[-1] == 2 and episodes.unit == "px"


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
