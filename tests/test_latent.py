"""What stands on frozen tokens: the factored latent and its losses, and the temporal distance, a
quasimetric."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import small_latent_model
from torch import nn

from jepa_wm.core.errors import UserError
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.distance import TemporalDistance
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.factored_latent import FactoredLatent, curvature
from jepa_wm.models.keypoint_latent import KeypointLatent
from jepa_wm.models.latent import LatentBatch
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import (
    FactoredLatentSettings,
    KeypointLatentSettings,
    StateTokenSettings,
    TokenLatentSettings,
)
from jepa_wm.models.losses import EpisodeContrast, PredictiveContrast, TemporalContrast
from jepa_wm.models.pooling import Components, Keypoints
from jepa_wm.models.vit import Encoder
from jepa_wm.models.world_model_settings import DistanceSettings, WorldModelSettings
from jepa_wm.world_model.world_model import WorldModel


@given(st.integers(0, 10**6), st.floats(0.1, 10))
@settings(max_examples=40, deadline=None)
def test_the_temporal_distance_is_a_quasimetric(seed, size):
    torch.manual_seed(seed)
    distance = TemporalDistance(8, DistanceSettings(groups=3, components=4, width=16))
    with torch.no_grad():
        a, b, c = torch.randn(3, 20, 8) * size
        assert distance(a, a).abs().max() == 0
        assert distance(a, b).min() >= 0
        assert (distance(a, c) <= distance(a, b) + distance(b, c) + 1e-5).all()


def test_the_distance_there_is_not_the_distance_back():
    torch.manual_seed(0)
    distance = TemporalDistance(8, DistanceSettings(groups=3, components=4, width=16))
    a, b = torch.randn(2, 20, 8)
    assert not torch.allclose(distance(a, b), distance(b, a), atol=1e-3)


def test_the_distance_reads_numbers_of_any_scale_alike():
    torch.manual_seed(0)
    plain, scaled = (
        TemporalDistance(8, DistanceSettings(groups=3, components=4, width=16)) for _ in range(2)
    )
    scaled.load_state_dict(plain.state_dict())
    a, b = torch.randn(2, 500, 8)
    scale, shift = torch.rand(8) * 9 + 0.1, torch.randn(8) * 5
    plain.standardise(a)
    scaled.standardise(a * scale + shift)
    torch.testing.assert_close(
        scaled(a * scale + shift, b * scale + shift), plain(a, b), rtol=1e-3, atol=1e-4
    )


def test_the_distance_learns_how_many_steps_lie_between():
    """On a one-way ring of 12 places, moving on costs a step each and going back means going
    round."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    places = torch.nn.functional.one_hot(torch.arange(12), 12).float()
    distance = TemporalDistance(12, DistanceSettings(groups=8, components=8, width=64))
    optimiser = torch.optim.AdamW(distance.parameters(), lr=1e-2)
    for _ in range(600):
        here = torch.randint(12, (128,), generator=g)
        moved = torch.randint(1, 12, (128,), generator=g)
        dawdled = moved * torch.where(
            torch.rand(128, generator=g) < 0.5, 1, 3
        )  # half of the agents took their time
        passed = torch.stack([torch.zeros(128), dawdled.float()], 1)
        losses = distance.losses(
            torch.stack([places[here], places[(here + moved) % 12]], 1), passed
        )
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        ahead = [distance(places, places.roll(-k, 0)).mean().item() for k in range(12)]
    assert 5 < ahead[6] < 9, "nearer to the 6 steps of the quick than to the 12 of the average"
    assert ahead[1] < ahead[3] < ahead[6] < ahead[9]
    assert ahead[11] > 3 * ahead[1], "one place back is the long way round"


def test_all_pairs_of_an_episode_count_in_the_order_of_time():
    torch.manual_seed(0)
    distance = TemporalDistance(4, DistanceSettings(groups=2, components=2, width=8))
    latents, passed = torch.randn(3, 5, 4), torch.rand(3, 5).cumsum(1)
    pairs = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    excess = torch.stack(
        [distance(latents[:, i], latents[:, j]) - (passed[:, j] - passed[:, i]) for i, j in pairs]
    )
    losses = distance.losses(latents, passed)
    torch.testing.assert_close(losses["steps_error"], excess.abs().mean())
    share = torch.where(excess > 0, 0.97, 0.03)
    torch.testing.assert_close(losses["loss"], (share * excess.square()).mean())


@pytest.mark.parametrize("threads", [2, 3])
def test_pairs_give_the_same_gradients_to_the_bit_on_several_threads(threads):
    torch.manual_seed(0)
    distance = TemporalDistance(6, DistanceSettings(groups=4, components=8, width=32))
    latents, passed = torch.randn(33, 16, 6), torch.rand(33, 16).cumsum(1)
    before, known = torch.get_num_threads(), None
    torch.set_num_threads(threads)
    try:
        for _ in range(20):
            distance.zero_grad()
            distance.losses(latents, passed)["loss"].backward()
            gradients = [parameter.grad.clone() for parameter in distance.parameters()]
            if known is not None:
                assert all(torch.equal(a, b) for a, b in zip(gradients, known, strict=True))
            known = gradients
    finally:
        torch.set_num_threads(before)


# ---------------------------------------------------------------- the latent model


SMALL = FactoredLatentSettings(dynamic_dim=3, static_dim=2, components=6, width=16)
KINDS = [
    SMALL,
    SMALL.model_copy(update={"static_dim": 0}),
    KeypointLatentSettings(dynamic_points=2, static_points=2),
    KeypointLatentSettings(dynamic_points=2, static_points=0),
    StateTokenSettings(dim=4),
    StateTokenSettings(dim=4, static_dim=2),
    TokenLatentSettings(),
]


def latent_model(*, latent_settings=SMALL, **changes):
    torch.manual_seed(0)
    model = small_latent_model(latent_settings, tokens=9, token_width=8, frameskip=3, **changes)
    if model.latent.fitted:
        model.latent.components.fit(torch.randn(40, 9, 8))
    return model


def latent_batch(frames, displacement, *, distant=3, actions=None, gap=9.0):
    """A batch of windows, each an episode, whose one distant frame is one of the window's own."""
    count, length = frames.shape[:2]
    distant = torch.as_tensor(distant).expand(count)
    return LatentBatch(
        frames,
        frames[torch.arange(count), distant][:, None],
        displacement,
        torch.randn(count, length - 1, 6) if actions is None else actions,
        torch.as_tensor(gap).expand(count, length, 1),
        torch.arange(count),
    )


@pytest.mark.parametrize("latent_settings", KINDS)
def test_losses_are_finite_and_reach_every_part(latent_settings):
    model = latent_model(latent_settings=latent_settings)
    tokens, actions = torch.randn(4, 5, 9, 8), torch.randn(4, 4, 6)
    window = model.latent.encode(tokens)
    rounds = [model.dynamics_losses(window, actions, rollout=1.0)]
    if model.latent.joint:
        distant = window[:, 1:3, :, : model.latent.dynamic_dim]
        apart = torch.ones(4, 2, dtype=torch.bool)
        beside = model.latent.joint_losses(window, distant, apart, 0)
        rounds.append({"loss": beside["sigreg"]})
    training = model.latent.training_of(2, model.block)
    if training is not None:
        frames = model.latent.compress(tokens)
        rounds.append(training.losses(latent_batch(frames, torch.randn(4, 5, 2))))
    for losses in rounds:
        losses["loss"].backward(retain_graph=True)
        assert all(torch.isfinite(v) for v in losses.values())
    parts = nn.ModuleList([model, *([training] if training else [])])
    assert [n for n, p in parts.named_parameters() if p.grad is None and "distance" not in n] == []


def test_static_numbers_stay_as_they_are_and_condition_what_actions_do():
    model = latent_model()
    nn.init.normal_(model.dynamics.head.weight)
    latents, actions = torch.randn(2, 4, 1, 5), torch.randn(2, 4, 6)
    other = latents + torch.tensor([0.0, 0, 0, 1, 1])
    with torch.no_grad():
        after, elsewhere = model.dynamics(latents, actions), model.dynamics(other, actions)
    assert torch.equal(after[..., 3:], latents[..., 3:]) and not torch.equal(
        after[..., :3], latents[..., :3]
    )
    assert not torch.allclose(after[..., :3], elsewhere[..., :3])


@pytest.mark.parametrize("latent_settings", KINDS)
def test_static_numbers_are_read_and_replaced(latent_settings):
    model = latent_model(latent_settings=latent_settings)
    latents = model.latent.encode(torch.randn(2, 4, 9, 8))
    assert torch.equal(model.latent.with_static(latents, model.latent.static_of(latents)), latents)
    shared = model.latent.static_of(latents).mean(1, keepdim=True)
    replaced = model.latent.with_static(latents, shared)
    assert replaced.shape == latents.shape and torch.equal(
        model.latent.static_of(replaced), shared.expand(-1, 4, -1, -1)
    )
    dynamic_dim = latents.shape[-1] - shared.shape[-1]
    assert torch.equal(replaced[..., :dynamic_dim], latents[..., :dynamic_dim])
    assert shared.shape[-1] == model.latent.static_dim


def test_components_are_those_of_the_covariance_and_halfway_to_white():
    torch.manual_seed(0)
    spread = torch.tensor([8.0, 2.0, 0.5, 0.125]).repeat_interleave(2) ** 0.5
    turn = torch.linalg.qr(torch.randn(8, 8))[0]
    frames = (torch.randn(3000, 8) * spread @ turn.T).view(3000, 4, 2) + 3
    components = Components(8, 4)
    components.fit(frames)
    scores = components(frames)
    assert scores.mean(0).abs().max() < 1e-3
    covariance = scores.T @ scores / len(scores)
    assert (covariance - covariance.diag().diag()).abs().max() < 1e-3 * covariance.max()
    deviation = covariance.diag().sqrt()  # its own square root, up to the scale that all share
    torch.testing.assert_close(
        deviation[0] / deviation[3], (spread[0] / spread[2]).sqrt(), rtol=0.1, atol=0
    )
    assert deviation.square().mean() == pytest.approx(1, abs=0.01)


def test_fewer_frames_than_components_leave_the_rest_at_nothing():
    components = Components(8, 6)
    components.fit(torch.randn(4, 4, 2))
    assert (components(torch.randn(5, 4, 2)).abs().amax(0) > 0).tolist() == [True] * 3 + [
        False
    ] * 3


def test_dynamic_numbers_are_standardised_again_and_again():
    latent = latent_model().latent
    frames = latent.components(torch.randn(500, 9, 8))
    for _ in range(2):
        latent.standardise(frames)
        dynamic = latent.dynamic(frames)[:, 0]
        assert dynamic.mean(0).abs().max() < 1e-5 and (dynamic.std(0) - 1).abs().max() < 1e-5


def test_a_factored_latent_learns_where_things_are_without_labels():
    """A blob on a grid of tokens that actions move, over a pattern that is another one in every
    episode."""
    g = torch.Generator().manual_seed(0)
    moves = torch.randn(300, 5, 2, generator=g) * 0.7
    done = torch.nn.functional.pad(moves.cumsum(1), (0, 0, 1, 0))  # [E, 6, 2]
    way = (torch.rand(300, 1, 2, generator=g) * 5 + done).clamp(0, 5)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))
    blob = (-(way[:, :, None] - grid).square().sum(-1) / 2).exp()  # [E, 6, 36]
    tokens = (blob + 0.1 * torch.randn(300, 1, 36, generator=g))[..., None]
    torch.manual_seed(0)
    settings = FactoredLatentSettings(dynamic_dim=2, static_dim=0, components=36, width=64)
    latent = FactoredLatent(36, 1, settings)
    latent.components.fit(tokens.flatten(0, 1))
    training, frames = latent.training_of(2, 6), latent.components(tokens)
    optimiser = torch.optim.Adam(training.parameters(), lr=3e-3)

    def unexplained():
        """Share of the variance of places that a linear map of the dynamic numbers leaves."""
        with torch.no_grad():
            read = torch.nn.functional.pad(latent.dynamic(frames).flatten(0, 2), (0, 1), value=1.0)
        gap = read @ torch.linalg.lstsq(read, way.flatten(0, 1)).solution - way.flatten(0, 1)
        return (gap.square().mean() / way.flatten(0, 1).var(0).mean()).item()

    before = unexplained()
    for _ in range(300):
        rows, other = torch.randint(300, (64,), generator=g), torch.randint(6, (64,), generator=g)
        optimiser.zero_grad()
        training.losses(latent_batch(frames[rows], done[rows], distant=other))["loss"].backward()
        optimiser.step()
    assert unexplained() < 0.06 < before / 4


def test_keypoints_find_what_moves_and_what_is_constant_and_where_it_is():
    """A bump that walks and one that stays in an episode, in noise; of no use is a third that is
    anywhere at any time. No displacement is given, and the actions are pushes that walls cut."""
    g = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))

    def bump(place):
        return (-(place[..., None, :] - grid).square().sum(-1) / 2).exp()

    pushes = torch.randn(400, 5, 2, generator=g)
    way = [torch.rand(400, 2, generator=g) * 5]
    for push in pushes.unbind(1):
        way.append((way[-1] + push).clamp(0, 5))
    way, still = torch.stack(way, 1), torch.rand(400, 1, 2, generator=g) * 5
    anywhere = torch.rand(400, 6, 2, generator=g) * 5
    channels = [bump(way), bump(still).expand(-1, 6, -1), bump(anywhere)]
    tokens = torch.stack(channels, -1) @ torch.randn(3, 8, generator=g)  # [E, 6, 36, 8]
    tokens = tokens + 0.1 * torch.randn(tokens.shape, generator=g)
    torch.manual_seed(0)
    latent = KeypointLatent(36, 8, KeypointLatentSettings(dynamic_points=2, static_points=2))
    training = latent.training_of(2, 2)
    optimiser = torch.optim.Adam(training.parameters(), lr=1e-2)
    for _ in range(300):
        rows, other = torch.randint(400, (64,), generator=g), torch.randint(6, (64,), generator=g)
        gap = (torch.arange(6) - other[:, None]).abs().float()[..., None]
        batch = latent_batch(tokens[rows], way[rows], distant=other, actions=pushes[rows], gap=gap)
        optimiser.zero_grad()
        training.losses(batch._replace(episode=rows))["loss"].backward()
        optimiser.step()
    latent.standardise(tokens.flatten(0, 1))
    with torch.no_grad():
        read = latent.encode(tokens)[:, :, 0]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(latent.encode(tokens)[:, :, 0], read), "read in fp32 everywhere"
    moved, constant = read[..., :4], read[..., 4:]
    for part in (moved, constant):
        assert part.flatten(0, 1).mean(0).abs().max() < 1e-4
        assert part.flatten(0, 1).var(0).mean() == pytest.approx(1, abs=1e-3)

    def left(numbers, truth):
        """Share of the variance of places that a linear map of the numbers leaves."""
        x = torch.nn.functional.pad(numbers.flatten(0, 1), (0, 1), value=1.0)
        y = truth.expand(-1, 6, -1).flatten(0, 1)
        gap = x @ torch.linalg.lstsq(x, y).solution - y
        return (gap.square().mean() / y.var(0).mean()).item()

    assert left(moved, way) < 0.1 < 0.7 < left(moved, still)
    assert left(constant, still) < 0.2
    assert left(read, anywhere) > 0.7


class Given(nn.Module):
    """Frames that are their own points."""

    points = 4

    def forward(self, frames):
        return frames


def test_points_that_follow_nothing_are_left_out():
    """The first is moved by actions, the second stands still, the third looks for nothing in
    particular, the fourth lasts from frame to frame by itself."""
    g = torch.Generator().manual_seed(0)
    moves = torch.randn(300, 5, 2, generator=g) * 0.1
    walk = torch.rand(300, 1, 2, generator=g) + torch.nn.functional.pad(
        moves.cumsum(1), (0, 0, 1, 0)
    )
    faint = 0.003 * torch.randn(300, 6, 4, generator=g)
    still = torch.rand(300, 1, 2, generator=g).expand(-1, 6, -1) + faint[..., :2]
    noise = 0.05 * torch.randn(300, 6, 2, generator=g)
    swing = torch.linspace(0, 3, 6) + torch.rand(300, 1, generator=g) * 6
    swing = torch.stack([swing.sin(), swing.cos()], -1) / 4
    frames = torch.cat([walk, still, noise, swing], -1)
    latent = KeypointLatent(9, 8, KeypointLatentSettings(dynamic_points=4, static_points=0))
    latent.places = Given()
    batches = [
        latent_batch(frames[rows], frames[rows][..., :2], distant=5 * (i % 2), actions=moves[rows])
        for i, rows in enumerate(torch.arange(300).split(60))
    ]
    found = latent.select(batches)["dynamic_points"]
    assert [point["follows"] > 0.5 for point in found] == [True, False, False, True]
    latent.standardise(frames.flatten(0, 1))
    read = latent.encode(frames)[:, :, 0]
    assert not read[..., 2:6].any()
    kept = read[..., [0, 1, 6, 7]].flatten(0, 1)
    assert kept.var(0).mean() == pytest.approx(1, abs=1e-3)
    spread = frames.flatten(0, 1).std(0)[[0, 1, 6, 7]]
    torch.testing.assert_close(kept.std(0) / kept.std(0)[0], spread / spread[0])
    shifted = torch.stack(latent.perturbations(read[:2], 0.5)) - read[:2]
    assert len(shifted) == 8 and not shifted[..., 2:6].any() and shifted.abs().sum(-1).min() > 0.4

    # Where nothing follows, the best is kept, and it is said.
    with pytest.warns(UserWarning, match="has not found what moves"):
        latent.select(
            [
                batch._replace(frames=torch.rand(60, 6, 8), distant=torch.rand(60, 1, 8))
                for batch in batches
            ]
        )
    assert latent.counts.sum() == 2


def test_what_is_near_the_true_frame_is_no_negative_of_it():
    contrast = PredictiveContrast(3, projected=3)
    nn.init.eye_(contrast.project.weight)
    nn.init.zeros_(contrast.project.bias)
    a, b = torch.eye(3)[0].view(1, 1, 3), torch.eye(3)[1].view(1, 1, 3)
    near, far = torch.ones(1, 1, 1, dtype=torch.bool), torch.zeros(1, 1, 1, dtype=torch.bool)
    assert contrast(a, a, a, near) == 0 == contrast(a, b, a, near)
    assert contrast(a, a, a, far).item() == pytest.approx(math.log(2))
    assert contrast(a, a, b, far).item() == pytest.approx(math.log1p(math.exp(-10)), rel=1e-3)


def test_keypoints_are_the_places_of_what_is_looked_for():
    points = Keypoints(9, 1, 1)
    points.norm, points.score = nn.Identity(), nn.Identity()
    nn.init.zeros_(points.offset.weight)
    nn.init.zeros_(points.offset.bias)
    bright = 100 * torch.eye(9)[:, :, None]  # one token each
    rows, columns = torch.arange(9) // 3, torch.arange(9) % 3
    expected = torch.stack([rows, columns], -1) / 2 - 0.5
    torch.testing.assert_close(points(bright), expected)
    torch.testing.assert_close(points(bright[None, 3:5])[0].mean(0), torch.tensor([0.0, -0.25]))
    assert points(torch.zeros(2, 3, 9, 1)).shape == (2, 3, 2)
    in_line = Keypoints(3, 1, 1).place
    torch.testing.assert_close(in_line, torch.tensor([[0, 0], [0, 0.5], [0, 1]]))


def test_curvature_tells_straight_paths_from_wild_ones_at_any_scale():
    g = torch.Generator().manual_seed(0)
    steps = torch.randn(500, 1, 3, generator=g)
    even, wild = steps * torch.arange(6.0)[:, None], torch.randn(500, 6, 3, generator=g).cumsum(1)
    assert curvature(even) < 1e-10 and curvature(wild) == pytest.approx(2, abs=0.1)
    assert (
        curvature(100 * wild) == pytest.approx(curvature(wild).item())
        and curvature(torch.zeros(4, 3, 2)) == 0
    )
    places = wild.clone().requires_grad_()
    curvature(places).backward()
    assert abs((places.grad * places).sum()) < 1e-3 * places.grad.norm() * places.norm(), (
        "smaller is no straighter"
    )


def test_a_factored_latent_of_what_turns_by_itself_is_straightened():
    """A blob that goes round a ring of tokens at a speed of its own, and is nudged by actions that
    add up to no way."""
    g = torch.Generator().manual_seed(0)
    nudges = torch.randn(300, 5, 1, generator=g)
    speed = 0.3 * torch.randn(300, 1, 1, generator=g) + 0.05 * nudges.cumsum(1)
    angle = torch.cat([6.28 * torch.rand(300, 1, 1, generator=g), speed], 1).cumsum(1)  # [E, 6, 1]
    ring = torch.arange(24) / 24 * 2 * torch.pi
    tokens = ((angle - ring).cos() * 8 - 8).exp()[..., None]  # [E, 6, 24, 1]

    def trained(straightening):
        torch.manual_seed(0)
        settings = FactoredLatentSettings(
            dynamic_dim=4,
            static_dim=0,
            components=24,
            width=64,
            inverse_dynamics=0.0,
            straightening=straightening,
        )
        latent = FactoredLatent(24, 1, settings)
        latent.components.fit(tokens.flatten(0, 1))
        training, frames = latent.training_of(1, 6), latent.components(tokens)
        optimiser = torch.optim.Adam(training.parameters(), lr=3e-3)
        for _ in range(300):
            rows, other = torch.randint(250, (64,)), torch.randint(6, (64,))
            optimiser.zero_grad()
            moved = nudges.cumsum(1)[rows, :1].expand(-1, 6, -1)
            losses = training.losses(latent_batch(frames[rows], moved, distant=other))
            losses["loss"].backward()
            optimiser.step()
        with torch.no_grad():
            held_out = training.losses(latent_batch(frames[250:], torch.zeros(50, 6, 1)))
            bend = curvature(latent.dynamic(frames[250:]))
            return bend.item(), held_out["reconstruction"].item()

    wild, (straight, reconstruction) = trained(0.0)[0], trained(1.0)
    assert straight < 0.4 * wild and reconstruction < 0.05


def test_of_all_tokens_the_tokens_are_the_latent():
    tokens = torch.randn(2, 3, 9, 8).bfloat16()
    latent = latent_model(latent_settings=TokenLatentSettings()).latent.encode(tokens)
    assert latent.dtype == torch.float32 and torch.equal(latent, tokens.float())


def test_a_factored_latent_does_not_depend_on_its_neighbours():
    model = latent_model()
    tokens = torch.randn(4, 3, 9, 8)
    with torch.no_grad():
        whole = model.latent.encode(tokens)
        assert whole.shape == (4, 3, 1, 5)
        torch.testing.assert_close(
            whole[1, 2], model.latent.encode(tokens[1, 2]), atol=1e-5, rtol=1e-5
        )


def test_action_units_are_taken_out_number_by_number():
    model = latent_model()
    model.action_scale.copy_(torch.tensor([2.0, 4.0]))
    assert model.scaled(torch.tensor([[2.0, 4.0, 4.0, 8.0, 6.0, 12.0]])).tolist() == [
        [1, 1, 2, 2, 3, 3]
    ]


def test_contrasts_ask_for_what_moves_in_a_window_and_for_what_tells_windows_apart():
    torch.manual_seed(0)
    successor, episode = TemporalContrast(8), EpisodeContrast(8)
    noise = 1e-4 * torch.randn(64, 5, 8)
    layout = torch.randn(64, 1, 8).expand(-1, 5, -1) + noise  # differs between windows, not within
    angle = torch.arange(5) * 0.5 + torch.rand(64, 1) * 6
    moving = torch.cat([angle.cos()[..., None], angle.sin()[..., None], torch.zeros(64, 5, 6)], -1)
    with torch.no_grad():
        static, shifting = successor(layout).item(), successor(moving).item()
        assert static == pytest.approx(math.log(4), abs=0.05), (
            "what is static gives no better than chance"
        )
        assert shifting < static - 0.1
        alike = noise + torch.ones(8)
        assert episode(alike[:, :2], alike[:, 2:]).item() == pytest.approx(math.log(64), abs=0.05)
        assert episode(layout[:, :2], layout[:, 2:]).item() < math.log(64) - 2
        spinning = moving.roll(1, 0)  # what moved on says nothing of the episode
        assert episode(moving[:, :1], spinning[:, -1:]).item() > math.log(64)


def test_episode_contrast_prefers_what_lasts_to_what_is_near():
    torch.manual_seed(0)
    contrast = EpisodeContrast(4, projected=4)
    with torch.no_grad():
        contrast.project.weight.copy_(torch.eye(4))
        contrast.project.bias.zero_()
    place = torch.randn(32, 2, 2)  # where the agent is: another at each of the two frames
    lasting = torch.nn.functional.pad(torch.randn(32, 1, 2).expand(-1, 2, -1), (0, 2))
    passing = torch.nn.functional.pad(place, (2, 0))
    seen = [contrast(x[:, :1], x[:, 1:]).item() for x in (lasting, passing)]
    assert seen[0] < math.log(32) - 1.5 and seen[1] > math.log(32)


def test_dynamics_of_another_encoder_are_refused():
    encoder = FrozenEncoder(
        Encoder(32, EncoderSettings(patch_size=16, width=16, depth=1, num_heads=1)), 32
    )
    latent = LatentModel(4, 12, 2, WorldModelSettings(latent=TokenLatentSettings()))
    with pytest.raises(
        UserError,
        match="trained on 4 tokens of width 12 a frame, but the encoder gives 4 of width 16",
    ):
        WorldModel(encoder, latent)
