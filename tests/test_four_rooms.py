"""The four-rooms world and its task: collisions, layouts held out, distractors, ways, episodes."""

import numpy as np
import pytest
from pydantic import ValidationError

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.data.held_out import Layouts, check_heldout
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals.episodes import play
from jepa_wm.evals.oracle import oracle
from jepa_wm.planning.action_space import space_of
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.four_rooms.rooms import (
    FourGeometry,
    door_middles,
    in_split,
    next_stop,
    room_of,
    way_to_go,
    ways,
)
from jepa_wm.worlds.four_rooms.tasks import FourRoomsTask
from jepa_wm.worlds.four_rooms.world import FourRooms, FourRoomsSettings
from jepa_wm.worlds.tasks import HasOracle, HasPlane, judge, make_task
from jepa_wm.worlds.two_rooms.rooms import STYLES, WALL_HALF, NoiseLevels
from jepa_wm.worlds.world import Adjusting, Splitting, World, make_world

G = FourGeometry()
BACKGROUND, WALL_COLOUR, _ = STYLES["colour"]
NOISE = NoiseLevels(brightness=0.2, pixel=0.1, blotches=0.2)


def new_world(seeds=1, *, start=None, **settings):
    world = FourRoomsSettings(**settings).make()
    world.reset(np.arange(seeds) if isinstance(seeds, int) else np.array(seeds), start=start)
    return world


def pushed(count, steps, seed=0):
    """[steps, count, 2] random actions, some longer than the longest step."""
    drawn = np.random.default_rng(seed).normal(0, 2, (steps, count, 2))
    return drawn.astype(np.float32)


def new_task(**settings):
    return make_task(FourRoomsSettings(**settings), None)


def all_layouts(geometry=G):
    first, last = geometry.door_places
    axes = [np.arange(low, high + 1) for low, high in zip(first, last, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 4)


# ---------------------------------------------------------------- geometry and collisions


def test_it_is_a_world_with_layouts_made_by_its_name():
    world = make_world({"name": "four_rooms", "distractors": 2})
    assert isinstance(world, World) and isinstance(world, Splitting)
    assert isinstance(world, Adjusting)
    world.reset(np.arange(3))
    assert len(world) == 3 and world.state().shape == (3, 14) and world.state().dtype == np.float32
    assert len(world.state_names) == len(world.state_units) == 14
    assert set(world.layout_names) < set(world.state_names)
    assert world.render().shape == (3, 65, 65, 3) and world.render().dtype == np.uint8


def test_the_picture_is_a_cross_of_three_pixels_with_four_doors_of_nine():
    world = new_world(20)
    frames = world.render_clean(np.full((20, 2), 18.0))
    for frame, doors in zip(frames, world.layout.astype(int), strict=True):
        solid = (frame == WALL_COLOUR).all(-1)
        assert solid[:5].all() and solid[-5:].all() and solid[:, :5].all() and solid[:, -5:].all()
        top, right, bottom, left = doors
        for line in (solid[5:60, 31:34].T, solid[31:34, 5:60]):
            assert (line == line[0]).all()
        open_rows = [*range(top - 4, top + 5), *range(bottom - 4, bottom + 5)]
        assert (np.nonzero(~solid[5:60, 32])[0] + 5).tolist() == open_rows
        open_columns = [*range(left - 4, left + 5), *range(right - 4, right + 5)]
        assert (np.nonzero(~solid[32, 5:60])[0] + 5).tolist() == open_columns
        assert solid[31:34, 31:34].all() and not solid[40:58, 40:58].any()


def test_agents_begin_in_all_rooms_clear_of_the_cross_and_doors_in_all_places():
    world = new_world(1500)
    assert (np.abs(world.agent - 32) >= WALL_HALF).all()
    assert (world.agent >= 5).all() and (world.agent <= 59).all()
    assert (np.bincount(room_of(world.agent, G)) > 300).all()
    for door, places in enumerate(((10, 25), (39, 54), (39, 54), (10, 25))):
        assert set(world.layout[:, door]) == set(range(places[0], places[1] + 1))


def test_no_action_gets_into_the_walls_or_through_them():
    world = new_world(400)
    for action in pushed(400, 150):
        before = world.agent
        world.step(action * 3)
        x, y = world.agent.T
        assert (world.agent >= 5).all() and (world.agent <= 59).all()
        assert (np.linalg.norm(world.agent - before, axis=1) <= 2.4501).all()
        # Whoever is between the faces of a wall is between the jambs of one of its doors.
        top, right, bottom, left = (
            np.abs(d) for d in (world.layout - np.stack([y, x, y, x], 1)).T
        )
        within_upright, within_level = (np.abs(v - 32) < WALL_HALF - 1e-4 for v in (x, y))
        assert (np.minimum(top, bottom)[within_upright] <= 4.0001).all()
        assert (np.minimum(left, right)[within_level] <= 4.0001).all()
        assert not (within_upright & within_level).any()
        # A room is left for a neighbour alone, and by a step at a door (x goes first, so it
        # may begin a step beside it).
        here, there = room_of(before, G), room_of(world.agent, G)
        assert not ((here - there) % 4 == 2).any()
        door = np.where((there - here) % 4 == 1, here, there)
        at = door_middles(world.layout, G)[np.arange(400), door]
        assert (np.abs(before - at).max(1)[here != there] <= 4 + 2.45).all()


@pytest.mark.parametrize("door", range(4))
def test_each_door_lets_through_both_ways_and_the_wall_beside_it_stops(door):
    world = new_world(50)
    middle = door_middles(world.layout, G)[:, door]
    normal = np.array([1.0, 0.0] if door in (0, 2) else [0.0, 1.0], np.float32)
    along = normal[::-1]
    for side in (1.0, -1.0):
        for offset, passes in ((0.0, True), (3.9, True), (4.1, False), (-4.1, False)):
            world.agent = (middle - 3 * side * normal + offset * along).astype(np.float32)
            for _ in range(3):
                world.step(np.tile(2.4 * side * normal, (50, 1)))
            across = side * ((world.agent - middle) * normal).sum(1)
            expected = 4.2 if passes else -WALL_HALF
            np.testing.assert_allclose(across, expected, rtol=1e-5)


def test_actions_are_checked_and_taken_no_longer_than_the_longest_step():
    world = new_world(2)
    np.testing.assert_allclose(
        world.taken(np.array([[30.0, 40.0], [1.0, 0.0]])), [[1.47, 1.96], [1.0, 0.0]], rtol=1e-6
    )
    for wrong in (np.zeros((3, 2)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="actions of shape"):
            world.step(wrong)


# ---------------------------------------------------------------- seeds, states, distractors


@pytest.mark.parametrize("settings", [{}, {"distractors": 3, "noise": NOISE}], ids=["bare", "all"])
def test_a_world_is_the_same_in_any_batch_and_every_time(settings):
    batch, again = (new_world([9, 3, 7, 1], **settings) for _ in range(2))
    alone = new_world([7], **settings)
    for action in pushed(4, 6):
        for world, its in ((batch, action), (again, action), (alone, action[2:3])):
            world.step(its)
        frames = batch.render()
        assert np.array_equal(frames, again.render())
        assert np.array_equal(frames[2], alone.render()[0])
    assert np.array_equal(batch.state()[2], alone.state()[0])
    other = new_world([8, 3, 7, 1], **settings)
    assert not np.array_equal(other.state()[0], new_world([9], **settings).state()[0])


@pytest.mark.parametrize("distractors", [0, 4])
def test_a_recorded_state_is_whole(distractors):
    """Reset to it, with other seeds, a world shows the same frames to the bit from there on."""
    actions = pushed(30, 60)
    world = new_world(30, distractors=distractors)
    for action in actions[:40]:
        world.step(action)
    other = new_world(1000 + np.arange(30), start=world.state(), distractors=distractors)
    for action in actions[40:]:
        assert np.array_equal(world.state(), other.state())
        assert np.array_equal(world.render(), other.render())
        world.step(action)
        other.step(action)


def test_distractors_drift_in_the_rooms_bounce_and_hold_nobody_up():
    bare, world = new_world(40), new_world(40, distractors=4)
    assert np.array_equal(bare.state(), world.state()[:, :6])
    first, rooms = world.distractors.copy(), []
    for action in pushed(40, 200):
        before = world.distractors
        world.step(action)
        bare.step(action)
        at, velocity = world.distractors[..., :2], world.distractors[..., 2:]
        assert (at >= 5).all() and (at <= 59).all()
        assert np.array_equal(np.abs(velocity), np.abs(before[..., 2:]))
        free = (velocity == before[..., 2:]).all(-1)
        assert np.array_equal(at[free], (before[..., :2] + before[..., 2:])[free])
        rooms.append(room_of(at, G))
    assert np.array_equal(bare.state(), world.state()[:, :6])
    assert (np.abs(at - first[..., :2]).max(-1) > 1).mean() > 0.9
    assert (first[..., 2:] != velocity).any(-1).mean() > 0.3  # they bounced
    rooms = np.stack(rooms)
    assert 0.2 < (rooms != rooms[0]).any(0).mean() < 1  # and some went through doors
    differ = (bare.render() != world.render()).any(-1).sum((1, 2))
    assert (differ > 10).all() and (differ < 400).all()


def test_what_a_world_is_begun_with_has_one_row_a_seed():
    world = FourRooms()
    for name, given in (("start", np.zeros((2, 2))), ("start", np.zeros((3, 5)))):
        with pytest.raises(ValueError, match=f"{name} has shape"):
            world.reset(np.arange(3), **{name: given})
    with pytest.raises(ValueError, match="layout has shape .*give 4 numbers"):
        world.reset(np.arange(3), layout=np.zeros((3, 2)))
    layout = np.array([[12, 40, 50, 20.5]])
    world.reset(np.arange(1), start=np.array([[9.0, 9.0]]), layout=layout)
    assert world.state().tolist() == [[9, 9, 12, 40, 50, 20.5]]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["world.distractors=-1"], "world.*distractors"),
        (["world.geometry.door_padding=3"], "door_padding 3 must be more than door_half"),
        (["world.geometry.door_padding=13"], "door_padding 13 leaves a door no two places"),
        (["world.geometry.fixed_wall=30"], "fixed_wall"),
        (["evaluation.task={name: wall}"], "task"),
    ],
)
def test_settings_that_cannot_be_are_refused(words, said):
    with pytest.raises(UserError, match=said):
        config = load_config("four_rooms", words)
        make_task(config.world, config.evaluation.task)
    with pytest.raises(ValidationError):
        FourGeometry(door_padding=3)


# ---------------------------------------------------------------- layouts


def test_held_out_layouts_are_two_pixels_from_every_training_one():
    layouts = all_layouts()
    train, held = (in_split(layouts, G, split) for split in ("train", "heldout"))
    assert not (train & held).any() and train.mean() > 0.75 and held.sum() > 500
    shape = [16] * 4
    near = train.reshape(shape)
    # Whatever differs by at most 1 px in every door from a training layout.
    for axis in range(4):
        padded = np.pad(near, [(1, 1) if a == axis else (0, 0) for a in range(4)])
        near = sum(padded.take(range(i, i + 16), axis) for i in range(3)) > 0
    assert not (near & held.reshape(shape)).any()
    # Every place of each door is met in training.
    for door in range(4):
        assert set(layouts[train][:, door]) == set(layouts[:, door])


def test_a_world_of_a_split_draws_its_layouts_alone():
    for split in ("train", "heldout"):
        world = FourRooms().of_split(split)
        world.reset(np.arange(400))
        assert in_split(world.layout, G, split).all()
        assert len(np.unique(world.layout, axis=0)) > 250
        alone = FourRooms().of_split(split)
        alone.reset(np.array([7]))
        assert np.array_equal(alone.state()[0], world.state()[7])


@pytest.mark.parametrize("padding", [5, 7, 12])
def test_small_canvases_have_layouts_in_both_splits(padding):
    geometry = FourGeometry(door_padding=padding)
    layouts = all_layouts(geometry)
    assert all(in_split(layouts, geometry, split).any() for split in ("train", "heldout"))


# ---------------------------------------------------------------- ways


def test_the_way_is_straight_in_a_room_and_through_the_nearer_doors_else():
    doors = np.array([[12, 50, 45, 20]], np.float32)

    def way(start, goal):
        start, goal = (np.array([p], np.float32) for p in (start, goal))
        return way_to_go(start, goal, doors, G)[0], next_stop(start, goal, doors, G)[0].tolist()

    assert way((10, 10), (13, 14)) == (5, [13, 14])
    length, stop = way((22, 12), (42, 12))
    assert length == 20 and stop == [34, 12]
    # Diagonally opposite: by the top door and then the right one, or by left and bottom.
    length, stop = way((30, 12), (50, 40))
    by_top = 2 + np.hypot(18, 20) + 8
    assert length == pytest.approx(by_top) and stop == [34, 12]
    length, stop = way((20, 30), (34, 45))
    assert length == pytest.approx(2 + np.hypot(12, 13) + 2) and stop == [20, 34]
    # In a door that is not on the way it is left first; in one that is, it is gone through.
    assert way((31.5, 14), (20, 20))[1] == [30, 12] and way((31.5, 14), (40, 20))[1] == [34, 12]
    assert way((32.5, 14), (34, 25))[1] == [34, 12]


def test_ways_agree_with_a_search_over_the_doors():
    """Against the shortest of all sequences of doors, by brute force."""
    r, world = np.random.default_rng(3), new_world(200)
    goal = new_world(500 + np.arange(200)).agent
    middles = door_middles(world.layout, G)
    lengths = ways(world.agent, goal, world.layout, G)[0].min(0)
    here, there = room_of(world.agent, G), room_of(goal, G)
    for b in r.choice(200, 60, replace=False):
        best, stack = np.inf, [(here[b], world.agent[b], 0.0, ())]
        while stack:
            room, at, length, used = stack.pop()
            if room == there[b]:
                best = min(best, length + np.linalg.norm(goal[b] - at))
            for door, onto in ((room, (room + 1) % 4), ((room - 1) % 4, (room - 1) % 4)):
                if door not in used:
                    step = np.linalg.norm(middles[b, door] - at)
                    stack.append((onto, middles[b, door], length + step, (*used, door)))
        assert lengths[b] == pytest.approx(best, rel=1e-5)


# ---------------------------------------------------------------- task


def test_episodes_are_in_different_rooms_the_same_twice_and_prefix_stable():
    task = new_task()
    short, long = task.sample(20, 4), task.sample(150, 4)
    assert short.digest == new_task().sample(20, 4).digest
    assert short.digest != task.sample(20, 5).digest
    assert task.sample(100, 0).digest == "e0fab6a4bbbb6eb2"  # the set of the protocol
    for field in ("seeds", "layout", "start", "goal"):
        for split in ("heldout", "train"):
            whole = getattr(long.of(split).part(0, 20), field)
            assert np.array_equal(getattr(short.of(split), field), whole)
    for split in ("heldout", "train"):
        assert in_split(long.of(split).layout, G, split).all()
    here, there = room_of(long.start, G), room_of(long.goal, G)
    assert (
        np.bincount(4 * here + there, minlength=16).reshape(4, 4).astype(bool).tolist()
        == (~np.eye(4, dtype=bool)).tolist()
    )
    assert (np.linalg.norm(long.start - long.goal, axis=1) >= 4.5).all()
    assert (task.radius, task.strict_radius, task.unit) == (4.5, 1.41, "px")
    with pytest.raises(UserError, match="evaluation.task.radius 60 px does not fit"):
        FourRoomsTask(radius=60).make(FourRoomsSettings())


def test_goal_images_are_the_same_rooms_with_the_agent_at_the_goal():
    task = new_task(distractors=3, noise=NOISE)
    episodes = task.sample(6, 0)
    clean, bare = task.goal_images(episodes, clean=True), FourRooms()
    bare.reset(episodes.seeds, start=episodes.goal, layout=episodes.layout)
    assert np.array_equal(clean, bare.render())
    assert np.array_equal(task.goal_images(episodes), task.goal_images(episodes))
    begun = task.begin(episodes)
    assert np.array_equal(begun.state()[:, :2], episodes.start)
    assert np.array_equal(begun.state()[:, 2:6], episodes.layout)
    assert isinstance(task, HasOracle) and isinstance(task, HasPlane)
    assert task.pictures(episodes.part(0, 1), episodes.goal).shape == (12, 65, 65, 3)


def test_the_shortest_way_always_arrives_and_the_straight_line_does_not():
    task = new_task(distractors=1)
    episodes = task.sample(150, 5)
    won = {}
    for name, policy in task.baselines().items():
        track = play(
            task.begin(episodes),
            lambda world, policy=policy: policy(world, episodes.goal)[:, None],
            budget=75,
        )
        distance = task.distance(task.position(track.state), episodes.goal[:, None])
        won[name] = judge(distance, radius=1.41).success_final.mean()
    assert won["shortest_way"] == 1 and 0.3 < won["straight_line"] < 0.7


def test_the_oracle_wins():
    config = load_config("four_rooms", ["world.distractors=2"])
    task = make_task(config.world, None)
    episodes = task.sample(6, 0).of("heldout")
    space = space_of(config.world.make(), frameskip=5, action_repeat=1)
    outcome = oracle(task, episodes, space, config.planner, budget=60)
    assert outcome["success_final"] == 1


# ---------------------------------------------------------------- data


def test_exploration_goes_through_the_doors_and_covers_the_rooms():
    world, seen = new_world(100), []
    policy = FourRoomsSettings().explore()(np.arange(100))
    for _ in range(150):
        action = policy(world)
        assert (np.linalg.norm(action, axis=1) <= 2.4501).all()
        world.step(action)
        seen.append(world.agent)
    rooms = room_of(np.stack(seen), G)
    assert (rooms[1:] != rooms[:-1]).sum(0).mean() > 2
    assert (np.bincount(rooms.ravel()) > 0.15 * rooms.size).all()
    x, y = np.concatenate(seen).T
    shares, _, _ = np.histogram2d(x, y, bins=6, range=[[5, 59], [5, 59]])
    assert (shares > 0.2 * shares.mean()).all()


def test_collected_parts_read_back_and_have_no_layout_in_common(tmp_path):
    words = ["episodes=40", "episode_length=20", "heldout_episodes=15", "heldout_episode_length=9"]
    words = [f"collect.{word}" for word in words]
    config = load_config("four_rooms", ["world.distractors=1", *words])
    world = config.world.make()
    record_parts(tmp_path, world, config.world.explore(), config.collect, 0)
    train, heldout = (Trajectories(tmp_path / f"{part}.h5") for part in ("train", "heldout"))
    assert check_heldout(train, heldout) == 0 and len(Layouts.of(heldout).values) == 15
    assert train.lengths.tolist() == [20] * 40 and heldout.lengths.tolist() == [9] * 15
    assert list(train.quantities.groups) == [
        "agent", "top_door", "right_door", "bottom_door", "left_door", "distractor1",
        "distractor1_velocity",
    ]  # fmt: skip
    # Any recorded row begins a world that shows its frame and goes on to the next.
    rows = train.offsets + 7
    world.reset(np.arange(40), start=np.stack([train.column("state")[row] for row in rows]))
    assert np.array_equal(world.render(), np.stack([train.frames[row] for row in rows]))
    world.step(np.stack([train.actions[row] for row in rows]))
    assert np.array_equal(world.render(), np.stack([train.frames[row + 1] for row in rows]))
