"""The runs of a sweep: combinations of a grid, or a list of settings; and the name of each."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

import yaml

from jepa_wm.core.errors import UserError


def overrides(grid: Sequence[str], each: Sequence[str]) -> list[list[str]]:
    """Those of every run: all combinations of axes KEY=[A,B], then each 'KEY=V KEY=V' as it is;
    none without a sweep.

    Raises UserError for an axis that is no list.
    """
    axes = []
    for axis in grid:
        key, equals, text = axis.partition("=")
        try:
            values = yaml.safe_load(text) if equals else None
        except yaml.YAMLError:
            values = None
        if not isinstance(values, list) or not values:
            raise UserError(f"--grid {axis!r}: expected KEY=[A,B,...], a list in YAML")
        axes.append(
            [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for value in values]
        )
    combined = [list(choice) for choice in itertools.product(*axes)] if axes else []
    return combined + [one.split() for one in each]


def name(number: int, settings: Sequence[str]) -> str:
    """A run's folder: its number, then the last part of each key with its value."""
    parts = []
    for setting in settings:
        key, _, value = setting.partition("=")
        parts.append(re.sub(r"[^A-Za-z0-9.=+-]+", "-", f"{key.rpartition('.')[2]}={value}"))
    return "_".join([f"{number:03d}", *parts])[:80]
