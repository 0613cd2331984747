"""What goes into an environment and what comes back from it, checked: action spaces that can be
planned in, resets and steps with one number where one is due; errors name the culprit.

B worlds, A action numbers, n choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from jepa_wm.core.errors import UserError

MOST = 1000  # choices that it is sensible to tell apart by one-hot numbers


def plannable(env: gymnasium.Env) -> spaces.Box | spaces.Discrete:
    """The environment's action space; raises ValueError for one that is neither a bounded box of
    one axis, of numbers that may be fractions, nor a choice among at least two actions."""
    # Near misses come first: of those the remedy is known, a wrapper that makes them one choice.
    space = env.action_space
    if isinstance(space, spaces.Discrete) and space.n > 1:
        return space
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind != "f":
        raise ValueError(
            f"{env}: {space} holds whole numbers, of which plans would be fractions; "
            f"{_as_choice(space)}"
        )
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            f"{env}: {space} is several choices at a time, and plans are of one; "
            f"{_as_choice(space)}"
        )
    # What is left to refuse has bounds that a search cannot draw from.
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not _bounded(space):
        raise ValueError(
            f"{env}: plans are searched in a bounded Box of one axis or a Discrete space of two "
            f"or more, not in {space}; wrap the actions"
        )
    if not (space.high > space.low).any():
        raise ValueError(
            f"{env}: {space} allows one action alone, so there is nothing to plan; widen its "
            "bounds"
        )
    return space


def bounds(space: spaces.Box | spaces.Discrete) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(low [A], high [A], longest norm or None), as `World.action_bounds` has it."""
    if isinstance(space, spaces.Discrete):
        return np.zeros(space.n, np.float32), np.ones(space.n, np.float32), 1.0
    return space.low.astype(np.float32), space.high.astype(np.float32), None


def taken(space: spaces.Box | spaces.Discrete, action: np.ndarray, worlds: int) -> np.ndarray:
    """[B, A] what is taken for actions [B, A], or numbers of choices [B, 1]: clipped to the box
    and rounded to its type, in that type; one-hot float32 where the space is a choice, the largest
    number winning.

    Raises ValueError for other shapes, numbers that are not finite, and numbers of choices that
    there are not."""
    width = action.shape[1:]
    fits = [(int(space.n),), (1,)] if isinstance(space, spaces.Discrete) else [space.shape]
    if len(action) != worlds or width not in fits or not np.isfinite(action).all():
        raise ValueError(
            f"actions have shape {action.shape}; {worlds} worlds take finite numbers {fits[-1]} "
            "each"
        )
    if isinstance(space, spaces.Discrete):
        number = action[:, 0] if width == (1,) else action.argmax(1)
        if not np.isin(number, np.arange(space.n)).all():
            raise ValueError(
                f"actions {number} are not numbers of the {space.n} choices, which go from 0"
            )
        return np.eye(int(space.n), dtype=np.float32)[number.astype(np.int64)]
    return np.clip(action, space.low, space.high).astype(space.dtype)


def given(space: spaces.Box | spaces.Discrete, taken: np.ndarray) -> list[Any]:
    """What each environment is given of `taken` [B, A]: a row of the box, or the space's own
    number of the choice."""
    if isinstance(space, spaces.Discrete):
        return [int(space.start) + int(number) for number in taken.argmax(1)]
    return list(taken)


def _bounded(space: spaces.Box) -> bool:
    """Whether all bounds are finite, also as float32, in which actions are searched and kept."""
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return len(low) > 0 and bool(np.isfinite(low).all() and np.isfinite(high).all())


def _as_choice(space: gymnasium.Space) -> str:
    """What a user can do about whole numbers."""
    counts: np.ndarray = np.zeros(0)  # of what each number can be
    if isinstance(space, spaces.Box) and space.is_bounded():
        counts = space.high.astype(float) - space.low.astype(float) + 1
    elif isinstance(space, spaces.MultiDiscrete):
        counts = space.nvec
    elif isinstance(space, spaces.MultiBinary):
        counts = np.full(space.shape, 2)
    combinations = math.prod(map(int, counts.flat))
    return (
        f"give the environment a Discrete({combinations if 1 < combinations <= MOST else 'n'}) "
        "space, a number for each combination that is wanted, or wrap it in "
        "gymnasium.wrappers.TransformAction with a Box of floats and the rounding that is meant"
    )


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
            f"{env}: its step must return (observation, reward, terminated, truncated, info), an "
            f"info of type dict, not {count} values"
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
        number = (
            float(array.item()) if array.size == 1 and array.dtype.kind in "biufO" else math.nan
        )
        number = number if abs(number) <= float(np.finfo(np.float32).max) else math.nan
    except (
        TypeError,
        ValueError,
        RuntimeError,
    ):  # ragged lists, several numbers, None, objects that are no numbers
        number = math.nan
    if math.isnan(number):
        raise UserError(
            f"{env}: its step returned {_short(value)} as {what}, which must be one finite number"
        )
    return number


def _short(value: Any, most: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."
