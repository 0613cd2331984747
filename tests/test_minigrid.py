"""MiniGrid's rooms: the package's own rules, our drawing, shortest ways, exploration and task."""

import time

import numpy as np
import pytest
from pydantic import ValidationError

from jepa_wm.core.errors import UserError
from jepa_wm.data.held_out import check_heldout
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals.episodes import play
from jepa_wm.evals.oracle import oracle
from jepa_wm.planning.action_space import space_of
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.worlds.collect import record_parts
from jepa_wm.worlds.minigrid import layouts
from jepa_wm.worlds.minigrid.drawing import FLOOR, RED, WALL, YELLOW
from jepa_wm.worlds.minigrid.routes import at_pose, routes, togo
from jepa_wm.worlds.minigrid.world import MiniGridSettings
from jepa_wm.worlds.tasks import Episodes, make_task
from jepa_wm.worlds.world import CollectSettings, make_world

envs = pytest.importorskip("minigrid.envs", reason="pip install 'jepa-wm[minigrid]'")

BOTH = pytest.mark.parametrize("env", ["four_rooms", "door_key"])


def new_world(env, seeds=5, **settings):
    world = MiniGridSettings(env=env, **settings).make()
    world.reset(np.arange(seeds) if isinstance(seeds, int) else np.array(seeds))
    return world


def drawn(world, r):
    """[B, n] one-hot random actions, most of them steps ahead."""
    n = world.action_space.choices
    chances = np.full(n, 0.5 / (n - 1))
    chances[2] = 0.5
    return np.eye(n, dtype=np.float32)[r.choice(n, len(world), p=chances)]


def explored(env, seeds, steps, **settings):
    """A world and its states [B, steps, X] under the exploring policy."""
    chosen = MiniGridSettings(env=env, **settings)
    world, policy = chosen.make(), chosen.explore()(np.arange(seeds))
    world.reset(np.arange(seeds))
    states = []
    for _ in range(steps):
        states.append(world.state())
        world.step(policy(world))
    return world, np.stack(states, 1)


# ---------------------------------------------------------------- the package's rules


def cells_of(package):
    """What the package's grid holds, the green goal left out."""
    codes = [None if cell is None else cell.encode() for cell in package.grid.grid]
    return [None if code is not None and code[0] == 8 else code for code in codes]


@BOTH
def test_starts_and_steps_are_the_packages_own(env):
    """Beside its unaltered environment, from the same seeds and under the same actions, with key
    and door at every step."""
    r, met = np.random.default_rng(0), set()
    for seed in range(12):
        package = envs.FourRoomsEnv() if env == "four_rooms" else envs.DoorKeyEnv(size=8)
        package.reset(seed=seed)
        world = new_world(env, [seed])
        numbers = layouts.KINDS[env].actions
        for step in range(150):
            ours = world._simulators[0].package
            assert cells_of(ours) == cells_of(package), f"seed {seed}, step {step}"
            state = world.state()[0]
            assert state[:3].tolist() == [*package.agent_pos, 90 * package.agent_dir]
            if env == "door_key":
                assert state[5] == (package.carrying is not None)
                door = package.grid.get(*map(int, state[7:9]))
                assert door.encode()[2] == state[6]
                key = package.grid.get(*map(int, state[3:5]))
                assert package.carrying or key.type == "key"
                met.add((state[5], state[6]))
            # Half of the actions lead to the door, so that it is opened.
            choice = int(drawn(world, r)[0].argmax())
            if env == "door_key" and r.random() < 0.5 and state[6] == 2:
                door = world.state()[:, 7:9]
                costs = at_pose(routes(env, 8, world.state(), door + [1, 0]), world.state())
                choice = int(costs[0].argmin())
            package.step(numbers[choice])
            world.step(np.array([[choice]]))
    assert env == "four_rooms" or met == {(0, 2), (1, 2), (1, 0), (0, 0), (1, 1), (0, 1)}


@BOTH
def test_a_world_is_the_same_in_any_batch_and_every_time(env):
    r = np.random.default_rng(0)
    batch, again = new_world(env, [9, 3, 7, 1, 5]), new_world(env, [9, 3, 7, 1, 5])
    alone = new_world(env, [7])
    for _ in range(40):
        action = drawn(batch, r)
        for world, its in ((batch, action), (again, action), (alone, action[2:3])):
            world.step(its)
        frames = batch.render()
        assert np.array_equal(frames, again.render())
        assert np.array_equal(frames[2], alone.render()[0])
    assert np.array_equal(batch.state(), again.state())
    assert np.array_equal(batch.state()[2], alone.state()[0])
    assert len(np.unique(batch.state()[:, 3:], axis=0)) > 1, "seeds differ"


@BOTH
def test_a_recorded_state_is_the_world_to_the_bit(env):
    world, states = explored(env, 6, 60)
    r = np.random.default_rng(1)
    for step in (0, 17, 33, 59):
        first, other = new_world(env, 6), new_world(env, np.arange(6) + 100)
        for one in (first, other):
            one.reset(np.arange(6), start=states[:, step])
        for _ in range(25):
            assert np.array_equal(first.render(), other.render())
            action = drawn(first, r)
            first.step(action)
            other.step(action)
    # The frame of the world that ran on is that of one begun where it is.
    first.reset(np.zeros(6), start=world.state())
    assert np.array_equal(first.render(), world.render())


def test_actions_are_one_hot_or_numbers_and_the_last_does_nothing():
    world = new_world("door_key", 4)
    before = world.state()
    idle = world.action_space.idle
    world.step(np.tile(idle, (4, 1)))
    assert np.array_equal(world.state(), before)
    world.step(np.tile([0.2, 5.0, 0, 0, 0, 0, -3], (4, 1)))  # the largest wins: to the right
    assert np.array_equal(world.state()[:, 2], (before[:, 2] + 90) % 360)
    assert world.taken(np.array([[1], [0], [6], [2]])).argmax(1).tolist() == [1, 0, 6, 2]
    for bad in (np.zeros((4, 6)), np.full((4, 7), np.nan), np.full((4, 1), 7), np.zeros((3, 7))):
        with pytest.raises(ValueError, match="actions"):
            world.step(bad)


@BOTH
def test_copies_step_by_the_packages_rules_and_leave_the_world_alone(env):
    """Transition by transition, from states that exploring leads to."""
    world, _ = explored(env, 60, 10)
    other, policy = new_world(env, 60), MiniGridSettings(env=env).explore()(np.arange(60))
    r, changed = np.random.default_rng(2), np.zeros(world.action_space.choices, int)
    for step in range(100):
        other.reset(np.arange(60), start=world.state())
        copies, before = world.copies(2), world.state().copy()
        actions = [policy(world) if step % 2 else drawn(world, r) for _ in range(2)]
        copies.step(np.stack(actions, 1).reshape(120, -1))
        assert np.array_equal(world.state(), before)
        for one, action, its in zip((world, other), actions, (0, 1), strict=True):
            one.step(action)
            assert np.array_equal(one.state(), copies.state()[its::2]), step
            moved = (one.state() != before).any(1)
            changed += action[moved].sum(0).astype(int)
    assert (changed[:-1] > 5).all() and changed[-1] == 0, "each action but the last changes much"


# ---------------------------------------------------------------- pictures


def pixel(frame, grid, x, y):
    """The colour in the middle of a cell."""
    at = [int((number + 0.5) * len(frame) / grid) for number in (y, x)]
    return frame[tuple(at)].tolist()


def test_the_picture_shows_walls_door_key_and_agent_where_they_are():
    world, states = explored("door_key", 30, 60, size=128)
    for step in (0, 30, 59):
        state = states[:, step]
        world.reset(np.arange(30), start=state)
        for frame, row in zip(world.render(), state, strict=True):
            ax, ay, _, kx, ky, held, latch, dx, dy = map(int, row)
            assert frame.shape == (128, 128, 3) and pixel(frame, 8, 0, 5) == list(WALL)
            assert pixel(frame, 8, dx, dy + 1) == list(WALL)
            assert pixel(frame, 8, ax, ay) == list(YELLOW if held else RED)
            if latch == layouts.OPEN and (ax, ay) != (dx, dy):
                assert pixel(frame, 8, dx, dy) == list(FLOOR)
            if not held:  # the key's shaft
                assert frame[ky * 16 + 12, kx * 16 + 8].tolist() == list(YELLOW)


@BOTH
def test_every_part_of_a_state_is_seen(env):
    world = new_world(env, [4])
    row = world.state()[0]
    rows = [row]
    for change in (90, 180, 270):
        rows.append(row.copy())
        rows[-1][2] = (row[2] + change) % 360
    if env == "door_key":
        for latch in (layouts.OPEN, layouts.CLOSED):
            rows.append(row.copy())
            rows[-1][6] = latch
        rows.append(row.copy())
        rows[-1][3:6] = (*row[:2], 1)
    world.reset(np.zeros(len(rows)), start=np.array(rows))
    frames = world.render().astype(int)
    for i in range(len(rows)):
        for j in range(i):
            assert (np.abs(frames[i] - frames[j]).max(-1) > 60).sum() >= 3, (i, j)


def test_drawing_is_quick():
    world = new_world("four_rooms", 200)
    world.render()
    begun = time.process_time()
    for _ in range(5):
        world.render()
        world.step(np.full((200, 1), 2))
    rate = 1000 / (time.process_time() - begun)
    assert rate > 2000, f"{rate:.0f} frames a second"  # about ten times that on a free core


# ---------------------------------------------------------------- layouts and settings


@BOTH
def test_the_splits_are_disjoint_by_content_and_together_are_all(env):
    seen = {}
    for split in ("train", "heldout"):
        world = MiniGridSettings(env=env).make().of_split(split)
        world.reset(np.arange(300))
        layout = world.state()[:, world.kind.layout]
        assert layouts.in_split(env, layout, split).all()
        seen[split] = {tuple(row) for row in layout}
    assert not seen["train"] & seen["heldout"]
    if env == "door_key":
        assert (len(seen["train"]), len(seen["heldout"])) == (16, 4)


@pytest.mark.parametrize(
    ("env", "grid"), [("four_rooms", g) for g in (7, 9, 21)] + [("door_key", g) for g in (6, 7)]
)
def test_other_sizes_are_laid_out_by_the_package(env, grid):
    world = new_world(env, 20, grid=grid)
    for i, simulator in enumerate(world._simulators[:20]):
        package = envs.FourRoomsEnv() if env == "four_rooms" else envs.DoorKeyEnv(size=grid)
        package.width = package.height = grid
        package.reset(seed=i)
        assert cells_of(simulator.package) == cells_of(package)
    for split in ("train", "heldout"):
        world.of_split(split).reset(np.arange(3))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"env": "maze"}, "env"),
        ({"grid": 12}, "grid 12 is even"),
        ({"env": "door_key", "grid": 5}, "grid"),
        ({"size": 40}, "size 40 px"),
        ({"grid": 31}, "world.size=93"),
        ({"exploration": {"noise": 2}}, "noise"),
    ],
)
def test_bad_settings_are_refused(settings, named):
    with pytest.raises(ValidationError, match=named):
        MiniGridSettings(**settings)


@pytest.mark.parametrize(
    ("env", "column", "value", "named"),
    [
        ("four_rooms", 0, 0, "agent_x must be in 1..17"),
        ("four_rooms", 2, 45, "direction"),
        ("four_rooms", 3, 9, "gap_upper must be in 1..8"),
        ("four_rooms", 1, 1.5, "whole"),
        ("four_rooms", 1, np.nan, "whole"),
        ("door_key", 6, 3, "latch must be in 0..2"),
        ("door_key", 5, 1, "carried"),
        ("door_key", slice(0, 2), slice(7, 9), "shut door"),
        ("door_key", slice(3, 5), slice(7, 9), "key_x"),
    ],
)
def test_a_start_that_is_no_state_is_refused(env, column, value, named):
    world = new_world(env, 2)
    start = world.state().copy()
    start[1, column] = start[1, value] if isinstance(value, slice) else value
    with pytest.raises(ValueError, match=named):
        world.reset(np.arange(2), start=start)
    with pytest.raises(ValueError, match="start has shape"):
        world.reset(np.arange(2), start=start[:, :2])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "minigrid.envs", None)
    with pytest.raises(UserError, match=r"pip install 'jepa-wm\[minigrid\]'"):
        make_world({"name": "minigrid"})


# ---------------------------------------------------------------- ways, exploration, collection


@BOTH
def test_ways_are_as_long_as_a_search_through_the_simulator_says(env):
    """Breadth first over whole states, which knows nothing of how ways are computed."""
    world, states = explored(env, 4, 50, grid=7 if env == "four_rooms" else 6)
    grid, r = world.grid, np.random.default_rng(0)
    for row in states[:, [0, 20, 45]].reshape(-1, states.shape[-1]):
        free = np.argwhere(~layouts.walls(env, grid, row[None, world.kind.layout])[0])
        goal = free[r.integers(len(free))][::-1].astype(np.float32)
        frontier, met, depth = row[None], {row.tobytes()}, 0
        while not (frontier[:, :2] == goal).all(1).any():
            world.reset(np.zeros(len(frontier)), start=frontier)
            copies = world.copies(world.action_space.choices)
            copies.step(np.tile(np.arange(world.action_space.choices), len(frontier))[:, None])
            fresh = {s.tobytes(): s for s in copies.state()}
            frontier = np.array([s for key, s in fresh.items() if key not in met])
            met |= set(fresh)
            depth += 1
        costs = at_pose(routes(env, grid, row[None], goal[None]), row[None])
        assert togo(costs, row[None], goal[None]) == [depth]


def test_exploring_covers_rooms_and_what_can_be_done_with_key_and_door():
    _, states = explored("four_rooms", 40, 71)
    rooms = (states[..., 0] > 9) * 2 + (states[..., 1] > 9)
    assert np.mean([len(np.unique(row)) for row in rooms]) > 2.5
    assert len(np.unique(states[..., :2].reshape(-1, 2), axis=0)) > 280  # of 289 and walls' gaps
    _, states = explored("door_key", 40, 71)
    held, latch = states[..., 5], states[..., 6]
    assert (held == 1).any(1).mean() > 0.8 and (latch == layouts.OPEN).any(1).mean() > 0.7
    assert (latch == layouts.CLOSED).any(1).mean() > 0.2
    assert (np.diff(held) < 0).any(1).mean() > 0.3, "dropped"
    assert (states[..., 0] > states[..., 7]).any(1).mean() > 0.7, "behind the door"


@BOTH
def test_who_explores_is_the_same_in_any_batch(env):
    settings = MiniGridSettings(env=env)
    batch, alone = new_world(env, [3, 8, 5]), new_world(env, [8])
    policies = [settings.explore()(np.array(seeds)) for seeds in ([3, 8, 5], [8])]
    for _ in range(60):
        for world, policy in zip((batch, alone), policies, strict=True):
            world.step(policy(world))
        assert np.array_equal(batch.state()[1], alone.state()[0])


@BOTH
def test_what_is_collected_reads_back(env, tmp_path):
    settings = MiniGridSettings(env=env)
    sizes = CollectSettings(
        episodes=12, episode_length=20, heldout_episodes=4, heldout_episode_length=25
    )
    record_parts(tmp_path, settings.make(), settings.explore(), sizes, 0)
    train, heldout = (Trajectories(tmp_path / f"{part}.h5") for part in ("train", "heldout"))
    assert train.episodes == 12 and heldout.lengths.tolist() == [25] * 4
    assert check_heldout(train, heldout) == 0
    actions, states = train.actions[:20], train.column("state")[:20]
    assert set(actions.sum(1)) == {1.0}
    world = settings.make()
    world.reset(np.arange(1), start=states[:1])
    for frame, action, state in zip(train.frames[:20], actions, states, strict=True):
        assert np.array_equal(world.render()[0], frame)
        assert np.array_equal(world.state()[0], state)
        world.step(action[None])


# ---------------------------------------------------------------- the task


def the_task(env, **settings):
    return make_task(MiniGridSettings(env=env, **settings), None)


def reached(task, episodes, policy, budget=100):
    track = play(task.begin(episodes), lambda w: policy(w, episodes.goal)[:, None], budget=budget)
    return task.distance(task.position(track.state), episodes.goal[:, None]) < task.radius


@BOTH
def test_a_task_file_is_the_same_twice_and_a_longer_one_holds_the_shorter(env, tmp_path):
    short, long, again = (the_task(env).sample(n, 0) for n in (5, 20, 5))
    assert short.digest == again.digest != the_task(env).sample(5, 1).digest
    for field in ("seeds", "layout", "start", "goal"):
        for split in ("heldout", "train"):
            assert np.array_equal(
                getattr(short.of(split), field), getattr(long.of(split).part(0, 5), field)
            )
    short.save(tmp_path / "tasks.json")
    assert Episodes.load(tmp_path / "tasks.json").digest == short.digest
    with pytest.raises(ValueError, match="episodes"):
        the_task(env).sample(0, 0)


@BOTH
def test_goals_are_in_another_room_and_shown_as_a_way_leaves_them(env):
    task = the_task(env)
    episodes = task.sample(30, 0)
    start, goal, world = episodes.start, episodes.goal, task.begin(episodes)
    for split in ("heldout", "train"):
        assert layouts.in_split(env, episodes.of(split).layout, split).all()
    if env == "door_key":
        assert (start[:, 0] < start[:, 7]).all() and (goal[:, 0] > start[:, 7]).all()
        assert (start[:, 6] == layouts.LOCKED).all() and (start[:, 5] == 0).all()
    else:
        assert ((start[:, :2] > 9) != (goal > 9)).any(1).all() and (goal != 9).all()
    images = task.goal_images(episodes)
    assert images.shape == (60, 64, 64, 3) and images.dtype == np.uint8
    for _ in range(60):
        world.step(task.baselines()["shortest_way"](world, goal))
    assert np.array_equal(images, world.render())
    if env == "door_key":
        assert (world.state()[:, 5] == 1).all() and (world.state()[:, 6] == layouts.OPEN).all()


@BOTH
def test_the_shortest_way_wins_and_a_straight_line_does_not(env):
    task = the_task(env)
    episodes = task.sample(30, 0)
    shortest, straight = (task.baselines()[name] for name in ("shortest_way", "straight_line"))
    won = reached(task, episodes, shortest)
    assert won[:, -1].all() and not won[:, 0].any()
    # Not a step longer than the cost said.
    steps = task.oracle_cost(episodes.start, episodes.goal)
    assert np.array_equal(won.argmax(1), steps)
    assert reached(task, episodes, straight)[:, -1].mean() < 0.4


@BOTH
def test_the_oracle_wins(env):
    task = the_task(env, grid=9 if env == "four_rooms" else 6)
    episodes = task.sample(3, 0)
    planner = PlannerSettings.model_validate(
        {
            "solver": {"name": "cem", "num_samples": 48, "iterations": 2, "elites": 6},
            "mpc": {"horizon": 6},
        }
    )
    space = space_of(task.begin(episodes), frameskip=1, action_repeat=True)
    result = oracle(task, episodes, space, planner, budget=50)
    assert result["success_final"] == 1.0, result
