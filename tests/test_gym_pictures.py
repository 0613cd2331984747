"""What is taken for the picture of an environment, and what is refused by name."""

import math

import numpy as np
import pytest
from gymnasium import spaces
from test_gym_kinds import COLOUR, RENDERED, Shown, shown

from jepa_wm.core.errors import UserError
from jepa_wm.worlds.gym import GymWorld

GREY = COLOUR[..., 0]
AS_GREY = np.repeat(GREY[..., None], 3, 2)
UNIT = spaces.Box(0, 1, (20, 24, 3), np.float64)


def depth(high=1.0):
    return spaces.Box(0, high, (20, 24, 1), np.float32)


@pytest.mark.parametrize(
    ("shows", "space", "wanted", "frame"),
    [
        (COLOUR, None, None, COLOUR),
        (COLOUR, None, "render", RENDERED),
        (COLOUR.transpose(2, 0, 1), None, None, COLOUR),
        (GREY, None, None, AS_GREY),
        (GREY[..., None], None, None, AS_GREY),
        (GREY[None], None, None, AS_GREY),
        (COLOUR / 255, UNIT, None, COLOUR),
        ((COLOUR / 255).astype(np.float32), spaces.Box(0, 1, (20, 24, 3), np.float32), None,
         COLOUR),
        (COLOUR.astype(np.int64), spaces.Box(0, 255, (20, 24, 3), np.int64), None, COLOUR),
        (COLOUR.astype(np.float32), spaces.Box(0, 255, (20, 24, 3), np.float32), None, COLOUR),
        ({"pixels": COLOUR, "speed": np.zeros(2)}, None, None, COLOUR),
        ({"rgb": COLOUR.transpose(2, 0, 1), "mask": GREY}, None, None, COLOUR),
        ({"rgb": COLOUR, "depth": np.zeros((20, 24, 1), "f4")},
         spaces.Dict(rgb=spaces.Box(0, 255, (20, 24, 3), np.uint8), depth=depth()), None, COLOUR),
        ({"camera": {"front": COLOUR}, "arm": np.zeros(3)}, None, None, COLOUR),
        ({"front": COLOUR, "wrist": COLOUR[::-1]}, None, "wrist", COLOUR[::-1]),
        ({"cameras": {"a": COLOUR, "b": COLOUR[::-1]}}, None, "cameras/b", COLOUR[::-1]),
        ({"front": COLOUR, "wrist": COLOUR[::-1]}, None, "render", RENDERED),
        ((COLOUR, np.zeros(3)), None, None, COLOUR),
        ((COLOUR, COLOUR[::-1]), None, "1", COLOUR[::-1]),
        # MiniGrid's numbers of things
        ({"image": np.ones((7, 7, 3), np.uint8), "direction": 3}, None, None, RENDERED),
        (np.zeros((4, 84, 84), np.uint8), None, None, RENDERED),
        (np.zeros((84, 84, 12), np.uint8), None, None, RENDERED),
        (np.zeros((9, 9), np.uint8), None, None, RENDERED),
        (COLOUR / 255, spaces.Box(-1, 1, (20, 24, 3)), None, RENDERED),
        (np.zeros((20, 24)), spaces.Box(0, 1, (20, 24)), None, RENDERED),
        (np.zeros(3), None, None, RENDERED),
    ],
)  # fmt: skip
def test_the_picture_is_found_and_made_colour(shows, space, wanted, frame):
    space = spaces.Box(0, 255, (20, 24, 3), np.uint8) if space is None else space
    world = shown(wanted, shows=shows, observation_space=space)
    assert np.array_equal(world.render()[0], frame) and world.render().dtype == np.uint8
    world.step(np.zeros((1, 2), np.float32))
    assert np.array_equal(world.render()[0], frame)
    small = shown(wanted, 16, shows=shows, observation_space=space)
    assert small.render().shape == (1, 16, 16, 3)


@pytest.mark.parametrize(
    ("draws", "frame"),
    [
        ([RENDERED, COLOUR], COLOUR),
        (np.concatenate([COLOUR, np.full((20, 24, 1), 255, np.uint8)], 2), COLOUR),
        (GREY, AS_GREY),
        (COLOUR.transpose(2, 0, 1), COLOUR),
    ],
)
def test_what_is_rendered_is_made_colour(draws, frame):
    world = shown(shows=np.zeros(3), draws=draws)
    assert np.array_equal(world.render()[0], frame)


@pytest.mark.parametrize(
    ("attributes", "wanted", "said"),
    [
        ({"shows": {"front": COLOUR, "wrist": COLOUR}}, None,
         "several pictures, front, wrist: choose one with world.picture, or 'render'"),
        ({"shows": (COLOUR, COLOUR)}, None, "several pictures, 0, 1: choose one"),
        ({"shows": {"front": COLOUR, "speed": np.zeros(2)}}, "wrist",
         r"world.picture is 'wrist', .* has front uint8 \[20, 24, 3\], speed float64 \[2\]"),
        ({"shows": {"front": COLOUR, "speed": np.zeros(2)}}, "speed",
         "world.picture is 'speed', which is no picture"),
        ({"shows": COLOUR}, "front", "world.picture is 'front'"),
        ({"shows": COLOUR / 255 * 2, "observation_space": UNIT}, None,
         "numbers from 0 to 2; observation_space says from 0 to 1"),
        ({"shows": COLOUR / math.nan, "observation_space": UNIT}, None, "numbers from nan to nan"),
        ({"shows": np.zeros((4, 84, 84), np.uint8), "draws": None}, None,
         r"neither .* picture, but uint8 \[4, 84, 84\] and NoneType; a picture is"),
        ({"shows": np.zeros(3), "draws": []}, None, r"float64 \[3\] and list; .* render_mode"),
        ({"shows": np.zeros(3), "draws": RENDERED / 255}, None,
         r"and float64 \[30, 40, 3\]; a picture is uint8"),
        ({"shows": np.zeros(3), "draws": np.zeros((20, 24, 4), np.uint8)}, None,
         r"and uint8 \[20, 24, 4\]; a picture is"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_by_name(attributes, wanted, said):
    with pytest.raises(UserError, match=f"Kind.*{said}"):
        shown(wanted, **attributes)


def test_a_picture_that_changes_its_size_or_kind_is_refused():
    class Growing(Shown):
        def step(self, action):
            return np.zeros((40, 40, 3), np.uint8), 0.0, False, False, {}

    for size in (None, 16):
        world = GymWorld(Growing, size=size)
        world.reset(np.arange(2))
        world.step(np.zeros((2, 2), np.float32))
        if size is None:
            with pytest.raises(
                UserError,
                match=r"picture is \[40, 40, 3\] now and was \[20, 24, 3\] .* world.size",
            ):
                world.render()
        else:
            assert world.render().shape == (2, 16, 16, 3)

    class Turning(Shown):
        def step(self, action):
            return np.zeros(3), 0.0, False, False, {}

    world = GymWorld(Turning)
    world.reset(np.arange(1))
    with pytest.raises(UserError, match="began with a picture and now has float64"):
        world.step(np.zeros((1, 2), np.float32))
