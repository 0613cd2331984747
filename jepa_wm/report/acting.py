"""The sections on acting: episodes as GIFs, the success table, what the search did, what it saw as
near and far."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from jepa_wm.report import charts, returns
from jepa_wm.report.artifacts import Energy, Episodes, RunArtifacts
from jepa_wm.report.film import episode_gif
from jepa_wm.report.page import Group, Section, figure, grid, img, panel, row, table
from jepa_wm.report.style import bare_image

TRAINING = "_training_layouts"  # what the keys end in that are of episodes on training layouts
SHOWN_OF_EACH = 3  # GIFs of won and of lost episodes
SHOWN_MAPS = 4
BASELINES = {
    "random": "random actions",
    "straight_line": "straight line to the goal",
    "random_encoder": "same chain on a random encoder",
}
ORACLE = "same planner in the true simulator"


def group(artifacts: RunArtifacts) -> Group:
    episodes, energy, plan = artifacts.episodes, artifacts.energy, artifacts.results.get("plan")
    if plan and plan.get("return"):
        return Group("acting", "Acting", returns.sections(plan, artifacts.film))
    return Group(
        "acting",
        "Acting",
        (
            Section(
                "episodes",
                "Episodes",
                "The planner is given the goal image alone. The line of the way walked and the ring around the goal "
                "are drawn for you; it sees neither. Shown are the first of the task list, not the best.",
                _episodes(episodes) if episodes else None,
                "plan",
            ),
            Section(
                "success",
                "Success, beside baselines and oracle",
                "On layouts that training does not draw, where nothing else is said. At the end: within the radius when the "
                "budget ends, with its 95 % Wilson interval. At any step: within it at least once.",
                _success_table(plan) if plan and plan.get("success") else None,
                "plan",
            ),
            Section(
                "search",
                "What the search did",
                "How far each episode was from its goal, and how the cost of the best plan fell while the solver "
                "searched for it.",
                _search(episodes) if episodes else None,
                "plan",
            ),
            Section(
                "energy",
                "What looks near to it",
                "The agent is put everywhere in the room in turn, and each view is compared with the goal image. "
                "Bright is near, dark is far, lines join equal values; each map has its own scale.",
                _energy(energy) if energy else None,
                "plan",
            ),
        ),
    )


def _episodes(episodes: Episodes) -> str:
    """GIFs of both kinds; that there are none of a kind is said."""
    parts = []
    for won, name in ((True, "won"), (False, "lost")):
        chosen = np.nonzero(episodes.success_final == won)[0]
        shown = chosen[:SHOWN_OF_EACH]
        total = len(episodes.success_final)
        if not len(chosen):
            parts.append(
                f'<h4 class="{name}">None of the {total} recorded episodes was {name}.</h4>'
            )
            continue
        parts.append(
            f'<h4 class="{name}">{name.capitalize()}: {len(chosen)} of {total} recorded</h4>'
        )
        cards = [_film(episodes, int(i), name) for i in shown]
        parts.append(grid(cards, style="films"))
    return "".join(parts)


def _film(episodes: Episodes, index: int, name: str) -> str:
    last, unit = episodes.distance[index, -1], escape(episodes.unit)
    text = f'<b class="{name}">{name}</b> episode {index + 1}, {last:.1f} {unit} from the goal at the end'
    if name == "lost" and episodes.success_any[index]:
        text += ", after it had been there"
    elif name == "lost":
        text += f", never nearer than {np.nanmin(episodes.distance[index]):.1f} {unit}"
    image = img(
        "gif",
        episode_gif(episodes, index),
        f"episode {index + 1}, {name}: start, now and goal side by side",
    )
    return figure(image, text, style="film")


def _success_table(plan: Mapping[str, Any]) -> str:
    by, training = plan.get("success_by") or {}, plan.get(f"success{TRAINING}")
    rows = [_success_row("this model", plan["success"], "ours")]
    if training:
        rows.append(_success_row("this model, on training layouts", training, "ours"))
    if by:
        rows.append(_heading("by objective and planner"))
        rows += [_success_row(name.replace("_", " "), success) for name, success in by.items()]
    rows += _beside(plan, "", "baselines and oracle, same tasks")
    if training:
        rows += _beside(plan, TRAINING, "baselines and oracle, same tasks on training layouts")
    header = (
        "",
        "at the end",
        "95 % interval",
        "",
        "at any step",
        "episodes",
        "seeds",
        "budget",
        "radius",
    )
    return f"<p>{escape(layouts(plan))}</p>{table(header, rows)}"


def _beside(plan: Mapping[str, Any], suffix: str, heading: str) -> list[str]:
    """Rows of the baselines and of the oracle."""
    baselines = plan.get(f"baselines{suffix}") or {}
    names = (*BASELINES, *(other for other in baselines if other not in BASELINES))
    rows = [
        _success_row(BASELINES.get(name, name.replace("_", " ")), baselines.get(name), "baseline")
        for name in names
    ]
    return [
        _heading(heading),
        *rows,
        _success_row(ORACLE, plan.get(f"oracle{suffix}"), "baseline"),
    ]


def layouts(plan: Mapping[str, Any]) -> str:
    """What is known of the layouts that episodes were played on; empty for a world without
    splits."""
    told = plan.get("layouts")
    if not told:
        return ""
    held_out, training = told["heldout"], told["training"]
    if held_out["met"] is None:
        return "The training data do not tell their layouts: that held-out ones are not among them was not checked."
    return (
        f"Of the {held_out['episodes']} held-out layouts none is in the training data, and none is nearer than "
        f"{held_out['nearest']:g} px in wall and door to one that is; of the {training['episodes']} on training "
        f"layouts {training['met']} are."
    )


def _heading(text: str) -> str:
    return f'<tr class="head"><th colspan="9">{text}</th></tr>'


def _success_row(name: str, success: Mapping[str, Any] | float | None, style: str = "") -> str:
    """A rate of its own has no interval; None was not measured."""
    if success is None:
        return row(
            (escape(name), "<span class='quiet'>not measured</span>", *["–"] * 7), style=style
        )
    if not isinstance(success, Mapping):
        success = {"success_final": success}
    low, high = success.get("low"), success.get("high")
    bar = ""
    if low is not None and high is not None:
        bar = (
            f'<span class="bar"><i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
            f'<u style="left:{100 * success["success_final"]:.1f}%"></u></span>'
        )
    radius = success.get("radius")
    cells = (
        escape(name),
        percent(success.get("success_final")),
        interval(success),
        bar,
        percent(success.get("success_any")),
        *(_count(success.get(key)) for key in ("episodes", "seeds", "budget")),
        "–" if radius is None else f"{radius:g} {escape(str(success.get('unit', '')))}",
    )
    return row(cells, style=style)


def percent(rate: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def interval(success: Mapping[str, Any]) -> str:
    """From low to high, in per cent."""
    low, high = success.get("low"), success.get("high")
    return "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f} %"


def _count(value: Any) -> str:
    """A whole number; of a list (of seeds, say) how many there are."""
    if isinstance(value, (list, tuple)):
        return str(len(value))
    return "–" if value is None else f"{value:g}"


def _search(episodes: Episodes) -> str:
    reach = f", {float(episodes.radius):g} {episodes.unit}".rstrip()
    return grid(
        (
            panel(
                charts.distance_over_time(episodes),
                "Distance to the goal.",
                f"A line an episode; the dashed line is the success radius{reach}.",
            ),
            panel(
                charts.share_within(episodes),
                "Were the radius another.",
                "Share of the episodes that would have been won.",
            ),
            panel(
                charts.cost_per_round(episodes.cost),
                "Cost per solver round.",
                "Median and quartiles over decisions in the first and the last third of the episodes.",
            ),
        )
    )


def _energy(energy: Energy) -> str:
    rows = []
    for m in range(min(SHOWN_MAPS, len(energy.goal))):
        frame, goal = energy.frame[m], energy.goal[m]
        width, height = 400, max(1, round(400 * frame.shape[0] / frame.shape[1]))
        cards = []
        maps = {
            "the room": None,
            "raw distance": energy.raw[m],
            "learned metric": energy.learned[m],
        }
        for name, values in maps.items():
            drawn = bare_image(_map(values, energy, frame, goal), width=width, height=height)
            cards.append(figure(img("png", drawn, f"{name}, map {m + 1}, goal ringed"), name))
        rows.append(grid(cards, style="triple"))
    return "".join(rows)


def _map(values: np.ndarray | None, energy: Energy, frame: np.ndarray, goal: np.ndarray) -> Any:
    """How to draw one picture of a row: the room itself, or energies over it, the goal ringed in
    both."""

    def draw(axes: Any) -> None:
        if values is None:
            charts.room(axes, frame)
        else:
            charts.energy_map(axes, values, energy.xs, energy.ys, frame)
        charts.goal_mark(axes, goal)

    return draw
