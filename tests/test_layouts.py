"""What is called held out is held out by content: layouts of tasks and of trajectories against
those of training."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from rooms import frozen, rooms_task

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import STAGES
from jepa_wm.data import held_out
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals import goal_reaching as evaluate
from jepa_wm.evals import returns
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.collect import record, record_parts
from jepa_wm.worlds.tasks import Episodes
from jepa_wm.worlds.two_rooms.rooms import Geometry, in_split
from jepa_wm.worlds.two_rooms.world import TwoRooms, TwoRoomsSettings

DATA = [
    "collect.episodes=400",
    "collect.episode_length=3",
    "collect.heldout_episodes=60",
    "collect.heldout_episode_length=3",
]


def all_layouts(g):
    walls = [g.fixed_wall] if g.fixed_wall else range(g.wall_padding, g.size - g.wall_padding)
    return np.array(
        [(wall, door) for wall in walls for door in range(g.door_padding, g.size - g.door_padding)]
    )


def pairs(layouts):
    return set(map(tuple, np.asarray(layouts).tolist()))


# ---------------------------------------------------------------- the partition


@pytest.mark.parametrize(
    ("geometry", "apart"),
    [
        (Geometry(), 2),
        (Geometry(fixed_wall=32), 2),
        (Geometry(fixed_wall=20), 2),  # a wall on the rim of its block
        (Geometry(size=33, wall_padding=14, door_padding=10), 1),
        (Geometry(wall_padding=31, door_padding=31), 1),
    ],
)
def test_splits_are_disjoint_and_apart_and_both_spread_over_the_plane(geometry, apart):
    layouts = all_layouts(geometry)
    train, heldout = (
        layouts[in_split(layouts, geometry, split)] for split in ("train", "heldout")
    )
    assert len(train) and len(heldout) and not pairs(train) & pairs(heldout)
    gaps = np.abs(heldout[:, None] - train).max(-1).min(1)
    assert gaps.min() == apart
    assert 0.6 < len(train) / len(layouts) < 0.9
    if geometry == Geometry():
        assert (len(train), len(heldout)) == (950, 63)
        assert (
            heldout[:, 1].min() > train[:, 1].min() + 4
            and heldout[:, 1].max() < train[:, 1].max() - 4
        )
        for part in (train, heldout):
            assert (
                np.abs(part.mean(0) - (32, 32)).max() < 3
                and (np.ptp(part, axis=0) >= (20, 30)).all()
            )


@pytest.mark.parametrize("wall", range(20, 45))
@pytest.mark.parametrize("door_padding", [10, 13, 20, 26])
def test_where_the_wall_is_fixed_held_out_doors_lie_between_those_of_training(wall, door_padding):
    """Doors farther out than any that was met would ask for more than is claimed."""
    geometry = Geometry(fixed_wall=wall, door_padding=door_padding)
    layouts = all_layouts(geometry)
    train, heldout = (
        layouts[in_split(layouts, geometry, split), 1] for split in ("train", "heldout")
    )
    assert train.min() < heldout.min() and heldout.max() < train.max()


def test_a_fixed_wall_is_split_as_the_same_layouts_of_random_walls():
    """The task `wall` is played by models whose training had walls anywhere."""
    wall = all_layouts(Geometry(fixed_wall=32))
    for split in ("train", "heldout"):
        random, fixed = (in_split(wall, g, split) for g in (Geometry(), Geometry(fixed_wall=32)))
        assert np.array_equal(random, fixed) and fixed.any()


@pytest.mark.parametrize(
    "geometry", [Geometry(fixed_wall=32, door_padding=32), Geometry(wall_padding=40)]
)
def test_a_geometry_with_too_few_layouts_is_refused(geometry):
    with pytest.raises(
        UserError, match="world.geometry has .* layouts.*door_padding or wall_padding"
    ):
        TwoRoomsSettings(geometry=geometry).make().of_split("heldout")
    with pytest.raises(UserError, match="world.geometry"):
        frozen(geometry=geometry, episodes=2)


def test_a_world_of_a_split_draws_all_its_layouts_and_no_other_and_is_a_function_of_its_seed():
    for split in ("train", "heldout"):
        world, batch = TwoRooms().of_split(split), np.arange(9000)
        world.reset(batch)
        layouts = all_layouts(Geometry())
        assert pairs(world.state()[:, 2:]) == pairs(layouts[in_split(layouts, Geometry(), split)])
        alone = TwoRooms().of_split(split)
        alone.reset(batch[[7]])
        assert np.array_equal(alone.state(), world.state()[[7]])


def test_a_given_layout_is_taken():
    world = TwoRooms()
    world.reset(np.arange(2), layout=np.array([[22, 40], [30.5, 12]]), start=np.full((2, 2), 9.0))
    assert world.state()[:, 2:].tolist() == [[22, 40], [30.5, 12]]
    with pytest.raises(ValueError, match="layout has shape"):
        world.reset(np.arange(3), layout=np.zeros((2, 2)))


# ---------------------------------------------------------------- tasks and data


@pytest.mark.parametrize("task", ["two_rooms", "wall"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_no_held_out_task_or_episode_has_a_layout_of_the_training_file(tmp_path, task, seed):
    config = load_config("two_rooms", [f"seed={seed}", *DATA])
    record_parts(tmp_path, TwoRooms(), TwoRoomsSettings().explore(), config.collect, config.seed)
    train, heldout = (
        pairs(held_out.Layouts.of(Trajectories(tmp_path / f"{p}.h5")).values)
        for p in ("train", "heldout")
    )
    rooms = rooms_task(task)
    tasks = rooms.sample(100, 0)
    assert len(train) > 300 and len(heldout) > 30 and not train & heldout
    assert not train & pairs(tasks.of("heldout").layout)
    on_training = tasks.of("train").layout
    assert in_split(on_training, rooms.world.geometry, "train").all() and len(on_training) == 100
    world = rooms.begin(tasks)
    assert np.array_equal(world.state(), np.concatenate([tasks.start, tasks.layout], 1))


def leaked(folder, config, layout):
    """Training data with one episode of a layout [2]."""
    record_parts(folder, TwoRooms(), TwoRoomsSettings().explore(), config.collect, config.seed)
    with h5py.File(folder / "train.h5", "r+") as file:
        row = int(file["ep_offset"][5])
        file["state"][row : row + 3, 2:] = layout


@pytest.mark.parametrize("off", [0.0, 0.6])
def test_collecting_refuses_a_held_out_file_that_is_not(tmp_path, off):
    """Files of an earlier collecting, or of other programs, whose layouts need be no whole
    numbers."""
    config = load_config("two_rooms", DATA)
    record_parts(
        tmp_path / "collect", TwoRooms(), TwoRoomsSettings().explore(), config.collect, config.seed
    )
    layout = held_out.Layouts.of(Trajectories(tmp_path / "collect" / "heldout.h5")).values[3]
    leaked(tmp_path / "collect", config, layout + off)
    with (
        Run.open(tmp_path, config) as run,
        pytest.raises(UserError, match="have a layout that is in .*train.h5"),
    ):
        run_stage("collect", run)


def test_collecting_tells_that_no_layout_is_in_both_files(tmp_path):
    with Run.open(tmp_path, load_config("two_rooms", DATA)) as run:
        result = run_stage("collect", run)
    assert result["common_layouts"] == 0 and result["common_episodes"] == 0


def test_a_headline_task_with_a_layout_of_the_training_file_is_an_error(tmp_path):
    config = load_config("two_rooms", DATA)
    tasks = frozen(episodes=10)
    held, training = tasks.of("heldout").layout, tasks.of("train").layout
    leaked(tmp_path / "collect", config, training[4])
    train = tmp_path / "collect" / "train.h5"
    told = held_out.layouts_met(train, held, training)
    assert told["unit"] == "px"
    assert told["heldout"] == {"episodes": 10, "met": 0, "nearest": told["heldout"]["nearest"]}
    assert told["heldout"]["nearest"] >= 2 and 1 <= told["training"]["met"] <= 10
    with h5py.File(train, "r+") as file:
        file["state"][int(file["ep_offset"][7]), 2:] = held[2]
    with pytest.raises(
        UserError, match=f"layouts of .* wall_x {held[2, 0]:g}, door_y {held[2, 1]:g}.*--run"
    ):
        held_out.layouts_met(train, held, training)


def test_data_that_do_not_tell_layouts_are_warned_of(tmp_path):
    config = load_config("two_rooms", DATA)
    record_parts(
        tmp_path / "collect", TwoRooms(), TwoRoomsSettings().explore(), config.collect, config.seed
    )
    with h5py.File(tmp_path / "collect" / "train.h5", "r+") as file:
        file["state"][:] = np.nan
    layouts = np.array([[22.0, 22.0]])
    with pytest.warns(UserWarning, match="tells no layouts"):
        train = tmp_path / "collect" / "train.h5"
        assert held_out.layouts_met(train, layouts, layouts)["heldout"]["met"] is None


def test_a_frozen_file_names_the_split_of_each_task(tmp_path):
    frozen(episodes=3).save(tmp_path / "tasks.json")
    assert (
        json.loads((tmp_path / "tasks.json").read_text())["split"]
        == ["heldout"] * 3 + ["train"] * 3
    )
    assert Episodes.load(tmp_path / "tasks.json").of("train").split.tolist() == ["train"] * 3


def test_every_job_plays_both_kinds_and_what_is_compared_on_held_out_ones_alone():
    tasks = frozen(episodes=4)
    config = load_config("two_rooms", ["planner.mpc.also_evaluate=[l2,l1]"])
    plays = evaluate.plays(config.planner, ("gcbc",), tasks)
    assert [(one.folder, set(one.episodes.split)) for one in plays] == [
        ("main", {"heldout"}), ("l2", {"heldout"}), ("l1", {"heldout"}),
        ("main_training_layouts", {"train"}),
        ("policy_gcbc", {"heldout"}), ("policy_gcbc_training_layouts", {"train"}),
    ]  # fmt: skip


def test_rewards_are_earned_on_held_out_layouts_too():
    config = load_config("two_rooms_reward", [])
    worlds = returns.rewarding_worlds(config.world)
    assert list(worlds) == ["", "_training_layouts"]
    for world, split in zip(worlds.values(), ("heldout", "train"), strict=True):
        world.reset(np.arange(50))
        assert in_split(world.state()[:, 2:], config.world.geometry, split).all()


def test_episodes_of_a_world_without_splits_are_not_those_of_its_data(tmp_path, monkeypatch):
    """evaluation.task_seed=80 with seed=1 begins where the data of seed 1 do."""
    settings = SimpleNamespace(latent=SimpleNamespace(read_states=()))
    model = SimpleNamespace(latent_model=SimpleNamespace(settings=settings))
    monkeypatch.setattr(WorldModel, "load", lambda path: model)
    monkeypatch.setattr(returns.RewardPlay, "judge", lambda self: {"judged": True})
    for seed, fine in ((0, True), (1, False)):
        config = load_config("pendulum", [f"seed={seed}", "evaluation.task_seed=80"])
        plan = STAGES.get("plan")
        with Run.open(tmp_path / str(seed), config) as run:
            if fine:
                assert plan(run, **plan.settings(config)) == {"judged": True}
            else:
                with pytest.raises(UserError, match="evaluation.task_seed 80"):
                    plan(run, **plan.settings(config))


def test_recording_leaves_a_world_without_a_split_as_it_is(tmp_path):
    record(tmp_path / "a.h5", TwoRooms(), TwoRoomsSettings().explore(), np.arange(300), 2)
    layouts = held_out.Layouts.of(Trajectories(tmp_path / "a.h5")).values
    assert (
        in_split(layouts, Geometry(), "train").any()
        and not in_split(layouts, Geometry(), "train").all()
    )
