"""Which action spaces can be planned in, and what an action becomes before an environment takes
it.

B worlds, a action numbers, n choices.
"""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

MOST = 1000  # choices that it is sensible to tell apart by one-hot numbers


def plannable(env: gymnasium.Env) -> spaces.Box | spaces.Discrete:
    """The environment's action space; raises ValueError for one that is neither a bounded box of
    one axis, of numbers that may be fractions, nor a choice among at least two actions."""
    space = env.action_space
    if isinstance(space, spaces.Discrete) and space.n > 1:
        return space
    if isinstance(space, spaces.Box) and space.dtype is not None and space.dtype.kind != "f":
        raise ValueError(
            f"{env}: {space} holds whole numbers, of which plans would be fractions; {_as_choice(space)}"
        )
    if isinstance(space, (spaces.MultiDiscrete, spaces.MultiBinary)):
        raise ValueError(
            f"{env}: {space} is several choices at a time, and plans are of one; {_as_choice(space)}"
        )
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not _bounded(space):
        raise ValueError(
            f"{env}: plans are searched in a bounded Box of one axis or a Discrete space of two or more, not in "
            f"{space}; wrap the actions"
        )
    if not (space.high > space.low).any():
        raise ValueError(
            f"{env}: {space} allows one action alone, so there is nothing to plan; widen its bounds"
        )
    return space


def bounds(space: spaces.Box | spaces.Discrete) -> tuple[np.ndarray, np.ndarray, float | None]:
    """(low [a], high [a], longest norm or None), as `VectorWorld.action_bounds` has it."""
    if isinstance(space, spaces.Discrete):
        return np.zeros(space.n, np.float32), np.ones(space.n, np.float32), 1.0
    return space.low.astype(np.float32), space.high.astype(np.float32), None


def taken(space: spaces.Box | spaces.Discrete, action: np.ndarray, worlds: int) -> np.ndarray:
    """[B, a] what is taken for actions [B, a], or numbers of choices [B, 1]: clipped to the box
    and rounded to its type, in that type; one-hot float32 where the space is a choice, the largest
    number winning.

    Raises ValueError for other shapes, numbers that are not finite, and numbers of choices that
    there are not."""
    width = action.shape[1:]
    fits = [(int(space.n),), (1,)] if isinstance(space, spaces.Discrete) else [space.shape]
    if len(action) != worlds or width not in fits or not np.isfinite(action).all():
        raise ValueError(
            f"actions have shape {action.shape}; {worlds} worlds take finite numbers {fits[-1]} each"
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
    """What each environment is given of `taken` [B, a]: a row of the box, or the space's own
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
        f"give the environment a Discrete({combinations if 1 < combinations <= MOST else 'n'}) space, a number for "
        "each combination that is wanted, or wrap it in gymnasium.wrappers.TransformAction with a Box of floats and "
        "the rounding that is meant"
    )
