"""Dynamics as a distribution: where worlds have chance a mixture beats the dynamics that average,
and ensembles disagree where they have no data."""

import math

import numpy as np
import pytest
import torch
from small_models import small_dynamics, small_latent_model

from jepa_wm.models.dynamics import Noise, StepNoise
from jepa_wm.models.latent_settings import FactoredLatentSettings, TokenLatentSettings
from jepa_wm.models.mixture import MixturePrediction
from jepa_wm.planning.terms import expected_cost
from jepa_wm.worlds.two_rooms.policies import Exploration, ExplorationPolicy
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings

DRAWN = 16


def dynamics(components, *, latent=3, action=2, width=32, depth=1, window=2, tokens=1):
    torch.manual_seed(0)
    model = small_dynamics(
        tokens=tokens,
        latent_width=latent,
        action_size=action,
        width=width,
        depth=depth,
        num_heads=1,
        context_frames=window,
        mixture_components=components,
    )
    torch.nn.init.normal_(
        model.embed.weight, std=0.5
    )  # a few numbers, as loud as the hundred of a real latent
    return model


# ---------------------------------------------------------------- the distribution


def test_likelihood_and_draws_are_those_of_a_mixture():
    g = torch.Generator().manual_seed(0)
    prediction = MixturePrediction(
        torch.tensor([0.2, 0.5, 0.3]).log(),
        torch.randn(3, 2, 2, generator=g),
        0.3 * torch.randn(3, 2, 2, generator=g),
    )
    truth = torch.randn(2, 2, generator=g)
    density = sum(
        chance
        * math.prod(
            math.exp(-0.5 * ((x - m) / s) ** 2) / (s * math.sqrt(2 * math.pi))
            for x, m, s in zip(
                truth.flatten().tolist(),
                mean.flatten().tolist(),
                std.flatten().tolist(),
                strict=True,
            )
        )
        for chance, mean, std in zip(
            [0.2, 0.5, 0.3], prediction.mean, prediction.log_std.exp(), strict=True
        )
    )
    assert prediction.log_likelihood(truth).item() == pytest.approx(math.log(density), rel=1e-4)
    assert torch.equal(prediction.likeliest(), prediction.mean[1])
    sharp = prediction._replace(log_std=prediction.log_std - 4)
    assert torch.equal(sharp.nearest(prediction.mean[2] + 1e-3), prediction.mean[2])
    drawn = torch.stack(
        [
            prediction.sample(
                StepNoise(torch.rand((), generator=g), torch.randn(2, 2, generator=g))
            )
            for _ in range(4000)
        ]
    )
    weights = torch.tensor([0.2, 0.5, 0.3])[:, None, None]
    mean = (weights * prediction.mean).sum(0)
    variance = (weights * (prediction.log_std.mul(2).exp() + prediction.mean.square())).sum(
        0
    ) - mean.square()
    torch.testing.assert_close(drawn.mean(0), mean, atol=0.08, rtol=0)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.1, atol=0)
    batch = MixturePrediction(*(part[None, None].expand(4, 5, *part.shape) for part in prediction))
    assert torch.equal(
        batch.sample(StepNoise(torch.tensor(0.3), torch.zeros(2, 2)))[3, 4], prediction.mean[1]
    )


@pytest.mark.parametrize("components", [1, 3])
def test_searching_imagines_the_same_as_training_draw_for_draw(components):
    model = dynamics(components, tokens=4, depth=2, window=3)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    g = torch.Generator().manual_seed(1)
    context, past = torch.randn(2, 3, 4, 3, generator=g), torch.randn(2, 2, 2, generator=g)
    plans = torch.randn(2, 5, 4, 2, generator=g)
    futures = []
    for noise in (
        None,
        *(
            Noise.seeded(r, horizon=4, tokens=4, width=3, device=torch.device("cpu"))
            for r in (0, 1)
        ),
    ):
        with torch.no_grad():
            slow = model.rollout(context, past, plans, noise=noise)
        fast = model.fast_rollout(context, past, plans, noise=noise, at_once=3)
        torch.testing.assert_close(fast, slow, atol=1e-4, rtol=1e-4)
        futures.append(fast)
    assert not torch.allclose(futures[0], futures[1]) and not torch.allclose(
        futures[1], futures[2]
    )


def test_a_longer_future_begins_with_the_shorter_ones_chance():
    sizes = {"tokens": 2, "width": 3, "device": torch.device("cpu")}
    short, long = (Noise.seeded(3, horizon=h, **sizes) for h in (2, 5))
    assert torch.equal(short.choice, long.choice[:2]) and torch.equal(
        short.normal, long.normal[:2]
    )


@pytest.mark.parametrize("components", [0, 1, 3])
def test_what_is_static_stays_static_whatever_the_head(components):
    """It is a property of the latent: read, averaged, kept in every future, and never shifted by
    the margin."""
    torch.manual_seed(0)
    latent = FactoredLatentSettings(dynamic_dim=2, static_dim=3, components=6, width=16)
    sizes = {"frameskip": 2, "width": 32, "mixture_components": components}
    model = small_latent_model(latent, tokens=4, token_width=6, **sizes)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    latents = torch.randn(2, 3, 1, 5)
    assert model.latent.dynamic_dim == 2 and torch.equal(
        model.latent.static_of(latents), latents[..., 2:]
    )
    shifted = model.latent.perturbations(latents, 0.5)
    assert len(shifted) == 4 and all(torch.equal(x[..., 2:], latents[..., 2:]) for x in shifted)
    plans, past = torch.randn(2, 4, 5, 4), torch.randn(2, 2, 4)
    for noise in (None, Noise.seeded(0, horizon=5, tokens=1, width=5, device=torch.device("cpu"))):
        with torch.no_grad():
            futures = model.dynamics.rollout(latents, past, plans, noise=noise)
        torch.testing.assert_close(
            model.dynamics.fast_rollout(latents, past, plans, noise=noise),
            futures,
            atol=1e-4,
            rtol=1e-4,
        )
        kept = latents[:, None, -1:, :, 2:].expand(-1, 4, 5, -1, -1)
        assert torch.equal(futures[..., 2:], kept), "no future changes what is static"
        assert (futures[..., :2] - latents[:, None, -1:, :, :2]).abs().min() > 0


def test_static_numbers_have_no_part_in_the_likelihood():
    """Those of the truth say nothing: the loss is of the numbers that chance moves, and per such
    number."""
    torch.manual_seed(0)
    model = small_dynamics(
        tokens=1,
        latent_width=5,
        action_size=2,
        width=32,
        depth=1,
        num_heads=1,
        context_frames=2,
        mixture_components=2,
        static_dim=3,
    )
    latents, acts = torch.randn(4, 6, 1, 5), torch.randn(4, 5, 2)
    with torch.no_grad():
        likelihood = model.distribution(latents[:, :-1], model.hidden(latents[:, :-1], acts))
        assert likelihood.mean.shape == (4, 5, 2, 1, 2)
        for loss in (model.forced_loss, model.rollout_loss):
            windows = latents.clone()
            windows[:, 1:, :, 2:] = windows[:, :1, :, 2:]
            other = windows.clone()
            other[:, -1, :, 2:] += 100
            assert loss(windows, acts) == loss(other, acts)


# ---------------------------------------------------------------- worlds with chance


def fit(model, windows, *, steps, seed=0, lr=3e-3):
    """Train on windows (latents [n, T, 1, D], actions [n, T-1, A])."""
    latents, actions = windows
    g = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=lr)
    for step in range(steps):
        rows = torch.randint(len(latents), (128,), generator=g)
        loss = model.forced_loss(latents[rows], actions[rows]) + model.rollout_loss(
            latents[rows], actions[rows]
        )
        for group in optimiser.param_groups:
            group["lr"] = lr * (1 - step / steps) + 1e-5
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def judged(model, seen, new):
    """(log likelihood a number, distance [n] of the true last frame of new windows to the nearest
    of 16 draws).

    The deterministic model draws its guess, and its likelihood is of the Gaussian that squared
    error assumes: one spread for all numbers, here that of its errors in the seen windows."""
    (before, acts), truth = (new[0][:, :-1], new[1]), new[0][:, -1, 0]
    if model.head.__class__.__name__ == "MixtureHead":
        prediction = MixturePrediction(
            *(part[:, -1] for part in model.distribution(before, model.hidden(before, acts)))
        )
        likelihood = prediction.log_likelihood(truth[:, None]).mean() / truth.shape[-1]
        chances = [
            Noise.seeded(r, horizon=1, tokens=1, width=truth.shape[-1], device=truth.device).at(0)
            for r in range(DRAWN)
        ]
        drawn = torch.stack([prediction.sample(chance)[:, 0] for chance in chances])
    else:
        guess = model(before, acts)[:, -1, 0]
        std = (
            (model(seen[0][:, :-1], seen[1])[:, -1, 0] - seen[0][:, -1, 0]).square().mean().sqrt()
        )
        normal = torch.distributions.Normal(guess, std)
        likelihood, drawn = normal.log_prob(truth).mean(), guess[None]
    return likelihood.item(), (drawn - truth).norm(dim=-1).amin(0)


def forks(count, seed, *, up=0.5):
    """An agent walks right; beyond x = 0 it is thrown up or down by 1, at random. Latents (x, y,
    0) and some noise."""
    r = np.random.default_rng(seed)
    speed = r.uniform(0.5, 1.0, (count, 1)).astype(np.float32)
    x = np.concatenate([-1.2 * speed, -0.2 * speed, 0.8 * speed], 1)
    y = np.zeros_like(x)
    y[:, 2] = np.where(r.random(count) < up, 1, -1)
    latents = np.stack([x, y, 0 * y], -1)[:, :, None]
    latents = latents + 0.05 * r.standard_normal(latents.shape)
    actions = np.repeat(speed[:, None], 2, 1).repeat(2, 2)
    return torch.from_numpy(latents.astype(np.float32)), torch.from_numpy(
        actions.astype(np.float32)
    )


def slipping_rooms(count, seed):
    """Two rooms in which moves slip: latents are the state in units of its spread, T = 3 frames of
    3 steps each."""
    world = TwoRoomsSettings(process_noise=0.5).make()
    seeds = seed * 10**6 + np.arange(count)
    world.reset(seeds)
    explorer = ExplorationPolicy(world.geometry, seeds, Exploration(blind=0.3))
    states, actions = [world.state()], []
    for _ in range(6):
        actions.append(explorer.act(world.state()))
        world.step(actions[-1])
        states.append(world.state())
    latents = (np.stack(states[::3], 1) - 32) / np.array([16, 16, 8, 12], np.float32)
    latents = latents + 0.02 * np.random.default_rng(seed).standard_normal(
        latents.shape
    )  # as an encoder reads it
    blocks = np.stack(actions, 1).reshape(count, 2, 6)
    return torch.from_numpy(latents[:, :, None].astype(np.float32)), torch.from_numpy(blocks)


@pytest.mark.parametrize(
    ("world", "components"), [(forks, 3), (slipping_rooms, 1)], ids=["forks", "slips"]
)
def test_where_there_is_chance_a_mixture_beats_the_model_that_averages(world, components):
    seen, new = world(2000, 1), world(500, 2)
    sizes = {"latent": seen[0].shape[-1], "action": seen[1].shape[-1]}
    averaging, mixture = (
        fit(dynamics(count, **sizes), seen, steps=250) for count in (0, components)
    )
    averaging_likelihood, gap = judged(averaging, seen, new)
    likelihood, nearest = judged(mixture, seen, new)
    assert likelihood > averaging_likelihood + 0.1, "nats a number"
    radius = gap.mean() / 2
    assert (nearest < radius).float().mean() > (gap < radius).float().mean() + 0.15
    if world is forks:
        with torch.no_grad():
            guess = averaging(new[0][:, :-1], new[1])[:, -1, 0, 1]
            prediction = mixture.distribution(
                new[0][:, :-1], mixture.hidden(new[0][:, :-1], new[1])
            )
        assert guess.abs().mean() < 0.3, "the average of up and down is where nobody ever is"
        weight = prediction.choice[:, -1].exp()
        up = (weight * (prediction.mean[:, -1, :, 0, 1] > 0.8)).sum(-1)
        down = (weight * (prediction.mean[:, -1, :, 0, 1] < -0.8)).sum(-1)
        assert up.mean() == pytest.approx(0.5, abs=0.15) and down.mean() == pytest.approx(
            0.5, abs=0.15
        )


def test_slips_depend_on_the_seed_alone_and_are_none_by_default():
    moved = []
    for seeds in ([3, 4], [4]):
        world = TwoRoomsSettings(process_noise=0.5).make()
        world.reset(np.array(seeds))
        before = world.state()
        for _ in range(5):
            world.step(np.zeros((len(seeds), 2), np.float32))
        moved.append(world.state()[-1] - before[-1])
    assert np.array_equal(*moved) and np.abs(moved[0][:2]).max() > 0.3 and not moved[0][2:].any()
    sure = TwoRoomsSettings().make()
    sure.reset(np.array([4]))
    sure.step(np.zeros((1, 2), np.float32))
    assert np.array_equal(sure.state(), before)


# ---------------------------------------------------------------- ensembles


def latent_model(**changes):
    torch.manual_seed(0)
    sizes = {"frameskip": 1, "width": 32, "context_frames": 2, **changes}
    return small_latent_model(TokenLatentSettings(), tokens=1, token_width=2, **sizes)


def test_members_agree_where_they_were_taught_and_not_elsewhere():
    model = latent_model(ensemble_size=3)
    assert len(model.ensemble) == 3 and len(latent_model().ensemble) == 1
    g = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(300):
        here = torch.randn(64, 1, 1, 2, generator=g) * 0.5
        acts = torch.rand(64, 1, 2, generator=g) - 0.5
        windows = torch.cat([here, here + acts[:, :, None]], 1)
        optimiser.zero_grad()
        model.dynamics_losses(windows, acts, rollout=0.0, member=step % 3)["loss"].backward()
        optimiser.step()
    with torch.no_grad():

        def disagreement(scale):
            here, acts = scale * torch.randn(200, 1, 1, 2, generator=g), torch.zeros(200, 1, 2)
            return torch.stack([m(here, acts) for m in model.ensemble]).var(0).mean().item()

        assert disagreement(8.0) > 10 * disagreement(0.5) > 0


def test_every_member_and_component_is_trained():
    for changes in (
        {"ensemble_size": 2},
        {"mixture_components": 2},
        {"ensemble_size": 2, "mixture_components": 1},
    ):
        model = latent_model(**changes)
        for member in range(len(model.ensemble)):
            losses = model.dynamics_losses(
                torch.randn(4, 4, 1, 2), torch.randn(4, 3, 2), rollout=1.0, member=member
            )
            assert {"forced", "rollout", "loss"} == losses.keys()
            losses["loss"].backward()
        untouched = [
            n
            for n, p in model.named_parameters()
            if p.grad is None and not n.startswith("distance")
        ]
        assert untouched == []


def test_the_cost_is_the_mean_over_futures_and_doubt_is_of_members_alone():
    g = torch.Generator().manual_seed(0)
    futures, plans = torch.randn(3, 2, 1, 4, 5, 2, 6, generator=g), torch.zeros(1, 4, 5, 2)

    def objective(latents, actions):
        return latents.square().sum((-3, -2, -1))

    plain = expected_cost(futures, plans, objective)
    torch.testing.assert_close(plain, futures.square().sum((-3, -2, -1)).mean((0, 1)))
    doubtful = expected_cost(futures, plans, objective, uncertainty_weight=2.0)
    torch.testing.assert_close(doubtful - plain, 2 * futures.mean(1).var(0).mean((-3, -2, -1)))
