"""The encoder: RoPE is a rotation, what is masked is not computed and not missed, frames do not
see each other."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.models.blocks import (
    Block,
    KeyValueCache,
    attend,
    axis_pairs,
    grid_positions,
    init_transformer,
    rope_tables,
    rotate,
)
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

SIDE, PATCH = 12, 4  # a 3 x 3 grid


def encoder(attention="clip", tubelet=1, seed=0, locality=1.5):
    torch.manual_seed(seed)
    settings = EncoderSettings(
        patch_size=PATCH,
        tubelet_size=tubelet,
        width=16,
        depth=2,
        num_heads=2,
        attention=attention,
        locality=locality,
    )
    model = Encoder(SIDE, settings)
    for p in model.parameters():  # far from the small initial values, so that a wrong path shows
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def clip(batch=2, frames=3, seed=1):
    return (
        torch.rand(batch, frames, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 2
        - 1
    )


@given(
    st.integers(0, 2**31), st.sampled_from([2, 8, 12, 32]),
    st.lists(st.integers(-20, 20), min_size=3, max_size=3),
)  # fmt: skip
@settings(max_examples=30, deadline=None)
def test_rope_is_a_rotation(seed, head_dim, offset):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, 1, 1, 7, head_dim, generator=generator, dtype=torch.float64)
    where = torch.randint(0, 16, (1, 7, 3), generator=generator)

    def scores(positions):
        cos, sin = (table[:, None].double() for table in rope_tables(positions, head_dim, 100.0))
        a, b = rotate(q, cos, sin), rotate(k, cos, sin)
        torch.testing.assert_close(a.norm(dim=-1), q.norm(dim=-1), rtol=1e-6, atol=1e-6)
        return a @ b.transpose(-1, -2)

    torch.testing.assert_close(
        scores(where), scores(where + torch.tensor(offset)), rtol=1e-4, atol=1e-4
    )


def test_a_pair_of_channels_turns_by_its_angle():
    x = torch.randn(2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    angle = torch.rand(2, 1, 5, 4, generator=torch.Generator().manual_seed(1)) * 6
    turned = rotate(x, angle.cos(), angle.sin())
    a, b = x[..., 0::2], x[..., 1::2]
    torch.testing.assert_close(turned[..., 0::2], a * angle.cos() - b * angle.sin())
    torch.testing.assert_close(turned[..., 1::2], a * angle.sin() + b * angle.cos())
    half = rotate(x.bfloat16(), angle.cos(), angle.sin())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), turned, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_axis_turns_the_scores(axis):
    q, k = torch.randn(2, 1, 1, 2, 12, generator=torch.Generator().manual_seed(0))
    offset = torch.zeros(1, 2, 3)
    offset[0, 1, axis] = 3
    cos, sin = (table[:, None] for table in rope_tables(offset, 12, 100.0))
    score = (rotate(q, cos, sin)[0, 0, 0] * rotate(k, cos, sin)[0, 0, 1]).sum()
    assert abs(score - (q[0, 0, 0] * k[0, 0, 1]).sum()) > 0.05


@given(st.integers(1, 64), st.integers(1, 4))
def test_all_channel_pairs_are_shared_out(pairs, axes):
    shares = axis_pairs(2 * pairs, axes)
    assert sum(shares) == pairs and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 4)])
def test_grid_positions_count_time_then_rows_then_columns(shape):
    expected = [
        [t, y, x] for t in range(shape[0]) for y in range(shape[1]) for x in range(shape[2])
    ]
    assert grid_positions(*shape).tolist() == expected


@pytest.mark.parametrize("tubelet", [1, 2])
def test_patches_cover_every_pixel_once_in_token_order(tubelet):
    model = encoder(tubelet=tubelet)
    frames = 4
    pixels = torch.arange(frames * 3 * SIDE * SIDE, dtype=torch.float32).view(
        1, frames, 3, SIDE, SIDE
    )
    patches = model.patches(pixels)[0]
    assert sorted(patches.flatten().tolist()) == pixels.flatten().tolist()
    for token, (t, y, x) in enumerate(grid_positions(frames // tubelet, 3, 3).tolist()):
        cut = pixels[
            0,
            t * tubelet : (t + 1) * tubelet,
            :,
            y * PATCH : (y + 1) * PATCH,
            x * PATCH : (x + 1) * PATCH,
        ]
        assert torch.equal(patches[token], cut.flatten())


def outputs_with_hidden_keys(model, video, keep):
    """The same encoder without dropping anything: tokens that are not kept are computed, but
    nobody looks at them."""
    x = model.embed(model.patches(video))
    positions = grid_positions(video.shape[1] // model.tubelet_size, model.grid, model.grid)
    cos, sin = rope_tables(positions[None], model.head_dim, model.settings.rope_base)
    bias = torch.full((len(x), 1, 1, x.shape[1]), -torch.inf)
    for row, ids in zip(bias, keep, strict=True):
        row[..., ids] = 0
    if model.settings.attention == "frame":
        time = positions[:, 0]
        bias = bias.masked_fill(time[:, None] != time, -torch.inf)
        bias = bias.masked_fill(
            torch.eye(len(time), dtype=torch.bool), 0
        )  # a dropped token alone in its frame
    for block in model.blocks:
        x = block(x, (cos[:, None], sin[:, None]), bias)
    return model.norm(x).gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))


@pytest.mark.parametrize("attention", ["clip", "frame"])
@pytest.mark.parametrize("tubelet", [1, 2])
def test_dropped_tokens_are_as_if_masked(attention, tubelet):
    model, video = encoder(attention, tubelet), clip(frames=4)
    count = 4 // tubelet * 9
    keep = torch.stack([torch.randperm(count)[: count // 2].sort().values for _ in range(2)])
    with torch.no_grad():
        torch.testing.assert_close(
            model(video, keep), outputs_with_hidden_keys(model, video, keep), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("tubelet", [1, 2])
def test_folding_time_equals_the_masked_path_and_frames_stand_alone(tubelet):
    model, video = encoder("frame", tubelet), clip(frames=4)
    steps = 4 // tubelet
    everything = torch.arange(steps * 9).expand(2, -1)
    with torch.no_grad():
        folded = model(video)
        torch.testing.assert_close(folded, model(video, everything), atol=1e-5, rtol=1e-5)
        for t in range(steps):
            alone = model(video[:, t * tubelet : (t + 1) * tubelet])
            torch.testing.assert_close(folded[:, t * 9 : (t + 1) * 9], alone, atol=1e-5, rtol=1e-5)


def test_in_clip_mode_other_frames_matter():
    model, video = encoder("clip"), clip()
    with torch.no_grad():
        assert not torch.allclose(model(video)[:, :9], model(video[:, :1]), atol=1e-3)


def test_kept_tokens_come_in_the_order_asked_for():
    model, video = encoder("clip"), clip()
    keep = torch.arange(27).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(
            model(video, keep.flip(1)), model(video).flip(1), atol=1e-5, rtol=1e-5
        )


@pytest.mark.parametrize("biased", [False, True])
def test_attention_in_bf16_agrees_with_fp32(biased):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 16, generator=generator) for _ in range(3))
    bias = (
        torch.zeros(9, 9).masked_fill(torch.rand(9, 9, generator=generator) < 0.3, -1e4)
        if biased
        else None
    )
    exact = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    torch.testing.assert_close(attend(q, k, v, bias), exact)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), bias)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, atol=0.04, rtol=0.04)
    mixed = attend(
        q, k, v.bfloat16(), bias
    )  # under autocast the rotated keys can be wider than the values
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), exact, atol=0.04, rtol=0.04)


def test_locality_is_only_an_initial_bias():
    torch.manual_seed(0)
    plain = torch.nn.ModuleList(Block(16, 2) for _ in range(3))
    init_transformer(plain, plain)
    torch.manual_seed(0)
    local = torch.nn.ModuleList(Block(16, 2) for _ in range(3))
    init_transformer(local, local, locality=1.5)
    for name, value in plain.state_dict().items():
        other = local.state_dict()[name]
        if name.endswith("attn.qkv.bias"):
            assert torch.equal(value, torch.zeros(48))
            assert other[:32].eq(1.5).all() and other[32:].eq(0).all()
        else:
            assert torch.equal(value, other), name
    assert all(p.requires_grad for p in local.parameters())


def test_locality_makes_attention_look_near_first():
    """Equal query and key biases, rotated by position, score highest at offset zero."""
    positions = torch.stack([torch.zeros(9), torch.zeros(9), torch.arange(9)], -1)[None]
    cos, sin = rope_tables(positions, 64, 100.0)
    turned = rotate(torch.full((1, 1, 9, 64), 1.5), cos[:, None], sin[:, None])
    scores = (turned @ turned.transpose(-1, -2))[0, 0]
    assert scores.argmax(1).tolist() == list(range(9))
    assert scores[0, 0] > scores[0, 1] > scores[0, 2]


def test_deeper_blocks_start_with_smaller_outputs():
    torch.manual_seed(0)
    blocks = torch.nn.ModuleList(Block(64, 2) for _ in range(4))
    init_transformer(blocks, blocks)
    for depth, block in enumerate(blocks, 1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            assert weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * depth), rel=0.1)


@pytest.mark.parametrize("limit", [0, 1, 3, 10])
def test_a_cache_keeps_the_latest_tokens(limit):
    cache = KeyValueCache(limit)
    seen = torch.arange(6.0).view(1, 1, 6, 1)
    for t in range(6):
        k, v = cache.extend(seen[:, :, t : t + 1], -seen[:, :, t : t + 1])
        assert k.flatten().tolist() == list(range(max(0, t - limit), t + 1))
        assert torch.equal(v, -k)
        assert cache.keys.shape[2] == min(limit, t + 1)
    copies = cache.repeat(3)
    assert copies.keys.shape[0] == 3 and copies.limit == limit


def test_the_vjepa2_variant_turns_adjacent_channels_by_different_angles():
    """The definition channel by channel: three segments of 2 * ((14 // 3) // 2) = 4, two channels
    left over."""
    x = torch.randn(14, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    where = torch.tensor([[3, 0.5, 7]])
    cos, sin = rope_tables(where, 14, 10_000.0, "vjepa2")
    turned = rotate(x[None, None, None], cos.double(), sin.double()).flatten()
    expected = x.clone()
    for axis, position in enumerate(where[0].tolist()):
        for i in range(4):
            angle = position * 10_000.0 ** (-(i % 2) / 2)  # tiled: f0 f1 f0 f1
            own, partner = 4 * axis + i, 4 * axis + i + (1 if i % 2 == 0 else -1)
            sign = -1 if i % 2 == 0 else 1
            expected[own] = x[own] * math.cos(angle) + sign * x[partner] * math.sin(angle)
    torch.testing.assert_close(turned, expected, atol=1e-6, rtol=1e-6)
    assert torch.equal(turned[12:], x[12:])


@pytest.mark.parametrize("rope", ["rotation", "vjepa2"])
def test_a_wide_clip_is_seen_whole_and_dropped_tokens_are_not_missed(rope):
    torch.manual_seed(0)
    settings = EncoderSettings(
        patch_size=PATCH,
        tubelet_size=2,
        width=16,
        depth=1,
        num_heads=2,
        attention="clip",
        rope=rope,
        locality=0,
    )
    model = Encoder(SIDE, settings)
    wide = torch.randn(2, 4, 3, 8, 20)  # 2 x 2 x 5 tokens
    with torch.no_grad():
        seen = model(wide)
        assert seen.shape == (2, 20, 16)
        assert model.positions(wide).tolist() == [
            [t, y, x] for t in range(2) for y in range(2) for x in range(5)
        ]
        everything = torch.arange(20).flip(0).expand(2, -1)
        torch.testing.assert_close(model(wide, everything).flip(1), seen, atol=1e-5, rtol=1e-5)
        changed = wide.clone()
        changed[:, :, :, -1, -1] += 3  # the corner that a square reading would miss
        assert not torch.allclose(model(changed), seen, atol=1e-3)


@pytest.mark.parametrize("attention", ["clip", "frame"])
@pytest.mark.parametrize("shape", [(3, 12, 12), (4, 13, 12), (4, 12, 10)])
def test_a_clip_that_does_not_divide_is_refused(attention, shape):
    frames, height, width = shape
    with pytest.raises(
        ValueError, match=f"clip of {frames} frames of {height} x {width} px does not divide"
    ):
        encoder(attention, tubelet=2)(torch.zeros(1, frames, 3, height, width))


def test_all_settings_are_written_down_and_reach_the_encoder():
    assert (
        EncoderSettings().model_dump()["rope"] == "rotation"
        and EncoderSettings().model_dump(mode="json")["mlp_ratio"] == 4.0
    )
    settings = EncoderSettings(rope="vjepa2", mlp_ratio=48 / 11, width=44, num_heads=2, depth=1)
    assert EncoderSettings(**settings.model_dump()) == settings
    model = Encoder(16, settings)
    assert model.settings.rope == "vjepa2" and model.blocks[0].mlp.fc1.out_features == 192
    with pytest.raises(ValueError, match="rope vjepa2 needs heads of 6 channels or more"):
        EncoderSettings(rope="vjepa2", width=16, num_heads=4)


@pytest.mark.parametrize("change", [{"width": 130, "num_heads": 4}, {"width": 6, "num_heads": 2}])
def test_sizes_that_do_not_fit_are_refused(change):
    with pytest.raises(ValueError, match="must be an even multiple of num_heads"):
        EncoderSettings(**change)
