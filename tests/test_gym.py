"""Two rooms as a Gymnasium environment, and any Gymnasium environment as a batch of worlds."""

import math
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from rooms import frozen

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.gym import GymWorld
from jepa_wm.worlds.two_rooms.gym_env import ENV_ID, TwoRoomsEnv
from jepa_wm.worlds.two_rooms.rooms import NoiseLevels
from jepa_wm.worlds.two_rooms.world import TwoRooms, TwoRoomsSettings
from jepa_wm.worlds.world import Ending, RandomActions, Rewarding, World


def test_gymnasium_finds_nothing_wrong_with_the_environment():
    noisy = TwoRoomsSettings(noise=NoiseLevels(pixel=0.2, blotches=0.2))
    for kwargs in ({}, {"settings": noisy}):
        env = gymnasium.make(ENV_ID, render_mode="rgb_array", **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings(
                "ignore", ".*recommend using a symmetric and normalized"
            )  # ours are in pixels
            check_env(env.unwrapped)
    assert env.spec.max_episode_steps == 200


def test_the_environment_is_the_batch_simulator_and_ends_at_the_goal():
    env, world = TwoRoomsEnv(), TwoRooms()
    goal = np.array([50.0, 50.0], np.float32)
    frame, info = env.reset(seed=7, options={"start": (50.0, 40.0), "goal": goal})
    world.reset(np.array([7]), start=np.array([[50.0, 40.0]]))
    assert np.array_equal(frame, world.render()[0]) and np.array_equal(
        info["state"], world.state()[0]
    )
    assert (
        np.array_equal(info["goal_image"], world.render_clean(goal[None])[0])
        and not info["success"]
    )
    ended, rewards = [], []
    for _ in range(4):
        frame, reward, terminated, truncated, info = env.step(np.array([0.0, 2.0], np.float32))
        world.step(np.array([[0.0, 2.0]], np.float32))
        assert np.array_equal(frame, world.render()[0]) and not truncated
        ended.append(terminated)
        rewards.append(reward)
    assert ended == [False, False, True, True] and rewards == [0.0, 0.0, 1.0, 1.0]
    for options, message in (({"gaol": goal}, "gaol"), ({"goal": (1.0, 1.0)}, r"in 5.0..59.0 px")):
        with pytest.raises(ValueError, match=message):
            env.reset(seed=0, options=options)
    with pytest.raises(ValueError, match="render_mode"):
        TwoRoomsEnv(render_mode="human")


def test_a_gym_batch_is_the_same_world():
    names = TwoRooms().state_names
    batch, world = GymWorld(TwoRoomsEnv, state_names=names), TwoRooms()
    assert isinstance(batch, World) and isinstance(world, World)
    assert isinstance(batch, Ending) and not isinstance(world, Ending)
    seeds, r = np.array([3, 4, 5]), np.random.default_rng(0)
    for some in (seeds, seeds[:2]):
        start = np.tile(np.array([[12.0, 30.0]], np.float32), (len(some), 1))
        batch.reset(some, start=start)
        world.reset(some, start=start)
        for _ in range(5):
            action = r.uniform(-2, 2, (len(some), 2)).astype(np.float32)
            batch.step(action)
            world.step(action)
        assert len(batch) == len(world) == len(some)
        assert np.array_equal(batch.render(), world.render()) and np.array_equal(
            batch.state(), world.state()
        )
    mine, its = batch.action_space, world.action_space
    assert np.array_equal(mine.low, its.low) and np.array_equal(mine.high, its.high)
    batch.close()


class Drifter(gymnasium.Env):
    """A foreign environment: a number as observation, a picture from render, its own end, no
    state."""

    observation_space = spaces.Box(-9, 9, (1,))
    action_space = spaces.Box(-1, 1, (1,))
    steps = 0

    def __init__(self, picture=True):
        self.picture = picture

    def reset(self, *, seed=None, options=None):
        self.x, self.steps = np.zeros(1, np.float32), 0
        return self.x, {}

    def step(self, action):
        self.x, self.steps = self.x + action, self.steps + 1
        return self.x, 0.0, bool(self.x[0] >= 2), False, {}

    def render(self):
        return np.full((30, 40, 3), 10 + 10 * self.x[0], np.uint8) if self.picture else None


def test_an_own_environment_comes_in_with_render_and_its_own_end():
    world = GymWorld(Drifter, size=16)
    world.reset(np.arange(2))
    assert world.state().shape == (2, 0) and world.state_names == ()
    for _ in range(4):
        world.step(np.array([[1.0], [0.25]], np.float32))
    assert world.ended().tolist() == [True, False]
    frames = world.render()
    assert frames.shape == (2, 16, 16, 3) and frames.dtype == np.uint8
    assert (
        frames[0].max() == 30 and frames[1].max() == 20
    )  # the first stood still once it had ended
    world.reset(np.arange(2))
    assert not world.ended().any()
    with pytest.raises(ValueError, match=r"shape \(2, 3\)"):
        world.step(np.zeros((2, 3), np.float32))


def test_what_cannot_be_planned_in_is_refused():
    with pytest.raises(UserError, match="neither the observation nor"):
        GymWorld(lambda: Drifter(picture=False)).reset(np.arange(1))
    with pytest.raises(UserError, match="does not hold the 1 numbers"):
        world = GymWorld(Drifter, state_names=("x",))
        world.reset(np.arange(1))
        world.state()

    class Undrawn(Drifter):
        def render(self):
            raise gymnasium.error.DependencyNotInstalled(
                "pygame is missing, run `pip install ...`"
            )

    with pytest.raises(UserError, match="Undrawn.* draws no picture: pygame is missing"):
        GymWorld(Undrawn).reset(np.arange(1))

    class Unbounded(Drifter):
        action_space = spaces.Box(-math.inf, math.inf, (1,))

    class Alone(Drifter):
        action_space = spaces.Discrete(1)

    for kind in (Alone, Unbounded):
        with pytest.raises(ValueError, match="bounded Box.*Discrete"):
            GymWorld(kind)
    world = GymWorld(Drifter, size=16)
    world.reset(np.arange(1))
    with pytest.raises(ValueError, match="finite"):
        world.step(np.array([[math.nan]], np.float32))


class Chooser(Drifter):
    """Left, stay or right by number, from 5 on."""

    action_space = spaces.Discrete(3, start=5)

    def step(self, action):
        assert isinstance(action, int)
        return super().step(np.array([action - 6.0], np.float32))


def test_discrete_actions_are_numbers_or_one_hot():
    world = GymWorld(Chooser, size=16)
    world.reset(np.arange(3))
    assert world.action_space.choices == 3 and world.action_space.low.shape == (3,)
    world.step(np.array([[0], [1], [2]], np.float32))
    assert [env.x[0] for env in world._envs] == [-1, 0, 1]
    world.step(np.eye(3, dtype=np.float32)[[2, 2, 0]])
    assert [env.x[0] for env in world._envs] == [0, 1, 0]
    with pytest.raises(ValueError, match=r"shape \(3, 2\)"):
        world.step(np.zeros((3, 2), np.float32))
    policy = RandomActions(np.arange(3), mean_repeat=2)
    taken = np.stack([policy(world) for _ in range(60)])
    assert (taken.sum(-1) == 1).all() and set(taken.argmax(-1).flatten()) == {0, 1, 2}


def test_rewards_are_of_the_latest_step_and_stop_with_the_episode():
    class Paying(Drifter):
        def step(self, action):
            x, _, over, cut, info = super().step(action)
            return x, float(x[0]), over, cut, info

    world = GymWorld(Paying, size=16)
    world.reset(np.arange(2))
    assert isinstance(world, Rewarding) and not world.reward().any()
    told = []
    for _ in range(3):
        world.step(np.array([[1.0], [0.25]], np.float32))
        told.append((world.reward().tolist(), world.terminated().tolist()))
    assert told == [
        ([1, 0.25], [False, False]),
        ([2, 0.5], [True, False]),
        ([0, 0.75], [False, False]),
    ]


def test_a_frozen_task_is_played_in_the_environment():
    tasks = frozen(episodes=3)
    world, env = TwoRooms(), TwoRoomsEnv()
    world.reset(tasks.seeds, start=tasks.start, layout=tasks.layout)
    for i in range(len(tasks)):
        options = {"start": tasks.start[i], "goal": tasks.goal[i], "layout": tasks.layout[i]}
        frame, info = env.reset(seed=int(tasks.seeds[i]), options=options)
        assert np.array_equal(info["state"], world.state()[i]) and np.array_equal(
            frame, world.render()[i]
        )
    with pytest.raises(ValueError, match="'layout' must be two numbers in 5"):
        env.reset(options={"layout": (1.0, 30.0)})
