"""Policies alone, without a search, on the page: beside the search on the same tasks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jepa_wm.report.page import Block, Row, Table, Text

COLUMNS = ("policy alone", "success less the search's", "95 % interval, by task", "")
SUFFIXES = {"": "", "_training_layouts": ", on training layouts"}  # of the keys of a result


def beside_search(plan: Mapping[str, Any]) -> list[Block]:
    """A table of the differences, under a sentence where the search is beaten; nothing where no
    policy played."""
    rows = list(_rows(plan))
    beaten = [plan[key] for key in (f"search_beaten{end}" for end in SUFFIXES) if key in plan]
    return [*(Text(text) for text in beaten), Table(COLUMNS, rows)] if rows else []


def _rows(plan: Mapping[str, Any]) -> Iterator[Row]:
    for suffix, where in SUFFIXES.items():
        for name, one in (plan.get(f"policies{suffix}") or {}).items():
            low, middle, high = (
                f"{100 * one['over_search'][key]:+.1f}" for key in ("low", "difference", "high")
            )
            yield Row([name + where, f"{middle} %", f"{low} to {high} %", _verdict(one)])


def _verdict(one: Mapping[str, Any]) -> str:
    over = one["over_search"]
    if over["low"] > 0:
        return "beats the search"
    return "worse than the search" if over["high"] < 0 else "no difference is shown"
