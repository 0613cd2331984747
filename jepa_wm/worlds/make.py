"""The simulator that the config names."""

from __future__ import annotations

from typing import Any

import gymnasium

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.gym_world import GymWorld
from jepa_wm.worlds.protocol import VectorWorld
from jepa_wm.worlds.settings import Geometry, Gym, NoiseLevels, WorldSettings
from jepa_wm.worlds.two_rooms.world import TwoRooms


def make_world(worlds: WorldSettings) -> VectorWorld:
    """Two rooms, or a Gymnasium environment; UserError for one that cannot be made or planned
    in."""
    if worlds.name == "two_rooms":
        return rooms(worlds)
    try:
        gym = worlds.gym
        return GymWorld(
            lambda: _make(gym), size=gym.size, action_kind=gym.action_kind, picture=gym.picture
        )
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"world.gym.id {worlds.gym.id}: {error}") from error


def rooms(worlds: WorldSettings, geometry: Geometry | None = None) -> TwoRooms:
    """Two rooms as configured, or in another geometry, such as a task's."""
    return TwoRooms(
        geometry or worlds.geometry,
        worlds.noise,
        worlds.reward_region,
        process_noise=worlds.process_noise,
        render_style=worlds.render_style,
    )


def clean(worlds: WorldSettings) -> WorldSettings:
    """The same without distractions."""
    return worlds.model_copy(update={"noise": NoiseLevels()})


def _make(settings: Gym) -> gymnasium.Env:
    options: dict[str, Any] = dict(settings.options)
    try:
        return _made(settings.id, {"render_mode": "rgb_array", **options})
    except UserError:
        if "render_mode" in options:
            raise
        try:  # a constructor that takes no such argument, or not this mode: its observation may be a picture
            return _made(settings.id, options)
        except UserError:
            pass
        raise


def _made(name: str, options: dict[str, Any]) -> gymnasium.Env:
    try:
        return gymnasium.make(
            name, **{"disable_env_checker": True, **options}
        )  # GymWorld names what is not as due
    except (
        gymnasium.error.Error,
        ImportError,
        TypeError,
        ValueError,
        KeyError,
        AssertionError,
    ) as error:
        said = str(error) or type(error).__name__
        raise UserError(f"world.gym.id {name}: the environment cannot be made: {said}") from error
