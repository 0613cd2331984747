"""What each plot shows: functions that return how to draw one panel, or None where there is
nothing to draw.

E episodes, K decisions, T environment steps, R solver rounds, G grid side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    PercentFormatter,
    StrMethodFormatter,
)

from jepa_wm.report.artifacts import Episodes
from jepa_wm.report.style import Draw, Theme

Record = Mapping[str, Any]


def curves(
    records: Sequence[Record],
    keys: Sequence[str],
    *,
    log: bool = False,
    dashed: Record | None = None,
) -> Draw:
    """Figures against the training step; `dashed` {key: value} adds a level line in the curve's
    colour."""

    def draw(axes: Axes, theme: Theme) -> None:
        for key, colour in zip(
            keys, theme.series * (1 + len(keys) // len(theme.series)), strict=False
        ):
            steps, values = _series(records, key)
            label = key.rpartition("/")[2] if len(keys) > 1 or dashed else None
            axes.plot(
                steps, values, color=colour, label=label, marker="o" if len(steps) < 3 else None
            )
            level = (dashed or {}).get(key)
            if level is not None:
                axes.axhline(level, color=colour, linestyle=(0, (2, 2)), linewidth=1.1, alpha=0.8)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=0)
        axes.set_xlabel("training step")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))

    return draw


def against_horizon(
    horizons: Sequence[int], curves: Mapping[str, Sequence[float | None]], label: str
) -> Draw:
    """An error of the rollout against the horizon: {"true actions": its values, "shuffled": those
    with others'}."""

    def draw(axes: Axes, theme: Theme) -> None:
        for (said, values), colour in zip(
            curves.items(), (theme.good, theme.bad, theme.ink), strict=False
        ):
            known = [np.nan if value is None else value for value in values]
            axes.plot(horizons, known, color=colour, label=said, marker="o", markersize=3)
        axes.set_xscale("log", base=2)
        axes.set_xticks(_spread(horizons, 7), [str(h) for h in _spread(horizons, 7)])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("horizon, model steps")
        axes.set_ylabel(label)

    return draw


def distance_over_time(episodes: Episodes) -> Draw:
    """Distance to the goal at every environment step, a thin line an episode; the lost ones lie on
    top."""

    def draw(axes: Axes, theme: Theme) -> None:
        thin = float(np.clip(12 / len(episodes.success_final), 0.16, 0.7))
        for won, colour, alpha, said in (
            (True, theme.good, thin, "won"),
            (False, theme.bad, max(thin, 0.65), "lost"),
        ):
            chosen = episodes.distance[episodes.success_final == won]
            axes.plot(chosen.T, color=colour, alpha=alpha, linewidth=0.9)
            axes.plot([], [], color=colour, label=f"{said} ({len(chosen)})")
        axes.axhline(float(episodes.radius), color=theme.ink, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_ylim(bottom=0)
        axes.set_xlim(0, episodes.distance.shape[1] - 1)
        axes.set_xlabel("environment step")
        axes.set_ylabel(f"distance to goal, {episodes.unit}".removesuffix(", "))

    return draw


def share_within(episodes: Episodes) -> Draw:
    """Share of the episodes that lie within a radius of the goal, at the end and at their
    nearest."""
    last = np.sort(episodes.distance[:, -1])
    nearest = np.sort(np.nanmin(episodes.distance, axis=1))
    share = np.arange(1, len(last) + 1) / len(last)
    radius = float(episodes.radius)
    reach = max(3 * radius, 1e-6)

    def draw(axes: Axes, theme: Theme) -> None:
        for values, style, said in (
            (nearest, (0, (2, 1.5)), "at any step"),
            (last, "-", "at the end"),
        ):
            axes.step(
                [0, *values, values[-1] + reach],
                [0, *share, 1],
                where="post",
                color=theme.good,
                ls=style,
            )
            axes.plot([], [], color=theme.good, ls=style, label=said)
        axes.axvline(radius, color=theme.ink, linewidth=0.9, linestyle=(0, (3, 2)))
        axes.set_xlim(0, reach)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        axes.set_xlabel(f"radius, {episodes.unit}".removesuffix(", "))
        axes.set_ylabel("episodes within it")

    return draw


def cost_per_round(cost: np.ndarray) -> Draw:
    """Cost [E, K, R] of the best plan after each solver round: median and quartiles, early and
    late decisions apart."""
    decisions = cost.shape[1]
    third = max(1, decisions // 3)
    rounds = np.arange(1, cost.shape[2] + 1)
    parts = (
        (("first", cost[:, :third]), ("last", cost[:, -third:]))
        if decisions > 1
        else (("all", cost),)
    )

    def draw(axes: Axes, theme: Theme) -> None:
        for (name, chosen), colour in zip(parts, theme.series[2:], strict=False):
            rows = chosen.reshape(-1, chosen.shape[2])
            rows = rows[np.isfinite(rows).all(1)]  # decisions that were not taken hold NaN
            if not len(rows):
                continue
            low, middle, high = np.quantile(rows, (0.25, 0.5, 0.75), axis=0)
            axes.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                rounds,
                middle,
                color=colour,
                label=f"{name} {'third' if decisions > 1 else ''}".strip(),
            )
        axes.set_xlabel("solver round")
        axes.set_ylabel("cost of the best plan")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    return draw


def energy_map(
    axes: Axes, energy: np.ndarray, xs: np.ndarray, ys: np.ndarray, frame: np.ndarray
) -> None:
    """Energy [G, G] as colours over the room: bright is near the goal, thin lines join equal
    values."""
    axes.imshow(frame.mean(2), cmap="gray", vmin=0, vmax=255)
    axes.pcolormesh(
        xs,
        ys,
        energy,
        cmap="viridis_r",
        shading="nearest",
        alpha=0.8,
        edgecolors="none",
        linewidth=0,
    )
    if (
        min(energy.shape) > 1
        and np.isfinite(energy).any()
        and np.nanmax(energy) > np.nanmin(energy)
    ):
        axes.contour(xs, ys, energy, levels=8, colors="white", linewidths=0.6, alpha=0.55)
    _fill(axes, frame)


def room(axes: Axes, frame: np.ndarray) -> None:
    """The frame as it is."""
    axes.imshow(frame, interpolation="nearest")
    _fill(axes, frame)


def goal_mark(axes: Axes, goal: np.ndarray) -> None:
    """A white cross in a dark ring at the goal [2]."""
    axes.plot(
        *goal,
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="#10131a",
        markeredgewidth=4,
    )
    axes.plot(
        *goal,
        "o",
        markersize=13,
        markerfacecolor="none",
        markeredgecolor="white",
        markeredgewidth=1.8,
    )


def _fill(axes: Axes, frame: np.ndarray) -> None:
    axes.set_xlim(-0.5, frame.shape[1] - 0.5)
    axes.set_ylim(frame.shape[0] - 0.5, -0.5)


def _series(records: Sequence[Record], key: str) -> tuple[list[int], list[float]]:
    """Steps and values of the records that have the figure; one that was not finite is a gap."""
    having = [record for record in records if key in record]
    return [r["step"] for r in having], [np.nan if r[key] is None else r[key] for r in having]


def _spread(values: Sequence[int], count: int) -> list[int]:
    """The powers of two among the values, or a few spread over them."""
    powers = [value for value in values if value & (value - 1) == 0]
    if len(powers) > 1:
        return powers
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, count).astype(int))]
