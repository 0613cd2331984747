"""The maze: its physics are the package's, its pictures show the ball, its tasks can be won."""

import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gymnasium_robotics", reason="needs pip install 'jepa-wm[mazes]'")
pytest.importorskip("mujoco", reason="needs pip install 'jepa-wm[mazes]'")

from gymnasium_robotics.envs.maze import maps
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv
from pydantic import ValidationError

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.point_maze.maze import BALL, FLOOR, MAPS, WALL, Maze
from jepa_wm.worlds.point_maze.policies import Exploration
from jepa_wm.worlds.point_maze.tasks import PointMazeTask
from jepa_wm.worlds.point_maze.world import PointMaze, PointMazeSettings
from jepa_wm.worlds.tasks import Episodes, HasOracle, make_task
from jepa_wm.worlds.world import Adjusting, CollectSettings, World, make_world

MAZES = sorted(MAPS)


def new_world(maze="u", seeds=1, **settings):
    world = PointMazeSettings(maze=maze, **settings).make()
    world.reset(np.arange(seeds) if isinstance(seeds, int) else np.array(seeds))
    return world


def forces(steps, batch, *, seed=0, size=1.5):
    """[T, B, 2], each kept for ten steps, some beyond the bounds."""
    r = np.random.default_rng(seed)
    kept = r.uniform(-size, size, (steps // 10 + 1, batch, 2))
    return np.repeat(kept, 10, 0)[:steps].astype(np.float32)


def played(world, actions):
    """[T+1, B, 4] states under actions [T, B, 2]."""
    states = [world.state()]
    for action in actions:
        world.step(action)
        states.append(world.state())
    return np.stack(states)


def distances(task, episodes, policy, budget):
    """[E] at the end of the budget."""
    world = task.begin(episodes)
    for _ in range(budget):
        world.step(policy(world, episodes.goal))
    return task.distance(task.position(world.state()), episodes.goal)


# ---------------------------------------------------------------- physics


@pytest.mark.parametrize("maze", MAZES)
def test_every_step_is_the_packages(maze):
    """Step by step along an episode of the package's, into walls too. What float32 rounds off
    grows where a ball meets a corner, so that whole episodes part there."""
    env, world = PointMazeEnv(maze_map=getattr(maps, MAPS[maze])), new_world(maze)
    Path(env.tmp_xml_file_path).unlink()  # which it leaves behind
    env.reset(seed=3)
    begun, hits, fast = world.state()[0].astype(float), 0, 0
    env.point_env.set_state(begun[:2], begun[2:])
    for action in forces(400, 1):
        before = env.point_env._get_obs()[0]
        world.place(before[None].astype(np.float32))
        world.step(action)
        after = env.step(action[0])[0]["observation"]
        hits += env.point_env.data.ncon > 1  # one contact is that with the ground
        fast += np.abs(before[2:]).max() > 5  # which is cut first
        np.testing.assert_allclose(world.state()[0, :2], after[:2], atol=2e-6)
        np.testing.assert_allclose(world.state()[0, 2:], after[2:], atol=2e-4)
    assert hits > 20 and fast > 5, (hits, fast)
    env.close()


def test_a_step_depends_on_state_and_actions_alone_and_on_no_neighbour():
    actions = forces(60, 5)
    batch, again = new_world(seeds=[9, 3, 7, 1, 5]), new_world(seeds=[9, 3, 7, 1, 5])
    alone = new_world(seeds=[7])
    states = played(batch, actions)
    assert np.array_equal(states, played(again, actions))
    assert np.array_equal(states[:, 2:3], played(alone, actions[:, 2:3]))
    assert np.array_equal(batch.render(), again.render())
    assert np.array_equal(batch.render()[2], alone.render()[0])
    assert not np.array_equal(states[0, 0], states[0, 1])


@pytest.mark.parametrize("maze", MAZES)
def test_a_recorded_state_shows_its_picture_and_goes_on_as_it_did(maze):
    actions, world = forces(120, 8, seed=4), new_world(maze, 8)
    played(world, actions[:70])
    middle, frames = world.state(), world.render()
    rest = played(world, actions[70:])
    other = PointMaze(PointMazeSettings(maze=maze))
    other.reset(np.arange(50, 58), start=middle)
    assert np.array_equal(other.state(), middle) and np.array_equal(other.render(), frames)
    assert np.array_equal(played(other, actions[70:]), rest)


def test_forces_are_cut_to_their_bounds_and_none_lets_the_ball_roll_on():
    world, strong = new_world(seeds=3), new_world(seeds=3)
    assert isinstance(world, World) and isinstance(world, Adjusting)
    low, high = world.action_space.low, world.action_space.high
    assert (low == -1).all() and (high == 1).all() and (world.action_space.idle == 0).all()
    many = np.array([[7, -7], [0.5, 2], [-3, 0]], np.float32)
    assert np.array_equal(world.taken(many), [[1, -1], [0.5, 1], [-1, 0]])
    world.step(world.taken(many))
    strong.step(many)
    assert np.array_equal(world.state(), strong.state())
    rolling = np.array([[0, 0, 0, 0], [0.2, 1, 0.4, 0]], np.float32)[1:]
    world.reset(np.arange(1), start=rolling)
    world.step(np.zeros((1, 2)))
    np.testing.assert_allclose(world.state()[0], [0.204, 1, 0.4, 0], atol=2e-3)


def test_no_ball_leaves_the_free_cells():
    for maze in MAZES:
        world = new_world(maze, 20)
        states = played(world, forces(200, 20, seed=1, size=4))
        assert (world.maze.cell(states[..., :2]) >= 0).all()
        assert np.abs(states[..., 2:]).max() < 5.5


def test_wrong_starts_and_actions_are_refused():
    world = new_world(seeds=2)
    for start, why in (
        (np.zeros((2, 2)), "expected"),
        (np.full((2, 4), np.nan), "finite"),
        (np.zeros((2, 4)), "in a wall"),  # the middle of the U is one
        (np.full((2, 4), 99.0), "in a wall"),
        (np.array([[0.0, 1, 0, 0]]), "one for each of the 2 seeds"),
    ):
        with pytest.raises(ValueError, match=why):
            world.reset(np.arange(2), start=start)
    for action in (np.zeros((1, 2)), np.zeros((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="must be finite"):
            world.step(action)


def test_bad_settings_and_a_missing_package_are_named(monkeypatch):
    for wrong, field in (({"maze": "huge"}, "maze"), ({"size": 8}, "size"), ({"siz": 8}, "siz")):
        with pytest.raises(ValidationError, match=field):
            make_world({"name": "point_maze", **wrong})
    with pytest.raises(UserError, match="min_cells 7: no two cells of the maze u are more than 6"):
        make_task(PointMazeSettings(), PointMazeTask(min_cells=7))
    with pytest.raises(UserError, match="task.radius 30 m does not fit the maze u"):
        make_task(PointMazeSettings(), PointMazeTask(radius=30))
    monkeypatch.setitem(sys.modules, "gymnasium_robotics.envs.maze", None)
    with pytest.raises(UserError, match=r"pip install 'jepa-wm\[mazes\]'"):
        Maze("u")


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("maze", MAZES)
@pytest.mark.parametrize("size", [64, 96])
def test_the_picture_shows_the_ball_where_it_is(maze, size):
    world = new_world(maze, 100, size=size)
    frames = world.render().astype(float)
    assert frames.shape == (100, size, size, 3) and world.render().dtype == np.uint8
    # What differs from the maze alone is the ball, its middle where the state has it.
    empty = np.rint(world.maze.background(size))
    share = (frames - empty)[..., 0] / (BALL[0] - empty[..., 0])
    y, x = np.mgrid[:size, :size]
    centre = np.stack([(share * axis).sum((1, 2)) / share.sum((1, 2)) for axis in (x, y)], 1)
    expected = world.maze.to_pixels(world.state()[:, :2], size)
    assert np.abs(centre - expected).max() < 0.08
    assert (share.max((1, 2)) > 0.9).all() and (share.sum((1, 2)) > 6).all()


def test_walls_and_floor_are_where_the_map_has_them():
    world = new_world("medium")
    ground = world.maze.background(64)
    for cell, free in np.ndenumerate(world.maze.free):
        inside = all(0 < c < 7 for c in cell)
        x, y = np.rint(world.maze.to_pixels(world.maze.middle(np.array(cell)), 64)).astype(int)
        if inside:
            assert tuple(ground[y, x]) == (FLOOR if free else WALL)
    assert (ground[0] == WALL).all() and (ground[:, -1] == WALL).all()


def test_stepping_and_drawing_are_quick():
    world = new_world("large", 100)
    world.render()
    begun = time.process_time()
    for _ in range(20):
        world.step(np.ones((100, 2)))
        world.render()
    rate = 2000 / (time.process_time() - begun)
    assert rate > 1500, f"{rate:.0f} frames a second"  # about 20 times that on a free core


# ---------------------------------------------------------------- ways and exploration


@pytest.mark.parametrize("maze", MAZES)
def test_ways_are_as_long_as_they_must_be(maze):
    m, r = new_world(maze).maze, np.random.default_rng(0)
    cells = r.integers(len(m.cells), size=(300, 2))
    start, goal = (np.array([m.place(r, int(c)) for c in column]) for column in cells.T)
    waypoint, length = m.way(start, goal)
    steps = m.cell_steps[cells[:, 0], cells[:, 1]]
    straight = np.linalg.norm(start - goal, axis=1)
    assert (length >= straight - 1e-5).all()
    assert (length <= steps + 1.5).all() and (length >= steps / np.sqrt(2) - 1.5).all()
    np.testing.assert_allclose(length, m.way(goal, start)[1], rtol=1e-5)
    assert (m.cell(waypoint) >= 0).all()
    near = steps <= 1
    assert near.any() and np.allclose(length[near], straight[near], atol=1e-5)
    with pytest.raises(ValueError, match="wall"):
        m.way(np.array([[0.0, 0.0]]) + m.middle(np.array([0, 0])), goal[:1])


@pytest.mark.parametrize("maze", MAZES)
def test_exploration_covers_the_maze_and_reaches_speed(maze):
    settings = PointMazeSettings(maze=maze)
    world, seeds = new_world(maze, 300), np.arange(300)
    policy = settings.explore()(seeds)
    states, actions = [], []
    for _ in range(150):
        states.append(world.state())
        actions.append(policy(world))
        world.step(actions[-1])
    held = world.maze.cell(np.stack(states)[..., :2])
    count = np.bincount(held.ravel(), minlength=len(world.maze.cells))
    assert count.min() > 0.1 * count.mean() and np.abs(actions).max() <= 1
    speed = np.abs(np.stack(states)[..., 2:]).max(2)
    assert np.quantile(speed, 0.1) < 0.5 and np.quantile(speed, 0.9) > 3
    # It too is the same in any batch.
    alone, one = new_world(maze, [17]), settings.explore()(np.array([17]))
    for step in range(50):
        action = one(alone)
        assert np.array_equal(action[0], actions[step][17])
        alone.step(action)


def test_shares_of_the_exploration_are_settings():
    r = Exploration(wander=1.0, mean_repeat=200)
    world, policy = new_world(seeds=4), PointMazeSettings(exploration=r).explore()(np.arange(4))
    first = policy(world)
    world.step(first)
    assert np.array_equal(first, policy(world))
    with pytest.raises(ValidationError, match="wander"):
        Exploration(wander=2.0)


# ---------------------------------------------------------------- the task


def test_episodes_are_frozen_and_a_longer_set_holds_the_shorter(tmp_path):
    task = make_task(PointMazeSettings(maze="medium"), PointMazeTask(min_cells=3))
    short, long, other = task.sample(5, 0), task.sample(30, 0), task.sample(5, 1)
    for name in ("seeds", "split", "layout", "start", "goal"):
        assert np.array_equal(getattr(short, name), getattr(long.part(0, 5), name))
    assert short.digest == task.sample(5, 0).digest
    assert len({short.digest, long.digest, other.digest}) == 3
    long.save(tmp_path / "tasks.json")
    assert Episodes.load(tmp_path / "tasks.json").digest == long.digest
    m = new_world("medium").maze
    assert (m.cell_steps[m.cell(long.start), m.cell(long.goal)] >= 3).all()
    assert (task.distance(long.start, long.goal) >= 0.5).all()
    with pytest.raises(ValueError, match="episodes"):
        task.sample(0, 0)


def test_the_set_of_the_protocol_never_changes():
    task = make_task(PointMazeSettings(), None)
    assert (task.name, task.radius, task.unit) == ("point_maze", 0.5, "m")
    assert task.sample(100, 0).digest == "1d9fbca4f7f1a8ac"


def test_goals_are_pictures_of_balls_at_rest_there():
    task = make_task(PointMazeSettings(), None)
    episodes, world = task.sample(4, 2), new_world()
    world.reset(np.arange(4), start=np.concatenate([episodes.goal, np.zeros((4, 2))], 1))
    assert np.array_equal(task.goal_images(episodes), world.render())
    begun = task.begin(episodes)
    assert np.array_equal(task.position(begun.state()), episodes.start)
    assert not begun.state()[:, 2:].any()


@pytest.mark.parametrize(("maze", "budget"), [("u", 200), ("medium", 400), ("large", 600)])
def test_the_shortest_way_wins_where_a_straight_line_does_not(maze, budget):
    task = make_task(PointMazeSettings(maze=maze), PointMazeTask(min_cells=3))
    episodes, policies = task.sample(100, 0), task.baselines()
    reached = {name: distances(task, episodes, p, budget) < 0.5 for name, p in policies.items()}
    assert reached["shortest_way"].mean() >= 0.98
    assert reached["straight_line"].mean() < 0.7


def test_plans_in_the_true_simulator_come_nearer():
    """A search by random plans, as the oracle's: of the best of them the true cost falls."""
    task = make_task(PointMazeSettings(), PointMazeTask(min_cells=3))
    assert isinstance(task, HasOracle)
    episodes, r = task.sample(10, 1), np.random.default_rng(0)
    world = task.begin(episodes)
    before = task.oracle_cost(world.state(), episodes.goal)
    for _ in range(8):
        copies, held = task.simulate(world, 32), r.uniform(-1, 1, (320, 2)).astype(np.float32)
        assert np.array_equal(copies.state()[32:64], np.repeat(world.state()[1:2], 32, 0))
        for _ in range(15):
            copies.step(held)
        cost = task.oracle_cost(copies.state(), np.repeat(episodes.goal, 32, 0)).reshape(10, 32)
        best = held.reshape(10, 32, 2)[np.arange(10), cost.argmin(1)]
        for _ in range(15):
            world.step(best)
    after = task.oracle_cost(world.state(), episodes.goal)
    assert (after < before).all() and after.mean() < 0.4 * before.mean()


# ---------------------------------------------------------------- what is recorded


def test_what_is_recorded_is_played_again_to_the_bit(tmp_path):
    settings = PointMazeSettings(maze="large")
    sizes = CollectSettings(
        episodes=3, episode_length=9, heldout_episodes=2, heldout_episode_length=12
    )
    record_parts(tmp_path, settings.make(), settings.explore(), sizes, 0)
    data = Trajectories(tmp_path / "train.h5")
    assert data.lengths.tolist() == [9, 9, 9]
    assert data.quantities.groups == {"agent": [0, 1], "velocity": [2, 3]}
    assert Trajectories(tmp_path / "heldout.h5").lengths.tolist() == [12, 12]
    states, world = data.column("state"), settings.make()
    for row in data.offsets:
        world.reset(np.zeros(1), start=states[row + 2][None])
        for step in range(2, 9):
            assert np.array_equal(data.frames[row + step], world.render()[0])
            assert np.array_equal(states[row + step], world.state()[0])
            world.step(data.actions[row + step][None])


def test_the_config_is_for_every_maze():
    for maze in MAZES:
        config = load_config("point_maze", [f"world.maze={maze}"])
        assert config.world.maze == maze and config.features.stride == 5
        assert config.dynamics.frameskip == 5
        make_task(config.world, config.evaluation.task).sample(3, 0)


def test_a_place_in_a_wall_costs_the_way_from_the_nearest_free_one():
    task = make_task(PointMazeSettings(maze="u"), None)
    free = np.array([[-1.0, 1.0], [1.0, -1.0]], np.float32)
    assert np.array_equal(task.maze.nearest_free(free), free)
    wall = np.array([[0.0, 0.0]], np.float32)  # the u's middle
    assert task.maze.cell(wall) < 0 <= task.maze.cell(task.maze.nearest_free(wall))
    goal = np.array([[-1.0, -1.0]], np.float32)
    costs = task.oracle_cost(np.concatenate([wall, wall * 0], 1), goal)
    assert np.isfinite(costs).all() and costs[0] > np.linalg.norm(goal - wall)
