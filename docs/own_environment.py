"""Your own environment, from its first frames to goal images; everything is written below
runs/."""

import gymnasium
import numpy as np

from jepa_wm import Agent, collect, load_config, run_stage
from jepa_wm.evals import episodes
from jepa_wm.worlds.gym import GymWorld
from jepa_wm.worlds.world import RandomActions


# Put yours here: a bounded Box of actions, an image as observation or from render(). A state is
# optional: for probes and scores, never for plans.
class Puck(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 255, (65, 65, 3), np.uint8)
    action_space = gymnasium.spaces.Box(-4, 4, (2,))  # px a step

    def reset(self, *, seed=None, options=None):
        self.at = np.random.default_rng(seed).uniform(8, 56, 2)
        return self.step(0)[0], {"state": self.at}

    def step(self, action):
        self.at = np.clip(self.at + action, 8, 56)
        x, y = np.exp(-((np.arange(65) - self.at[:, None]) ** 2) / 20)
        image = np.uint8(255 * y[:, None, None] * x[:, None] * np.ones(3))
        return image, 0.0, False, False, {"state": self.at}


# The rest is as in configs/debug.yaml.
sizes = [f"train.{part}.steps=400" for part in ("latent", "dynamics", "distance")]
config = load_config("debug", ["data.path=runs/puck_data", "collect.episodes=300", *sizes])
world = GymWorld(Puck, state_names=("puck_x", "puck_y"), state_units=("px", "px"))
collect(config.data.path, world, RandomActions, config.collect, config.seed)
results = [run_stage(name, "runs/puck", config) for name in ("pretrain", "features", "dynamics")]
planner = Agent.of_run("runs/puck", world, config.planner, frameskip=config.dynamics.frameskip)
world.reset(np.arange(100, 108))
goals, there = world.render(), world.state()
world.reset(np.arange(8))
planner.reset(goals, seeds=range(8))
track = episodes.play(world, episodes.AgentPolicy(planner), budget=40).state  # [8, 41, 2]
print(
    "px from the goal, start and end:",
    *np.linalg.norm(track - there[:, None], axis=2).mean(0)[[0, -1]].round(1),
)
