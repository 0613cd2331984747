"""Dynamics: causal, banded, and its cache exact for any sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ACTION, LATENT, loud_dynamics


def data(frames, *, tokens=4, batch=2, seed=1):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, frames, tokens, LATENT, generator=g), torch.randn(
        batch, frames, ACTION, generator=g
    )


@torch.no_grad()
def influence(model, frames, changed):
    """Largest change of each frame's prediction [T] when one frame's latents, or its action, are
    changed."""
    latents, actions = data(frames, tokens=model.tokens)
    plain = model(latents, actions)
    latents, actions = latents.clone(), actions.clone()
    latents[:, changed], actions[:, changed] = latents[:, changed] + 1, actions[:, changed] - 1
    return (model(latents, actions) - plain).abs().amax((0, 2, 3))


@pytest.mark.parametrize("changed", [0, 3, 7])
@pytest.mark.parametrize(("window", "depth"), [(1, 2), (3, 1), (3, 2), (20, 1)])
def test_a_frame_matters_from_itself_on_for_window_times_depth(window, depth, changed):
    reach = depth * (window - 1) + 1
    effect = influence(loud_dynamics(window=window, depth=depth), 8, changed)
    within = torch.arange(8)
    within = (within >= changed) & (within < changed + reach)
    assert (effect[~within] == 0).all(), effect
    assert (effect[within] > 1e-4).all(), effect


def test_every_part_of_the_past_counts():
    """Latents alone and actions alone have an influence, and every token of a frame sees the
    others."""
    model = loud_dynamics()
    latents, actions = data(3)
    with torch.no_grad():
        plain = model(latents, actions)
        moved = latents.clone()
        moved[:, 1, 0] += 1
        assert (model(moved, actions) - plain).abs()[:, 1:].amax((0, 3)).min() > 1e-4
        assert (model(latents, actions + 1) - plain).abs().amax((0, 2, 3)).min() > 1e-4


def test_time_is_relative():
    model = loud_dynamics()
    latents, actions = data(4)
    with torch.no_grad():
        late = model.new_cache()
        late.frames = 11
        later = model.predict(latents, model.hidden(latents, actions, late))
        torch.testing.assert_close(model(latents, actions), later, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def unroll_without_cache(model, context, past, actions):
    latents = context
    for h in range(actions.shape[1]):
        taken = torch.cat([past, actions[:, : h + 1]], 1)
        latents = torch.cat([latents, model(latents, taken)[:, -1:]], 1)
    return latents[:, context.shape[1] :]


@given(
    tokens=st.integers(1, 5), window=st.integers(1, 5), depth=st.integers(1, 3),
    horizon=st.integers(1, 7), seen=st.integers(1, 7), seed=st.integers(0, 1000),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_cached_unroll_equals_computing_everything_again(
    tokens, window, depth, horizon, seen, seed
):
    model = loud_dynamics(tokens=tokens, window=window, depth=depth, seed=seed)
    latents, acts = data(seen + horizon, tokens=tokens, seed=seed)
    context, past, actions = (
        latents[:, :seen],
        acts[:, : seen - 1],
        acts[:, seen - 1 : seen - 1 + horizon],
    )
    with torch.no_grad():
        cached = model.rollout_one(context, past, actions)
    expected = unroll_without_cache(model, context, past, actions)
    torch.testing.assert_close(cached, expected, atol=1e-5, rtol=1e-5)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_candidates_in_one_batch_equal_each_alone(batch, candidates, horizon, seen):
    model = loud_dynamics()
    context, past = data(seen, batch=batch)
    past = past[:, : seen - 1]
    plans = torch.randn(
        batch, candidates, horizon, ACTION, generator=torch.Generator().manual_seed(4)
    )
    with torch.no_grad():
        together = model.rollout(context, past, plans)
        assert together.shape == (batch, candidates, horizon, 4, LATENT)
        for s in range(candidates):
            for b in range(batch):
                alone = model.rollout_one(context[b : b + 1], past[b : b + 1], plans[b : b + 1, s])
                torch.testing.assert_close(together[b : b + 1, s], alone, atol=1e-5, rtol=1e-5)


def test_step_forward_and_rollout_agree_on_the_first_frame():
    model = loud_dynamics()
    latents, actions = data(4)
    with torch.no_grad():
        forced = model(latents, actions)
        one = model.step(latents[:, 0], actions[:, 0], model.new_cache())
        torch.testing.assert_close(one, forced[:, 0])
        torch.testing.assert_close(
            model.rollout_one(latents, actions[:, :-1], actions[:, -1:])[:, 0],
            forced[:, -1],
            atol=1e-5,
            rtol=1e-5,
        )


@pytest.mark.parametrize("context", [1, 3, 5])
def test_an_imagined_window_is_judged_after_its_context(context):
    model, (latents, actions) = loud_dynamics(rollout_context=context), data(6)
    acts = actions[:, :-1]
    imagined = model.rollout_one(
        latents[:, :context], acts[:, : context - 1], acts[:, context - 1 :]
    )
    wanted = (imagined - latents[:, context:]).square().mean()
    assert model.rollout_loss(latents, acts).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    "shape", [(2, 3, 0, ACTION), (2, 3, 2, ACTION + 1), (2, 3, 2, ACTION // 2)]
)
def test_plans_that_do_not_fit_are_refused(shape):
    context, _ = data(1)
    with pytest.raises(
        ValueError, match="horizon must be at least 1 and the model takes 4 numbers a step"
    ):
        loud_dynamics().rollout(context, context.new_zeros(2, 0, ACTION), torch.zeros(shape))


def test_the_memory_stays_bounded():
    model = loud_dynamics(window=3)
    cache = model.new_cache()
    latents, actions = data(9)
    with torch.no_grad():
        for t in range(9):
            model.step(latents[:, t], actions[:, t], cache)
    assert cache.frames == 9
    assert all(layer.keys.shape[2] == 2 * model.tokens for layer in cache.layers)
