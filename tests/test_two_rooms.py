"""The two-rooms world: its geometry, collisions, pictures and distraction."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rooms import rooms_task

from jepa_wm.worlds.two_rooms.rooms import STYLES, WALL_HALF, Geometry, NoiseLevels
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings

BACKGROUND, WALL_COLOUR, DOT_COLOUR = STYLES["colour"]

NOISY = NoiseLevels(brightness=0.25, pixel=0.2, blotches=0.2)


def new_world(seeds=1, *, start=None, noise=None, geometry=None):
    world = TwoRoomsSettings(geometry=geometry or Geometry(), noise=noise or NoiseLevels()).make()
    seeds = np.arange(seeds) if isinstance(seeds, int) else np.array(seeds)
    world.reset(
        seeds,
        start=None
        if start is None
        else np.broadcast_to(np.array(start, np.float32), (len(seeds), 2)),
    )
    return world


def at(world, x, y):
    """Put every agent at x [B] and y [B] (or numbers)."""
    world.agent = np.stack(
        [np.broadcast_to(x, len(world)), np.broadcast_to(y, len(world))], 1
    ).astype(np.float32)


def push(world, *action):
    world.step(np.tile(np.array(action, np.float32), (len(world), 1)))


def away_from_door(world):
    """[B] heights in the other half of the canvas than the door."""
    return np.where(world.door_y < 32, 50.0, 14.0)


# ---------------------------------------------------------------- geometry


def test_the_geometry_is_eb_jepas():
    g = Geometry()
    assert (g.size, g.border, g.door_half, g.wall_padding, g.door_padding) == (65, 5, 4.0, 20, 10)
    assert (g.max_step, g.action_scale, 2 * WALL_HALF, g.low, g.high) == (
        2.45,
        1.0,
        3.0,
        5.0,
        59.0,
    )
    world = new_world(3000)
    assert set(world.wall_x) == set(range(20, 45)) and set(world.door_y) == set(range(10, 55))
    assert not np.array_equal(world.wall_x[:100], world.door_y[:100])
    actions = world.action_space
    assert actions.low.tolist() == pytest.approx([-2.45] * 2)
    assert actions.high.tolist() == pytest.approx([2.45] * 2) and actions.longest == 2.45


def test_the_picture_shows_borders_a_wall_of_three_pixels_and_a_door_of_nine():
    world = new_world(40)
    frames = world.render_clean(np.tile([[12.0, 32.0]], (40, 1)))
    for frame, x, y in zip(
        frames, world.wall_x.astype(int), world.door_y.astype(int), strict=True
    ):
        solid = (frame == WALL_COLOUR).all(-1)
        assert solid[:5].all() and solid[-5:].all() and solid[:, :5].all() and solid[:, -5:].all()
        inside = solid[5:60, 5:60]
        assert np.nonzero(inside.any(0))[0].tolist() == [x - 6, x - 5, x - 4]
        free = np.nonzero(~inside[:, x - 5])[0]
        assert free.tolist() == list(range(y - 9, y))
        assert (frame[40, 12] == BACKGROUND).all()


def test_agents_begin_uniformly_and_clear_of_the_wall():
    world = new_world(2000)
    assert (np.abs(world.agent[:, 0] - world.wall_x) >= WALL_HALF).all()
    assert (world.agent >= 5).all() and (world.agent <= 59).all()
    assert 0.45 < (world.agent[:, 0] > world.wall_x).mean() < 0.55
    assert world.state().shape == (2000, 4) and len(world.state_names) == 4
    assert np.array_equal(
        world.state(), np.column_stack([world.agent, world.wall_x, world.door_y])
    )


def test_a_step_is_the_action_scaled_back_to_the_longest():
    world = new_world(start=(10, 30))
    push(world, 1.0, -2.0)
    np.testing.assert_allclose(world.agent, [[11, 28]])
    push(world, -300.0, 400.0)
    np.testing.assert_allclose(world.agent, [[11 - 0.6 * 2.45, 28 + 0.8 * 2.45]], rtol=1e-6)


# ---------------------------------------------------------------- collisions


def crosses_solid(world, before, after):
    """[B] bool: whether a step went from one side to the other with its crossing outside the
    door."""
    sides = np.sign(before[:, 0] - world.wall_x) * np.sign(after[:, 0] - world.wall_x)
    # A step is at most 2.45 px, so heights while crossing lie within that of both ends.
    near_door = np.abs(before[:, 1] - world.door_y) <= world.geometry.door_half
    return (sides < 0) & ~near_door


def inside_solid(world):
    within = np.abs(world.agent[:, 0] - world.wall_x) < WALL_HALF - 1e-4
    return within & (np.abs(world.agent[:, 1] - world.door_y) > world.geometry.door_half + 1e-4)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.sampled_from(["two_rooms", "wall"]),
    st.floats(0.2, 12.0),
    st.sampled_from(["free", "at the wall"]),
)
def test_no_action_tunnels(seed, task, force, where):
    geometry, r = rooms_task(task).world.geometry, np.random.default_rng(seed)
    world = new_world(seed + np.arange(32), geometry=geometry)
    if where == "at the wall":
        at(
            world,
            world.wall_x + r.choice([-1, 1], 32) * r.uniform(WALL_HALF, 3, 32),
            r.uniform(5, 59, 32),
        )
    heading = r.uniform(0, 2 * np.pi, 32)
    for _ in range(60):
        heading = heading + r.normal(0, 0.4, 32)
        before = world.agent
        world.step((force * np.stack([np.cos(heading), np.sin(heading)], 1)).astype(np.float32))
        assert (world.agent >= 5).all() and (world.agent <= 59).all()
        assert not inside_solid(world).any()
        if geometry.action_scale == 1:
            assert not crosses_solid(world, before, world.agent).any()
        longest = geometry.max_step * geometry.action_scale
        assert (np.linalg.norm(world.agent - before, axis=1) <= longest + 1e-4).all()


def test_the_wall_stops_what_goes_against_it_and_lets_the_rest_slide():
    for side in (-1.0, 1.0):
        world = new_world(200)
        y = away_from_door(world)
        at(world, world.wall_x + side * (WALL_HALF + 1), y)
        push(world, -side * 2.0, 1.0)
        np.testing.assert_allclose(world.agent[:, 0], world.wall_x + side * WALL_HALF)
        np.testing.assert_allclose(world.agent[:, 1], y + 1)
        for _ in range(3):
            push(world, -side * 2.4, 0.0)
        np.testing.assert_allclose(world.agent[:, 0], world.wall_x + side * WALL_HALF)


def test_the_border_stops_and_slides_too():
    world = new_world(start=(6, 6))
    push(world, -2.0, -1.0)
    np.testing.assert_allclose(world.agent, [[5, 5]])
    push(world, -1.0, 2.0)
    np.testing.assert_allclose(world.agent, [[5, 7]])


@pytest.mark.parametrize("offset", [-4.0, 0.0, 4.0])
def test_the_door_is_open_to_its_edge_and_has_jambs(offset):
    world = new_world(200)
    at(world, world.wall_x - 3, world.door_y + offset)
    push(world, 2.4, 0.0)
    inside = world.agent.copy()
    assert (np.abs(inside[:, 0] - world.wall_x) < WALL_HALF).all()
    push(world, 0.0, 2.4)
    push(world, 0.0, 2.4)
    push(world, 0.0, 2.4)
    push(world, 0.0, 2.4)
    np.testing.assert_allclose(world.agent[:, 1], world.door_y + 4)  # the jamb holds
    push(world, 2.4, 0.0)
    assert (world.agent[:, 0] > world.wall_x + WALL_HALF).all()


def test_a_fast_mover_cannot_cut_through_the_jamb():
    world = new_world(50, geometry=rooms_task("wall").world.geometry)
    at(world, world.wall_x - WALL_HALF, world.door_y + 4)
    push(
        world, 1.7, 1.7
    )  # 3.4 px each way, more than the wall is thick: two pieces, the first held by the jamb
    np.testing.assert_allclose(world.agent[:, 0], world.wall_x + 1.9, rtol=1e-5)
    np.testing.assert_allclose(world.agent[:, 1], np.minimum(world.door_y + 5.7, 59), rtol=1e-5)


def test_just_beside_the_door_is_wall():
    world = new_world(200)
    at(world, world.wall_x - WALL_HALF, world.door_y + 4.01)
    push(world, 2.4, 0.0)
    np.testing.assert_allclose(world.agent[:, 0], world.wall_x - WALL_HALF)


# ---------------------------------------------------------------- pictures, seeds, distraction


def test_the_picture_shows_the_agent_where_it_is():
    world = new_world(300)
    clear = (
        (np.abs(world.agent[:, 0] - world.wall_x) > 7.5)
        & (world.agent > 11).all(1)
        & (world.agent < 53).all(1)
    )
    frames, checked = world.render(), np.nonzero(clear)[0]
    assert len(checked) > 100
    axis = np.arange(-5, 6)
    for b in checked:
        x, y = np.rint(world.agent[b]).astype(int)
        weight = frames[b, y - 5 : y + 6, x - 5 : x + 6, 0].astype(float) - BACKGROUND[0]
        centroid = (
            x + (weight.sum(0) * axis).sum() / weight.sum(),
            y + (weight.sum(1) * axis).sum() / weight.sum(),
        )
        assert np.abs(centroid - world.agent[b]).max() < 0.05
    at(world, 12.0, 40.0)
    assert (world.render()[:, 40, 12] == DOT_COLOUR).all()


@pytest.mark.parametrize("noise", [None, NOISY], ids=["clean", "noisy"])
def test_a_world_is_the_same_in_any_batch_and_every_time(noise):
    r = np.random.default_rng(0)
    actions = r.uniform(-2, 2, (6, 5, 2)).astype(np.float32)
    batch, again = new_world([9, 3, 7, 1, 5], noise=noise), new_world([9, 3, 7, 1, 5], noise=noise)
    alone = new_world([7], noise=noise)
    for action in actions:
        for world, its in ((batch, action), (again, action), (alone, action[2:3])):
            world.step(its)
        frames = batch.render()
        assert np.array_equal(frames, again.render()) and np.array_equal(
            frames[2], alone.render()[0]
        )
    assert np.array_equal(batch.state(), again.state()) and np.array_equal(
        batch.state()[2], alone.state()[0]
    )


def test_the_distraction_knows_nothing_of_the_agent():
    """Same seed, agents elsewhere and moving otherwise: frames differ only where clean
    agents would make them."""
    worlds = [new_world(6, start=start, noise=NOISY) for start in ((9.0, 9.0), (54.0, 54.0))]
    for action in ((1.0, 0.0), (0.0, -1.0), (-1.0, 0.5)):
        for world, sign in zip(worlds, (1.0, -1.0), strict=True):
            push(world, sign * action[0], sign * action[1])
        frames = [world.render() for world in worlds]
        clean = [world.render_clean(world.agent) for world in worlds]
        same = (clean[0] == clean[1]).all(-1)
        assert same.mean() > 0.9
        assert np.array_equal(frames[0][same], frames[1][same])


def test_the_distraction_has_the_strength_it_names_and_moves():
    flat = np.full((64, 65, 65, 3), 128, np.uint8)
    for level, kind in ((0.1, "pixel"), (0.1, "blotches"), (0.1, "brightness")):
        world = new_world(64, noise=NoiseLevels(**{kind: level}))
        shown = (world._distraction.apply(flat).astype(float) - 127.5) / 127.5
        if kind == "brightness":  # a gain on the frame's own level
            spread = (shown.mean((1, 2, 3)) + 1).std()
        else:
            spread = shown.std((1, 2, 3)).mean()
        assert spread == pytest.approx(level, rel=0.3), kind
    world = new_world(8, noise=NoiseLevels(blotches=0.3))
    first = world.render().astype(float)
    assert (
        np.abs(world.render().astype(float) - first).max() == 0
    )  # without a step the blotches stand still
    push(world, 0.0, 0.0)
    assert np.abs(world.render().astype(float) - first).mean() > 1
    assert np.array_equal(new_world(3).render(), new_world(3, noise=NoiseLevels()).render())


def test_rendering_is_quick():
    world = new_world(200)
    world.render()
    begun = time.process_time()
    for _ in range(5):
        world.render()
        push(world, 1.0, 0.5)
    rate = 1000 / (time.process_time() - begun)
    assert rate > 300, f"{rate:.0f} frames a second"  # about 10 times that on a free core
