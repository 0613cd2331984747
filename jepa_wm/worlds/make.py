"""The simulator that the config names."""

from __future__ import annotations

from typing import Any

import gymnasium

from jepa_wm.core.errors import UserError
from jepa_wm.core.schema import Geometry, Gym, NoiseLevels, Worlds
from jepa_wm.worlds.gym_world import GymWorld
from jepa_wm.worlds.protocol import VectorWorld
from jepa_wm.worlds.two_rooms import TwoRooms


def make_world(worlds: Worlds) -> VectorWorld:
    """Two rooms, or a Gymnasium environment; UserError for one that cannot be made or planned in."""
    if worlds.name == "two_rooms":
        return rooms(worlds)
    try:
        return GymWorld(lambda: _make(worlds.gym), size=worlds.gym.size, action_kind=worlds.gym.action_kind)
    except ValueError as error:
        raise UserError(f"worlds.gym.id {worlds.gym.id}: {error}") from error


def rooms(worlds: Worlds, geometry: Geometry | None = None) -> TwoRooms:
    """Two rooms as configured, or in another geometry, such as a task's."""
    return TwoRooms(geometry or worlds.geometry, worlds.noise, worlds.spot, slip=worlds.slip, look=worlds.look)


def clean(worlds: Worlds) -> Worlds:
    """The same without distractions."""
    return worlds.model_copy(update={"noise": NoiseLevels()})


def _make(settings: Gym) -> gymnasium.Env:
    try:
        options: dict[str, Any] = dict(settings.options)
        return gymnasium.make(settings.id, render_mode="rgb_array", **options)
    except (gymnasium.error.Error, ImportError, TypeError) as error:
        raise UserError(f"worlds.gym.id {settings.id}: the environment cannot be made: {error}") from error
