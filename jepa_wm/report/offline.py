"""The group on plans that were judged on recordings: how the recorded chunks of actions rank, and
a table of plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.page import (
    Block,
    Figure,
    Grid,
    Group,
    Row,
    Section,
    Table,
    Text,
    number,
    percent,
)
from jepa_wm.report.plots import DASHED, GOOD, INK, plot

END = ("imagined end to goal", "95 % interval", "by the temporal distance", "95 % interval")


def group(artifacts: RunArtifacts) -> Group:
    """A section for each recording and planner that were measured."""
    sections = [
        Section(
            "offline" if not count else f"offline_{count + 1}",
            "Plans on a recording",
            "No simulator was asked. The chunk of actions that was recorded up to the goal image "
            "is ranked among those of other windows by the cost that plans are chosen by, and the "
            "first action of plans is compared with the recorded one, which need not be the only "
            "good one. Intervals are over episodes.",
            _blocks(result),
            "eval offline",
        )
        for count, result in enumerate(artifacts.offline)
    ]
    return Group("offline_plans", "Plans on recordings", sections)


@plot
def rank_histogram(axes: Axes, counts: Sequence[int]) -> None:
    """In how many windows the recorded chunk has a rank, 0 for the cheapest to 1, in equal bins;
    the dashed line is chance."""
    edges = np.linspace(0, 1, len(counts) + 1)
    axes.bar((edges[:-1] + edges[1:]) / 2, counts, 0.94 * np.diff(edges), color=GOOD)
    axes.axhline(sum(counts) / len(counts), color=INK, linewidth=0.9, linestyle=DASHED)
    axes.set_xlim(0, 1)
    axes.set_xlabel("rank of the recorded actions (0: cheapest)")
    axes.set_ylabel("windows")


def _blocks(result: Mapping[str, Any]) -> list[Block]:
    ranks = result["ranking"]
    discrete = any("agreement" in row for row in result["rows"])
    first = "agrees with the recorded" if discrete else "error of the first action, in spreads"
    columns = ("plan", first, "95 % interval", "less the mean action's", "95 % interval", *END)
    text = (
        f"{result['windows']} windows of {result['episodes']} held-out episodes of "
        f"{result['recording']}, the goal {result['horizon']} model steps "
        f"({result['environment_steps']} environment steps) ahead. Among "
        f"{ranks['candidates']} candidates, {ranks['of_same_episode']:.1f} of them from the same "
        f"episode, the recorded chunk has the mean rank {number(ranks['rank'], 2)} "
        f"({_interval(ranks, 'rank')}; 0 is best, .5 chance) and is the cheapest in "
        f"{percent(ranks['top1'])} ({_interval(ranks, 'top1', percent)}; chance "
        f"{percent(ranks['chance'])}). The search found a cheaper plan in "
        f"{percent(result['search_cheaper']['share'])}."
    )
    picture = Figure(rank_histogram(ranks["histogram"]), "Rank of the recorded actions.")
    rows = [_row(row, "agreement" if discrete else "action_error") for row in result["rows"]]
    return [Text(text), Grid([picture]), Table(columns, rows)]


def _row(row: Mapping[str, Any], first: str) -> Row:
    cells = [row["plan"].replace("_", " ")]
    for name in (first, "less_mean_action", "final_distance", "temporal_distance"):
        cells += [number(row.get(name)), _interval(row, name)]
    return Row(cells)


def _interval(figures: Mapping[str, Any], name: str, show: Callable[[float], str] = number) -> str:
    low, high = (figures.get(f"{end}_{name}") for end in ("low", "high"))
    return "–" if low is None or high is None else f"{show(low)} to {show(high)}"
