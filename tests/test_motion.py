"""What lets masked prediction see what is small and moves: single frames hidden between others,
neighbours that are looked up at once, targets without what lasts, and patches as the data say."""

import pytest
import torch
from test_predict import HALF, batch_of, clip, far, generator, jepa, losses_of
from test_train import overrides

from jepa_wm.config import Config, load_config
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.clips import BatchShape
from jepa_wm.data.settings import DataSettings
from jepa_wm.models.encoder_settings import BlockMask, FrameMask, JepaSettings
from jepa_wm.models.jepa import Batch
from jepa_wm.models.masks import draw_frames, draw_image, draw_masks
from jepa_wm.models.moments import LaggedMoments
from jepa_wm.models.predictor import NeighborPredictor, nearest_in_view
from jepa_wm.training import patch_init
from jepa_wm.training.gradient_shares import gradient_shares

ONE_FRAME = (FrameMask(frames=1),)
OFF = {"temporal_contrast": 0, "inverse_dynamics": 0}
STILL = {"masks": (BlockMask(image=True),), "neighbor_width": 0}


# ------------------------------------------------------------------ masks


@pytest.mark.parametrize(("steps", "frames"), [(9, 4), (9, 2), (5, 1), (3, 1)])
def test_hidden_frames_stand_apart_between_frames_in_view(steps, frames):
    hidden = draw_frames(FrameMask(frames=frames), (400, steps, 3), generator())
    whole = hidden.view(400, steps, 9)
    assert (whole.all(2) == whole.any(2)).all() and (whole.all(2).sum(1) == frames).all()
    in_time = whole.all(2)
    assert not in_time[:, [0, -1]].any() and not (in_time[:, 1:] & in_time[:, :-1]).any()
    possible = steps - 2 if steps > 2 * frames + 1 else frames  # all inner ones, or just the odd
    assert len(in_time.float().mean(0).nonzero()) == possible


def test_frames_that_do_not_fit_are_refused():
    message = "frames 4 that do not adjoin need clips of 9 time steps, not 8; raise data.num"
    with pytest.raises(ValueError, match=message):
        Config(data=DataSettings(num_frames=8), jepa=JepaSettings(masks=(FrameMask(frames=4),)))


@pytest.mark.parametrize("steps", [1, 5])
def test_in_image_mode_a_single_frame_is_in_view_and_nothing_of_the_others(steps):
    kind = BlockMask(num_blocks=2, spatial_scale=(0.2, 0.4), image=True)
    in_view, hidden = draw_image(kind, (300, steps, 4), generator())
    of_frame = (in_view | hidden).view(300, steps, 16)
    assert not (in_view & hidden).any() and in_view.any(1).all() and hidden.any(1).all()
    assert (of_frame.all(2).sum(1) == 1).all() and (of_frame.any(2).sum(1) == 1).all()
    assert of_frame.all(2).any(0).all(), "every step is shown in some clip"
    (mask,) = masks_of(kind, batch=300, steps=steps)
    frames = torch.cat([mask.context_ids, mask.target_ids], 1) // 16
    assert (frames == frames[:, :1]).all() and mask.full_frames is None


@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("attention", ["clip", "frame"])
def test_in_image_mode_the_context_is_that_of_the_frozen_encoder(attention, tubelet):
    """Which sees an image, repeated to fill a tubelet; and nothing stands beside a single frame
    that a convolution over neighbours could read."""
    kind = BlockMask(num_blocks=1, spatial_scale=(0.2, 0.4), image=True)
    words = dict(attention=attention, tubelet_size=tubelet, neighbor_width=4, **OFF)
    model, video = jepa(masks=(HALF, kind), **words), clip()
    batch, looked = batch_of(model, video, far(), generator()), []
    context, mask = model.encode_context(batch).tokens[1], batch.masks[1]
    tokens = model.encoder.tokens_per_frame
    frame = video[torch.arange(len(video)), mask.context_ids[:, 0] // tokens * tubelet]
    images = frame[:, None].expand(-1, tubelet, -1, -1, -1)
    torch.testing.assert_close(context, model.encoder(images, mask.context_ids % tokens))
    model.neighbors.register_forward_hook(lambda *call: looked.append(1))
    assert torch.isfinite(model(batch)["loss"]) and len(looked) == 1
    with pytest.raises(ValueError, match="every mask leaves a single one in view"):
        jepa(masks=(kind,), **words)


def test_an_image_has_no_length():
    with pytest.raises(ValueError, match="temporal_scale .* says nothing where image is true"):
        BlockMask(image=True, temporal_scale=(0.5, 0.5))


def test_patches_of_single_images_have_no_next_one_to_be_told_by():
    with pytest.raises(ValueError, match="clips have 1 time step; .* jepa.patch_init=whitening"):
        Config(data=DataSettings(num_frames=1), jepa=JepaSettings(**STILL, **OFF))


# ------------------------------------------------------------------ neighbours


def test_the_nearest_tokens_in_view_are_found_at_each_place():
    # Two places; place 0 is in view at steps 0 and 3, place 1 at step 2 alone.
    ids = torch.tensor([[0, 5, 6]])
    before, after = nearest_in_view(ids, steps=4, places=2)
    assert before[0].tolist() == [[-1, -1], [0, -1], [0, -1], [0, 2]]
    assert after[0].tolist() == [[3, 2], [3, 2], [3, 4], [4, 4]]


def neighbors():
    torch.manual_seed(0)
    return NeighborPredictor(encoder_width=4, width=8, output_width=6)


def masks_of(*kinds, batch=3, steps=5, grid=4):
    return draw_masks(
        JepaSettings(masks=kinds, neighbor_width=0), (batch, steps, grid), generator()
    )


def test_whole_frames_are_only_the_cheaper_way_to_the_same_numbers():
    model, (mask,) = neighbors(), masks_of(FrameMask(frames=2))
    context = torch.randn(3, mask.context_ids.shape[1], 4, generator=generator())
    cheap = model(context, mask, (5, 4, 4))
    general = model(context, type(mask)(mask.context_ids, mask.target_ids, None), (5, 4, 4))
    assert cheap.shape == (3, 2 * 16, 6)
    torch.testing.assert_close(cheap, general)


def test_a_target_hears_of_the_places_around_it_in_the_nearest_frames_alone():
    model, (mask,) = neighbors(), masks_of(FrameMask(frames=1), batch=1)
    context = torch.randn(1, 4 * 16, 4, generator=generator(), requires_grad=True)
    out = model(context, mask, (5, 4, 4))
    out[0, 5].sum().backward()  # the target in row 1, column 1
    heard = context.grad.abs().sum(-1).view(4, 4, 4) > 0  # frames in view, rows, columns
    hidden = int(mask.target_ids[0, 0]) // 16
    expected = torch.zeros(4, 4, 4, dtype=torch.bool)
    expected[[hidden - 1, hidden], :3, :3] = True  # of those in view, right before and after
    assert torch.equal(heard, expected)


def test_blocks_hidden_over_the_whole_clip_have_no_neighbour_and_are_predicted_all_the_same():
    kind = BlockMask(num_blocks=1, spatial_scale=(0.5, 0.5))
    model = jepa(masks=(kind,), neighbor_width=8, **OFF)
    losses = losses_of(model, clip(), far(), generator())
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"]) and model.neighbors.project.bias.grad.abs().sum() > 0


# ------------------------------------------------------------------ targets


def test_what_lasts_is_no_target_of_motion():
    model = jepa(
        masks=(FrameMask(frames=1),), target_kinds=("motion",), num_distant_frames=3, **OFF
    )
    still = clip()[:, :1].expand(-1, 4, -1, -1, -1)
    assert model.compute_targets(still, still[:, :3]).abs().max() < 1e-2
    with pytest.raises(ValueError, match="told from distant frames"):
        model.compute_targets(still)  # never the ordinary targets in their place
    moving = model.compute_targets(clip(), still[:, :3])
    assert moving.square().mean().item() == pytest.approx(1, abs=0.05)


def test_both_kinds_of_target_stand_side_by_side():
    parts = [
        jepa(masks=ONE_FRAME, target_kinds=kinds, **OFF).compute_targets(clip(), far())
        for kinds in (("tokens",), ("motion",), ("tokens", "motion"))
    ]
    assert torch.equal(parts[2], torch.cat(parts[:2], -1))
    assert not torch.allclose(parts[0], parts[1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"target_kinds": ()}, "names tokens, motion, or both"),
        ({"target_kinds": ("motion", "motion")}, "each once"),
        ({"target_kinds": ("motion",), "num_distant_frames": 0}, "set num_distant_frames >= 1"),
        ({"patch_init": "predictive", "num_distant_frames": 1}, "set num_distant_frames >= 2"),
    ],
)
def test_targets_that_say_nothing_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        JepaSettings(**bad)


@pytest.mark.parametrize("tubelet", [1, 2])
def test_what_moves_is_told_from_frames_seen_alone_whatever_a_clip_attends_to(tubelet):
    """Of both models the same weights: in one a token of a clip attends to all frames, and yet
    what differs from distant frames is told of each frame alone, as these are seen."""
    words = dict(masks=(HALF,), target_kinds=("motion",), tubelet_size=tubelet, **OFF)
    own, whole = (jepa(attention=attention, **words) for attention in ("frame", "clip"))
    whole.load_state_dict(own.state_dict())
    video = clip()
    if tubelet == 2:  # an image fills its tubelet
        video = video[:, ::2].repeat_interleave(2, 1)
    targets = [model.compute_targets(video, far()) for model in (own, whole)]
    torch.testing.assert_close(*targets)
    assert not torch.allclose(own.target(video), whole.target(video))


def test_the_order_in_which_targets_are_named_changes_nothing():
    one, other = (
        jepa(masks=ONE_FRAME, target_kinds=kinds, **OFF).compute_targets(clip(), far())
        for kinds in (("motion", "tokens"), ("tokens", "motion"))
    )
    assert torch.equal(one, other)


def test_a_key_of_another_mask_is_told_from_a_mistyped_one():
    with pytest.raises(UserError, match="num_blocks'; it does not go with the other keys of"):
        load_config("debug", ["jepa.masks=[{frames: 1, num_blocks: 2}]"])


# ------------------------------------------------------------------ patches


def stream(count=40_000, *, faint=0.5):
    """Patches [n, 5] and their next: loud noise, a loud and a faint number that last for a while,
    one that alternates, and one that never varies."""
    g = generator()
    lasting = torch.randn(count, 2, generator=g)
    share = torch.tensor([0.8, 0.6])
    kept = share * lasting + (1 - share**2).sqrt() * torch.randn(count, 2, generator=g)
    kept = kept * torch.tensor([9, faint])
    noise, after = torch.randn(2, count, 1, generator=g) * 5
    swing = torch.randn(count, 1, generator=g)
    zero = torch.zeros(count, 1)
    now = torch.cat([noise, lasting * torch.tensor([9, faint]), swing, zero], 1)
    return now, torch.cat([after, kept, -swing, zero], 1)


def moments(now, following):
    made = LaggedMoments(5)
    for part, after in zip(now.chunk(7), following.chunk(7), strict=True):
        made.add(part + 3, part, after)
    return made


def test_what_the_next_frame_tells_is_strong_and_what_is_faint_in_pixels_not_drowned():
    now, following = stream()
    made = moments(now, following)
    directions = patch_init.predictive(made).float()
    variance = (now @ directions).var(0)
    # The correlation times the spread in pixels: in pixels 9 beside .5 would be 324 to 1.
    assert variance[:2].tolist() == pytest.approx([0.8 * 9, 0.6 * 0.5], rel=0.05)
    assert variance[2:].max() < 0.011 * variance[0], "neither noise nor what turns about is told"
    shares = directions[:, :2].abs() * now.std(0)[:, None]
    assert (shares[[0, 3, 4]] < 0.05 * shares.max()).all()
    torch.testing.assert_close(made.mean.float(), (now + 3).mean(0), atol=1e-4, rtol=1e-4)


def test_what_eight_bits_hardly_show_is_not_blown_up():
    now, following = stream(faint=0.002)
    directions = patch_init.predictive(moments(now, following)).float()
    variance = (now @ directions).var(0)
    assert variance[0] == pytest.approx(0.8 * 9, rel=0.03)
    assert variance[1:].max() < 0.011 * variance[0]


def test_noise_tells_nothing():
    made, g = LaggedMoments(5), generator()
    noise = torch.randn(2, 50_000, 5, generator=g)
    made.add(noise[0], noise[0], noise[1])
    variances = (noise[0] @ patch_init.predictive(made).float()).var(0).tolist()
    assert max(variances) == pytest.approx(min(variances), rel=0.05) and max(variances) < 1e-3


class Reader:
    """Batches of noise, in which one patch pixel lasts from frame to frame; distant frames are
    drawn with replacement."""

    def __init__(self, distant=(1, 2, 3, 3), *, loud=1.0):
        self.data, self.distant, self.loud = (
            DataSettings(image_size=12, num_frames=4),
            distant,
            loud,
        )
        self.source = type("Source", (), {"batch": BatchShape(clips=8), "decodes": False})()

    def read(self, step, rows):
        g = generator(step % 1000)
        frames = torch.randn(8, 8, 3, 12, 12, generator=g) * self.loud
        faint = torch.randn(8, 1, 1, 3, 3, generator=g).expand(-1, 4, -1, -1, -1)
        frames[:, :4, :1, 1::4, 1::4] = faint * self.loud
        times = torch.tensor([[0, 1, 2, 3, *self.distant]]).expand(8, -1)
        by_time = {time: at for at, time in enumerate(dict.fromkeys(self.distant))}
        distant = frames[:, [4 + by_time[time] for time in self.distant]]
        return Batch(frames[rows, :4], distant[rows], [], time=times[rows])


def test_the_embedding_shows_what_is_told_and_channels_alike(monkeypatch):
    monkeypatch.setattr(patch_init, "PATCHES", 20_000)
    model = jepa(patch_init="predictive", masks=ONE_FRAME, **OFF)
    patch_init.init_patches(model, Reader(), seed=0)
    weight = model.encoder.embed.weight  # [16, 48] of patches of 4 x 4 px in three channels
    assert torch.equal(weight, model.target.embed.weight)
    lasting = 1 * 4 + 1  # row 1, column 1 of the first channel
    energy = weight.square().sum(0)
    assert energy[lasting] > 30 * energy[torch.arange(48) != lasting].max()
    frames = Reader().read(7, slice(None)).clip
    tokens = model.encoder.embed(model.encoder.patches(frames)).flatten(0, 1)
    assert 0.3 < tokens.square().mean().item() < 1.3

    # A turn changes no length: the directions keep the variances that they were given.
    other = jepa(patch_init="predictive", masks=ONE_FRAME, **OFF)
    patch_init.init_patches(other, Reader(), seed=1)
    torch.testing.assert_close(
        torch.linalg.svdvals(weight), torch.linalg.svdvals(other.encoder.embed.weight)
    )
    assert not torch.allclose(weight, other.encoder.embed.weight)


@pytest.mark.parametrize("reader", [Reader((5, 5, 5, 5)), Reader(loud=0.0)])
def test_data_that_tell_nothing_are_refused_with_the_remedy(monkeypatch, reader):
    monkeypatch.setattr(patch_init, "PATCHES", 2_000)
    model = jepa(patch_init="predictive", masks=ONE_FRAME, **OFF)
    with pytest.raises(UserError, match="set jepa.min_gap lower, jepa.patch_init=whitening"):
        patch_init.init_patches(model, reader, seed=0)


def test_whitening_makes_all_that_varies_alike_down_to_the_median():
    now = stream(faint=0.1)[0][:, :3]
    made = LaggedMoments(3)
    made.add(now, now, now)
    spread = (now @ made.whitening().float()).std(0).tolist()
    median = float(now.var(0).median())
    assert spread[0] == pytest.approx((81 / (81 + median)) ** 0.5, abs=0.02)
    assert spread[1] == pytest.approx(0.5**0.5, abs=0.02) and spread[2] < 0.03


# ------------------------------------------------------------------ which loss trains the encoder


def test_gradient_shares_are_those_of_the_weighted_losses():
    model = jepa(temporal_contrast=0.5, episode_contrast=2.0, inverse_dynamics=0)
    batch = batch_of(model, clip(), far(frames=2), generator())
    shares = gradient_shares(model, lambda: model(batch))
    assert shares.keys() == {"masked_prediction", "temporal_contrast", "episode_contrast"}
    assert sum(shares.values()) == pytest.approx(1)
    assert all(p.grad is None for p in model.parameters()), "the training's own are not touched"

    norms = {}
    for name, weight in model.weights.items():
        if name in shares:
            model.zero_grad()
            (weight * model(batch)[name]).backward()
            grads = [p.grad for p in model.encoder.parameters() if p.grad is not None]
            norms[name] = float(torch.cat([g.flatten() for g in grads]).norm())
    for name, norm in norms.items():
        assert shares[name] == pytest.approx(norm / sum(norms.values()), rel=1e-4)


def test_a_run_that_starts_from_its_patches_trains_resumes_and_tells_who_trains_it(
    tmp_path, tiny_data, monkeypatch
):
    words = [
        *overrides(tiny_data), "jepa.patch_init=predictive", "jepa.neighbor_width=8",
        "jepa.target_kinds=[motion, tokens]", "jepa.masks=[{frames: 1}]", "jepa.min_gap=1",
        "jepa.episode_contrast=0.1",
    ]  # fmt: skip
    monkeypatch.setattr(patch_init, "PATCHES", 5_000)
    config = load_config("debug", words)
    with Run.open(tmp_path / "run", config) as run:
        run_stage("pretrain", run)
    folder = tmp_path / "run"
    shares = {
        name: value
        for name, value in read_metrics(folder, "pretrain")[-1].items()
        if name.startswith("gradient_share/")
    }
    assert sum(shares.values()) == pytest.approx(1) and len(shares) > 1

    # The other start is of the same weights but the patches', and is what a probe compares with.
    weights = load_checkpoint(newest_checkpoint(folder / "pretrain" / "checkpoints"))[0]
    assert weights["neighbors.embed.weight"].shape[0] == 8
    for start, same in (("predictive", True), ("normal", False)):
        other = load_config("debug", [*words, f"jepa.patch_init={start}"])
        with Run.open(tmp_path / start, other) as run:
            run_stage("pretrain", run)
        again = load_checkpoint(newest_checkpoint(run.path / "pretrain" / "checkpoints"))[0]
        assert all(torch.equal(again[k], v) for k, v in weights.items()) == same
