"""The plots: one small panel each, drawn once as SVG whose colours are those of the page around
it, light or dark.

E episodes, K decisions, T environment steps, I solver iterations.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from jepa_wm.report.artifacts import Episodes

P = ParamSpec("P")
Record = Mapping[str, Any]

PANEL_INCHES = (4.0, 2.6)  # shown about 340 CSS pixels wide
DPI = 190  # of a PNG
INK, QUIET, GRID = "#23272e", "#6b7380", "#e4e6ea"  # text; axes and ticks; lines behind
GOOD, BAD = "#1f6fb2", "#c25a14"  # won, true actions, ours; lost, shuffled actions
THIRD, FOURTH = "#2f8f6b", "#8a5fb0"
SERIES = (GOOD, BAD, THIRD, FOURTH, INK)  # curves without a meaning of their own
ON_THE_PAGE = {
    INK: "currentColor", QUIET: "var(--quiet)", GRID: "var(--rule)", GOOD: "var(--good)",
    BAD: "var(--bad)", THIRD: "var(--third)", FOURTH: "var(--fourth)",
}  # fmt: skip
DASHED, DOTTED = (0, (3, 2)), (0, (2, 2))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text, in the page's own font
    "svg.hashsalt": "jepa_wm",  # the same figures give the same bytes
    "font.size": 10, "font.family": ["DejaVu Sans"],
    "text.color": INK, "axes.labelcolor": QUIET, "axes.labelsize": 9,
    "axes.edgecolor": QUIET, "axes.linewidth": 0.7, "axes.facecolor": "none",
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "axes.axisbelow": True, "figure.facecolor": "none",
    "grid.color": GRID, "grid.linewidth": 0.7,
    "xtick.color": QUIET, "ytick.color": QUIET, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.linewidth": 1.7, "lines.solid_capstyle": "round",
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """How to draw one panel into axes."""

    draw: Callable[[Axes], None]

    def svg(self, prefix: str) -> str:
        """An <svg> element for a page; the names inside it begin with `prefix`."""
        text = self._rendered("svg", {"Date": None, "Creator": None}).decode()
        text = text[text.index("<svg") :]  # without the head of a file of its own
        text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
        text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text)
        text = re.sub(r'^<svg[^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 role="img">', text)
        # Every panel has its own clip paths and markers; what nobody refers to needs no name.
        used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', text))
        for name in set(re.findall(r' id="([^"]+)"', text)) - used:
            text = text.replace(f' id="{name}"', "")
        for name in used:
            text = text.replace(f'"{name}"', f'"{prefix}-{name}"')
            text = text.replace(f'#{name}"', f'#{prefix}-{name}"')
            text = text.replace(f"(#{name})", f"(#{prefix}-{name})")
        for colour, variable in ON_THE_PAGE.items():
            text = text.replace(colour, variable)
        return text

    def png(self) -> bytes:
        """A PNG for a light page, with a transparent ground."""
        return self._rendered("png", {"Software": None})

    def _rendered(self, kind: str, metadata: dict[str, None]) -> bytes:
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=PANEL_INCHES, dpi=DPI, layout="constrained")
            axes = figure.add_subplot()
            self.draw(axes)
            if axes.get_legend_handles_labels()[1]:
                axes.legend(frameon=False, fontsize=8.5, handlelength=1.4, borderaxespad=0.2)
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, transparent=True, metadata=metadata)
        return buffer.getvalue()


def plot(draw: Callable[Concatenate[Axes, P], None]) -> Callable[P, Plot]:
    """Make of a function that draws into axes one that hands back the plot."""

    @functools.wraps(draw)
    def make(*args: P.args, **kwargs: P.kwargs) -> Plot:
        return Plot(lambda axes: draw(axes, *args, **kwargs))

    return make


@plot
def curves(
    axes: Axes,
    records: Sequence[Record],
    keys: Sequence[str],
    *,
    log: bool = False,
    levels: Record | None = None,
) -> None:
    """Figures against the training step; `levels` {key: value} adds a dashed line in the curve's
    colour."""
    levels = levels or {}
    for i, key in enumerate(keys):
        colour = SERIES[i % len(SERIES)]
        steps, values = _series(records, key)
        label = key.rpartition("/")[2] if len(keys) > 1 or levels else None
        marker = "o" if len(steps) < 3 else None  # a line needs two points to be seen
        axes.plot(steps, values, color=colour, label=label, marker=marker)
        if levels.get(key) is not None:
            axes.axhline(levels[key], color=colour, linestyle=DOTTED, linewidth=1.1, alpha=0.8)
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        _from_zero(axes)
    axes.set_xlabel("training step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


@plot
def spectra(axes: Axes, shares: Mapping[str, Sequence[float]]) -> None:
    """Falling shares of the variance, {"pixels": its values, ...}, against their number."""
    for (name, values), colour in zip(shares.items(), SERIES, strict=False):
        seen = [value for value in values if value > 0]
        axes.plot(range(1, len(seen) + 1), seen, color=colour, label=name)
    axes.set_yscale("log")
    axes.set_xlabel("direction")
    axes.set_ylabel("share of the variance")


@plot
def against_horizon(
    axes: Axes, horizons: Sequence[int], curves: Mapping[str, Sequence[float | None]], label: str
) -> None:
    """An error of the rollout against the horizon: {"true actions": its values, "shuffled": those
    with others'}."""
    for (name, values), colour in zip(curves.items(), (GOOD, BAD, INK), strict=False):
        known = [np.nan if value is None else value for value in values]
        axes.plot(horizons, known, color=colour, label=name, marker="o", markersize=3)
    ticks = _ticks(horizons)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    _from_zero(axes)
    axes.set_xlabel("horizon, model steps")
    axes.set_ylabel(label)


@plot
def success_by_offset(
    axes: Axes, offsets: Sequence[int], rates: Mapping[str, Sequence[Mapping[str, float] | None]]
) -> None:
    """Success at the end against the steps from start to goal, a line a method {"search": its
    outcomes with intervals}; None was not measured."""
    for number, (name, each) in enumerate(rates.items()):
        known = [(k, one) for k, one in zip(offsets, each, strict=True) if one is not None]
        if not known:
            continue
        colour = SERIES[number % len(SERIES)]
        steps, rate = [k for k, _ in known], [one["success_final"] for _, one in known]
        axes.plot(steps, rate, color=colour, label=name, marker="o", markersize=3)
        low, high = ([one[end] for _, one in known] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xticks(offsets, [str(offset) for offset in offsets])
    axes.set_xlabel("environment steps from start to goal")
    axes.set_ylabel("success at the end")


@plot
def distance_over_time(axes: Axes, episodes: Episodes) -> None:
    """Distance to the goal at every environment step, a thin line an episode; the lost ones lie on
    top."""
    thin = float(np.clip(12 / len(episodes.success_final), 0.16, 0.7))
    kinds = ((True, GOOD, thin, "won"), (False, BAD, max(thin, 0.65), "lost"))
    for won, colour, alpha, name in kinds:
        chosen = episodes.distance[episodes.success_final == won]
        axes.plot(chosen.T, color=colour, alpha=alpha, linewidth=0.9)
        axes.plot([], [], color=colour, label=f"{name} ({len(chosen)})")
    axes.axhline(float(episodes.radius), color=INK, linewidth=0.9, linestyle=DASHED)
    _from_zero(axes)
    axes.set_xlim(0, episodes.distance.shape[1] - 1)
    axes.set_xlabel("environment step")
    axes.set_ylabel(f"distance to goal, {episodes.unit}".removesuffix(", "))


@plot
def share_within(axes: Axes, episodes: Episodes) -> None:
    """Share of the episodes that lie within a radius of the goal, at the end and at their
    nearest."""
    last = np.sort(episodes.distance[:, -1])
    nearest = np.sort(np.nanmin(episodes.distance, axis=1))
    share = np.arange(1, len(last) + 1) / len(last)
    radius = float(episodes.radius)
    reach = max(3 * radius, 1e-6)
    for values, style, name in ((nearest, DOTTED, "at any step"), (last, "-", "at the end")):
        x, y = [0, *values, values[-1] + reach], [0, *share, 1]
        axes.step(x, y, where="post", color=GOOD, ls=style, label=name)
    axes.axvline(radius, color=INK, linewidth=0.9, linestyle=DASHED)
    axes.set_xlim(0, reach)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel(f"radius, {episodes.unit}".removesuffix(", "))
    axes.set_ylabel("episodes within it")


@plot
def cost_per_iteration(axes: Axes, cost: np.ndarray) -> None:
    """Cost [E, K, I] of the best plan after each solver iteration: median and quartiles, early and
    late decisions apart."""
    third = max(1, cost.shape[1] // 3)
    parts = {"first third": cost[:, :third], "last third": cost[:, -third:]}
    if cost.shape[1] == 1:
        parts = {"all": cost}
    iterations = np.arange(1, cost.shape[2] + 1)
    for (name, chosen), colour in zip(parts.items(), (THIRD, FOURTH), strict=False):
        rows = chosen.reshape(-1, chosen.shape[2])
        rows = rows[np.isfinite(rows).all(1)]  # decisions that were not taken hold NaN
        if not len(rows):
            continue
        low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(iterations, low, high, color=colour, alpha=0.18, linewidth=0)
        axes.plot(iterations, middle, color=colour, label=name)
    axes.set_xlabel("solver iteration")
    axes.set_ylabel("cost of the best plan")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


@plot
def confusion_matrix(axes: Axes, counts: np.ndarray, classes: Sequence[str]) -> None:
    """Counts [true class, predicted class] as shares of each true class; numbers up to a dozen
    classes."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            ink = "white" if shares[row, column] > 0.5 else "black"
            text = str(count) if count else ""
            axes.text(column, row, text, ha="center", va="center", fontsize=6, color=ink)
        axes.set_xticks(range(len(classes)), classes, fontsize=7, rotation=90)
        axes.set_yticks(range(len(classes)), classes, fontsize=7)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.grid(False)


def _from_zero(axes: Axes) -> None:
    """Show the values from 0 on, with room for markers at the top."""
    axes.set_ylim(0, 1.06 * axes.get_ylim()[1])


def _series(records: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have the figure; one that was not finite is a gap."""
    having = [record for record in records if key in record]
    return [r["step"] for r in having], [np.nan if r[key] is None else r[key] for r in having]


def _ticks(horizons: Sequence[int]) -> list[int]:
    """The powers of two among them, or a few spread over them."""
    powers = [value for value in horizons if value & (value - 1) == 0]
    if len(powers) > 1:
        return powers
    return [horizons[i] for i in np.unique(np.linspace(0, len(horizons) - 1, 7).astype(int))]
