"""Latents of many tokens: nothing that is fitted on them or stands on them grows with the square
of their numbers."""

import tracemalloc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from jepa_wm.config import load_config
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features import cache
from jepa_wm.features.probes import RidgeProbe
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.latent_model import COMPONENTS, LatentModel
from jepa_wm.models.latent_settings import TokenLatentSettings
from jepa_wm.models.world_model_settings import WorldModelSettings
from jepa_wm.world_model import rollout_error as rollout_errors
from jepa_wm.world_model.world_model import WorldModel


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self.numbers = max(self.numbers, made.numel())
        return out


@pytest.mark.parametrize(("n", "size"), [(40, 12000), (700, 6)])
def test_a_probe_never_holds_more_than_its_inputs_and_the_smaller_of_the_two_squares(n, size):
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, size, generator=g), torch.randn(n, 3, generator=g)
    tracemalloc.start()
    with Largest() as largest:
        RidgeProbe(x, y)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert largest.numbers <= max(n * size, min(n, size) ** 2)
    assert (
        peak < 8 * 8 * n * size
    )  # bytes: a few copies of the inputs in float64; the square would be 1.15 GB


@pytest.mark.parametrize(("n", "size"), [(30, 80), (80, 80), (80, 30)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_both_forms_give_the_ridge_of_the_textbook(n, size, penalty):
    """The penalty sees standardised features and not the constant."""
    r = np.random.default_rng(n)
    x = r.normal(size=(n, size)) * r.uniform(0.1, 50, size) + r.normal(size=size) * 20
    y = r.normal(size=(n, 2)) * 9 + 300
    z = (x - x.mean(0)) / x.std(0)
    weight = np.linalg.solve(z.T @ z + penalty * n * np.eye(size), z.T @ (y - y.mean(0)))
    new = r.normal(size=(5, size)) * 20
    expected = (new - x.mean(0)) / x.std(0) @ weight + y.mean(0)
    (ridge,) = fit_ridge(x, y, (penalty,), standardise=True)
    assert np.allclose(ridge.predict(new), expected, rtol=1e-8, atol=1e-6)
    probe = RidgeProbe(torch.from_numpy(x), torch.from_numpy(y), penalty=penalty)
    assert np.allclose(probe.predict(torch.from_numpy(new)), expected, rtol=1e-3, atol=1e-2)


def test_heads_and_distance_of_few_tokens_read_all_numbers():
    few, factored = (
        LatentModel(16, 64, 2, WorldModelSettings(latent=TokenLatentSettings())),
        LatentModel(256, 384, 2, WorldModelSettings()),
    )
    assert few.components is None and few.flat_width == 16 * 64
    assert factored.components is None and factored.flat_width == factored.numbers == 8
    latents = torch.randn(2, 3, 16, 64)
    assert torch.equal(few.flat(latents), latents.flatten(-2))


def test_heads_and_distance_of_many_tokens_are_small():
    with torch.device("meta"):
        model = LatentModel(256, 384, 2, WorldModelSettings(latent=TokenLatentSettings()))
    assert sum(p.numel() for p in model.distance.parameters()) < 10**6
    assert model.distance.net[0].in_features == model.flat_width == COMPONENTS


@pytest.fixture(scope="module")
def run_of_many(tmp_path_factory, tiny_data):
    """A finished run on all tokens of a timm backbone: 144 of width 64, 9216 numbers a frame."""
    words = [
        f"data.path={tiny_data}",
        "data.image_size=192",
        "encoder.patch_size=16",
        "features.backbone=timm/test_vit",
        "features.num_norm_frames=20",
        "features.stride=5",
        "train.pretrain.steps=0",
        "latent.name=tokens",
        "dynamics.width=16",
        "dynamics.depth=1",
        "dynamics.num_heads=1",
        "planner.cost.robust_radius=0",
        "train.precision=fp32",
        "train.dynamics={steps: 4, batch: 4, frames: 4}",
        "train.distance={steps: 4, batch: 8}",
        "train.heads={steps: 4, batch: 8}",
    ]
    folder = tmp_path_factory.mktemp("many") / "run"
    with (
        Run.open(folder, load_config("debug", words)) as run,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(rollout_errors, "WORK", 1)
        results = {name: run_stage(name, run) for name in ("features", "dynamics", "heads")}
    return folder, results


def test_a_run_on_all_tokens_of_a_backbone_passes(run_of_many):
    folder, results = run_of_many
    assert all(row["relative_error"] > 0 for row in results["dynamics"]["rollout"])
    model = WorldModel.load(folder)
    assert (
        model.latent_model.numbers == 9216
        and model.latent_model.flat_width == model.heads.sizes["latent"] == COMPONENTS
    )
    frames = torch.randint(
        256, (2, 65, 65, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    latents = model.encode(frames)
    assert model.distance(latents[:1, None], latents[1:]).shape == (1, 1)
    planned = model.propose(latents[:1, None], latents[1:], 3, policy="gcbc")
    assert planned.shape == (1, 3, model.block)
    assert model.state(latents).shape[0] == 2


def test_windows_are_imagined_a_few_at_a_time(run_of_many, tiny_data, monkeypatch):
    """And the errors are those of all together."""
    folder, results = run_of_many
    model = LatentModel.load(folder / "dynamics")
    parts = [cache.Features(folder / "features" / part, Trajectories(tiny_data / f"{part}.h5"))
             for part in ("heldout", "train")]  # fmt: skip
    sizes, whole = [], model.dynamics.rollout_one
    monkeypatch.setattr(
        model.dynamics, "rollout_one", lambda *some: sizes.append(len(some[0])) or whole(*some)
    )
    monkeypatch.setattr(rollout_errors, "WORK", 1)
    kept = rollout_errors.rollout_errors(model, *parts, windows=6, horizon=2)
    monkeypatch.setattr(rollout_errors, "NUMBERS", 9216 * 20)
    few = rollout_errors.rollout_errors(model, *parts, windows=6, horizon=2)
    assert max(sizes[2:]) < 6 == max(sizes[:2])
    for a, b in zip(kept, few, strict=True):
        assert a["relative_error"] == pytest.approx(b["relative_error"], rel=1e-5)
