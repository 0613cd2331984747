"""The reacher: the suite's physics to the bit, pictures of joint angles, and goals that are images
of an arm."""

import dataclasses
import sys
import time

import numpy as np
import pytest
from pydantic import ValidationError

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.data.quantities import Quantities, grouped
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals.episodes import baselines
from jepa_wm.evals.oracle import oracle
from jepa_wm.planning.action_space import space_of
from jepa_wm.report.artifacts import Episodes as Played
from jepa_wm.report.pictures import episode_gif
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.reacher.drawing import BACKGROUND, FINGER, HALF, draw_arms, places
from jepa_wm.worlds.reacher.policies import WRIST_RANGE, control
from jepa_wm.worlds.reacher.tasks import ReacherTask
from jepa_wm.worlds.reacher.world import ReacherSettings
from jepa_wm.worlds.tasks import Episodes, HasOracle, HasPlane, make_task
from jepa_wm.worlds.world import Adjusting, CollectSettings, World, make_world

NEEDS = "the reacher needs it: pip install 'jepa-wm[reacher]'"
pytest.importorskip("mujoco", reason=NEEDS)
pytest.importorskip("dm_control", reason=NEEDS)


def begun(seeds, **about):
    world = ReacherSettings(**about).make()
    world.reset(np.asarray(seeds))
    return world


def explored(world, seeds, steps):
    """States [steps + 1, B, 6] of a play of the data policy; the world is left at its end."""
    policy, states = world.settings.explore()(np.asarray(seeds)), [world.state()]
    for _ in range(steps):
        world.step(policy(world))
        states.append(world.state())
    return np.stack(states)


def task_of(**about):
    return make_task(ReacherSettings(), ReacherTask(**about))


# ---------------------------------------------------------------- physics


def test_every_step_is_that_of_the_suite():
    suite = pytest.importorskip("dm_control.suite", reason=NEEDS)
    env = suite.load("reacher", "easy")
    env.reset()
    assert env.control_timestep() == 0.02
    for seed, torque in ((0, None), (1, 1.0)):  # a torque throughout holds the wrist at its limit
        world, r = begun([seed]), np.random.default_rng(seed)
        with env.physics.reset_context():
            env.physics.data.qpos[:], env.physics.data.qvel[:] = world.state()[0, :2], 0
        for step in range(200):
            if step % 10 == 0:
                action = np.full(2, torque or r.uniform(-1, 1), np.float32)
            env.step(action)
            world.step(action[None])
            state, data = world.state()[0], env.physics.data
            assert np.array_equal(state[:2], data.qpos.astype("f4")), step
            assert np.array_equal(state[2:4], data.qvel.astype("f4")), step
            finger = env.physics.named.data.geom_xpos["finger", :2]
            assert np.abs(state[4:] - finger).max() < 1e-5
        limit = env.physics.named.model.jnt_range["wrist", 1]
        assert limit == pytest.approx(WRIST_RANGE)
        assert torque is None or state[1] > limit - 0.02


def test_radii_are_those_of_the_targets_of_the_suite():
    suite = pytest.importorskip("dm_control.suite.reacher", reason=NEEDS)
    task = ReacherTask()
    finger = suite.easy().physics.named.model.geom_size["finger", 0]
    targets = suite._BIG_TARGET + finger, suite._SMALL_TARGET + finger
    assert (task.radius, task.strict_radius) == pytest.approx(targets)


def test_a_world_is_the_same_in_any_batch_and_every_time():
    batch, again, alone = begun([9, 3, 7]), begun([9, 3, 7]), begun([7])
    moves = explored(batch, [9, 3, 7], 40)
    assert np.array_equal(moves, explored(again, [9, 3, 7], 40))
    assert np.array_equal(moves[:, 2], explored(alone, [7], 40)[:, 0])
    assert np.array_equal(batch.render(), again.render())
    assert np.array_equal(batch.render()[2], alone.render()[0])
    assert not np.array_equal(moves[:, 0], moves[:, 1])


def test_a_reset_to_a_recorded_state_shows_the_recorded_picture_and_goes_on_alike():
    seeds = np.arange(20)
    world, again = begun(seeds), begun([0])
    explored(world, seeds, 60)
    again.reset(seeds, start=world.state())
    assert np.array_equal(again.render(), world.render())
    assert np.array_equal(again.state(), world.state())
    r = np.random.default_rng(0)
    for step in range(200):
        if step % 15 == 0:  # at full torque many wrists come to their limit
            action = r.choice([-1.0, 0.0, 1.0], (20, 2))
        world.step(action)
        again.step(action)
        assert np.abs(world.state() - again.state()).max() < 1e-5, step
    assert (np.abs(world.state()[:, 1]) > WRIST_RANGE - 0.02).any()


def test_a_reset_is_at_rest_anywhere_within_the_limits():
    state = begun(np.arange(400)).state()
    assert (state[:, 2:4] == 0).all()
    for number, limit in ((0, np.pi), (1, WRIST_RANGE)):
        counts = np.histogram(state[:, number], 8, (-limit, limit))[0]
        assert counts.sum() == 400 and counts.min() > 25


def test_actions_are_clipped_and_what_is_recorded_is_what_was_taken():
    world, clipped = begun([1, 2]), begun([1, 2])
    assert isinstance(world, World) and isinstance(world, Adjusting)
    action = np.array([[3.0, -0.5], [-9.0, 1.5]])
    taken = world.taken(action)
    assert taken.tolist() == [[1, -0.5], [-1, 1]]
    world.step(action)
    clipped.step(taken)
    assert np.array_equal(world.state(), clipped.state())
    space = world.action_space
    idle = begun([1, 2])
    idle.step(np.repeat(space.idle[None], 2, 0))
    assert np.array_equal(idle.state(), begun([1, 2]).state())  # an arm at rest stays there
    for wrong in (np.zeros((2, 3)), np.zeros((1, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="actions of shape"):
            world.step(wrong)


def test_what_cannot_be_is_refused_by_name():
    world = begun([1])
    for wrong in (np.zeros((1, 4)), np.zeros((2, 6)), np.full((1, 6), np.nan)):
        with pytest.raises(ValueError, match="start has shape"):
            world.reset(np.array([1]), start=wrong)
    for settings, field in (
        ({"size": 4}, "size"),
        ({"exploration": {"random": 2}}, "random"),
        ({"exploration": {"noise": -1}}, "noise"),
    ):
        with pytest.raises(ValidationError, match=field):
            make_world({"name": "reacher", **settings})
    with pytest.raises(ValidationError, match="offset"):
        ReacherTask(offset=0)
    with pytest.raises(UserError, match="evaluation.task.radius 0.3"):
        task_of(radius=0.3)


@pytest.mark.parametrize("package", ["mujoco", "dm_control"])
def test_a_missing_package_is_named_with_the_remedy(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}.*pip install 'jepa-wm\[reacher\]'"):
        ReacherSettings().make()


def test_the_state_is_of_named_quantities_in_one_unit_each():
    world = begun([0])
    groups, units = grouped(world.state_names), " ".join(world.state_units)
    quantities = Quantities.parse(groups, units, world.state().shape[1])
    assert dict(quantities.units) == {"angle": "rad", "velocity": "rad/s", "finger": "m"}


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [64, 96])
def test_the_picture_shows_the_finger_and_both_links_where_they_are(size):
    angles = begun(np.arange(200)).state()[:, :2]
    frames, scale = draw_arms(angles, size), size / (2 * HALF)
    assert frames.shape == (200, size, size, 3) and frames.dtype == np.uint8
    wrist, finger = places(angles.astype(float))
    likeness = 1 - np.abs(frames - np.array(FINGER, float)).sum(3) / 300
    weight = np.where(likeness > 0.5, likeness, 0)
    axis = np.arange(size) - (size - 1) / 2
    x = (weight.sum(1) * axis).sum(1) / weight.sum((1, 2)) / scale
    y = -(weight.sum(2) * axis).sum(1) / weight.sum((1, 2)) / scale
    assert np.abs(np.stack([x, y], 1) - finger).max() * scale < 0.5  # px
    for place in (wrist / 2, wrist, (wrist + finger) / 2):
        column = np.rint(place[:, 0] * scale + (size - 1) / 2).astype(int)
        row = np.rint(-place[:, 1] * scale + (size - 1) / 2).astype(int)
        shown = frames[np.arange(200), row, column].astype(float)
        assert (np.abs(shown - BACKGROUND).sum(1) > 100).all()
    edge = [frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]]
    assert all((side == BACKGROUND).all() for side in edge)


def test_the_picture_is_of_the_angles_alone_and_smooth():
    turned = draw_arms(np.array([[0.3, 1.0], [0.3 + 2 * np.pi, 1.0]]), 64)
    assert np.abs(np.diff(turned.astype(int), axis=0)).max() <= 1
    angle = np.stack([np.linspace(0, 0.02, 5), np.full(5, 1.0)], 1)
    steps = np.abs(np.diff(draw_arms(angle, 64).astype(int), axis=0)).sum((1, 2, 3))
    assert (steps > 0).all()  # a turn of .005 rad shows, as no picture of whole pixels would
    assert np.abs(np.diff(draw_arms(angle, 64).astype(int), axis=0)).max() < 60


def test_stepping_and_rendering_are_quick():
    world, policy = begun(np.arange(100)), ReacherSettings().explore()(np.arange(100))
    begin = time.process_time()
    for _ in range(5):
        world.step(policy(world))
        world.render()
    rate = 500 / (time.process_time() - begin)
    assert rate > 1000, f"{rate:.0f} frames a second"  # about 6 times that on a free core


# ---------------------------------------------------------------- data


def test_the_data_policy_gets_to_all_angles_at_all_speeds():
    states = explored(begun(np.arange(300)), np.arange(300), 90).reshape(-1, 6)
    shoulder = (states[:, 0] + np.pi) % (2 * np.pi) - np.pi
    limits = [[-np.pi, np.pi], [-WRIST_RANGE, WRIST_RANGE]]
    cells = np.histogram2d(shoulder, states[:, 1], 10, limits)[0]
    assert cells.min() > 0.1 * cells.mean()
    assert (np.abs(states[:, 2:4]) > 4).any(0).all()
    resting = (np.abs(states[:, 2:4]) < 0.3).all(1).mean()
    assert 0.02 < resting < 0.5


def test_what_is_collected_reads_back(tmp_path):
    settings = ReacherSettings(size=32)
    sizes = CollectSettings(
        episodes=3, episode_length=12, heldout_episodes=2, heldout_episode_length=15
    )
    record_parts(tmp_path, settings.make(), settings.explore(), sizes, 0)
    data = Trajectories(tmp_path / "train.h5")
    assert data.lengths.tolist() == [12] * 3
    assert set(data.quantities.groups) == {"angle", "velocity", "finger"}
    states, world = data.column("state"), settings.make()
    world.reset(np.arange(len(states)), start=states[:])
    assert np.array_equal(world.render(), data.frames[np.arange(len(states))])
    assert len(Trajectories(tmp_path / "heldout.h5").lengths) == 2


# ---------------------------------------------------------------- the task


@pytest.mark.parametrize("offset", [None, 25])
def test_the_set_is_the_same_twice_and_a_longer_one_holds_it(tmp_path, offset):
    task = task_of(offset=offset)
    short, long = task.sample(8, 0), task.sample(30, 0)
    assert short.digest == task.sample(8, 0).digest != task.sample(8, 1).digest
    for name in ("seeds", "start", "goal"):
        assert np.array_equal(getattr(short, name), getattr(long, name)[:8])
    short.save(tmp_path / "tasks.json")
    assert Episodes.load(tmp_path / "tasks.json").digest == short.digest
    assert (task.distance(long.start, long.goal) >= task.radius).all()
    for states in (long.start, long.goal):
        world = task.begin(long)
        world.reset(long.seeds, start=states)
        assert np.array_equal(world.state(), states)  # whole, and possible
        assert (states[:, 2:4] == 0).all() == (offset is None)
    with pytest.raises(ValueError, match="episodes must be at least 1"):
        task.sample(0, 0)


def test_an_offset_is_so_many_steps_of_the_data_policy():
    task = task_of(offset=30)
    episodes = task.sample(6, 0)
    play = explored(begun(episodes.seeds), episodes.seeds, 90)
    for i in range(6):
        first = np.nonzero((play[:, i] == episodes.start[i]).all(1))[0]
        assert len(first) == 1 and np.array_equal(play[first[0] + 30, i], episodes.goal[i])
    with pytest.raises(UserError, match="evaluation.task.offset 1"):
        task_of(offset=1).sample(3, 0)


def test_a_goal_image_is_the_arm_at_the_goal():
    task = task_of(offset=25)
    episodes = task.sample(5, 3)
    assert np.array_equal(task.goal_images(episodes), draw_arms(episodes.goal[:, :2], 64))
    assert task.unit == "m" and not isinstance(task, HasPlane)


def test_success_is_of_the_finger_alone():
    task, goal = task_of(), begun([0]).state()
    turned, bent = goal.copy(), goal.copy()
    turned[:, :4] = 3.0  # what the distance does not read
    bent[:, 4:] += (0.03, 0.04)
    assert task.distance(turned, goal) == 0
    assert task.distance(bent, goal) == pytest.approx(0.05)


@pytest.mark.parametrize(("offset", "budget"), [(None, 100), (25, 50)])
def test_the_controller_wins_the_pull_often_and_chance_hardly(offset, budget):
    task = task_of(offset=offset)
    rates = baselines(task, task.sample(60, 0), budget=budget, repeat=5)
    assert rates["joint_control"]["success_final"] == 1
    assert rates["joint_control"]["success_final_strict"] > 0.9
    assert 0.6 < rates["straight_line"]["success_final"] <= 1
    assert rates["random"]["success_final"] < 0.25


def test_the_oracle_wins_in_copies_of_the_simulator():
    task = task_of(offset=25)
    assert isinstance(task, HasOracle)
    episodes = task.sample(3, 0)
    words = [
        "planner.solver.num_samples=48",
        "planner.solver.iterations=3",
        "planner.mpc.horizon=8",
    ]
    planner = load_config("reacher", words).planner
    space = space_of(task.begin(episodes), frameskip=2, action_repeat=True)
    assert oracle(task, episodes, space, planner, budget=50)["success_any"] == 1


def test_copies_go_as_the_world_does_and_leave_it_alone():
    task, world = task_of(), begun([4, 5])
    explored(world, [4, 5], 30)
    before, copies = world.state(), task.simulate(world, 3)
    assert np.array_equal(copies.state(), np.repeat(before, 3, 0))
    actions = np.random.default_rng(0).uniform(-1, 1, (6, 2))
    copies.step(actions)
    assert np.array_equal(world.state(), before)
    world.step(actions[[1, 4]])
    assert np.array_equal(copies.state()[[1, 4]], world.state())


def test_the_controller_turns_the_shorter_way_round():
    state = np.zeros((2, 6), np.float32)
    torque = control(state, np.array([[3.0, 0.0], [3.5, 0.0]]))
    assert torque[0, 0] > 0 > torque[1, 0]


def test_the_report_shows_an_episode_whose_position_is_no_place_in_the_frame():
    task = task_of()
    world = begun([1])
    states = explored(world, [1], 4)[:, 0]
    frames = draw_arms(states[::2, :2], 64)
    played = Played(
        goal_frame=frames[-1:], frames=frames[None], positions=states[None, ::2],
        goal_position=states[-1:], distance=task.distance(states, states[-1])[None],
        success_final=np.ones(1, bool), success_any=np.ones(1, bool), cost=np.zeros((1, 2, 1)),
        radius=np.array(0.06), unit="m",
    )  # fmt: skip
    assert episode_gif(played, 0).startswith(b"GIF")
    uneven = dataclasses.replace(played, distance=played.distance[:, :-1])
    assert episode_gif(uneven, 0) != episode_gif(played, 0)  # no step is named, so no distance


def test_the_config_is_of_this_world():
    config = load_config("reacher", ["evaluation.task.name=reacher", "evaluation.task.offset=25"])
    assert config.world == ReacherSettings() and config.evaluation.task.offset == 25
    assert config.dynamics.context_frames >= 2  # one frame shows no velocity
    assert config.data.image_size == config.world.size
