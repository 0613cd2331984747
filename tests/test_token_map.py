"""A map over a frame's tokens, and dynamics that read it around the places of a latent."""

import types
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import KeypointLatentSettings
from jepa_wm.models.token_map import MapField, TokenMap, width_near
from jepa_wm.models.world_model_settings import DistanceSettings, MLPSettings, WorldModelSettings
from jepa_wm.training.heads import make_heads
from jepa_wm.world_model.world_model import WorldModel


def numbered(tokens, channels=2):
    """(a map, [tokens, channels] its numbers) where a token's first number is its own number plus
    1, and its second that times 100."""
    token_map = TokenMap(tokens, 6, channels)
    numbers = torch.arange(1.0, tokens + 1)[:, None] * torch.tensor([1.0, 100.0])
    return token_map, numbers


def test_a_place_reads_its_own_token_and_the_eight_around_it():
    token_map, numbers = numbered(16)
    place = torch.tensor([1 / 3 - 0.5, 2 / 3 - 0.5])  # row 1, column 2 of four by four
    near = token_map.near(numbers.flatten(), place)
    assert near.shape == (width_near(1, 2),) == (20,)
    own = 1 * 4 + 2 + 1
    expected = [own + row * 4 + column for row in (-1, 0, 1) for column in (-1, 0, 1)]
    torch.testing.assert_close(near[:18:2], torch.tensor(expected).float())
    torch.testing.assert_close(near[1:18:2], 100 * near[:18:2])
    torch.testing.assert_close(near[18:], torch.zeros(2), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("place", "token", "left"),
    [((-0.5, -0.5), 0, (0.0, 0.0)), ((0.5, 0.5), 15, (0.0, 0.0)), ((0.9, -3.0), 12, (0.0, 0.0)),
     ((0.4 / 3 - 0.5, 1.7 / 3 - 0.5), 2, (0.4, -0.3))],
)  # fmt: skip
def test_beyond_the_edge_nothing_is_read_and_what_is_left_of_a_token_is_said(place, token, left):
    token_map, numbers = numbered(16)
    near = token_map.near(numbers.flatten(), torch.tensor(place))
    around = near[:18:2].view(3, 3)
    assert around[1, 1] == token + 1
    row, column = divmod(token, 4)
    inside = torch.tensor(
        [[0 <= row + i < 4 and 0 <= column + j < 4 for j in (-1, 0, 1)] for i in (-1, 0, 1)]
    )
    assert torch.equal(around > 0, inside)
    torch.testing.assert_close(near[18:], torch.tensor(left), atol=1e-5, rtol=0)


def test_tokens_in_a_line_have_neighbours_on_two_sides():
    token_map, numbers = numbered(5)  # no square
    near = token_map.near(numbers.flatten(), torch.tensor([-0.5, 0.25 - 0.5]))
    assert near[:18:2].tolist() == [0, 0, 0, 1, 2, 3, 0, 0, 0]


def test_many_maps_and_points_are_read_each_by_itself():
    g = torch.Generator().manual_seed(0)
    token_map = TokenMap(9, 4, 3)
    numbers = torch.randn(2, 5, 27, generator=g, requires_grad=True)
    places = torch.rand(2, 5, 4, generator=g) - 0.5
    places.requires_grad_()
    near = token_map.near(numbers, places)
    assert near.shape == (2, 5, width_near(2, 3))
    alone = token_map.near(numbers[1, 3], places[1, 3, 2:])
    torch.testing.assert_close(near[1, 3, near.shape[-1] // 2 :], alone)
    near.sum().backward()
    assert places.grad.abs().min() > 0 and numbers.grad.abs().sum() > 0


def keypoints(tokens, static_points=2):
    """A latent model of a point of what changes, some of what is constant and a map."""
    latent = KeypointLatentSettings(
        dynamic_points=1, static_points=static_points, static_frames=2, map_channels=3
    )
    settings = WorldModelSettings(
        latent=latent,
        dynamics=MLPSettings(context_frames=2, width=16),
        distance=DistanceSettings(groups=2, components=2, width=8),
    )
    torch.manual_seed(0)
    return LatentModel(tokens, 6, 2, settings)


def test_what_lies_around_the_point_acts_and_what_lies_elsewhere_does_not():
    model = keypoints(tokens=9)
    latents = torch.zeros(1, 1, 1, 33)
    latents[..., :2] = -2.0  # in the first corner, of three by three tokens
    latents[..., 6:] = torch.randn(27, generator=torch.Generator().manual_seed(0))
    latent, actions = model.latent, torch.zeros(1, 1, model.block)
    assert (latents[..., 0, :2] * latent.scale + latent.shift < -0.5).all()
    plain = model.dynamics(latents, actions)
    for token in range(9):
        changed = latents.clone()
        changed[..., 6 + 3 * token : 9 + 3 * token] += 1
        effect = (model.dynamics(changed, actions) - plain)[..., :2].abs().max()
        assert (effect > 1e-5) == (token in (0, 1, 3, 4))
    assert torch.equal(plain[..., 2:], latents[..., 2:]), "what is constant stays"


@pytest.mark.parametrize("tokens", [16, 5])
def test_a_field_passes_on_what_lies_next_to_a_place_and_further_with_more_layers(tokens):
    torch.manual_seed(0)
    side = 4 if tokens == 16 else tokens
    for depth in (0, 1, 2):
        field = MapField(tokens, 3, 8, depth)
        plain = torch.randn(1, tokens * 3)
        changed = plain.clone()
        changed[:, :3] += 1  # of the first token, in a corner
        difference = (field(changed) - field(plain)).unflatten(-1, (tokens, -1)).abs().amax(-1)[0]
        assert difference.shape == (tokens,) and field.channels == 4
        place = torch.arange(tokens)
        steps = torch.maximum(place // side, place % side)
        assert torch.equal(difference > 0, steps <= depth + 1)


def test_a_field_reads_maps_of_any_scale_alike():
    torch.manual_seed(0)
    plain, scaled = MapField(9, 2, 8, 2), MapField(9, 2, 8, 2)
    scaled.load_state_dict(plain.state_dict())
    maps, shift = torch.randn(50, 18), torch.tensor([7.0, -30.0]).repeat(9)
    plain.standardise(maps)
    scaled.standardise(40 * maps + shift)
    torch.testing.assert_close(scaled(40 * maps + shift), plain(maps), rtol=1e-3, atol=1e-4)


def test_the_distance_reads_places_and_the_whole_map_and_no_other_static_number():
    model = keypoints(tokens=9)
    start, goal = torch.randn(2, 1, 1, 33, generator=torch.Generator().manual_seed(0))
    start[..., 2:] = goal[..., 2:]
    world = types.SimpleNamespace(
        latent_model=model, latent=model.latent, _reading=lambda *x: nullcontext()
    )

    def between(change=None):
        pair = start.clone(), goal.clone()
        for each in pair:
            if change is not None:
                change(each)
        with torch.no_grad():
            return WorldModel.distance(world, pair[0][:, None, None], pair[1]).item()

    plain = between()
    assert plain > 0 and model.flat(start).shape[-1] == 6
    for token in range(9):  # three by three: with eight layers each reaches every place
        assert between(lambda latents, i=token: latents[..., 6 + 3 * i].add_(1)) != plain
    assert between(lambda latents: latents[..., 2:6].add_(1)) == plain
    assert between(lambda latents: latents[..., :1].add_(1)) != plain


def test_heads_that_know_nothing_of_the_layout_are_warned_of():
    """Policies are not: they read the map."""
    sizes = HeadSettings(width=8, policies=("gcbc",))
    policies = types.SimpleNamespace(columns={})
    taught = types.SimpleNamespace(columns={"terminated": np.zeros(3)})
    blind = keypoints(tokens=9, static_points=0)
    legs = types.SimpleNamespace(batch=lambda step, rows: None, fast_step=1.0)
    for model, samples in ((keypoints(tokens=9), taught), (blind, policies)):
        made = make_heads(sizes, model, samples, legs)
        assert made.policy("gcbc").net[0].in_features == 2 * model.policy_inputs
    assert blind.policy_inputs > blind.flat_width
    with pytest.warns(UserWarning, match="set latent.static_points=8"):
        make_heads(sizes, blind, taught, legs)


def rooms(count, side=6):
    """[count, side, side] bool walls: a column with one gap."""
    r = np.random.default_rng(count)
    walls = np.zeros((count, side, side), bool)
    walls[np.arange(count), :, r.integers(1, side - 1, count)] = True
    walls[np.arange(count), r.integers(0, side, count)] = False
    return walls


def ways(walls):
    """[N, N] steps between all tokens of a room, 99 where there is no way."""
    free = {tuple(map(int, place)) for place in np.argwhere(~walls)}
    steps = np.full((walls.size, walls.size), 99.0)
    for start in free:
        edge, known = [start], {start: 0}
        for row, column in edge:
            for at in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if at in free and at not in known:
                    known[at] = known[row, column] + 1
                    edge.append(at)
        for (row, column), far in known.items():
            steps[start[0] * len(walls) + start[1], row * len(walls) + column] = far
    return steps


@pytest.fixture
def one_thread():
    """Small convolutions on several threads wait for one another where cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_ways_round_walls_that_were_never_met_are_told_apart_by_their_length(one_thread):
    """Learned in 256 rooms, asked in 20 others, of pairs that a wall stands between."""
    torch.manual_seed(0)
    latent = KeypointLatentSettings(dynamic_points=1, static_points=0, map_channels=1)
    distance = DistanceSettings(
        groups=4, components=8, width=64, expectile=0.5, field_width=16, field_depth=6
    )
    model = LatentModel(
        36, 6, 2, WorldModelSettings(latent=latent, dynamics=MLPSettings(), distance=distance)
    )
    places = torch.cartesian_prod(torch.arange(6), torch.arange(6)).float() / 5 - 0.5

    def read(walls, tokens):
        maps = torch.from_numpy(walls).float().flatten(1)[:, None].expand(-1, tokens.shape[1], -1)
        latents = torch.cat([places[tokens], maps], -1)[:, :, None]
        return model.distance_input(latents, model.map_field(latents[:, 0])[:, None])

    rooms_met, rooms_new = rooms(256), rooms(20)
    known = torch.from_numpy(np.stack([ways(room) for room in rooms_met])).float()
    free = torch.from_numpy(~rooms_met).flatten(1).float()
    optimiser = torch.optim.AdamW(model.distance.parameters(), 3e-3)
    for step in range(400):
        room = torch.arange(32) + 32 * (step % 8)
        start, later = free[room].multinomial(8).split([1, 7], 1)
        later = later.gather(1, known[room[:, None], start, later].argsort(1))
        # From one place to seven others: what passed counts from the first alone.
        at = model.distance.embed(read(rooms_met[room], torch.cat([start, later], 1)))
        excess = model.distance.between(at[:, :1], at[:, 1:]) - known[room[:, None], start, later]
        optimiser.zero_grad()
        excess.square().mean().backward()
        optimiser.step()

    told, true = [], []
    with torch.no_grad():
        for room in rooms_new:
            at = model.distance.embed(read(room[None], torch.arange(36)[None]))[0]
            far, wall = ways(room), int(np.argwhere(room)[0, 1])
            side = np.sign(np.arange(36) % 6 - wall)
            between = model.distance.between(at[:, None], at[None]).numpy()
            across = (side[:, None] * side[None] < 0) & (far < 99)
            told.append(between[across])
            true.append(far[across])
    told, true = np.concatenate(told), np.concatenate(true)
    assert np.corrcoef(told, true)[0, 1] > 0.9


def test_dynamics_that_read_no_map_are_refused_one():
    name = "dynamics={name: deterministic}"
    with pytest.raises(UserError, match="latent.map_channels 8 .* deterministic .*=mlp"):
        load_config("two_rooms", [name])
    assert load_config("two_rooms", [name, "latent.map_channels=0"]).latent.map_channels == 0
