"""Pools keep where things are, and the path reader asks for exactly what dead reckoning can
tell."""

import pytest
import torch

from jepa_wm.models.losses import LinearInverseDynamics
from jepa_wm.models.pooling import GridPool, query_attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_grid_pool_tells_places_apart_that_hold_the_same_tokens():
    torch.manual_seed(0)
    pool = GridPool(9, 8, 5)
    tokens = torch.randn(4, 9, 8, generator=generator())
    out = pool(tokens)
    assert out.shape == (4, 5)
    assert not torch.allclose(out, pool(tokens.roll(1, 1)), atol=1e-4), "the same tokens elsewhere"
    torch.testing.assert_close(out[1:2], pool(tokens[1:2]))


def test_queries_carried_to_the_tokens_find_what_keys_and_values_of_every_token_would():
    torch.manual_seed(0)
    tokens, query, key_value = torch.randn(3, 10, 12), torch.randn(5, 12), torch.nn.Linear(12, 24)
    k, v = (
        key_value(tokens).unflatten(-1, (2, 4, -1)).permute(2, 0, 3, 1, 4)
    )  # four heads of width 3
    q = query.unflatten(-1, (4, -1)).transpose(0, 1).expand(3, -1, -1, -1)
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(query_attention(tokens, query, key_value, 4), wanted)


def exact_reader(places):
    """A reader whose linear map is told, for summaries that begin with the place."""
    reader = LinearInverseDynamics(4, 2)
    with torch.no_grad():
        reader.read.weight.zero_()
        reader.read.weight[:, :2] = (
            torch.eye(2)
            / (places - places.mean(1, keepdim=True)).square().mean((0, 1)).sqrt()[:, None]
        )
    return reader


def walk(batch=16, frames=6):
    steps = torch.randn(batch, frames, 2, generator=generator(1))
    start = 10 * torch.randn(batch, 1, 2, generator=generator(2))
    path = steps.cumsum(1)
    summaries = torch.cat(
        [start + path, torch.randn(batch, frames, 2, generator=generator(3))], -1
    )
    return summaries, path


def test_a_linear_place_explains_every_path_wherever_it_began():
    summaries, path = walk()
    assert exact_reader(path)(summaries, path).item() == pytest.approx(0, abs=1e-9)
    assert exact_reader(path)(summaries, path + 5).item() == pytest.approx(0, abs=1e-9), (
        "only differences count"
    )


def test_a_reader_that_knows_nothing_has_error_one_in_any_unit():
    summaries, path = walk()
    reader = LinearInverseDynamics(4, 2)
    torch.nn.init.zeros_(reader.read.weight)
    assert reader(summaries, path).item() == pytest.approx(1.0)
    assert reader(summaries, 1000 * path).item() == pytest.approx(1.0)


def test_agents_that_stood_still_are_no_trouble():
    summaries, path = walk()
    loss = LinearInverseDynamics(4, 2)(summaries, 0 * path)
    assert loss.isfinite()


def test_the_path_finds_the_place_in_the_summary():
    summaries, path = walk(64)
    torch.manual_seed(0)
    reader = LinearInverseDynamics(4, 2)
    optimiser = torch.optim.Adam(reader.parameters(), lr=0.05)
    for _ in range(200):
        loss = reader(summaries, path)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.02
