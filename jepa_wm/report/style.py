"""The look of the plots: one small panel each, drawn for light and for dark pages."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (4.0, 2.6)  # shown about 340 CSS pixels wide: 10 pt text is 11 pixels there
DPI = 190


@dataclass(frozen=True)
class Theme:
    """Colours of one page background; blue and orange stay apart for colour-blind readers."""

    ink: str
    quiet: str  # axes, ticks, baselines
    grid: str
    good: str  # won, true actions, ours
    bad: str  # lost, shuffled actions
    series: tuple[str, ...]  # curves without a meaning of their own


LIGHT = Theme(
    "#23272e",
    "#7a828e",
    "#e7e9ed",
    "#1f6fb2",
    "#d9691e",
    ("#1f6fb2", "#d9691e", "#2f8f6b", "#8a5fb0"),
)
DARK = Theme(
    "#e3e6eb",
    "#8b94a1",
    "#2b3038",
    "#6cb2eb",
    "#f29a57",
    ("#6cb2eb", "#f29a57", "#6cc7a1", "#bd9be0"),
)

Draw = Callable[[Axes, Theme], None]


def panels(draw: Draw) -> tuple[bytes, bytes]:
    """PNGs of one panel on a light and on a dark page, with a transparent ground."""
    return _panel(draw, LIGHT), _panel(draw, DARK)


def bare_image(draw: Callable[[Axes], None], *, width: int, height: int) -> bytes:
    """A PNG of `width` x `height` pixels filled by one picture without axes."""
    figure = Figure(figsize=(width / 100, height / 100), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    draw(axes)
    return _png(figure)


def _panel(draw: Draw, theme: Theme) -> bytes:
    with matplotlib.rc_context(_settings(theme)):
        figure = Figure(figsize=PANEL_INCHES, dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        draw(axes, theme)
        handles, labels = axes.get_legend_handles_labels()
        if labels:
            axes.legend(
                handles, labels, frameon=False, fontsize=8.5, handlelength=1.4, borderaxespad=0.2
            )
        return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No software or date in the file: the same figures give the same bytes.
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _settings(theme: Theme) -> dict[Any, Any]:
    return {
        "font.size": 10,
        "font.family": ["DejaVu Sans"],
        "text.color": theme.ink,
        "axes.labelcolor": theme.quiet,
        "axes.labelsize": 9,
        "axes.edgecolor": theme.quiet,
        "axes.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.facecolor": "none",
        "figure.facecolor": "none",
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "xtick.color": theme.quiet,
        "ytick.color": theme.quiet,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "lines.linewidth": 1.7,
        "lines.solid_capstyle": "round",
    }
