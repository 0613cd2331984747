"""JEPA: the target follows and never learns, targets carry what they should, and collapse is
noticed."""

import copy

import numpy as np
import pytest
import torch

from jepa_wm.config import Config
from jepa_wm.data.settings import DataSettings
from jepa_wm.models.encoder_settings import BlockMask, EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.losses import collapse_metrics
from jepa_wm.models.masks import TokenMask, draw_hidden, draw_masks, full_frames, split_tokens
from jepa_wm.models.targets import latent_targets, whitened

HALF = BlockMask(
    num_blocks=1, spatial_scale=(1.0, 1.0), aspect_ratio=(1.0, 1.0), temporal_scale=(0.5, 0.5)
)
# Targets and patches as V-JEPA has them, and no convolution over neighbours.
PLAIN = {
    "neighbor_width": 0,
    "patch_init": "normal",
    "target_kinds": ("tokens",),
    "whiten_targets": False,
    "error": "absolute",
}
PREDICTOR = {"width": 16, "depth": 1, "num_heads": 1, **PLAIN}
BOXES = BlockMask(num_blocks=2, spatial_scale=(0.2, 0.4))


def jepa(seed=0, **predict):
    torch.manual_seed(seed)
    observe = DataSettings(image_size=12, num_frames=4)
    looks = {key: predict.pop(key) for key in ("attention", "tubelet_size") if key in predict}
    encode = EncoderSettings(patch_size=4, width=16, depth=2, num_heads=2, **looks)
    predict = {"masked_weight": 0.3, "temporal_contrast": 0.3, "masks": (HALF, BOXES), **predict}
    return JEPA(observe.image_size, encode, JepaSettings(**{**PREDICTOR, **predict}))


def clip(batch=8, seed=1):
    """Smooth random patterns that drift, so that what is hidden can be guessed from what is
    seen."""
    g = torch.Generator().manual_seed(seed)
    phase, speed = (
        torch.rand(batch, 1, 3, 1, 1, generator=g) * 6,
        torch.rand(batch, 1, 3, 1, 1, generator=g),
    )
    t, y, x = torch.meshgrid(
        torch.arange(4.0), torch.arange(12.0), torch.arange(12.0), indexing="ij"
    )
    return torch.sin(
        phase + speed * t[None, :, None] + 0.4 * x[None, :, None] + 0.3 * y[None, :, None]
    )


def far(batch=8, frames=1):
    return clip(batch, seed=7)[:, :frames]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(model, video, away, seeded, actions=None):
    shape = (len(video), video.shape[1] // model.encoder.tubelet_size, model.encoder.grid)
    return Batch(video, away, draw_masks(model.settings, shape, seeded), actions)


def losses_of(model, video, away, seeded, actions=None):
    return model(batch_of(model, video, away, seeded, actions))


def test_only_context_encoder_and_predictor_learn():
    model = jepa()
    losses_of(model, clip(), far(), generator())["loss"].backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    for name, p in [*model.encoder.named_parameters(), *model.predictor.named_parameters()]:
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_targets_carry_no_gradient():
    assert not jepa().compute_targets(clip()).requires_grad


def test_the_target_looks_through_its_own_weights():
    model = jepa()
    before = model.compute_targets(clip())
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(torch.randn(p.shape, generator=generator()))
    assert torch.equal(before, model.compute_targets(clip()))


def test_the_target_follows_the_average_exactly():
    model = jepa()
    expected = copy.deepcopy(model.target.state_dict())
    for step, momentum in enumerate((0.9, 0.99, 0.5)):
        with torch.no_grad():
            for p in model.encoder.parameters():
                p.add_(torch.randn(p.shape, generator=generator(step)))
        context = copy.deepcopy(model.encoder.state_dict())
        model.update_target(momentum)
        expected = {
            k: momentum * v.double() + (1 - momentum) * context[k].double()
            for k, v in expected.items()
        }
        for name, value in model.target.state_dict().items():
            torch.testing.assert_close(value.double(), expected[name], atol=1e-6, rtol=1e-6)
        assert all(torch.equal(v, context[k]) for k, v in model.encoder.state_dict().items()), (
            "it only follows"
        )


@pytest.mark.parametrize(("momentum", "source"), [(0.0, "encoder"), (1.0, "target")])
def test_the_ends_of_the_average_are_exact(momentum, source):
    model = jepa()
    with torch.no_grad():
        for p in model.encoder.parameters():
            p.add_(1.0)
    expected = copy.deepcopy(getattr(model, source).state_dict())
    model.update_target(momentum)
    assert all(torch.equal(v, expected[k]) for k, v in model.target.state_dict().items())


def tokens():
    return torch.randn(32, 4, 5, 16, generator=generator())


def per_position(part):
    """The mean over clips and time of targets [B, T*n, D] at each position."""
    return part.unflatten(1, (4, 5)).mean((0, 1))


def test_a_part_that_depends_on_the_position_alone_is_no_target():
    x = tokens() + 3 * torch.randn(1, 1, 5, 16, generator=generator(3))
    centred = latent_targets(x, JepaSettings(**PLAIN, center_targets=True))
    assert per_position(centred).abs().max() < 1e-4
    assert centred.square().mean().item() == pytest.approx(1.0, abs=0.01)
    plain = latent_targets(x, JepaSettings(**PLAIN, center_targets=False))
    assert per_position(plain).abs().max() > 0.5, "it is there when it is not taken out"


@pytest.mark.parametrize("centre", [True, False])
def test_targets_do_not_depend_on_the_scale_of_the_features(centre):
    plain, other = (
        latent_targets(x, JepaSettings(**PLAIN, center_targets=centre))
        for x in (tokens(), tokens() * 7 + 3)
    )
    torch.testing.assert_close(plain, other, atol=1e-3, rtol=1e-3)


def test_whitened_targets_have_the_same_power_in_every_direction_that_has_any():
    g = generator(4)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=g)).Q
    power = torch.tensor([9.0, 1.0, 0.25, 1e-8])
    x = torch.randn(200, 50, 4, generator=g) * power.sqrt() @ turn.T
    energy = (whitened(x) @ turn).square().mean((0, 1))
    torch.testing.assert_close(
        energy[:3], torch.full((3,), power.mean().item()), rtol=0.15, atol=0
    )
    assert energy[3] < 1e-5, "what is not there is not raised"
    assert whitened(torch.zeros(2, 3, 4)).abs().max() == 0

    # As targets: the directions of what differs over the batch.
    settings = JepaSettings(target_kinds=("tokens",))
    y = latent_targets(tokens() * torch.linspace(0.2, 2, 16), settings).flatten(0, 1)
    shares = torch.linalg.eigvalsh(y.T @ y / len(y))
    assert shares[-1] < 3 * shares[2]
    with pytest.raises(ValueError, match="center_targets: true"):
        JepaSettings(center_targets=False)


@pytest.mark.parametrize("error", ["absolute", "squared"])
def test_errors_are_absolute_or_squared(error):
    model = jepa(error=error, masks=(HALF,))
    batch = batch_of(model, clip(), far(), generator())
    targets, context = (
        model.compute_targets(batch.clip, batch.distant),
        model.encode_context(batch),
    )
    predictions = model.predict(context, batch)
    losses = model.losses(targets, context, predictions, batch)
    ids = batch.masks[0].target_ids[..., None].expand(-1, -1, targets.shape[-1])
    gap = predictions[0] - targets.gather(1, ids)
    expected = gap.square().mean() if error == "squared" else gap.abs().mean()
    torch.testing.assert_close(losses["masked_prediction"], expected)


@pytest.mark.parametrize("attention", ["clip", "frame"])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_far_frames_are_seen_as_stills_and_apart_from_the_clip(attention, tubelet):
    model, video, away = (
        jepa(attention=attention, tubelet_size=tubelet, masks=(HALF,)),
        clip(),
        far(frames=3),
    )
    looked_at = {"encoder": [], "target": []}
    for name, seen in looked_at.items():
        getattr(model, name).register_forward_hook(
            lambda module, args, out, seen=seen: seen.append(args[0])
        )
    assert torch.isfinite(losses_of(model, video, away, generator())["loss"])
    still = away.flatten(0, 1)[:, None].repeat(1, tubelet, 1, 1, 1)
    assert torch.equal(looked_at["target"][-1], video), "the clip, and nothing beside it"
    assert not any(len(x) == len(still) for x in looked_at["target"])
    regularised = tubelet == 1  # of two time steps one is hidden, and two whole ones are wanted
    assert any(torch.equal(x, still) for x in looked_at["encoder"]) == regularised
    assert model.compute_targets(video).shape == (8, 4 // tubelet * 9, 16)


def test_where_blocks_leave_no_frame_whole_an_episode_is_told_by_its_far_frames_alone():
    model = jepa(num_distant_frames=3, temporal_contrast=0, episode_contrast=2.0, masks=(BOXES,))
    batch = batch_of(model, clip(), far(frames=3), generator())
    context = model.encode_context(batch)
    targets = model.compute_targets(batch.clip, batch.distant)
    losses = model.losses(targets, context, model.predict(context, batch), batch)
    alone = model.episode_contrast(context.distant[:, :1], context.distant[:, 1:], batch.episode)
    torch.testing.assert_close(losses["episode_contrast"], alone)
    torch.testing.assert_close(losses["loss"], 0.3 * losses["masked_prediction"] + 2 * alone)


def test_no_far_frames_are_no_trouble():
    model = jepa(num_distant_frames=0)
    losses = losses_of(model, clip(), clip()[:, :0], generator())
    losses["loss"].backward()
    assert losses["loss"].isfinite()
    assert torch.equal(
        losses["loss"],
        model.settings.masked_weight * losses["masked_prediction"]
        + 0.3 * losses["temporal_contrast"],
    )


def test_the_dense_recipe_predicts_what_is_in_view_at_several_levels():
    model = jepa(
        masked_weight=1,
        context_weight=0.5,
        target_levels=2,
        center_targets=False,
        num_distant_frames=0,
        temporal_contrast=0,
        masks=(BOXES,),
    )
    video = clip()
    stay = model.compute_targets(video)
    first = []
    model.target.blocks[0].register_forward_hook(
        lambda module, inputs, output: first.append(output.detach())
    )
    last = model.target(video)
    per_level = [
        torch.nn.functional.layer_norm(x, (16,)) for x in (first[0].reshape(last.shape), last)
    ]
    torch.testing.assert_close(stay, torch.cat(per_level, -1))
    losses = losses_of(model, video, video[:, :0], generator())
    assert (
        losses.keys() == {"masked_prediction", "context_prediction", "loss"}
        and losses["context_prediction"] > 0
    )
    torch.testing.assert_close(
        losses["loss"], losses["masked_prediction"] + 0.5 * losses["context_prediction"]
    )
    with pytest.raises(ValueError, match="target_levels 5 exceed encoder.depth 2"):
        Config(encoder=EncoderSettings(depth=2), jepa=JepaSettings(**PLAIN, target_levels=5))


def test_rounding_noise_of_constant_features_is_no_target():
    still = torch.randn(1, 1, 5, 16, generator=generator(3)).expand(32, 4, -1, -1)
    rounding = 1e-7 * torch.randn(32, 4, 5, 16, generator=generator(4))
    assert (
        latent_targets(still + rounding, JepaSettings(**PLAIN, center_targets=True)).abs().max()
        < 0.01
    )


def test_the_loss_is_finite_reproducible_and_falls():
    model, video = jepa(masks=(HALF,)), clip(16)
    same = [losses_of(model, video, far(16), generator(5))["loss"].item() for _ in range(2)]
    assert same[0] == same[1] != losses_of(model, video, far(16), generator(6))["loss"].item()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(30):
        losses = losses_of(model, video, far(16), generator(0))
        assert all(torch.isfinite(v) for v in losses.values())
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        model.update_target(0.99)
        history.append(losses["loss"].item())
    assert sum(history[-5:]) < 0.9 * sum(history[:5])


def test_the_predictor_cannot_see_what_it_must_guess():
    """Other hidden or far frames change the targets, never the guesses."""
    model = jepa(masks=(HALF,), attention="clip")
    seen_by_predictor = []
    model.predictor.register_forward_hook(lambda module, args, out: seen_by_predictor.append(out))
    video = clip()
    hidden = draw_hidden(HALF, (len(video), 4, 3), generator(2)).view(len(video), 4, 9).all(2)
    other = torch.where(
        hidden[..., None, None, None], torch.randn(video.shape, generator=generator(9)), video
    )
    others = [(video, far()), (other, far()), (video, far() * 0.5)]
    losses = [losses_of(model, *seen, generator(2))["loss"].item() for seen in others]
    assert all(torch.equal(seen_by_predictor[0], guess) for guess in seen_by_predictor[1:])
    assert len(set(losses)) == 3, "what is hidden, and the far frame, change the targets"


def test_each_mask_type_has_its_own_token():
    model = jepa()
    assert model.predictor.mask_tokens.shape[0] == 2
    where = torch.zeros(1, 3, 3)
    a, b = (model.predictor(torch.zeros(1, 3, 16), where, where + 1, kind) for kind in (0, 1))
    assert not torch.equal(a, b)


def test_constant_features_are_collapsed_and_gaussian_ones_are_not():
    g = generator()
    healthy = collapse_metrics(torch.randn(200, 9, 16, generator=g))
    assert not healthy["collapsed"]
    assert (
        healthy["feature_std"] == pytest.approx(1.0, rel=0.05)
        and 14 < healthy["effective_rank"] <= 16.01
    )
    constant = collapse_metrics(torch.randn(1, 9, 16, generator=g).expand(200, -1, -1))
    assert constant["collapsed"] and constant["feature_std"] == pytest.approx(0, abs=1e-5)
    line = torch.randn(200, 1, 1, generator=g) * torch.randn(1, 1, 16, generator=g)
    flat = collapse_metrics(line.expand(-1, 9, -1))
    assert (
        flat["collapsed"]
        and flat["feature_std"] > 0.3
        and flat["effective_rank"] == pytest.approx(1, abs=1e-3)
    )


def test_what_moves_and_does_not_change_is_no_collapse():
    """A rod that turns, as Pendulum's: every frame has the same tokens at other places, so their
    mean says nothing."""
    g, angle = generator(), torch.rand(300, generator=generator(1)) * 6.28
    row, column = torch.meshgrid(torch.arange(6) - 2.5, torch.arange(6) - 2.5, indexing="ij")
    along = column.flatten() * angle.cos()[:, None] + row.flatten() * angle.sin()[:, None]
    across = row.flatten() * angle.cos()[:, None] - column.flatten() * angle.sin()[:, None]
    rod = ((along > 0) & (along < 2.5)) * torch.exp(-across.square())  # [300, 36]
    parts = torch.stack([rod, rod * along, rod * across, rod * angle.cos()[:, None]], -1)
    features = parts @ torch.randn(4, 16, generator=g)
    features = features - features.mean((1, 2), keepdim=True)
    seen = collapse_metrics(features + 0.01 * torch.randn(300, 36, 16, generator=g))
    assert not seen["collapsed"] and seen["effective_rank"] > 2


@pytest.mark.parametrize(
    "kind", ["one number of a frame", "one pattern more or less", "one direction at all places"]
)
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_collapse_into_one_direction_is_seen_whichever_it_is(kind, noise):
    g = generator()
    how_much, direction = torch.randn(300, 1, 1, generator=g), torch.randn(1, 1, 16, generator=g)
    features = {
        "one number of a frame": how_much * direction.expand(-1, 9, -1),
        "one pattern more or less": how_much * torch.randn(1, 9, 16, generator=g),
        "one direction at all places": torch.randn(300, 9, 1, generator=g) * direction,
    }[kind]
    seen = collapse_metrics(features + noise * torch.randn(300, 9, 16, generator=g))
    assert seen["collapsed"] and seen["feature_std"] > 0.3 and seen["effective_rank"] < 1.2


def test_a_direction_that_outweighs_the_others_is_no_collapse_while_they_are_there():
    """As Pendulum's: the rank is low, and what is beside the first direction is far above
    noise."""
    g = generator()
    strong = 0.2 * torch.randn(300, 1, 1, generator=g) * torch.randn(1, 9, 16, generator=g)
    for weak, collapsed in ((0.04, False), (0.004, True)):
        others = weak * torch.randn(300, 9, 16, generator=g)
        seen = collapse_metrics(strong + others)
        assert (
            seen["effective_rank"] < 1.7
            and seen["feature_std"] > 0.1
            and seen["collapsed"] is collapsed
        ), weak


def test_pictures_of_one_direction_ask_for_no_more():
    """A lamp that is brighter or darker: nothing else can be told, so a single direction is no
    collapse."""
    r = np.random.default_rng(0)
    light, place = r.integers(0, 200, (300, 1, 1, 1)), np.zeros((1, 12, 12, 3), np.int64)
    place[0, 4:7, 4:7] = 1
    features = torch.from_numpy(light[:, 0] / 100.0).float() * torch.randn(
        1, 9, 16, generator=generator()
    )
    assert not collapse_metrics(features, np.uint8(light * place))["collapsed"]
    assert collapse_metrics(features, r.integers(0, 255, (300, 12, 12, 3), np.uint8))["collapsed"]
    constant = torch.zeros(300, 9, 16)
    assert collapse_metrics(constant, np.uint8(light * place))["collapsed"], (
        "what there is must be told"
    )


def test_meters_are_blind_to_what_positions_have_in_common():
    x = torch.randn(200, 9, 16, generator=generator())
    layout = 5 * torch.randn(1, 9, 16, generator=generator(1))
    plain, shifted = collapse_metrics(x), collapse_metrics(x + layout)
    assert plain["feature_std"] == pytest.approx(shifted["feature_std"], rel=1e-4)
    assert plain["effective_rank"] == pytest.approx(shifted["effective_rank"], rel=1e-3)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_whole_frames_in_view_are_looked_at_alone_with_the_same_result(tubelet):
    """Folding the frames in view into the batch is the cheap way to what masking the whole clip
    gives."""
    model, video = jepa(attention="frame", tubelet_size=tubelet), clip()
    hidden = draw_hidden(HALF, (8, 4 // tubelet, 3), generator())
    frames = full_frames(hidden, 4 // tubelet)
    if tubelet == 2:
        assert frames is None, "one stretch in view is none to tell from another"
        return
    context_ids, target_ids = split_tokens(hidden, generator())
    batch = Batch(video, video[:, :0], [TokenMask(context_ids, target_ids, frames)])
    torch.testing.assert_close(
        model.encode_context(batch).tokens[0],
        model.encoder(video, context_ids),
        atol=1e-5,
        rtol=1e-4,
    )


def test_displacements_are_read_from_context_and_distant_frames():
    torch.manual_seed(0)
    observe, encode = (
        DataSettings(image_size=12, num_frames=4),
        EncoderSettings(patch_size=4, width=16, depth=1, num_heads=1),
    )
    model = JEPA(
        observe.image_size,
        encode,
        JepaSettings(**PREDICTOR, masks=(HALF,), inverse_dynamics=3.0),
        action_size=2,
    )
    path = torch.randn(8, 4 + 1, 2, generator=generator(4)).cumsum(1)
    losses = losses_of(model, clip(), far(), generator(), path)
    assert 0.5 < losses["inverse_dynamics"].item() < 2
    model.inverse_dynamics.read.weight.grad = None
    losses["inverse_dynamics"].backward()
    assert model.encoder.embed.weight.grad.abs().sum() > 0, "it teaches the encoder"
    other = torch.cat([path[:, :4], path[:, 4:] + 3], 1)
    assert (
        losses_of(model, clip(), far(), generator(), other)["inverse_dynamics"].item()
        != losses["inverse_dynamics"].item()
    ), "they count"
    assert "inverse_dynamics" not in losses_of(model, clip(), far(), generator()), (
        "a file without actions has no displacements"
    )
