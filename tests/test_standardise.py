"""What does not vary comes out as 0 wherever numbers are standardised, and noise is nowhere made
large."""

import numpy as np
import torch
from test_act import world_model

from jepa_wm.core.scaling import own_scale, shared_scale
from jepa_wm.features.probes import RidgeProbe, fit_attentive
from jepa_wm.models.distance import TemporalDistance
from jepa_wm.models.pooling import Components
from jepa_wm.models.world_model_settings import DistanceSettings


def test_numbers_in_units_of_their_own_keep_their_spread_however_small_or_far_off():
    draws = torch.randn(5000)
    values = torch.stack(
        [
            draws,
            1e-9 * draws,
            1e6 + draws,
            torch.full_like(draws, 0.3),
            0 * draws,
            7 + 1e-7 * draws,
        ],
        1,
    )
    scale = own_scale(values)
    torch.testing.assert_close(
        scale[:3] / draws.std(), torch.tensor([1, 1e-9, 1]), rtol=1e-2, atol=1e-12
    )
    assert scale[3:].tolist() == [1, 1, 1]


def test_numbers_of_one_unit_are_not_made_larger_than_a_thousandfold():
    least = 1e-3 * (4 / 3) ** 0.5
    torch.testing.assert_close(
        shared_scale(torch.tensor([2.0, 0.0, 1e-9])), torch.tensor([2.0, least, least])
    )
    assert shared_scale(torch.zeros(3)).tolist() == [1, 1, 1]
    assert shared_scale(1e-9 * torch.ones(2)).tolist() == [torch.tensor(1e-9).item()] * 2


def test_a_dead_number_of_a_latent_does_not_rule_the_distance():
    latents = torch.randn(4000, 4)
    latents[:, 3] = 0.3 + 1e-8 * torch.randn(4000)
    metric = TemporalDistance(4, DistanceSettings(groups=2, components=2, width=8))
    metric.standardise(latents)
    moved = latents + torch.tensor(
        [0, 0, 0, 1e-4]
    )  # such as an imagined latent, that keeps it less exactly
    standard = (moved - metric.centre) / metric.spread
    assert standard[:, 3].abs().max() < 0.2 and 0.9 < standard[:, :3].std() < 1.1


def test_frames_that_do_not_differ_have_no_components_and_no_noise_is_made_one():
    same = torch.randn(1, 9, 16).expand(40, -1, -1) * 100
    components = Components(9 * 16, 8)
    components.fit(same.contiguous())
    assert torch.equal(components(same), torch.zeros(40, 8))
    directions = torch.randn(2, 9, 16)
    two = same + torch.einsum("nk,kij->nij", torch.randn(40, 2), directions)
    components.fit(two)
    spread = components(two).std(0)
    assert (spread[:2] > 0.5).all() and not spread[2:].any(), "two things differ, so there are two"


def test_summary_numbers_that_died_stay_small():
    summary = world_model().latent
    components = torch.randn(500, 8)
    with torch.no_grad():
        summary.places[-1].weight[1] *= 1e-7
    summary.standardise(components)
    spread = summary.dynamic(components)[:, 0].std(0)
    torch.testing.assert_close(spread[[0, 2]], torch.ones(2))
    assert spread[1] < 0.01


def test_probes_read_a_constant_as_it_is_and_nothing_off_dead_numbers():
    generator = np.random.default_rng(0)
    state = torch.from_numpy(
        np.stack([generator.uniform(0, 60, 300), np.full(300, 1e3)], 1)
    ).float()
    latents = torch.cat([state[:, :1] / 60, torch.full((300, 1), 0.3), torch.randn(300, 1)], 1)
    probe = RidgeProbe(latents, state)
    assert (probe.predict(latents + torch.tensor([0, 1e-4, 0])) - state).abs().max() < 2
    tokens = latents[:, None].repeat(1, 4, 3)[..., :8]
    read = fit_attentive(tokens, state, steps=20, batch_size=32).predict(tokens)
    assert (read[:, 1] - 1e3).abs().max() < 3 and torch.isfinite(read).all()


def test_the_encoder_shows_a_dead_number_as_0():
    encoder = world_model().encoder
    with torch.no_grad():
        encoder.encoder.norm.weight[3] = 0
        encoder.encoder.norm.bias[3] = 0.7
        encoder.encoder.norm.weight[5] = 1e-9
    tokens = encoder.standardise_on(pictures(8))
    later = encoder(torch.from_numpy(pictures(9)))
    for seen in (tokens, later):
        assert seen[..., [3, 5]].abs().max() < 0.01 and seen[..., :3].std() > 0.5


def pictures(seed):
    return np.random.default_rng(seed).integers(256, size=(20, 12, 12, 3), dtype=np.uint8)
