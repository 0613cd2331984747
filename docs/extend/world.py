"""A world of your own: a puck on a table. `world.name=puck`."""

from typing import ClassVar, Literal

import numpy as np

from jepa_wm import register
from jepa_wm.worlds.world import Actions, WorldSettings


class Puck:
    action_space = Actions(low=np.full(2, -3, np.float32), high=np.full(2, 3, np.float32))  # px
    state_names, state_units = ("puck_x", "puck_y"), ("px", "px")

    def __len__(self):
        return len(self.at)

    def reset(self, seeds, *, start=None):
        drawn = [np.random.default_rng(int(seed)).uniform(4, 28, 2) for seed in seeds]
        self.at = np.array(drawn if start is None else start, np.float32)  # [B, 2]

    def step(self, action):
        self.at = np.clip(self.at + action, 4, 28)

    def render(self):  # [B, 32, 32, 3]
        x, y = np.exp(-((np.arange(32) - self.at.T[..., None]) ** 2) / 6)
        return np.uint8(255 * (y[:, :, None] * x[:, None])[..., None] * np.ones(3))

    def state(self):
        return self.at


@register("worlds", "puck")
class PuckSettings(WorldSettings):
    name: Literal["puck"] = "puck"
    tasks: ClassVar = ("puck",)  # of the example below

    def make(self):
        return Puck()
