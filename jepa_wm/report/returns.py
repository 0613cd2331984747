"""The sections on acting for reward: the first episodes as GIFs, and what was earned beside the
baselines."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from jepa_wm.report.artifacts import Film
from jepa_wm.report.film import played_gif
from jepa_wm.report.page import Section, figure, grid, img, number, row, table


def sections(plan: Mapping[str, Any], film: Film | None) -> tuple[Section, ...]:
    """Of a finished plan that has a `return`; without a film, which a world of other than three
    channels has none of, the returns alone."""
    returns = Section(
        "return",
        "Return, beside baselines",
        "The sum of what the world paid in an episode, with its 95 % bootstrap interval over episodes. The best "
        "constant action is the best of a grid on these very episodes. In a world whose layouts are held out, it is on "
        "those, where nothing else is said.",
        _table(plan),
        "plan",
    )
    if film is None:
        return (returns,)
    episodes = Section(
        "episodes",
        "Episodes",
        "There is no goal image: each decision maximises the reward that the model expects. Shown are the first "
        "episodes, not the best.",
        grid([_card(film, index) for index in range(len(film.frames))], style="films"),
        "plan",
    )
    return episodes, returns


def lead(plan: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    paid, baselines = plan["return"], plan.get("baselines") or {}
    beside = [
        f"{said} {number(baselines[name]['mean'])}"
        for name, said in (("random", "random actions"), ("constant", "the best constant action"))
        if baselines.get(name)
    ]
    return (
        "A model that learned to see without labels or a pixel decoder plans for reward and earns "
        f"{number(paid['mean'])} an episode (95 % interval {_interval(paid)}); {', '.join(beside)}."
    )


def _card(film: Film, index: int) -> str:
    image = img("gif", played_gif(film.frames[index]), f"episode {index + 1}, a frame a decision")
    return figure(
        image,
        f"episode {index + 1} earned <b>{number(float(film.earned[index]))}</b>",
        style="film",
    )


def _table(plan: Mapping[str, Any]) -> str:
    rows = _rows(plan, "", "")
    if plan.get("return_training_layouts"):
        rows += _rows(plan, "_training_layouts", ", on training layouts")
    return table(("", "mean return", "95 % interval", "episodes", "steps"), rows)


def _rows(plan: Mapping[str, Any], suffix: str, where: str) -> list[str]:
    rows = [_row(f"this model{where}", plan[f"return{suffix}"], "ours")]
    for name, baseline in (plan.get(f"baselines{suffix}") or {}).items():
        if baseline is not None:
            action = (
                f" action {', '.join(f'{x:g}' for x in baseline['action'])}"
                if "action" in baseline
                else ""
            )
            shown = {"constant": "best constant", "random": "random actions"}.get(name, name)
            rows.append(_row(f"{shown}{action}{where}", baseline))
    return rows


def _row(name: str, paid: Mapping[str, Any], style: str = "baseline") -> str:
    counts = (str(paid.get(key, "–")) for key in ("episodes", "budget"))
    return row((escape(name), number(paid["mean"]), _interval(paid), *counts), style=style)


def _interval(paid: Mapping[str, Any]) -> str:
    if paid["low"] == paid["high"]:
        return "all equal, no interval"
    return f"{number(paid['low'])} to {number(paid['high'])}"
