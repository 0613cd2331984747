"""Which picture of an environment the agent sees: an entry of its observation, or what it renders;
made uint8 colour.

h, w picture height and width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium
import numpy as np

from jepa_wm.core.errors import UserError

RENDER = "render"  # names the picture that is no entry of the observation
# px; what is smaller and grey, or lies inside an observation, is a grid of numbers, MiniGrid's say
SMALLEST = 16
KINDS = (
    "a picture is uint8 [height, width, 3], channels first, or grey, or of other numbers from 0 "
    "to 1 or to 255 if observation_space says so"
)


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
    if (
        isinstance(value, np.ndarray)
        and value.ndim == 3
        and value.shape[2] == 4
        and (value[..., 3] == 255).all()
    ):
        value = value[..., :3]  # RGBA, as canvases give it, with nothing to see through
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
    if (
        not isinstance(space, gymnasium.spaces.Box)
        or dtype.kind not in "fiu"
        or (space.low != 0).any()
    ):
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
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        known = (
            inner.get(key)
            if isinstance(inner, Mapping)
            else inner[key]
            if key < len(inner)
            else None
        )
        yield from _entries(item, known, f"{name}/{key}" if name else str(key))


def _listed(entries: Mapping[str, tuple[Any, Any]]) -> str:
    return (
        ", ".join(f"{name} {_kind(value)}".strip() for name, (value, _) in entries.items())
        or "nothing"
    )


def _kind(value: Any) -> str:
    return (
        f"{value.dtype} {list(value.shape)}"
        if isinstance(value, np.ndarray)
        else type(value).__name__
    )
