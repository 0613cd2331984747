"""Imagining for search: equal to computing everything again, for any sizes, precision and
pieces."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import ACTION, loud_dynamics

from jepa_wm.models.fast_rollout import FastRollout, Weights, side_by_side


def data(model, *, batch, candidates, seen, horizon, seed=1):
    g = torch.Generator().manual_seed(seed)
    context = torch.randn(batch, seen, model.tokens, model.latent_width, generator=g)
    past = torch.randn(batch, seen - 1, ACTION, generator=g)
    return context, past, torch.randn(batch, candidates, horizon, ACTION, generator=g)


@torch.no_grad()
def everything_again(model, context, past, actions):
    """[B, S, H, N, D], with all frames of all candidates computed anew at each step."""
    futures = []
    for s in range(actions.shape[1]):
        latents = context
        for h in range(actions.shape[2]):
            latents = torch.cat(
                [latents, model(latents, torch.cat([past, actions[:, s, : h + 1]], 1))[:, -1:]], 1
            )
        futures.append(latents[:, context.shape[1] :])
    return torch.stack(futures, 1)


@given(
    tokens=st.integers(1, 5),
    window=st.integers(1, 4),
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    batch=st.integers(1, 3),
    candidates=st.integers(1, 4),
    horizon=st.integers(1, 7),
    seen=st.integers(1, 6),
    at_once=st.integers(0, 7),
    seed=st.integers(0, 1000),
)
@settings(max_examples=80, deadline=None)
def test_search_imagines_what_computing_everything_again_gives(
    tokens, window, depth, heads, batch, candidates, horizon, seen, at_once, seed
):
    model = loud_dynamics(tokens=tokens, window=window, depth=depth, heads=heads, seed=seed)
    inputs = data(model, batch=batch, candidates=candidates, seen=seen, horizon=horizon, seed=seed)
    expected = everything_again(model, *inputs)
    for imagined in (
        model.fast_rollout(*inputs, at_once=at_once),
        model.rollout(*inputs).detach(),
    ):
        torch.testing.assert_close(imagined, expected, atol=1e-5, rtol=1e-5)


def test_bf16_is_near_and_returns_fp32():
    model = loud_dynamics(tokens=9, heads=3)
    inputs = data(model, batch=2, candidates=5, seen=3, horizon=5)
    coarse, exact = (model.fast_rollout(*inputs, precision="bf16"), model.fast_rollout(*inputs))
    assert (
        coarse.dtype == torch.float32
        and not coarse.requires_grad
        and not torch.equal(coarse, exact)
    )
    torch.testing.assert_close(coarse, exact, atol=0.05, rtol=0.05)


def test_a_stepper_serves_fewer_plans_and_starts_anew():
    model = loud_dynamics()
    stepper = FastRollout(Weights.of(model, "fp32"), 6, frames=6)
    for batch in (6, 2, 5):
        context, past, actions = data(
            model, batch=batch, candidates=1, seen=4, horizon=3, seed=batch
        )
        stepper.remember(model.begin(context, past).layers, torch.arange(batch), seen=3)
        latent = context[:, -1]
        for h in range(3):
            latent = stepper.step(latent, actions[:, 0, h], time=3 + h)
        torch.testing.assert_close(
            latent, model.rollout(context, past, actions)[:, 0, -1], atol=1e-5, rtol=1e-5
        )


def test_a_cut_gradient_blames_only_the_actions_since_the_cut():
    model = loud_dynamics()
    context, past, actions = data(model, batch=1, candidates=2, seen=2, horizon=5)
    actions.requires_grad_()
    whole = model.rollout(context, past, actions)
    cut = model.rollout(context, past, actions, truncate=2)
    torch.testing.assert_close(whole, cut)
    (full,) = torch.autograd.grad(whole[:, :, 3].sum(), actions)
    (short,) = torch.autograd.grad(cut[:, :, 3].sum(), actions)
    assert full[:, :, :4].abs().amin((0, 1, 3)).gt(0).all() and not full[:, :, 4].any()
    assert not short[:, :, :2].any() and short[:, :, 2:4].abs().amin((0, 1, 3)).gt(0).all()


@pytest.fixture(params=[1, 2, 3])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_pieces_side_by_side_are_all_done_each_on_one_thread(threads):
    done = {}

    def work(piece):
        done[piece] = torch.get_num_threads()

    side_by_side(work, range(7))
    assert done == dict.fromkeys(range(7), 1)
    assert torch.get_num_threads() == threads

    def fail(piece):
        raise RuntimeError(f"piece {piece}")

    with pytest.raises(RuntimeError, match="piece 0"):
        side_by_side(fail, range(7))
    assert torch.get_num_threads() == threads


def test_the_number_of_threads_changes_nothing(threads):
    model = loud_dynamics(tokens=5)
    inputs = data(model, batch=2, candidates=60, seen=3, horizon=3)  # enough for several pieces
    expected = model.rollout(*inputs).detach()
    torch.testing.assert_close(model.fast_rollout(*inputs), expected, atol=1e-5, rtol=1e-5)
