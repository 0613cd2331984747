"""Frozen tasks, success rules and the interval every rate is printed with."""

import json

import numpy as np
import pytest

from jepa_wm.core.errors import UserError
from jepa_wm.evals import planning
from jepa_wm.evals.intervals import wilson
from jepa_wm.worlds.settings import Geometry
from jepa_wm.worlds.tasks import Tasks, freeze_tasks, judge, task_geometry
from jepa_wm.worlds.two_rooms.world import WALL_HALF, TwoRooms

# ---------------------------------------------------------------- tasks


@pytest.mark.parametrize("name", ["two_rooms", "wall"])
def test_starts_and_goals_are_uniform_in_opposite_rooms_and_never_near(name):
    tasks = freeze_tasks(name, episodes=300, seed=1)
    world = TwoRooms(tasks.geometry)
    world.reset(tasks.seeds, start=tasks.start, layout=tasks.layout)
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
    kept, redrawn = freeze_tasks(episodes=150, radius=0.0), freeze_tasks(episodes=150, radius=20.0)
    far = np.linalg.norm(kept.start - kept.goal, axis=1) >= 20
    assert 0 < far.sum() < 300
    assert np.array_equal(kept.start[far], redrawn.start[far]) and np.array_equal(
        kept.goal[far], redrawn.goal[far]
    )
    assert (np.linalg.norm(redrawn.start - redrawn.goal, axis=1) >= 20).all()
    assert np.array_equal(kept.seeds, redrawn.seeds)


def test_a_longer_set_holds_the_shorter_and_another_seed_is_another_set():
    short, long, other = (
        freeze_tasks(episodes=5),
        freeze_tasks(episodes=40),
        freeze_tasks(episodes=5, seed=1),
    )
    assert short.split.tolist() == ["heldout"] * 5 + ["train"] * 5 and len(long) == 80
    for field in ("seeds", "layout", "start", "goal"):
        for split in ("heldout", "train"):
            assert np.array_equal(
                getattr(short.of(split), field), getattr(long.of(split).part(0, 5), field)
            )
        assert not np.array_equal(getattr(short, field), getattr(other, field))
    assert (
        len({short.digest, long.digest, other.digest, freeze_tasks("wall", episodes=5).digest})
        == 4
    )
    assert short.digest == freeze_tasks(episodes=5).digest


def test_the_set_of_the_protocol_never_changes():
    assert freeze_tasks(episodes=100).digest == "01bf21138f2288f9"
    assert freeze_tasks("wall", episodes=100).digest == "23f1026032c6ebde"


def test_the_wall_task_is_dino_wms_setting():
    geometry = task_geometry("wall")
    world = TwoRooms(geometry)
    world.reset(np.arange(20))
    assert (world.wall_x == 32).all() and geometry.door_half == 4
    world.agent = np.full((20, 2), 10.0, np.float32)
    world.step(np.tile(np.array([1.0, 0.5], np.float32), (20, 1)))
    np.testing.assert_allclose(world.agent, np.tile([12.0, 11.0], (20, 1)), rtol=1e-6)


def test_tasks_survive_the_disk_and_edits_are_noticed(tmp_path):
    tasks, path = freeze_tasks("wall", episodes=7, seed=3), tmp_path / "tasks.json"
    tasks.save(path)
    loaded = Tasks.load(path)
    assert (loaded.digest, loaded.geometry, loaded.name, loaded.seed) == (
        tasks.digest,
        tasks.geometry,
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
        Tasks.load(path)
    path.write_text("{" + path.read_text())
    with pytest.raises(UserError, match="is no task file"):
        Tasks.load(path)
    for broken in (
        "[]",
        "{}",
        json.dumps({**plain, "geometry": {"sise": 3}}),
        json.dumps({**plain, "start": [1, 2, 3]}),
        json.dumps({**plain, "start": plain["start"][1:]}),
        json.dumps({**plain, "split": ["both"] * len(plain["split"])}),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match="is no task file"):
            Tasks.load(path)
    with pytest.raises(UserError, match="no such task file"):
        Tasks.load(tmp_path / "other.json")


def test_tasks_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="episodes"):
        freeze_tasks(episodes=0)
    with pytest.raises(ValueError, match="radius"):
        freeze_tasks(radius=60.0)
    with pytest.raises(ValueError, match="choose one of two_rooms, wall"):
        freeze_tasks("maze")


# ---------------------------------------------------------------- success and intervals


def test_final_and_latched_are_judged_within_the_budget():
    goal = np.zeros((4, 2), np.float32)
    x = np.array([[9, 9, 4.4], [9, 4.4, 9], [9, 9, 4.5], [4.4, 9, 9]], np.float32)
    positions = np.stack([x, np.zeros_like(x)], -1)
    whole = judge(positions, goal)
    assert whole.success_final.tolist() == [True, False, False, False]
    assert whole.success_any.tolist() == [True, True, False, True]
    assert np.array_equal(whole.distance, x)
    short = judge(positions, goal, budget=1)
    assert short.success_final.tolist() == [False, True, False, False]
    assert judge(positions, goal, radius=1.41).success_any.tolist() == [False] * 4
    with pytest.raises(ValueError, match="2 steps were recorded, the budget is 3"):
        judge(positions, goal, budget=3)
    with pytest.raises(ValueError, match="NaN"):
        judge(positions * np.nan, goal)
    with pytest.raises(ValueError, match="expected"):
        judge(positions, goal[:2])


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
    tasks = freeze_tasks(geometry=Geometry(door_half=6.0), episodes=2)
    assert (
        tasks.geometry.door_half == 6.0
        and task_geometry("wall", Geometry(size=65)).fixed_wall == 32
    )


def test_frozen_tasks_are_not_written_over_by_others(tmp_path, monkeypatch, capsys):
    file = tmp_path / "tasks.json"

    def freeze(*words):
        monkeypatch.setattr(
            "sys.argv", ["planning", "freeze", str(file), "--episodes", "4", *words]
        )
        planning.main()

    freeze()
    before = file.read_bytes()
    freeze()
    assert file.read_bytes() == before
    with pytest.raises(SystemExit):
        freeze("--seed", "1")
    assert file.read_bytes() == before and "holds something else" in capsys.readouterr().err
    file.write_text("notes")
    with pytest.raises(SystemExit):
        freeze()
    assert file.read_text() == "notes"
