"""The section on frozen evaluations: each that was made on this run, with the data and the encoder
it was made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

from jepa_wm.core.errors import UserError
from jepa_wm.report.page import Section, number, row, table

REPRESENTATIONS = ("encoder", "random_encoder", "pixels")


def sections(run: Path) -> tuple[Section, ...]:
    """One section, or none where nothing was evaluated."""
    rows = [line for stage, result in _stored(run) for line in _rows(stage, result)]
    if not rows:
        return ()
    header = (
        "evaluation",
        "of",
        *(name.replace("_", " ") for name in REPRESENTATIONS),
        "data",
        "encoder",
        "which",
    )
    says = (
        "Heads and neighbours on frozen features: accuracy of classes, R2 of numbers, on data that had no say in any "
        "choice. Each row is told apart by its settings, by what is in its data and by the encoder's weights; all of "
        "it stands in the folder of that name."
    )
    return (Section("frozen", "Frozen evaluations", says, table(header, rows), "eval"),)


def _stored(run: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(eval_..., its result) of every evaluation that is told apart by what it was made of."""
    for file in sorted(run.glob("eval_*/*/result.json")):
        try:
            yield file.parent.parent.name, json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file}: is damaged ({error}); delete {file.parent} and evaluate again"
            ) from None


def _rows(stage: str, result: Mapping[str, Any]) -> Iterator[str]:
    evaluated = result["evaluated"]
    encoder, data = evaluated["encoder"], evaluated["settings"]["test"] or "the run's own"
    digests = " / ".join(evaluated["data"][part]["digest"] for part in ("train", "test"))
    where = (
        f'<span title="{escape(digests)}">{escape(data)}</span>',
        f'<span title="{encoder["digest"]}">{escape(encoder["backbone"] or "the run’s own")}</span>',
        f"<code>{escape(Path(result['stored']).name)}</code>",
    )
    depths = {
        name: by_representation
        for name, by_representation in result.items()
        if name.startswith("depth_")
    }
    for name, by_representation in (depths or {"": result}).items():
        kind = f"{stage.removeprefix('eval_')} {name.replace('_', ' ')}".strip()
        for what in _measures(by_representation["encoder"]):
            figures = (
                _figure(by_representation.get(representation), what)
                for representation in REPRESENTATIONS
            )
            yield row((escape(kind), escape(what), *figures, *where))


def _measures(figures: Mapping[str, Any]) -> list[str]:
    """What was measured: classes, or each group of numbers."""
    if "accuracy" in figures:
        return ["classes"]
    return [
        name for name, figure in figures.items() if isinstance(figure, Mapping) and "r2" in figure
    ]


def _figure(figures: Mapping[str, Any] | None, what: str) -> str:
    """A figure with its interval, a dash where it was not measured."""
    if figures is None:
        return "–"
    told, value = (
        (figures, "accuracy")
        if what == "classes" and "accuracy" in figures
        else (figures[what], "r2")
    )
    return f"{number(told[value])} ({number(told['low'])} to {number(told['high'])})"
