"""The scripted policies: the one that explores, the solver, the straight line."""

import numpy as np
import pytest

from jepa_wm.worlds.policies import ExplorationPolicy, solver, straight_line
from jepa_wm.worlds.tasks import freeze_tasks, judge
from jepa_wm.worlds.two_rooms.world import TwoRooms


def new_world(count):
    world = TwoRooms()
    world.reset(np.arange(count))
    return world


def explore(world, steps):
    """Positions [steps, B, 2] that the data policy visits."""
    policy, seen = ExplorationPolicy(world.geometry, np.arange(len(world))), []
    for _ in range(steps):
        seen.append(world.agent.copy())
        action = policy.act(world.state())
        assert (np.linalg.norm(action, axis=1) <= world.geometry.max_step + 1e-4).all()
        world.step(action)
    return np.stack(seen)


def drive(tasks, policy):
    """Positions [E, T + 1, 2] of a scripted policy on frozen tasks, 200 steps."""
    world = TwoRooms(tasks.geometry)
    world.reset(tasks.seeds, start=tasks.start, layout=tasks.layout)
    seen = [world.agent.copy()]
    for _ in range(200):
        world.step(policy(world.state(), tasks.goal, tasks.geometry))
        seen.append(world.agent.copy())
    return np.stack(seen, 1)


def test_exploration_uses_the_door_and_covers_both_rooms():
    world = new_world(60)
    seen = explore(world, 300)  # [T, B, 2]
    right = seen[..., 0] > world.wall_x
    crossings = (right[1:] != right[:-1]).sum(0)
    assert (crossings > 0).mean() > 0.9 and crossings.mean() > 2
    assert 0.35 < right.mean() < 0.65
    shares, _, _ = np.histogram2d(
        seen[..., 0].ravel(), seen[..., 1].ravel(), bins=6, range=[[5, 59], [5, 59]]
    )
    assert (shares > 0.2 * shares.mean()).all()


def test_exploration_data_do_not_depend_on_the_batch():
    whole = explore(new_world(5), 50)
    alone = explore(new_world(1), 50)
    assert np.array_equal(whole[:, 0], alone[:, 0])


@pytest.mark.parametrize("name", ["two_rooms", "wall"])
def test_the_scripted_solver_always_arrives(name):
    tasks = freeze_tasks(name, episodes=100, seed=5)
    outcome = judge(drive(tasks, solver), tasks.goal, radius=1.41)
    assert outcome.success_final.all()


def test_the_straight_line_wins_about_two_in_five():
    tasks = freeze_tasks(episodes=200, seed=5)
    outcome = judge(drive(tasks, straight_line), tasks.goal)
    assert 0.25 < outcome.success_final.mean() < 0.5
