"""What a launcher tells a process of its place, in environment variables; an empty one counts as
not set."""

from __future__ import annotations

import os

from jepa_wm.core.errors import UserError

START = "start with `jepa-wm launch` or torchrun"


def variable(name: str) -> str | None:
    """An environment variable, None where it is not set, empty or blank."""
    return os.environ.get(name, "").strip() or None


def number(name: str, default: int | None = None, *, least: int = 0) -> int:
    """A whole number of at least `least` from the environment.

    Raises UserError naming the variable where it holds something else, or nothing and there is no
    default."""
    text = variable(name)
    if text is None:
        if default is None:
            raise UserError(f"WORLD_SIZE is set but {name!r} is not: {START}")
        return default
    try:
        value = int(text)
    except ValueError:
        raise UserError(f"{name}={text}: is no whole number; unset it, or {START}") from None
    if value < least:
        raise UserError(f"{name}={value}: must be at least {least}; unset it, or {START}")
    return value


def rank() -> int:
    """This process's rank, 0 where no launcher told one."""
    return number("RANK", 0)


def ranks() -> int:
    """How many processes work on the job, 1 where no launcher told of others."""
    return number("WORLD_SIZE", 1, least=1)
