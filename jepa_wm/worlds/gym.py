"""Gymnasium environments as an entry of the table of worlds."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.gym_world import GymWorld
from jepa_wm.worlds.protocol import NewPolicy
from jepa_wm.worlds.registry import WORLDS, RandomExploration, WorldSettings


@WORLDS.register("gym")
class GymSettings(WorldSettings):
    """A Gymnasium environment with images: as observation or from render()."""

    name: Literal["gym"] = "gym"
    # as gymnasium.make takes it; "module:Name-v0" imports the module first
    id: str = "Pendulum-v1"
    options: dict[str, bool | int | float | str] = {}  # further arguments of the environment
    # entry of an observation with several pictures, as a/b if nested; render: render()
    picture: str | None = None
    size: int | None = 64  # px, side that frames are resized to; null: as they come
    # whether its actions are moves, which add up, or places to go to
    action_kind: Literal["delta", "absolute"] = "delta"
    exploration: RandomExploration = RandomExploration()

    def make(self) -> GymWorld:
        """The environment as a batch; UserError for one that cannot be made or planned in."""
        try:
            return GymWorld(
                self._environment,
                size=self.size,
                action_kind=self.action_kind,
                picture=self.picture,
            )
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"world.id {self.id}: {error}") from error

    def explore(self) -> NewPolicy:
        """Random actions."""
        return self.exploration.make

    def _environment(self) -> gymnasium.Env:
        try:
            return self._made({"render_mode": "rgb_array", **self.options})
        except UserError:
            if "render_mode" in self.options:
                raise
            # A constructor that takes no such argument, or not this mode: its observation may be
            # a picture.
            try:
                return self._made(self.options)
            except UserError:
                pass
            raise

    def _made(self, options: dict[str, Any]) -> gymnasium.Env:
        try:  # no checker: GymWorld names what is not as due
            return gymnasium.make(self.id, **{"disable_env_checker": True, **options})
        except (
            gymnasium.error.Error,
            ImportError,
            TypeError,
            ValueError,
            KeyError,
            AssertionError,
        ) as error:
            why = str(error) or type(error).__name__
            raise UserError(
                f"world.id {self.id}: the environment cannot be made: {why}"
            ) from error
