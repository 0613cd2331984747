"""The scripted policies: the one that explores, the way through the door, the straight line."""

import numpy as np
import pytest
from rooms import rooms_task

from jepa_wm.evals.episodes import play
from jepa_wm.worlds.tasks import judge
from jepa_wm.worlds.two_rooms.policies import (
    Exploration,
    ExplorationPolicy,
    straight_line,
    through_door,
    toward,
)
from jepa_wm.worlds.two_rooms.world import TwoRooms


def new_world(count):
    world = TwoRooms()
    world.reset(np.arange(count))
    return world


def explore(world, steps):
    """Positions [steps, B, 2] that the data policy visits."""
    policy, seen = (
        ExplorationPolicy(world.geometry, np.arange(len(world)), Exploration(blind=0.3)),
        [],
    )
    for _ in range(steps):
        seen.append(world.agent.copy())
        action = policy.act(world.state())
        assert (np.linalg.norm(action, axis=1) <= world.geometry.max_step + 1e-4).all()
        world.step(action)
    return np.stack(seen)


def drive(task, episodes, policy):
    """Distances [E, T + 1] to the goals of a scripted policy, 200 steps."""
    geometry = task.world.geometry
    track = play(
        task.begin(episodes),
        lambda world: policy(world.state(), episodes.goal, geometry)[:, None],
        budget=200,
    )
    return task.distance(task.position(track.state), episodes.goal[:, None])


def through_the_door(state, goal, geometry):
    """[B, 2] actions of a walk that knows walls and doors."""
    speed = geometry.max_step * geometry.action_scale
    return toward(state[:, :2], through_door(state, goal), speed) / geometry.action_scale


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
    task = rooms_task(name)
    outcome = judge(drive(task, task.sample(100, 5), through_the_door), radius=1.41)
    assert outcome.success_final.all()


def test_the_straight_line_wins_about_two_in_five():
    task = rooms_task()
    outcome = judge(drive(task, task.sample(200, 5), straight_line), radius=task.radius)
    assert 0.25 < outcome.success_final.mean() < 0.5
