"""The state token: what it holds once it is trained with the dynamics, and what keeps it from
collapsing."""

import math
import shutil
import signal

import pytest
import ranks
import torch
from test_train import STEPS, at_steps, overrides

from jepa_wm.config import load_config
from jepa_wm.core.errors import Interrupted
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import StateTokenSettings
from jepa_wm.models.state_token import DIRECTIONS, StateTokenLatent, sigreg
from jepa_wm.models.world_model_settings import MLPSettings, WorldModelSettings


def scene(episodes=400, frames=6):
    """(tokens [E, T, 36, 8], actions [E, T-1, 2], places [E, T, 2] of a bump that actions push
    until a wall stops it, [E, 1, 2] of one that stays where it is in an episode)."""
    g = torch.Generator().manual_seed(0)
    grid = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))

    def bump(place):
        return (-(place[..., None, :] - grid).square().sum(-1) / 2).exp()

    pushes = torch.randn(episodes, frames - 1, 2, generator=g)
    way = [torch.rand(episodes, 2, generator=g) * 5]
    for push in pushes.unbind(1):
        way.append((way[-1] + push).clamp(0, 5))
    way, still = torch.stack(way, 1), torch.rand(episodes, 1, 2, generator=g) * 5
    channels = torch.stack([bump(way), bump(still).expand(-1, frames, -1)], -1)
    tokens = channels @ torch.randn(2, 8, generator=g)
    return tokens + 0.1 * torch.randn(tokens.shape, generator=g), pushes, way, still


def trained(steps=300, **weights):
    """A latent model of the scene, trained as the stage trains it."""
    tokens, pushes, *_ = scene()
    torch.manual_seed(0)
    settings = WorldModelSettings(
        latent=StateTokenSettings(**{"dim": 16, **weights}),
        dynamics=MLPSettings(width=64, frameskip=1, context_frames=2),
        distance=None,
    )
    model = LatentModel(36, 8, 2, settings)
    optimiser, g = torch.optim.Adam(model.parameters(), lr=3e-3), torch.Generator().manual_seed(1)
    for step in range(steps):
        rows = torch.randint(300, (64,), generator=g)
        window, far = model.latent.own(tokens[rows]), torch.randint(6, (2, 64), generator=g)
        distant = torch.stack([window[torch.arange(64), each] for each in far], 1)
        losses = model.dynamics_losses(window, pushes[rows], rollout=1.0)
        apart = (far != torch.tensor([[0], [5]])).T
        beside = model.latent.joint_losses(window, distant, apart, step)["sigreg"]
        optimiser.zero_grad()
        (losses["loss"] + beside).backward()
        optimiser.step()
    return model


def unexplained(numbers, truth):
    """Share of the variance of places that is left in held-out episodes, if each frame's place is
    that of the frames with the nearest numbers in the others."""
    truth = truth.expand(*numbers.shape[:2], -1)
    known, asked = numbers[:300].flatten(0, 1), numbers[300:].flatten(0, 1)
    nearest = torch.cdist(asked, known).topk(8, largest=False).indices
    left = truth[:300].flatten(0, 1)[nearest].mean(1) - truth[300:].flatten(0, 1)
    return (left.square().mean() / truth.flatten(0, 1).var(0).mean()).item()


def test_a_state_token_learns_what_moves_from_prediction():
    tokens, pushes, way, still = scene()
    model = trained(sigreg=13.0)
    with torch.no_grad():
        states = model.latent.encode(tokens)
        error, wrong = (
            (model.dynamics(states[:, :-1], moves) - states[:, 1:])[300:, 1:].square().mean()
            for moves in (pushes, pushes.roll(1, 0))
        )
        copied = states.diff(dim=1)[300:, 1:].square().mean()
    assert states.shape == (400, 6, 1, 16) and states.dtype == torch.float32
    assert unexplained(states[:, :, 0], way) < 0.4 < 0.7 < unexplained(states[:, :, 0], still)
    assert error < 0.75 * copied and error < 0.9 * wrong, "actions tell where it goes"


def test_without_what_keeps_it_from_collapsing_it_collapses():
    tokens = scene()[0]
    kept, collapsed = (trained(100, sigreg=weight).latent for weight in (13.0, 1e-6))
    with torch.no_grad():
        spread = [
            latent.encode(tokens).flatten(0, 2).std(0).mean() for latent in (kept, collapsed)
        ]
    assert spread[1] < 0.2 * spread[0]


def test_sigreg_is_least_for_standard_normal_numbers():
    g = torch.Generator().manual_seed(0)
    normal = torch.randn(2000, 8, generator=g)
    least = sigreg(normal, 3)
    ring = torch.nn.functional.normalize(torch.randn(2000, 8, generator=g), dim=-1) * math.sqrt(8)
    alike = normal[:, :1].expand(-1, 8)  # each number is normal, together they are a line
    for other in (
        normal * 0,
        normal * 2,
        normal / 2,
        normal + 1,
        alike,
        normal.sign(),
        ring * 1.5,
    ):
        assert sigreg(other, 3) > 3 * least
    assert torch.equal(sigreg(normal, 3), least) and not torch.equal(sigreg(normal, 4), least)
    # By the definition, along one direction.
    torch.manual_seed(0)
    x = torch.randn(50, 1)
    t = torch.linspace(-4, 4, 4001)
    empirical = torch.exp(1j * x * t).mean(0)
    apart = (empirical - torch.exp(-t.square() / 2)).abs().square() * torch.exp(-t.square() / 2)
    expected = torch.trapezoid(apart, t)
    assert sigreg(x, 0).item() == pytest.approx(expected.item(), rel=1e-3) and DIRECTIONS > 1


def test_its_pool_reads_frames_one_by_one():
    latent = StateTokenLatent(9, 8, StateTokenSettings(dim=4))
    tokens = torch.randn(2, 3, 9, 8)
    with torch.no_grad():
        whole, one = latent.encode(tokens), latent.encode(tokens[1, 2])
    torch.testing.assert_close(whole[1, 2], one)


def test_a_frame_beside_itself_and_the_size_of_a_batch_count_nothing():
    latent = StateTokenLatent(9, 8, StateTokenSettings(dim=4, sigreg=1.0))
    window, distant = torch.randn(6, 3, 1, 4), torch.randn(6, 2, 1, 4)
    apart = torch.tensor([[True, False]] * 6)
    known = latent.joint_losses(window, distant, apart, 2)["sigreg"]
    other = distant.clone()
    other[:, 1] += 5
    assert torch.equal(latent.joint_losses(window, other, apart, 2)["sigreg"], known)
    assert not torch.equal(latent.joint_losses(window, other, ~apart, 2)["sigreg"], known)
    twice = [torch.cat([each, each]) for each in (window, distant, apart)]
    torch.testing.assert_close(latent.joint_losses(*twice, 2)["sigreg"], known)
    nothing = latent.joint_losses(window, distant, torch.zeros_like(apart), 2)["sigreg"]
    assert torch.isfinite(nothing)


WORDS = ["latent={name: state_token, dim: 4, static_dim: 2}", "train.precision=fp32"]
TRAINED = ("pretrain", "features", "dynamics")


def test_the_stage_trains_the_pool_and_goes_on_to_the_same_bits(tmp_path, tiny_data, monkeypatch):
    def run(folder, *more):
        with Run.open(folder, load_config("debug", [*overrides(tiny_data), *WORDS, *more])) as run:
            for name in TRAINED:
                run_stage(name, run)
        return LatentModel.load(folder / "dynamics").latent.state_dict()

    whole = run(tmp_path / "whole")
    untrained = run(tmp_path / "untrained", "train.dynamics.steps=0")
    for part in ("places", "static"):
        name = f"{part}.pool.squeeze.weight"
        assert not torch.equal(whole[name], untrained[name])
    assert "sigreg" in read_metrics(tmp_path / "whole", "dynamics_dynamics")[-1]

    at_steps(monkeypatch, (STEPS + 9,), lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped")
    again = run(tmp_path / "stopped")
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_many_train_the_state_token_that_one_does(tmp_path, tiny_data):
    words = [*ranks.overrides(tiny_data), *WORDS]
    with Run.open(tmp_path / "alone", load_config("debug", words)) as run:
        for name in TRAINED:
            run_stage(name, run)
    shutil.copytree(tmp_path / "alone", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "dynamics")
    command = ["dynamics", "--config", "debug", "--run", str(tmp_path / "two"), *words]
    assert ranks.run_ranks(2, command, tmp_path / "meet", log=tmp_path / "log") == [0, 0]
    ranks.assert_equal_to_rounding(tmp_path / "two", tmp_path / "alone", curves=ranks.CURVES[2:4])
