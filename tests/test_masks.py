"""Masks: equal counts, nothing in both halves, every sample its own draw, and no part of the clip
dropped by place."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.models.encoder_settings import BlockMask
from jepa_wm.models.masks import draw_hidden, split_tokens


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def ranges(low, high):
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(
        lambda pair: tuple(sorted(pair))
    )


masks = st.builds(
    BlockMask, num_blocks=st.integers(1, 6),
    spatial_scale=ranges(0.05, 1.0), aspect_ratio=ranges(0.5, 2.0),
    temporal_scale=ranges(0.05, 1.0),
    min_context_ratio=st.floats(0.0, 0.6),
)  # fmt: skip


@given(masks, st.integers(1, 5), st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31))
@settings(max_examples=100, deadline=None)
def test_every_mask_can_be_split_into_equal_disjoint_parts(kind, batch, time, grid, seed):
    hidden = draw_hidden(kind, (batch, time, grid), generator(seed))
    count = time * grid * grid
    assert hidden.shape == (batch, count) and hidden.dtype == torch.bool
    assert ((~hidden).sum(1) >= max(1, int(kind.min_context_ratio * count))).all()
    assert hidden.any(1).all(), "a sample without targets"
    context, target = split_tokens(hidden, generator(seed + 1))
    assert context.shape == (batch, int((~hidden).sum(1).min()))
    assert target.shape == (batch, int(hidden.sum(1).min()))
    for row, seen, wanted in zip(hidden, context, target, strict=True):
        assert (
            seen.unique().tolist() == seen.tolist() and wanted.unique().tolist() == wanted.tolist()
        )
        assert not row[seen].any() and row[wanted].all()


@given(masks, st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_the_generator_alone_decides(kind, seed):
    def draw(s):
        g = generator(s)
        hidden = draw_hidden(kind, (4, 3, 5), g)
        return [hidden, *split_tokens(hidden, g)]

    torch.rand(3)  # the global state has no part in it
    assert all(torch.equal(a, b) for a, b in zip(draw(seed), draw(seed), strict=True))


def test_every_sample_draws_its_own_boxes():
    hidden = draw_hidden(
        BlockMask(num_blocks=2, spatial_scale=(0.2, 0.3)), (64, 3, 8), generator()
    )
    assert len({tuple(row.tolist()) for row in hidden}) > 60


def test_boxes_have_the_size_asked_for():
    grid, time = 10, 4
    hidden = draw_hidden(
        BlockMask(
            num_blocks=1,
            spatial_scale=(0.2, 0.2),
            aspect_ratio=(1.0, 1.0),
            temporal_scale=(0.5, 0.5),
        ),
        (200, time, grid),
        generator(),
    ).view(200, time, grid, grid)
    assert (hidden.flatten(2).any(2).sum(1) == 2).all()
    assert (hidden.any(1).any(2).sum(1) == 4).all()  # sqrt(.2 * 100) rounded
    assert (hidden.any(1).any(1).sum(1) == 5).all()
    share = hidden.float().mean((0, 1))
    assert share[0, 0] > 0, "a box can lie in the corner"
    assert torch.allclose(share, share.flip(0, 1), atol=0.1), "and no side is preferred"


def test_whole_frames_can_be_hidden():
    hidden = draw_hidden(
        BlockMask(
            num_blocks=1,
            spatial_scale=(1.0, 1.0),
            aspect_ratio=(1.0, 1.0),
            temporal_scale=(0.5, 0.5),
        ),
        (50, 4, 5),
        generator(),
    )
    frames = hidden.view(50, 4, 25)
    assert (frames.all(2) == frames.any(2)).all() and (frames.all(2).sum(1) == 2).all()


def test_no_time_step_is_dropped_more_often_than_another():
    """Cutting sorted token numbers to the batch's minimum always loses the late frames; a random
    choice does not."""
    time, grid, g = 6, 6, generator()
    kept, whole = torch.zeros(2, time), torch.zeros(2, time)
    for _ in range(40):
        hidden = draw_hidden(
            BlockMask(num_blocks=3, spatial_scale=(0.05, 0.5), temporal_scale=(1.0, 1.0)),
            (32, time, grid),
            g,
        )
        for part, (ids, allowed) in enumerate(
            zip(split_tokens(hidden, g), (~hidden, hidden), strict=True)
        ):
            kept[part] += torch.bincount(ids.flatten() // grid**2, minlength=time)
            whole[part] += allowed.view(-1, time, grid**2).sum((0, 2))
    rate = kept / whole
    assert rate.mean() < 0.9, "the test must drop something"
    assert ((rate - rate.mean(1, keepdim=True)).abs() < 0.03).all(), rate


def test_what_is_uncovered_again_is_uncovered_anywhere():
    """`min_context_ratio` opens a few tokens of a wholly hidden clip, early and late ones
    alike."""
    kind = BlockMask(
        num_blocks=1,
        spatial_scale=(1.0, 1.0),
        aspect_ratio=(1.0, 1.0),
        temporal_scale=(1.0, 1.0),
        min_context_ratio=0.25,
    )
    hidden = draw_hidden(kind, (2000, 4, 4), generator())
    assert ((~hidden).sum(1) == 16).all()
    assert ((~hidden).float().mean(0) - 0.25).abs().max() < 0.06
