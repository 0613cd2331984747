"""Dynamics as an MLP: its memory exact for any sizes, and its numbers in any precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import dynamics_of

from jepa_wm.config import Config
from jepa_wm.models.latent import LatentShape
from jepa_wm.models.world_model_settings import MLPSettings

ACTION = 3


def model_of(*, tokens=2, dynamic=3, static=2, window=3, seed=0):
    torch.manual_seed(seed)
    shape = LatentShape(tokens, dynamic, static)
    return dynamics_of(MLPSettings(context_frames=window, width=16, depth=2), shape, ACTION)


def data(model, frames, *, batch=2, seed=0):
    g, shape = torch.Generator().manual_seed(seed), model.shape
    latents = torch.randn(batch, frames, shape.tokens, shape.width, generator=g)
    return latents, torch.randn(batch, frames, ACTION, generator=g)


@given(
    tokens=st.integers(1, 3), static=st.integers(0, 2), window=st.integers(1, 4),
    horizon=st.integers(1, 6), seen=st.integers(1, 6), plans=st.integers(1, 3),
    at_once=st.integers(0, 2), seed=st.integers(0, 100),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_imagining_equals_computing_everything_again(
    tokens, static, window, horizon, seen, plans, at_once, seed
):
    model = model_of(tokens=tokens, static=static, window=window, seed=seed)
    context, taken = data(model, seen, seed=seed)
    past = taken[:, :-1]
    actions = torch.randn(2, plans, horizon, ACTION, generator=torch.Generator().manual_seed(seed))
    expected = []
    for s in range(plans):
        latents = context
        for h in range(horizon):
            so_far = torch.cat([past, actions[:, s, : h + 1]], 1)
            latents = torch.cat([latents, model(latents, so_far)[:, -1:]], 1)
        expected.append(latents[:, seen:])
    imagined = model.fast_rollout(context, past, actions, at_once=at_once)
    torch.testing.assert_close(imagined, torch.stack(expected, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", [0, 2, 5])
@pytest.mark.parametrize("window", [1, 2, 4])
@torch.no_grad()
def test_a_frame_matters_while_it_is_remembered_and_never_before(window, changed):
    model = model_of(window=window)
    latents, actions = data(model, 7)
    plain = model(latents, actions)
    latents[:, changed] += 1
    effect = (
        (model(latents, actions) - plain).abs()[..., : model.shape.dynamic_dim].amax((0, 2, 3))
    )
    within = torch.arange(7)
    within = (within >= changed) & (within < changed + window)
    assert (effect[~within] == 0).all() and (effect[within] > 1e-4).all(), effect


def test_static_numbers_stay_and_are_no_part_of_the_error():
    model = model_of()
    latents, actions = data(model, 6)
    after = model(latents[:, :-1], actions[:, :-1])
    assert torch.equal(after[..., 3:], latents[:, :-1, :, 3:])
    losses = model.loss(latents, actions[:, :-1], rollout=0.5)
    gap = (after - latents[:, 1:])[..., :3].abs().mean()
    imagined = model.rollout_one(latents[:, :3], actions[:, :2], actions[:, 2:-1])
    far = (imagined - latents[:, 3:])[..., :3].abs().mean()
    torch.testing.assert_close(losses["forced"], gap)
    torch.testing.assert_close(losses["rollout"], far)
    torch.testing.assert_close(losses["loss"], gap + far / 2)
    assert set(model.loss(latents, actions[:, :-1], rollout=0)) == {"forced", "loss"}


def test_windows_that_leave_nothing_to_imagine_are_refused():
    dynamics = MLPSettings(context_frames=4)
    with pytest.raises(ValueError, match="context_frames 4 leaves nothing to imagine of windows"):
        Config(dynamics=dynamics, train={"dynamics": {"frames": 4}})


@torch.no_grad()
def test_it_imagines_in_fp32_whatever_the_precision():
    model = model_of()
    context, taken = data(model, 4)
    plans = torch.randn(2, 5, 6, ACTION, generator=torch.Generator().manual_seed(0))
    coarse, exact = (
        model.fast_rollout(context, taken[:, :-1], plans, precision=precision)
        for precision in ("bf16", "fp32")
    )
    assert torch.equal(coarse, exact)
