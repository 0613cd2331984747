"""jepa_wm: a world model that learns to see by masked latent prediction, imagines, and plans,
without a pixel decoder.

Importing this costs next to nothing: the names below are fetched from their rooms when they are
first used."""

from __future__ import annotations

import importlib

__version__ = "0.1.0"

_HOME = {  # public name -> module that defines it
    "Config": "jepa_wm.config",
    "Run": "jepa_wm.core.run",
    "UserError": "jepa_wm.core.errors",
    "load_config": "jepa_wm.config",
    "run_stage": "jepa_wm.core.run",
    "stage": "jepa_wm.core.stage",
    "WorldModel": "jepa_wm.world_model.world_model",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> object:
    """Fetch a public name on first use (PEP 562); raises AttributeError for any other."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
