"""What an environment's reset and step return, checked: one number where one is due, errors that
name the culprit."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from jepa_wm.core.errors import UserError


@dataclass(frozen=True)
class Step:
    """What a step returned. `success` is info["success"], or `terminated` where the environment
    does not say."""

    observation: Any
    reward: float
    terminated: bool
    truncated: bool
    success: bool
    info: dict[str, Any]


def begin(env: gymnasium.Env, seed: int, start: np.ndarray | None) -> tuple[Any, dict[str, Any]]:
    """(observation, info) of an episode from `seed`; `start`, where given, goes to it as
    options["start"].

    Raises UserError where its reset takes no seed or returns something else.
    """
    options = {} if start is None else {"options": {"start": start}}
    try:
        returned = env.reset(seed=seed, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise UserError(
            f"{env}: its reset must take seed and options, as gymnasium.Env.reset does: {error}"
        ) from error
    if not isinstance(returned, tuple) or len(returned) != 2 or not isinstance(returned[1], dict):
        raise UserError(
            f"{env}: its reset must return (observation, info), an info of the type dict"
        )
    return returned


def take(env: gymnasium.Env, action: Any) -> Step:
    """Step an environment; raises UserError naming it and what its step returned where that is not
    what is due."""
    returned = env.step(action)
    if not isinstance(returned, tuple) or len(returned) != 5 or not isinstance(returned[4], dict):
        count = len(returned) if isinstance(returned, tuple) else type(returned).__name__
        raise UserError(
            f"{env}: its step must return (observation, reward, terminated, truncated, info), an info of type dict, "
            f"not {count} values"
        )
    observation, reward, terminated, truncated, info = returned
    ended = bool(one_number(env, "terminated", terminated))
    success = info.get("success", ended)
    return Step(
        observation,
        one_number(env, "reward", reward),
        ended,
        bool(one_number(env, "truncated", truncated)),
        success is not None
        and bool(one_number(env, 'info["success"]', success)),  # None: not known yet
        info,
    )


def one_number(env: gymnasium.Env, what: str, value: Any) -> float:
    """A number, or an array of a single one, as a float; raises UserError for anything else, NaN
    and infinity."""
    try:
        array = np.asarray(
            value.item() if hasattr(value, "item") else value
        )  # a tensor may be of a graph or on a GPU
        found = (
            float(array.item()) if array.size == 1 and array.dtype.kind in "biufO" else math.nan
        )
        found = found if abs(found) <= float(np.finfo(np.float32).max) else math.nan
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # ragged lists, several numbers, None, objects that are no numbers
        found = math.nan
    if math.isnan(found):
        raise UserError(
            f"{env}: its step returned {_short(value)} as {what}, which must be one finite number"
        )
    return found


def _short(value: Any, most: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."
