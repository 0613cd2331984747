"""PushT: its physics and pictures beside the package's, states that a world can be put back into,
the exploring policy, and the task."""

import importlib.util
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.tasks import HasOracle, make_task
from jepa_wm.worlds.world import CollectSettings, make_world

pytest.importorskip("pymunk", reason="needs pip install 'jepa-wm[pusht]'", exc_type=ImportError)

from jepa_wm.worlds.pusht.board import pymunk_module
from jepa_wm.worlds.pusht.drawing import draw
from jepa_wm.worlds.pusht.policies import Exploration, gap_to_block
from jepa_wm.worlds.pusht.tasks import PushTTask
from jepa_wm.worlds.pusht.world import PushTSettings

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gym_pusht") is None, reason="needs pip install 'jepa-wm[pusht]'"
)


def begun(seeds=(0,), start=None, **settings):
    world = PushTSettings(**settings).make()
    world.reset(np.array(seeds), start=start)
    return world


def at(agent=(100.0, 100.0), block=(256.0, 256.0), angle=0.0):
    return np.array([[*agent, *block, angle, 0, 0, 0, 0, 0]], np.float32)


def played(seeds, steps, **settings):
    """States [T+1, B, 10], frames [T+1, B, h, w, 3] and actions [T, B, 2] of the explorer."""
    world, policy = begun(seeds, **settings), PushTSettings(**settings).explore()(np.array(seeds))
    states, frames, actions = [world.state()], [world.render()], []
    for _ in range(steps):
        actions.append(world.taken(policy(world)))
        world.step(actions[-1])
        states.append(world.state())
        frames.append(world.render())
    return np.stack(states), np.stack(frames), np.stack(actions)


@pytest.fixture(scope="module")
def play():
    return played(range(16), 80)


def package_env():
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    from gym_pusht.envs import PushTEnv

    env = PushTEnv(observation_width=96, observation_height=96)
    env.reset(seed=0)
    return env


def put(env, state):
    """The package's environment in a state at rest, which its own reset would not keep."""
    env._setup()
    env.agent.position = tuple(map(float, state[:2]))
    env.block.angle = float(state[4])
    env.block.position = tuple(map(float, state[2:4]))


# ---------------------------------------------------------------- physics and pictures


@needs_package
def test_the_physics_is_the_packages_to_the_bit():
    env, moved = package_env(), 0.0
    for seed in range(3):
        world, policy = begun([seed]), PushTSettings().explore()(np.array([seed]))
        start = world.state()[0]
        put(env, start)
        world.reset(np.array([seed]), start=start[None])
        for _ in range(80):
            action = policy(world)
            world.step(action)
            env.step(action[0].astype(np.float64))
            block = (*env.block.position, env.block.angle)
            ours = world._state[0]
            assert ours[:5].tolist() == [*env.agent.position, *block]
            assert ours[5:9].tolist() == [*env.agent.velocity, *env.block.velocity]
        moved = max(moved, float(np.abs(world.state() - start)[0, 2:4].max()))
    assert moved > 20, "a block that nobody pushed proves nothing"


@needs_package
def test_the_pictures_are_near_the_packages(play):
    env, states = package_env(), play[0][::20, ::5].reshape(-1, 10)
    apart = []
    for state in states:
        put(env, state)
        env.space.reindex_shapes_for_body(env.block)
        apart.append(np.abs(env._render().astype(int) - draw(state[None, :5], 96)[0]).mean())
    assert max(apart) < 2, "levels of 255; of another state it is more than 3"
    other = draw(states[:1, :5] + np.float32(60), 96)[0]
    put(env, states[0])
    assert np.abs(env._render().astype(int) - other).mean() > 3


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared is not there")
def test_the_pictures_are_near_those_that_people_saw():
    file = np.load(SHARED / "pusht_human/pusht_every10th_episode.npz")
    rows = np.arange(0, len(file["img"]), 20)
    apart = np.abs(draw(file["state"][rows], 96).astype(int) - file["img"][rows]).mean((1, 2, 3))
    assert apart.max() < 1.5 and apart.mean() < 1.1


def test_the_picture_shows_agent_and_block_where_they_are_at_any_size():
    for size in (64, 96, 200):
        frame = begun(start=at((100, 400), (300, 100)), size=size).render()[0].astype(int)
        assert frame.shape == (size, size, 3)
        rows, columns = np.indices((size, size))
        blue = np.clip(frame[..., 2] - frame[..., 0] - 60, 0, None) * (columns < size / 2)
        centre = [(axis * blue).sum() / blue.sum() for axis in (columns, rows)]
        np.testing.assert_allclose(
            (np.array(centre) + 0.5) * 512 / size - 0.5, (100, 400), atol=1.5
        )
        # The stem is drawn below the bar, and beside it the board is white.
        for (x, y), shade in (((300, 115), 143), ((300, 190), 143), ((250, 190), 255)):
            assert frame[int(y * size / 512), int(x * size / 512), 0] == pytest.approx(
                shade, abs=4
            )


# ---------------------------------------------------------------- seeds, states, bounds


def test_a_world_is_the_same_in_any_batch_and_every_time(play):
    states, frames, actions = play
    again, alone = played(range(16), 20), played([7], 20)
    assert np.array_equal(again[0], states[:21]) and np.array_equal(again[1], frames[:21])
    for whole, single in zip(again, alone, strict=True):
        assert np.array_equal(whole[:, 7], single[:, 0])
    assert not np.array_equal(states[0, 0], states[0, 1])


def test_starts_are_clear_of_the_block_and_within_the_walls():
    state = begun(range(300)).state()
    assert min(gap_to_block(row[:2], row[2:5]) for row in state) > 20
    assert not state[:, 5:].any() and np.ptp(state[:, 4]) > 6
    frames = draw(state[:, :5], 64)[:, 2:-2, 2:-2]
    rim = np.concatenate([frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]])
    assert (rim == 255).all()


def test_a_world_reset_to_a_recorded_state_goes_on_from_there(play):
    states, frames, actions = play
    off = []
    for first in (10, 30, 50):
        world = begun(range(16), start=states[first])
        assert np.array_equal(world.state(), states[first])
        assert np.array_equal(world.render(), frames[first])
        for step in range(first, first + 25):
            world.step(actions[step])
        off.append(np.linalg.norm((world.state() - states[first + 25])[:, :4], axis=1))
        again = begun(range(16), start=states[first])
        for step in range(first, first + 25):
            again.step(actions[step])
        assert np.array_equal(again.state(), world.state())
    # px; contacts that the solver remembers are not in a state.
    assert np.percentile(np.concatenate(off), 90) < 1 and np.median(off) < 0.01
    assert np.abs(states[35] - states[10])[:, 2:4].max() > 20


def test_actions_are_places_or_moves_and_are_clipped():
    world = begun(start=at())
    space = world.action_space
    assert (space.low.tolist(), space.high.tolist(), space.kind) == (
        [0, 0],
        [512, 512],
        "absolute",
    )
    assert world.taken(np.array([[-9.0, 600.0]])).tolist() == [[0.0, 512.0]]
    for _ in range(30):
        world.step(np.array([[60.0, 900.0]]))
    np.testing.assert_allclose(world.state()[0, :2], (60, 512), atol=0.1)
    moved = begun(start=at(), actions="relative", max_move=30.0)
    assert moved.action_space.kind == "delta" and moved.action_space.idle.tolist() == [0, 0]
    same = begun(start=at())
    moved.step(np.array([[300.0, -10.0]]))
    same.step(np.array([[130.0, 90.0]]))
    assert np.array_equal(moved.state(), same.state())
    still = begun(start=at(), actions="relative")
    still.step(np.zeros((1, 2)))
    assert np.array_equal(still.state(), at())


def test_what_does_not_fit_is_refused(monkeypatch):
    with pytest.raises(ValueError, match="start has shape"):
        begun([1, 2], start=at())
    with pytest.raises(ValueError, match=r"must be finite and \[1, 2\]"):
        begun().step(np.full((1, 2), np.nan))
    for name, value in (("size", 4), ("max_move", 0), ("actions", "torque")):
        with pytest.raises(ValueError, match=name):
            PushTSettings(**{name: value})
    with pytest.raises(ValueError, match="lead"):
        Exploration(lead=(20.0, 10.0))
    with pytest.raises(UserError, match=r"world\.sise"):
        load_config("pusht_sim", ["world.sise=3"])
    monkeypatch.setattr(pymunk_module(), "version", "7.0.0")
    with pytest.raises(UserError, match="below 7, not 7.0.0"):
        make_world({"name": "pusht"})
    monkeypatch.setitem(sys.modules, "pymunk", None)
    with pytest.raises(UserError, match=r"pip install 'jepa-wm\[pusht\]'"):
        make_world({"name": "pusht"})


# ---------------------------------------------------------------- exploring, collecting, the task


def test_the_explorer_pushes_from_all_sides(play):
    states = play[0]
    pushed = np.abs(np.diff(states[..., 2:4], axis=0)).sum(-1) > 0.01
    at_push = states[:-1][pushed]
    assert 0.2 < pushed.mean() < 0.7
    apart, (cos, sin) = (
        at_push[:, :2] - at_push[:, 2:4],
        (f(at_push[:, 4]) for f in (np.cos, np.sin)),
    )
    along = apart[:, 0] * cos + apart[:, 1] * sin
    down = apart[:, 1] * cos - apart[:, 0] * sin - 45
    sides = np.histogram(np.arctan2(down, along), 4, (-np.pi, np.pi))[0] / len(along)
    assert sides.min() > 0.05, sides
    assert (states[..., :2] > 0).all() and (states[..., :2] < 512).all()


@pytest.mark.parametrize("actions", ["absolute", "relative"])
def test_what_is_collected_reads_back(actions, tmp_path):
    settings = PushTSettings(actions=actions)
    sizes = CollectSettings(
        episodes=2, episode_length=6, heldout_episodes=1, heldout_episode_length=4
    )
    record_parts(tmp_path, settings.make(), settings.explore(), sizes, 0)
    data = Trajectories(tmp_path / "train.h5")
    states, frames, taken = played([0, 1], 5, actions=actions)
    assert data.lengths.tolist() == [6, 6] and data.frames.shape == (12, 64, 64, 3)
    assert data.action_kind == ("absolute" if actions == "absolute" else "delta")
    assert np.array_equal(data.frames[:6], frames[:, 0])
    assert np.array_equal(data.actions[:5], taken[:, 0])
    assert np.array_equal(data.column("state")[6:], states[:, 1])
    assert data.quantities.groups["angle"] == [4] and data.quantities.unit("block") == "px"


@pytest.fixture(scope="module")
def task():
    return make_task(PushTSettings(), PushTTask())


@pytest.fixture(scope="module")
def episodes(task):
    return task.sample(12, 3)


def test_the_task_is_frozen_and_a_longer_set_holds_the_shorter(task, episodes):
    assert task.sample(5, 3).digest == episodes.part(0, 5).digest
    assert task.sample(5, 4).digest != task.sample(5, 3).digest
    assert (task.distance(episodes.start, episodes.goal) >= 1).all()
    assert load_config("pusht_sim").evaluation.budget == 50
    later = make_task(PushTSettings(), PushTTask(offset=50)).sample(5, 3)
    assert np.array_equal(later.start, episodes.start[:5]) and later.digest != episodes.digest


def test_starts_and_goals_are_of_one_episode_of_the_explorer(task, episodes):
    goal_images, start_images = task.goal_images(episodes), task.begin(episodes).render()
    for i in range(3):
        seed = int(episodes.seeds[i])
        states, frames, actions = played([seed], 90)
        first = int(np.nonzero((states[:, 0] == episodes.start[i]).all(1))[0][0])
        assert np.array_equal(states[first + 25, 0], episodes.goal[i])
        assert np.array_equal(frames[first, 0], start_images[i])
        assert np.array_equal(frames[first + 25, 0], goal_images[i])
        # So the explorer's own actions reach the goal, in half of the budget.
        world = task.begin(episodes.part(i, i + 1))
        for action in actions[first : first + 25]:
            world.step(action)
        assert task.distance(world.state(), episodes.goal[i : i + 1])[0] < 1


def test_success_is_within_20_px_together_and_20_degrees(task):
    goal = at(angle=0.1)
    near = goal + np.array([[12, 0, 0, 15.9, np.deg2rad(19.9), 900, 0, 0, 0, 0]])
    assert task.distance(near, goal)[0] < 1 and task.radius == 1 and task.unit == ""
    for change in ((12, 0, 0, 16.1, 0), (0, 0, 0, 0, np.deg2rad(20.1))):
        assert task.distance(goal + np.array([[*change, 0, 0, 0, 0, 0]]), goal)[0] > 1
    turned = at(angle=2 * np.pi - 0.1)
    assert task.distance(turned, goal)[0] == pytest.approx(0.2 / (np.pi / 9), rel=1e-5)


def test_baselines_stay_or_go_straight_to_the_goal(task):
    goal = at((300.0, 60.0))
    for actions in ("absolute", "relative"):
        ends = {}
        for name, policy in make_task(PushTSettings(actions=actions), None).baselines().items():
            world = begun(start=at((60.0, 60.0)), actions=actions)
            for _ in range(40):
                world.step(policy(world, goal))
            ends[name] = task.distance(world.state(), goal)[0]
        assert ends["straight_line"] < 0.1 and ends["idle"] == pytest.approx(12)


def test_the_oracle_is_optional_and_its_copies_go_on_as_the_world_would(task, episodes):
    assert not isinstance(task, HasOracle)
    task = make_task(PushTSettings(), PushTTask(oracle=True))
    assert isinstance(task, HasOracle)
    world = task.begin(episodes.part(0, 2))
    copies = task.simulate(world, 3)
    assert np.array_equal(copies.state(), np.repeat(world.state(), 3, 0))
    for _ in range(5):
        copies.step(np.full((6, 2), 200.0))
        world.step(np.full((2, 2), 200.0))
    assert np.array_equal(copies.state(), np.repeat(world.state(), 3, 0))
    cost = task.oracle_cost(episodes.start, episodes.goal)
    assert (cost >= task.distance(episodes.start, episodes.goal) - 1e-5).all()
    assert (task.oracle_cost(episodes.goal, episodes.goal) == 0).all()
