"""Frozen tasks, success rules and the interval every rate is printed with."""

import json

import numpy as np
import pytest
from rooms import frozen, rooms_task

from jepa_wm.core.errors import UserError
from jepa_wm.evals.scores import wilson
from jepa_wm.worlds.gym import GymSettings
from jepa_wm.worlds.tasks import TASKS, Episodes, judge, make_task
from jepa_wm.worlds.two_rooms.rooms import WALL_HALF, Geometry
from jepa_wm.worlds.two_rooms.tasks import TwoRoomsTask
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings

# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", ["two_rooms", "wall"])
def test_starts_and_goals_are_uniform_in_opposite_rooms_and_never_near(name):
    task = rooms_task(name)
    tasks = task.sample(300, 1)
    world = task.begin(tasks)
    side = np.sign(tasks.start[:, 0] - world.wall_x)
    assert (side == -np.sign(tasks.goal[:, 0] - world.wall_x)).all()
    for points in (tasks.start, tasks.goal):
        assert (np.abs(points[:, 0] - world.wall_x) >= WALL_HALF).all()
        assert (points >= 5).all() and (points <= 59).all()
        assert (
            abs(points[:, 1].mean() - 32) < 3
            and points[:, 1].min() < 7
            and points[:, 1].max() > 57
        )
    assert 0.4 < (side > 0).mean() < 0.6
    assert (np.linalg.norm(tasks.start - tasks.goal, axis=1) >= 4.5).all()
    assert np.array_equal(world.agent, tasks.start)


def test_near_pairs_are_drawn_again_and_the_others_kept():
    kept, redrawn = frozen(episodes=150, radius=1e-9), frozen(episodes=150, radius=20.0)
    far = np.linalg.norm(kept.start - kept.goal, axis=1) >= 20
    assert 0 < far.sum() < 300
    assert np.array_equal(kept.start[far], redrawn.start[far]) and np.array_equal(
        kept.goal[far], redrawn.goal[far]
    )
    assert (np.linalg.norm(redrawn.start - redrawn.goal, axis=1) >= 20).all()
    assert np.array_equal(kept.seeds, redrawn.seeds)


def test_a_longer_set_holds_the_shorter_and_another_seed_is_another_set():
    short, long, other = (frozen(episodes=5), frozen(episodes=40), frozen(episodes=5, seed=1))
    assert short.split.tolist() == ["heldout"] * 5 + ["train"] * 5 and len(long) == 80
    for field in ("seeds", "layout", "start", "goal"):
        for split in ("heldout", "train"):
            assert np.array_equal(
                getattr(short.of(split), field), getattr(long.of(split).part(0, 5), field)
            )
        assert not np.array_equal(getattr(short, field), getattr(other, field))
    assert len({short.digest, long.digest, other.digest, frozen("wall", episodes=5).digest}) == 4
    assert short.digest == frozen(episodes=5).digest


def test_the_set_of_the_protocol_never_changes():
    assert frozen(episodes=100).digest == "01bf21138f2288f9"
    assert frozen("wall", episodes=100).digest == "23f1026032c6ebde"


def test_the_wall_task_is_dino_wms_setting():
    geometry = rooms_task("wall").world.geometry
    world = TwoRoomsSettings(geometry=geometry).make()
    world.reset(np.arange(20))
    assert (world.wall_x == 32).all() and geometry.door_half == 4
    world.agent = np.full((20, 2), 10.0, np.float32)
    world.step(np.tile(np.array([1.0, 0.5], np.float32), (20, 1)))
    np.testing.assert_allclose(world.agent, np.tile([12.0, 11.0], (20, 1)), rtol=1e-6)


def test_tasks_survive_the_disk_and_edits_are_noticed(tmp_path):
    tasks, path = frozen("wall", episodes=7, seed=3), tmp_path / "tasks.json"
    tasks.save(path)
    loaded = Episodes.load(path)
    assert (loaded.digest, loaded.settings, loaded.name, loaded.seed) == (
        tasks.digest,
        tasks.settings,
        "wall",
        3,
    )
    for field in ("seeds", "split", "layout", "start", "goal"):
        assert getattr(loaded, field).dtype == getattr(tasks, field).dtype
        assert np.array_equal(getattr(loaded, field), getattr(tasks, field))
    plain = json.loads(path.read_text())
    plain["goal"][0][0] += 1.0
    path.write_text(json.dumps(plain))
    with pytest.raises(UserError, match="changed after it was frozen"):
        Episodes.load(path)
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match="is no task file"):
        Episodes.load(path)
    for broken in (
        "[]",
        "{}",
        json.dumps({**plain, "start": [1, 2, 3]}),
        json.dumps({**plain, "start": plain["start"][1:]}),
        json.dumps({**plain, "split": ["both"] * len(plain["split"])}),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match="is no task file"):
            Episodes.load(path)
    path.write_text(json.dumps({**plain, "geometry": {"sise": 3}}))
    with pytest.raises(UserError, match="changed after it was frozen"):
        Episodes.load(path)
    with pytest.raises(UserError, match="no such task file"):
        Episodes.load(tmp_path / "other.json")


def test_tasks_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="episodes"):
        frozen(episodes=0)
    with pytest.raises(UserError, match="evaluation.task.radius 60 px does not fit rooms"):
        frozen(radius=60.0)
    with pytest.raises(UserError, match="no task is named 'maze'; .*there are .*two_rooms, wall"):
        TASKS.get("maze")


def test_the_task_is_the_worlds_own_where_the_config_names_none():
    world = TwoRoomsSettings()
    own, named = make_task(world, None), make_task(world, TwoRoomsTask(radius=3.0))
    assert (own.name, own.radius, own.unit) == ("two_rooms", 4.5, "px") and named.radius == 3.0
    with pytest.raises(UserError, match="the world gym has no goal tasks"):
        make_task(GymSettings(), None)


def test_a_task_of_another_world_is_refused():
    class Maze(TwoRoomsSettings):
        tasks = ("maze",)

    with pytest.raises(
        UserError, match="task.name wall is no task of the world two_rooms; it has maze"
    ):
        make_task(Maze(), TASKS.get("wall")())


# ---------------------------------------------------------------- success and intervals


def test_both_readings_of_success_are_judged():
    x = np.array([[9, 9, 4.4], [9, 4.4, 9], [9, 9, 4.5], [4.4, 9, 9]], np.float32)
    whole = judge(x, radius=4.5)
    assert whole.success_final.tolist() == [True, False, False, False]
    assert whole.success_any.tolist() == [True, True, False, True]
    short = judge(x[:, :2], radius=4.5)
    assert short.success_final.tolist() == [False, True, False, False]
    assert judge(x, radius=1.41).success_any.tolist() == [False] * 4
    with pytest.raises(ValueError, match="NaN"):
        judge(x * np.nan, radius=4.5)
    with pytest.raises(ValueError, match="expected"):
        judge(x[None], radius=4.5)


def test_the_wilson_interval_is_the_published_one():
    for (k, n), expected in {
        (81, 263): (0.2553, 0.3662),  # Newcombe, Statistics in Medicine 17 (1998), table I
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
        (97, 100): (0.9155, 0.9897),
    }.items():
        assert wilson(k, n) == pytest.approx(expected, abs=1e-4)
    assert wilson(20, 20)[1] == 1.0 and wilson(0, 0) == (0.0, 1.0)
    low, high = wilson(3, 10)
    assert wilson(7, 10) == pytest.approx((1 - high, 1 - low))
    for bad in ((-1, 3), (4, 3), (0, -1)):
        with pytest.raises(ValueError, match="cannot be"):
            wilson(*bad)


def test_geometry_of_the_task_is_what_the_caller_asked_for():
    tasks = frozen(geometry=Geometry(door_half=6.0), episodes=2)
    wall = rooms_task("wall", geometry=Geometry(size=65)).world.geometry
    assert tasks.settings["geometry"]["door_half"] == 6.0 and wall.fixed_wall == 32
