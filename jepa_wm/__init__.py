"""jepa_wm: a representation-first world model. A video encoder is pretrained by masked latent
prediction and frozen, dynamics are trained on its features, plans are searched in latent space;
there is no pixel decoder.

Importing this costs next to nothing: the names below are fetched from their rooms when they are
first used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TypeVar

__version__ = "0.1.0"

Entry = TypeVar("Entry")

_HOME = {  # public name -> module that defines it; where it has another name there, module:name
    "Agent": "jepa_wm.planning.agent",
    "Config": "jepa_wm.config",
    "FrozenEncoder": "jepa_wm.features.encoder",
    "Run": "jepa_wm.core.run",
    "UserError": "jepa_wm.core.errors",
    "WorldModel": "jepa_wm.world_model.world_model",
    "collect": "jepa_wm.worlds.collect:record_parts",
    "evaluate": "jepa_wm.core.run",
    "load_config": "jepa_wm.config",
    "make_world": "jepa_wm.worlds.world",
    "open_trajectories": "jepa_wm.data.readers.registry",
    "run_stage": "jepa_wm.core.run",
    "stage": "jepa_wm.core.stage",
}
_TABLES = {  # open table -> where it stands; stages enter theirs by `stage`
    "dynamics": "jepa_wm.models.world_model_settings:DYNAMICS",
    "latents": "jepa_wm.models.latent_settings:LATENTS",
    "policies": "jepa_wm.models.head_settings:POLICIES",
    "readers": "jepa_wm.data.readers.registry:READERS",
    "solvers": "jepa_wm.planning.settings:SOLVERS",
    "tasks": "jepa_wm.worlds.tasks:TASKS",
    "worlds": "jepa_wm.worlds.world:WORLDS",
}

__all__ = ["__version__", "register", *sorted(_HOME)]


def register(table: str, name: str) -> Callable[[Entry], Entry]:
    """A decorator that enters a class into an open table under `name`: `@register("solvers",
    "mine")`. Raises ValueError for a table that is not there and for a name that is taken."""
    if table not in _TABLES:
        raise ValueError(f"no table is named {table!r}; there are {', '.join(_TABLES)}")
    module, _, inside = _TABLES[table].partition(":")
    enter: Callable[[Entry], Entry] = getattr(importlib.import_module(module), inside).register(
        name
    )
    return enter


def __getattr__(name: str) -> object:
    """Fetch a public name on first use (PEP 562); raises AttributeError for any other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, inside = _HOME[name].partition(":")
    value = getattr(importlib.import_module(module), inside or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
