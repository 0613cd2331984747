"""Goal tasks out of a recording: the world stands where a recorded frame shows it, and the goal is
a later frame or one of another episode."""

import numpy as np
import pytest

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals.frozen_tasks import frozen_tasks, refuse_recording_of_data
from jepa_wm.evals.settings import EvaluationSettings
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.gym import GymSettings
from jepa_wm.worlds.recorded import RecordedTask
from jepa_wm.worlds.tasks import Episodes, HasOracle, make_task
from jepa_wm.worlds.two_rooms.rooms import Geometry, NoiseLevels
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings
from jepa_wm.worlds.world import WORLDS, CollectSettings

SIZES = CollectSettings(
    episodes=4, episode_length=20, heldout_episodes=6, heldout_episode_length=30
)


def recorded(folder, world):
    record_parts(folder, world.make(), world.explore(), SIZES, seed=0)
    return Trajectories(folder / "heldout.h5")


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("rooms"), TwoRoomsSettings())


def task_of(data, world=None, **about):
    return make_task(world or TwoRoomsSettings(), RecordedTask(path=str(data.path), **about))


def rows_of(data, states):
    return [int(np.flatnonzero((data.states() == state).all(1))[0]) for state in states]


def test_start_and_goal_are_frames_of_one_episode_so_many_steps_apart(rooms):
    task = task_of(rooms, offset=12)
    episodes = task.sample(8, 3)
    starts, goals = rows_of(rooms, episodes.start), rows_of(rooms, episodes.goal)
    assert (np.array(goals) - starts == 12).all()
    held = [np.searchsorted(rooms.offsets, rows, side="right") for rows in (starts, goals)]
    assert (held[0] == held[1]).all() and len(set(held[0].tolist())) > 2
    # The world is what was recorded, to the bit.
    assert np.array_equal(task.begin(episodes).render(), rooms.frames[starts])
    assert np.array_equal(task.begin(episodes).state(), episodes.start)
    assert np.array_equal(task.goal_images(episodes), rooms.frames[goals])


def test_it_is_judged_by_the_rule_of_the_worlds_own_task(rooms):
    task, own = task_of(rooms, offset=20), make_task(TwoRoomsSettings(), None)
    episodes = task.sample(5, 0)
    assert (task.radius, task.strict_radius, task.unit) == (4.5, 1.41, "px")
    apart = np.linalg.norm((episodes.start - episodes.goal)[:, :2], axis=1)
    assert task.distance(episodes.start, episodes.goal) == pytest.approx(apart)
    assert (apart >= 4.5).all() and task.baselines().keys() == own.baselines().keys()
    world, goal = task.begin(episodes), own.position(episodes.goal)
    for name, policy in task.baselines().items():
        assert np.array_equal(
            policy(world, episodes.goal), own.baselines()[name](task.begin(episodes), goal)
        )
    assert isinstance(task, HasOracle)
    costs = task.oracle_cost(episodes.start, episodes.goal)
    assert np.array_equal(costs, own.oracle_cost(episodes.start, goal))
    assert len(task.simulate(world, 3)) == 15
    assert task_of(rooms, radius=9.0, offset=20).radius == 9


def test_the_tasks_are_frozen_and_a_longer_set_holds_the_shorter(rooms, tmp_path):
    long, short = (task_of(rooms, offset=12).sample(n, 3) for n in (9, 4))
    assert np.array_equal(long.start[:4], short.start) and np.array_equal(
        long.goal[:4], short.goal
    )
    long.save(tmp_path / "tasks.json")
    read = Episodes.load(tmp_path / "tasks.json")
    assert read.digest == long.digest and read.settings["recording"] == rooms.digest
    assert task_of(rooms, offset=13).sample(4, 3).digest != short.digest
    assert np.array_equal(long.layout, long.start[:, 2:]) and set(long.split) == {"heldout"}


def test_a_file_of_other_tasks_is_not_taken_for_these(rooms, tmp_path):
    ten, twelve = (task_of(rooms, offset=offset) for offset in (10, 12))
    few = EvaluationSettings(episodes=3)
    first = frozen_tasks(tmp_path / "tasks.json", ten, few)
    assert frozen_tasks(tmp_path / "tasks.json", ten, few).digest == first.digest
    for other in (twelve, make_task(TwoRoomsSettings(), None), task_of(rooms, radius=2.0)):
        with pytest.raises(UserError, match="its tasks are recorded with .* plan in another"):
            frozen_tasks(tmp_path / "tasks.json", other, few)


def test_a_goal_of_another_episode_is_where_no_layout_is(tmp_path):
    pytest.importorskip("mujoco", reason="needs pip install 'jepa-wm[reacher]'")
    world = WORLDS.get("reacher")()
    data = recorded(tmp_path, world)
    episodes = task_of(data, world, offset=None).sample(6, 0)
    held = [
        np.searchsorted(data.offsets, rows_of(data, states), side="right")
        for states in (episodes.start, episodes.goal)
    ]
    assert (held[0] != held[1]).all() and not episodes.layout.shape[1]


def test_what_cannot_be_begun_at_is_refused(rooms, tmp_path):
    with pytest.raises(UserError, match="has layouts, and another episode has another; set"):
        task_of(rooms, offset=None).sample(2, 0)
    with pytest.raises(UserError, match=r"steps on; .* or name longer recordings"):
        task_of(rooms, offset=30).sample(2, 0)
    with pytest.raises(UserError, match="no start was evaluation.task.radius 60 px"):
        task_of(rooms, offset=12, radius=60.0).sample(2, 0)
    with pytest.raises(UserError, match=r"no such trajectory file"):
        make_task(TwoRoomsSettings(), RecordedTask(path=str(tmp_path / "none.h5")))
    with pytest.raises(
        UserError, match=r"its state has 4 numbers, that of the world four_rooms 6"
    ):
        task_of(rooms, WORLDS.get("four_rooms")())
    with pytest.raises(UserError, match=r"has frames \(73, 73, 3\), not \(65, 65, 3\)"):
        task_of(rooms, TwoRoomsSettings(geometry=Geometry(size=73))).sample(2, 0)
    with pytest.raises(UserError, match="two_rooms looks otherwise, by "):
        task_of(rooms, TwoRoomsSettings(render_style="ebjepa")).sample(2, 0)
    noisy = TwoRoomsSettings(noise=NoiseLevels(pixel=0.2))
    task = task_of(rooms, noisy)
    episodes = task.sample(2, 0)  # which noise it is cannot be told
    goals = rows_of(rooms, episodes.goal)
    assert np.array_equal(task.goal_images(episodes, clean=True), rooms.frames[goals])
    with pytest.raises(UserError, match="the world gym has no goal tasks"):
        task_of(rooms, GymSettings())


def test_a_recording_that_the_model_was_trained_on_is_refused(rooms):
    train = rooms.path.with_name("train.h5")
    with pytest.raises(UserError, match="4 of its episodes are in .*train.h5, which the model"):
        refuse_recording_of_data(train, train)
    refuse_recording_of_data(train, rooms.path)
    assert task_of(rooms, offset=20, radius=1.0).strict_radius is None


def test_the_run_s_own_held_out_file_is_what_is_meant_where_none_is_named(tmp_path):
    asked = load_config("debug", ["evaluation.task={name: recorded, offset: 40}"]).evaluation.task
    assert asked.offset == 40 and asked.of_data(tmp_path / "heldout.h5").path == str(
        tmp_path / "heldout.h5"
    )
    assert RecordedTask(path="x.h5").of_data(tmp_path).path == "x.h5"
