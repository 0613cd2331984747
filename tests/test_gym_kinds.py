"""Environments as they come: which actions and rewards are taken, what is recorded, what is
refused by name."""

import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from jepa_wm.core.errors import UserError
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.worlds.collect import record
from jepa_wm.worlds.gym import GymSettings, GymWorld
from jepa_wm.worlds.two_rooms.world import TwoRooms
from jepa_wm.worlds.world import Adjusting, RandomActions, World

COLOUR = np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)
RENDERED = np.full((30, 40, 3), 77, np.uint8)


class Shown(gymnasium.Env):
    """Shows what it is told to; keeps the actions it is given."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)
    observation_space = spaces.Box(0, 255, (20, 24, 3), np.uint8)
    metadata = {"render_modes": ["rgb_array"]}
    shows, draws, pays, ends, info = COLOUR, RENDERED, 1.0, False, {}

    def __init__(self, render_mode=None):
        self.render_mode, self.given = render_mode, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.shows, dict(self.info)

    def step(self, action):
        self.given.append(action)
        return self.shows, self.pays, self.ends, False, dict(self.info)

    def render(self):
        return self.draws


def shown(picture=None, size=None, **attributes):
    """A world of one Shown with these attributes, reset."""
    world = GymWorld(type("Kind", (Shown,), attributes), picture=picture, size=size)
    world.reset(np.arange(1))
    return world


def test_one_array_for_all_that_is_seen_is_copied(tmp_path):
    class Reusing(Shown):
        buffer, place = np.zeros((20, 24, 3), np.uint8), np.zeros(1, np.float32)  # of all copies

        def reset(self, *, seed=None, options=None):
            self.number = seed
            return self.draw()[0], {"state": self.place}

        def draw(self):
            self.buffer[:], self.place[:] = self.number, self.number
            return self.buffer, 0.0, False, False, {"state": self.place}

        def step(self, action):
            self.number += 10
            return self.draw()

    record(
        tmp_path / "a.h5", GymWorld(Reusing, state_names=("n",)), RandomActions, np.arange(3), 4
    )
    data = Trajectories(tmp_path / "a.h5")
    expected = (np.arange(3)[:, None] + 10 * np.arange(4)).ravel()
    assert np.array_equal(data.frames[:, 0, 0, 0], expected) and np.array_equal(
        data.column("state")[:, 0], expected
    )
    one = Shown()
    with pytest.raises(UserError, match="was made twice"):
        GymWorld(lambda: one).reset(np.arange(2))


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (
            spaces.Box(-1, 1, (2,), np.int64),
            r"holds whole numbers, .* give the environment a Discrete\(9\) space",
        ),
        (spaces.Box(0, 255, (1,), np.uint8), r"whole numbers, .* Discrete\(256\)"),
        (
            spaces.Box(0, np.iinfo(np.int64).max - 2**11, (2,), np.int64),
            r"holds whole numbers, .* Discrete\(n\)",
        ),
        (spaces.Box(0, 255, (2,), np.uint8), r"holds whole numbers, .* Discrete\(n\)"),
        (spaces.Box(0, np.inf, (2,), np.int32), r"holds whole numbers, .* Discrete\(n\) space"),
        (spaces.Box(np.array([-1, 0]), np.array([0, 3]), dtype=np.int8), r"Discrete\(8\)"),
        (spaces.Box(0, 1, (3,), bool), r"whole numbers, .* Discrete\(8\)"),
        (spaces.MultiBinary(3), r"several choices at a time, .* Discrete\(8\).* or wrap it"),
        (spaces.MultiDiscrete([3, 2]), r"several choices at a time, .* Discrete\(6\)"),
        (spaces.Box(-1, 1, (), np.float32), "bounded Box of one axis"),
        (spaces.Box(-1, 1, (2, 2), np.float32), "bounded Box of one axis"),
        (spaces.Box(-1, 1, (0,), np.float32), "bounded Box of one axis"),
        (spaces.Box(-1, np.inf, (2,), np.float32), "bounded Box of one axis"),
        (spaces.Box(-1, 1e300, (2,), np.float64), "bounded Box of one axis"),
        (spaces.Box(1, 1, (2,), np.float32), "allows one action alone"),
    ],
)
def test_actions_that_cannot_be_planned_are_refused_with_what_to_do(space, said):
    with pytest.raises(ValueError, match=f"Kind.*{said}"):
        GymWorld(type("Kind", (Shown,), {"action_space": space}))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_what_is_recorded_is_what_was_taken(tmp_path, dtype):
    """Also where a policy asks for more than the box holds, and where the box is coarser than what
    it asks for."""
    worlds = []

    class Kept(Shown):
        action_space = spaces.Box(np.array([-1, 0.5, 2]), np.array([1, 0.75, 2]), dtype=dtype)

        def __init__(self):
            super().__init__()
            worlds.append(self)

    def wide(seeds):
        draw = np.random.default_rng(0)
        return lambda world: draw.uniform(-2, 2, (len(world), 3))

    for policy in (wide, RandomActions):
        worlds.clear()
        world = GymWorld(Kept)
        assert isinstance(world, World) and isinstance(world, Adjusting)
        record(tmp_path / f"{policy.__name__}.h5", world, policy, np.arange(2), 40)
        kept = Trajectories(tmp_path / f"{policy.__name__}.h5").actions.reshape(2, 40, 3)
        assert np.array_equal(kept[:, :-1], np.array([env.given for env in worlds], np.float32))
        assert worlds[0].given[0].dtype == dtype and all(
            Kept.action_space.contains(a) for a in worlds[0].given
        )
        assert len(np.unique(kept[..., 0])) > 5 and (kept[..., 2] == 2).all()


def test_choices_are_recorded_as_one_hot_of_what_was_taken(tmp_path):
    worlds = []

    class Choosing(Shown):
        action_space = spaces.Discrete(3, start=-1)

        def __init__(self):
            super().__init__()
            worlds.append(self)

    def unsure(seeds):
        draw = np.random.default_rng(0)
        return lambda world: draw.uniform(size=(len(world), 3))

    record(tmp_path / "a.h5", GymWorld(Choosing), unsure, np.arange(2), 300)
    kept = Trajectories(tmp_path / "a.h5").actions.reshape(2, 300, 3)
    assert (kept.sum(-1) == 1).all() and (kept.max(-1) == 1).all()
    assert np.array_equal(kept.argmax(-1)[:, :-1] - 1, [env.given for env in worlds])
    assert np.bincount(kept.argmax(-1).ravel()).min() > 150
    world = GymWorld(Choosing)
    world.reset(np.arange(2))
    for wrong in ([[3], [0]], [[-1], [0]], [[0.5], [0]]):
        with pytest.raises(ValueError, match="are not numbers of the 3 choices"):
            world.step(np.array(wrong, np.float32))


def test_long_moves_in_two_rooms_are_recorded_as_they_are_taken():
    world = TwoRooms()
    world.reset(np.arange(2))
    asked = np.array([[30.0, 40.0], [0.1, -0.2]], np.float32)
    longest = world.action_space.longest
    np.testing.assert_allclose(
        world.taken(asked), [[0.6 * longest, 0.8 * longest], [0.1, -0.2]], rtol=1e-6
    )
    assert world.taken(asked).dtype == np.float32 and np.array_equal(
        world.taken(asked)[1], asked[1]
    )


def of_a_graph(x):
    return torch.tensor([float(x)], requires_grad=True)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: np.array([x]), np.array, lambda x: np.array([[x]]), lambda x: [x], of_a_graph],
)
def test_rewards_and_flags_may_be_arrays_of_one_number(wrap):
    world = shown(pays=wrap(1.5), ends=wrap(True))
    world.step(np.zeros((1, 2), np.float32))
    assert world.reward().tolist() == [1.5] and world.ended().all()
    world = shown(pays=wrap(-1), ends=wrap(0.0))
    world.step(np.zeros((1, 2), np.float32))
    assert world.reward().tolist() == [-1] and not world.ended().any()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"pays": np.array([1.0, 2.0])}, r"its step returned array\(\[1., 2.\]\) as reward"),
        ({"pays": torch.zeros(2)}, r"its step returned tensor\(\[0., 0.\]\) as reward"),
        ({"pays": None}, "its step returned None as reward, which must be one finite number"),
        ({"pays": math.nan}, "its step returned nan as reward"),
        ({"pays": np.array([math.inf])}, r"its step returned array\(\[inf\]\) as reward"),
        ({"pays": 1e300}, r"its step returned 1e\+300 as reward"),
        ({"pays": "1"}, "its step returned '1' as reward"),
        ({"pays": {"task": 1.0}}, "its step returned {'task': 1.0} as reward"),
        ({"pays": [[1], [2, 3]]}, "as reward"),
        ({"ends": np.array([True, False])}, r"array\(\[ True, False\]\) as terminated"),
        ({"ends": None}, "its step returned None as terminated"),
    ],
)
def test_what_is_no_number_is_named_with_what_the_step_returned(attributes, said):
    world = shown(**attributes)
    with pytest.raises(UserError, match=f"Kind.*{said}"):
        world.step(np.zeros((1, 2), np.float32))


@pytest.mark.parametrize(
    "state", [[1.0, math.nan], [math.inf, 0], [1.0], np.zeros((2, 1)), None, ["a", "b"]]
)
def test_a_state_that_is_not_as_named_is_refused(state):
    world = GymWorld(type("Kind", (Shown,), {"info": {"state": state}}), state_names=("x", "y"))
    world.reset(np.arange(1))
    with pytest.raises(
        UserError, match=r"info.\"state\". of world 0 does not hold the 2 numbers .*, all finite; "
    ):
        world.state()
    world = GymWorld(type("Kind", (Shown,), {"info": {"state": (1, 2.5)}}), state_names=("x", "y"))
    world.reset(np.arange(1))
    assert world.state().tolist() == [[1, 2.5]] and world.state().dtype == np.float32


def test_the_old_interface_is_refused_by_name():
    class Four(Shown):
        def step(self, action):
            return COLOUR, 0.0, False, {}

    class Bare(Shown):
        def reset(self, *, seed=None, options=None):
            return COLOUR

    class Seedless(Shown):
        def reset(self):
            return COLOUR, {}

    class Short(Shown):
        def reset(self, seed=None):
            return COLOUR, {}

    world = GymWorld(Four)
    world.reset(np.arange(1))
    with pytest.raises(
        UserError, match=r"Four.*step must return \(observation, reward, .*not 4 values"
    ):
        world.step(np.zeros((1, 2), np.float32))
    with pytest.raises(UserError, match=r"Bare.*reset must return \(observation, info\)"):
        GymWorld(Bare).reset(np.arange(1))
    with pytest.raises(UserError, match="Seedless.*reset must take seed"):
        GymWorld(Seedless).reset(np.arange(1))
    GymWorld(Short).reset(
        np.arange(1)
    )  # options are given to those alone that are begun at a place


class Unaware(Shown):
    """Takes no render_mode."""

    def __init__(self, colour=0):
        super().__init__()
        self.shows = np.full((20, 24, 3), colour, np.uint8)


class Picky(Shown):
    def __init__(self, render_mode=None):
        assert render_mode in (None, "human")
        super().__init__()


class Refusing(Shown):
    def __init__(self, render_mode=None):
        raise ValueError("no licence")


@pytest.mark.parametrize("kind", [Unaware, Picky, Shown])
def test_the_config_makes_environments_with_and_without_a_render_mode(kind, monkeypatch):
    monkeypatch.setitem(
        gymnasium.registry,
        "Kind-v0",
        gymnasium.envs.registration.EnvSpec("Kind-v0", entry_point=kind),
    )
    options = {"colour": 9} if kind is Unaware else {}
    world = GymSettings(id="Kind-v0", size=None, options=options).make()
    world.reset(np.arange(1))
    assert np.array_equal(world.render()[0], COLOUR if not options else np.full_like(COLOUR, 9))
    assert world._envs[0].unwrapped.render_mode == ("rgb_array" if kind is Shown else None)
    options = {"render_mode": "rgb_array_list"} if kind is Shown else options
    world = GymSettings(id="Kind-v0", size=None, options=options, picture="render").make()
    world.reset(np.arange(1))
    assert np.array_equal(world.render()[0], RENDERED)


def test_what_cannot_be_made_is_said_by_the_first_reason(monkeypatch):
    spec = gymnasium.envs.registration.EnvSpec("Kind-v0", entry_point=Refusing)
    monkeypatch.setitem(gymnasium.registry, "Kind-v0", spec)
    with pytest.raises(
        UserError, match="^world.id Kind-v0: the environment cannot be made: no licence$"
    ):
        GymSettings(id="Kind-v0").make()
