"""What goes into a Gymnasium environment and what comes back from it, checked, errors naming the
culprit: actions that can be planned in, resets and steps, and which picture the agent sees.

B worlds, h and w picture height and width, A action numbers, n choices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from jepa_wm.core.errors import UserError

RENDER = "render"  # names the picture that is no entry of the observation
# px; what is smaller and grey, or lies inside an observation, is a grid of numbers, MiniGrid's say
SMALLEST = 16
KINDS = (
    "a picture is uint8 [height, width, 3], channels first, or grey, or of other numbers from 0 "
    "to 1 or to 255 if observation_space says so"
)


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
    # What is left to refuse has bounds that a search, which is in float32, cannot draw from.
    with np.errstate(over="ignore"):
        ends = np.array([getattr(space, end, np.inf) for end in ("low", "high")], np.float32)
    if ends.ndim != 2 or not ends.size or not np.isfinite(ends).all():
        raise ValueError(
            f"{env}: plans are searched in a bounded Box of one axis or a Discrete space of two "
            f"or more, not in {space}; wrap the actions"
        )
    assert isinstance(space, spaces.Box)
    if not (space.high > space.low).any():
        raise ValueError(
            f"{env}: {space} allows one action alone, so there is nothing to plan; widen its "
            "bounds"
        )
    return space


def taken(space: spaces.Box | spaces.Discrete, action: np.ndarray, worlds: int) -> np.ndarray:
    """[B, A] what is taken for actions [B, A], or numbers of choices [B, 1]: clipped to the box
    and rounded to its type, in that type; one-hot float32 where the space is a choice, the largest
    number winning. Raises ValueError for others, and for numbers that are not finite."""
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
    sensible = 1 < combinations <= 1000  # choices to be told apart by one-hot numbers
    return (
        f"give the environment a Discrete({combinations if sensible else 'n'}) "
        "space, a number for each combination that is wanted, or wrap it in "
        "gymnasium.wrappers.TransformAction with a Box of floats and the rounding that is meant"
    )


def begin(env: gymnasium.Env, seed: int, start: np.ndarray | None) -> tuple[Any, dict[str, Any]]:
    """(observation, info) of an episode from `seed`; `start`, where given, goes to it as
    options["start"]. UserError where its reset takes no seed or returns something else."""
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


def take(env: gymnasium.Env, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
    """(observation, reward, terminated, truncated, info) of a step; raises UserError naming what
    the environment returned where that is not what is due."""
    returned = env.step(action)
    if not isinstance(returned, tuple) or len(returned) != 5 or not isinstance(returned[4], dict):
        count = len(returned) if isinstance(returned, tuple) else type(returned).__name__
        raise UserError(
            f"{env}: its step must return (observation, reward, terminated, truncated, info), an "
            f"info of type dict, not {count} values"
        )
    observation, reward, terminated, truncated, info = returned
    over = bool(one_number(env, "terminated", terminated))
    cut = bool(one_number(env, "truncated", truncated))
    return observation, one_number(env, "reward", reward), over, cut, info


def one_number(env: gymnasium.Env, what: str, value: Any) -> float:
    """A number, or an array of a single one, as a float; raises UserError for anything else, NaN
    and infinity."""
    number = math.nan
    try:  # a tensor may be of a graph or on a GPU
        array = np.asarray(value.item() if hasattr(value, "item") else value)
        if array.size == 1 and array.dtype.kind in "biufO":
            number = float(array.item())
    except (TypeError, ValueError, RuntimeError):
        pass  # ragged lists, several numbers, None, objects that are no numbers
    if not abs(number) <= float(np.finfo(np.float32).max):
        shown = shorten(repr(value), 80, placeholder="...")
        raise UserError(
            f"{env}: its step returned {shown} as {what}, which must be one finite number"
        )
    return number


# ---------------------------------------------------------------- pictures


def source(env: gymnasium.Env, observation: Any, asked: str | None) -> str:
    """What is the picture: the name of an entry of the observation ("" for the whole of it) or
    `RENDER`.

    `asked` names it; without, it is the only picture there, else `RENDER`. Where there are
    several, colour comes before grey, after that uint8 before other numbers. Raises UserError for
    equals, and for a name that is no picture."""
    if asked == RENDER:
        return RENDER

    # Small grey arrays have the shape of a picture and are maps of numbers; the whole observation,
    # if it is in colour, is a picture at any size.
    entries = dict(_entries(observation, env.observation_space))
    rank: dict[str, tuple[bool, bool]] = {}
    for name, (value, space) in entries.items():
        picture = as_picture(env, value, space)
        if picture is None:
            continue
        grey = 1 in (value.shape[-1], value.shape[0]) or value.ndim == 2
        if min(picture.shape[:2]) >= SMALLEST or not (name or grey):
            rank[name] = (grey, value.dtype != np.uint8)

    # A guess between equals would decide silently what a model learns from.
    if asked is not None:
        if asked not in rank:
            raise UserError(
                f"{env}: world.picture is {asked!r}, which is no picture of its observation; that "
                f"has {_listed(entries)}; {RENDER!r} is what render() draws"
            )
        return asked
    best = [name for name in rank if rank[name] == min(rank.values())]
    if len(best) > 1:
        raise UserError(
            f"{env}: its observation has several pictures, {', '.join(best)}: choose one with "
            f"world.picture, or {RENDER!r}, what render() draws"
        )
    return best[0] if best else RENDER


def observed(env: gymnasium.Env, observation: Any, name: str) -> np.ndarray:
    """[h, w, 3] uint8: an entry of the observation; raises UserError if it is no picture any
    more."""
    entries = dict(_entries(observation, env.observation_space))
    value, space = entries.get(name, (None, None))
    picture = as_picture(env, value, space)
    if picture is None:
        raise UserError(
            f"{env}: its observation began with a picture and now has {_listed(entries)}; {KINDS}"
        )
    return picture


def rendered(env: gymnasium.Env, observation: Any) -> np.ndarray:
    """[h, w, 3] uint8: what render() draws, the last of a list; raises UserError if that is no
    picture."""
    try:
        drawn = env.render()
    except gymnasium.error.DependencyNotInstalled as error:
        raise UserError(f"{env} draws no picture: {error}") from error
    except NotImplementedError:
        drawn = None
    if isinstance(drawn, list) and drawn:
        drawn = drawn[-1]
    value: Any = drawn
    rgba = isinstance(value, np.ndarray) and value.ndim == 3 and value.shape[2] == 4
    if rgba and (value[..., 3] == 255).all():
        value = value[..., :3]  # as canvases give it, with nothing to see through
    picture = as_picture(env, value, None)
    if picture is None:
        raise UserError(
            f"{env}: neither the observation nor render() is a picture, but "
            f"{_listed(dict(_entries(observation, env.observation_space)))} and {_kind(drawn)}; "
            f'{KINDS}; make it with render_mode="rgb_array"'
        )
    return picture


def as_picture(env: gymnasium.Env, value: Any, space: gymnasium.Space | None) -> np.ndarray | None:
    """[h, w, 3] uint8 of an array that is a picture, None of what is none; `space` says the range
    of its numbers.

    Raises UserError for numbers that are not in it.
    """
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3):
        return None
    if value.ndim == 2 and value.dtype == np.uint8:
        value = value[:, :, None]
    elif value.ndim == 2:  # numbers in a table, for all that is known
        return None
    elif value.shape[2] not in (1, 3):
        value = np.moveaxis(value, 0, 2)
    if value.shape[2] not in (1, 3) or not value.size:
        return None
    if value.dtype != np.uint8:
        highest = _highest(space, value.dtype)
        if highest is None:
            return None
        if not (value >= 0).all() or not (value <= highest).all():
            raise UserError(
                f"{env}: a picture of its observation holds numbers from {value.min():.4g} to "
                f"{value.max():.4g}; observation_space says from 0 to {highest}"
            )
        value = np.round(value.astype(np.float64) * (255 / highest)).astype(np.uint8)
    return value if value.shape[2] == 3 else np.repeat(value, 3, axis=2)


def _highest(space: gymnasium.Space | None, dtype: np.dtype) -> int | None:
    """1 or 255, as the space says that its numbers go from 0 to there; None for any other."""
    if not isinstance(space, spaces.Box) or dtype.kind not in "fiu" or (space.low != 0).any():
        return None
    if (space.high == 255).all():
        return 255
    return 1 if (space.high == 1).all() and dtype.kind == "f" else None


def _entries(value: Any, space: Any, name: str = "") -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(name, (value, its space)) of all leaves of nested dicts and tuples, named a/b."""
    if not isinstance(value, (Mapping, tuple, list)):
        yield name, (value, space)
        return
    inner = getattr(space, "spaces", {})
    known = dict(inner if isinstance(inner, Mapping) else enumerate(inner))
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        yield from _entries(item, known.get(key), f"{name}/{key}" if name else str(key))


def _listed(entries: Mapping[str, tuple[Any, Any]]) -> str:
    kinds = (f"{name} {_kind(value)}".strip() for name, (value, _) in entries.items())
    return ", ".join(kinds) or "nothing"


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return type(value).__name__
