"""The proprioception of a world, for a model whose latent reads any: of all that the world shows
of its state, the numbers that the model was trained with, and no others.

B worlds, X state numbers, P of them proprioception."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from jepa_wm.core.errors import UserError
from jepa_wm.data.state_columns import StateColumns
from jepa_wm.world_model.world_model import WorldModel


class ShowsState(Protocol):
    """What is asked of a world."""

    @property
    def state_names(self) -> tuple[str, ...]:
        """X names."""

    @property
    def state_units(self) -> tuple[str, ...]:
        """X units, or none."""

    def state(self) -> np.ndarray:
        """[B, X] float32."""


def proprio_columns(model: WorldModel, world: ShowsState) -> StateColumns | None:
    """The numbers of the world's state that the model's latent names; None: it names none.
    UserError for those that the world has not, or has in another unit."""
    names = model.latent_model.settings.latent.proprio
    if not names:
        return None
    columns = StateColumns.named(names, world.state_names, world.state_units, whose="the world")
    columns.check_units(model.latent_model.proprio_units, whose="the world")
    return columns


def proprio_of(model: WorldModel, world: ShowsState) -> Callable[[], np.ndarray] | None:
    """What reads [B, P] of the worlds as they stand, for an agent; None: the model reads none.
    UserError as `proprio_columns`."""
    columns = proprio_columns(model, world)
    if columns is not None:
        return lambda: columns.read(world.state())
    # A latent that names no numbers and reads some reads all that there are: a robot's pose.
    return world.state if model.latent.proprio_size else None


def refuse_proprio(model: WorldModel) -> None:
    """UserError for a model that reads proprioception, where there are pictures alone."""
    if model.latent.proprio_size:
        raise UserError(
            f"the model reads {model.latent.proprio_size} numbers of proprioception, and this "
            "harness hands over pictures alone; train with latent.proprio=[], and another latent "
            "than robot_tokens"
        )
