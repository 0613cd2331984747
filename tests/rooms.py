"""Frozen episodes of two rooms' tasks, as several tests take them."""

from jepa_wm.worlds.tasks import TASKS
from jepa_wm.worlds.two_rooms.rooms import Geometry
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings


def rooms_task(name="two_rooms", *, geometry=None, **settings):
    world = TwoRoomsSettings(geometry=geometry or Geometry())
    return TASKS.get(name)(**settings).make(world)


def frozen(name="two_rooms", *, geometry=None, episodes=100, seed=0, **settings):
    return rooms_task(name, geometry=geometry, **settings).sample(episodes, seed)
