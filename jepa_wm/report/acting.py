"""The group on acting: episodes as GIFs, success or return beside baselines, what the search did
and which states look near to the goal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jepa_wm.report import page, plots
from jepa_wm.report.artifacts import Energy, Episodes, Film, RunArtifacts
from jepa_wm.report.page import PARTS, Block, Cell, Figure, Group, Image, Section, Table, Text
from jepa_wm.report.pictures import energy_map, episode_gif, in_frame, played_gif
from jepa_wm.report.policies import beside_search

TRAINING = "_training_layouts"  # what the keys end in that are of episodes on training layouts
SHOWN_OF_EACH = 3  # GIFs of won and of lost episodes
SHOWN_MAPS = 4
NAMES = {"random": "random actions", "constant": "best constant action"}  # of baselines
SUCCESS_COLUMNS = (
    "", "at the end", "95 % interval", "", "at any step", "episodes", "seeds", "budget", "radius",
)  # fmt: skip


@PARTS.register("plan")
def group(artifacts: RunArtifacts) -> Group:
    """Goal-image episodes, or those that were played for reward."""
    plan = artifacts.results.get("plan")
    if plan and plan.get("return"):
        return Group("acting", "Acting", _for_reward(plan, artifacts.film))
    return Group("acting", "Acting", _toward_goals(plan, artifacts))


def interval(success: Mapping[str, Any]) -> str:
    """From low to high, in per cent."""
    low, high = success.get("low"), success.get("high")
    return "–" if low is None or high is None else f"{100 * low:.1f} – {100 * high:.1f} %"


def _toward_goals(plan: Mapping[str, Any] | None, artifacts: RunArtifacts) -> list[Section]:
    # Every section is there, empty where its artifacts are not: the page says what makes them.
    episodes, energy = artifacts.episodes, artifacts.energy
    success = plan if plan and plan.get("success") else None
    on = "On held-out layouts, where nothing else is said. "
    sections = [
        Section(
            "episodes",
            "Episodes",
            "The planner is given the goal image alone. "
            + (
                "The line of the path taken and the ring around the goal are drawn for you; it "
                "sees neither. "
                if episodes and in_frame(episodes)
                else ""
            )
            + "Shown are the first of the task list, not the best.",
            _episodes(episodes) if episodes else [],
            "plan",
        ),
        Section(
            "success",
            "Success, beside baselines and oracle",
            (on if success and success.get("layouts") else "")
            + "At the end: within the radius when the budget ends, with its 95 % Wilson interval. "
            "At any step: within it at least once.",
            _success(success) if success else [],
            "plan",
        ),
        Section(
            "search",
            "What the search did",
            "How far each episode was from its goal, and how the cost of the best plan fell while "
            "the solver searched for it.",
            [_search(episodes)] if episodes else [],
            "plan",
        ),
    ]
    # Not every task offers maps: once it has been played, none will come.
    if energy or not success:
        sections.append(Section(
            "energy",
            "Which states look near to the goal",
            "The agent is put at every place in turn, and each view is compared with the goal "
            "image. Bright is near, dark is far, lines join equal values; each map has its own "
            "scale.",
            _energy_maps(energy) if energy else [],
            "plan",
        ))  # fmt: skip
    return sections


def _episodes(episodes: Episodes) -> list[Block]:
    """GIFs of won and of lost ones; that there are none of a kind is said."""
    blocks: list[Block] = []
    for won, name in ((True, "won"), (False, "lost")):
        chosen = np.flatnonzero(episodes.success_final == won).tolist()
        total = len(episodes.success_final)
        if not chosen:
            text = f"None of the {total} recorded episodes was {name}."
            blocks.append(Text(text, name, heading=True))
            continue
        text = f"{name.capitalize()}: {len(chosen)} of {total} recorded"
        figures = [_episode(episodes, index, name) for index in chosen[:SHOWN_OF_EACH]]
        blocks += [Text(text, name, heading=True), page.Grid(figures, "films")]
    return blocks


def _episode(episodes: Episodes, index: int, name: str) -> Figure:
    distance = episodes.distance[index]
    left, least = (
        f"{value:.3g} {episodes.unit}".rstrip() for value in (distance[-1], np.nanmin(distance))
    )
    text = f"episode {index + 1}, {left} from the goal at the end"
    if name == "lost":
        nearest = f"never nearer than {least}"
        text += f", {'after it had been there' if episodes.success_any[index] else nearest}"
    alt = f"episode {index + 1}, {name}: start, now and goal side by side"
    return Figure(Image("gif", episode_gif(episodes, index), alt), name, text, name)


def _success(plan: Mapping[str, Any]) -> list[Block]:
    """One table: the model, its objectives and planners, baselines and the oracle."""
    compared, training = plan.get("success_by") or {}, plan.get(f"success{TRAINING}")
    rows = [success_row("this model", plan["success"], "ours")]
    if training:
        rows.append(success_row("this model, on training layouts", training, "ours"))
    if compared:
        rows.append(page.Row(["by objective and planner"], "head"))
        rows += [success_row(baseline_name(name), success) for name, success in compared.items()]
    heading = "baselines and oracle, same tasks"
    rows += [page.Row([heading], "head"), *baseline_rows(plan)]
    if training:
        rows.append(page.Row([f"{heading} on training layouts"], "head"))
        rows += baseline_rows(plan, TRAINING)
    layouts = _layouts(plan)
    table = Table(SUCCESS_COLUMNS, rows)
    return [*([Text(layouts)] if layouts else []), table, *beside_search(plan)]


def baseline_rows(plan: Mapping[str, Any], suffix: str = "") -> list[page.Row]:
    """Rows of the baselines, policies alone among them, and of the oracle, of the episodes whose
    keys end in the suffix."""
    rates = {baseline_name(key): s for key, s in (plan.get(f"baselines{suffix}") or {}).items()}
    policies = plan.get(f"policies{suffix}") or {}
    rates |= {f"policy {name}, no search": success for name, success in policies.items()}
    rates["same planner in the true simulator"] = plan.get(f"oracle{suffix}")
    return [success_row(name, success, "baseline") for name, success in rates.items()]


def success_row(name: str, success: Mapping[str, Any] | float | None, style: str = "") -> page.Row:
    """The row of a method, in SUCCESS_COLUMNS. A rate of its own has no interval; None was not
    measured."""
    if success is None:
        return page.Row([name, Cell("not measured", "quiet"), *["–"] * 7], style)
    if not isinstance(success, Mapping):
        success = {"success_final": success}
    rate, radius = success.get("success_final"), success.get("radius")
    known = success.get("low") is not None and success.get("high") is not None
    cells = [
        name,
        page.percent(rate),
        interval(success),
        page.Bar(success["low"], success["success_final"], success["high"]) if known else "",
        page.percent(success.get("success_any")),
        *(_count(success.get(key)) for key in ("episodes", "seeds", "budget")),
        "–" if radius is None else f"{radius:g} {success.get('unit', '')}".rstrip(),
    ]
    return page.Row(cells, style)


def _layouts(plan: Mapping[str, Any]) -> str:
    """What is known of the layouts that episodes were played on; empty for a world without
    splits."""
    layouts = plan.get("layouts")
    if not layouts:
        return ""
    heldout, training = layouts["heldout"], layouts["training"]
    if heldout["met"] is None:
        return (
            "The training data do not tell their layouts: that held-out ones are not among them "
            "was not checked."
        )
    nearest = f"{heldout['nearest']:g} {layouts.get('unit', '')}".rstrip()
    text = (
        f"Of the {heldout['episodes']} held-out layouts none is in the training data, and none is "
        f"nearer than {nearest} to one that is"
    )
    if not training["episodes"]:
        return f"{text}."
    return f"{text}; of the {training['episodes']} on training layouts {training['met']} are."


def _search(episodes: Episodes) -> page.Grid:
    radius = f"{float(episodes.radius):g} {episodes.unit}".rstrip()
    line = f"A line an episode; the dashed line is the success radius, {radius}."
    share = "Share of the episodes that would have been won."
    cost = "Median and quartiles over decisions in the first and the last third of the episodes."
    return page.Grid([
        Figure(plots.distance_over_time(episodes), "Distance to the goal.", line),
        Figure(plots.share_within(episodes), "Were the radius another.", share),
        Figure(plots.cost_per_iteration(episodes.cost), "Cost per solver iteration.", cost),
    ])  # fmt: skip


def _energy_maps(energy: Energy) -> list[Block]:
    rows: list[Block] = []
    for m in range(min(SHOWN_MAPS, len(energy.goal))):
        figures = []
        for name, values in (
            ("the world", None),
            ("latent distance", energy.raw[m]),
            ("learned temporal distance", energy.learned[m]),
        ):
            png = energy_map(values, energy, m)
            figures.append(Figure(Image("png", png, f"{name}, map {m + 1}"), name))
        rows.append(page.Grid(figures, "triple"))
    return rows


def _for_reward(plan: Mapping[str, Any], film: Film | None) -> list[Section]:
    """Without a film, which a world of other than three channels has none of, the returns
    alone."""
    # Returns on training layouts are there in worlds alone that hold layouts out.
    rows = _return_rows(plan, "", "")
    if plan.get(f"return{TRAINING}"):
        rows += _return_rows(plan, TRAINING, ", on training layouts")
    returns = Section(
        "return",
        "Return, beside baselines",
        "The sum of the rewards of an episode, with its 95 % bootstrap interval over episodes. "
        "The best constant action is the best of a grid on these very episodes. In a world whose "
        "layouts are held out, it is on those, where nothing else is said.",
        [Table(("", "mean return", "95 % interval", "episodes", "steps"), rows)],
        "plan",
    )

    # An empty section would ask for a stage that has run already.
    if film is None:
        return [returns]
    episodes = Section(
        "episodes",
        "Episodes",
        "There is no goal image: each decision maximises the reward that the model expects. Shown "
        "are the first episodes, not the best.",
        [page.Grid([_played(film, index) for index in range(len(film.frames))], "films")],
        "plan",
    )
    return [episodes, returns]


def _played(film: Film, index: int) -> Figure:
    gif = played_gif(film.frames[index])
    image = Image("gif", gif, f"episode {index + 1}, decision by decision")
    return Figure(image, page.number(float(film.earned[index])), f"earned in episode {index + 1}")


def _return_rows(plan: Mapping[str, Any], suffix: str, where: str) -> list[page.Row]:
    rows = [_return_row(f"this model{where}", plan[f"return{suffix}"], "ours")]
    for name, baseline in (plan.get(f"baselines{suffix}") or {}).items():
        if baseline is not None:
            action = "".join(f" {value:g}" for value in baseline.get("action", ()))
            rows.append(_return_row(baseline_name(name) + action + where, baseline, "baseline"))
    return rows


def _return_row(name: str, paid: Mapping[str, Any], style: str) -> page.Row:
    counts = [str(paid.get(key, "–")) for key in ("episodes", "budget")]
    return page.Row([name, page.number(paid["mean"]), earned_interval(paid), *counts], style)


def earned_interval(paid: Mapping[str, Any]) -> str:
    """From low to high; equal returns are no certainty."""
    if paid["low"] == paid["high"]:
        return "all equal, no interval"
    return f"{page.number(paid['low'])} to {page.number(paid['high'])}"


def baseline_name(key: str) -> str:
    """What a baseline or an objective is called on the page."""
    return NAMES.get(key, key.replace("_", " "))


def _count(value: Sequence[Any] | float | None) -> str:
    """A whole number; of a list (of seeds, say) how many there are."""
    if isinstance(value, Sequence):
        return str(len(value))
    return "–" if value is None else f"{value:g}"
