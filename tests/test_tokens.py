"""All tokens of a backbone as the latent: merged, by dynamics sized for their width, and encoded
when they are asked for instead of stored."""

import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from ranks import run_ranks
from small_models import same_weights

from jepa_wm import demo
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import pipeline
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features.backbone import Backbone
from jepa_wm.features.cache import Features
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.store import weights_digest
from jepa_wm.models.heads import Heads
from jepa_wm.models.latent import LatentShape
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.latent_settings import TokenLatentSettings
from jepa_wm.models.transformer_dynamics import DeterministicDynamics
from jepa_wm.models.world_model_settings import (
    DeterministicSettings,
    MixtureSettings,
    WorldModelSettings,
)
from jepa_wm.world_model.rollout_error import feature_decoder

SIZED = {"width": None, "num_heads": None}


# ---------------------------------------------------------------- merged tokens


def test_tokens_as_they_are_keep_their_bits():
    tokens = torch.randn(3, 2, 16, 6).bfloat16()
    latent = TokenLatentSettings().make(16, 6)
    assert latent.lossless and latent.shape == LatentShape(16, 6, 0)
    assert torch.equal(latent.encode(tokens), tokens.float())
    assert torch.equal(latent.decoded(tokens), tokens)


@pytest.mark.parametrize(("side", "merge"), [(4, 2), (6, 3), (6, 2), (4, 4)])
def test_merged_tokens_are_means_of_neighbours_in_the_grid(side, merge):
    tokens = torch.randn(2, 3, side**2, 5)
    latent = TokenLatentSettings(merge=merge).make(side**2, 5)
    merged, rows = latent.encode(tokens), side // merge
    assert merged.shape == (2, 3, rows**2, 5) and latent.shape == LatentShape(rows**2, 5, 0)
    for token in range(rows**2):
        row, column = divmod(token, rows)
        of_block = [
            (row * merge + i) * side + column * merge + j
            for i in range(merge) for j in range(merge)
        ]  # fmt: skip
        torch.testing.assert_close(merged[..., token, :], tokens[..., of_block, :].mean(-2))
        back = latent.decoded(merged)[..., of_block, :]
        assert torch.equal(back, merged[..., token, None, :].expand_as(back))
    assert not latent.lossless, "what the mean dropped counts as an error of features"


def test_a_grid_that_cannot_be_merged_is_refused_with_the_remedy():
    with pytest.raises(UserError, match="does not divide the 15 x 15 .* one of 1, 3, 5, 15, or"):
        TokenLatentSettings(merge=2).make(225, 5)
    with pytest.raises(UserError, match="gives 8 tokens a frame, .*; set latent.merge=1"):
        TokenLatentSettings(merge=2).make(8, 5)
    assert TokenLatentSettings(merge=1).make(8, 5).tokens == 8
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        TokenLatentSettings(merge=0)


# ---------------------------------------------------------------- dynamics sized for them


@pytest.mark.parametrize(
    ("numbers", "width", "heads"), [(384, 448, 7), (54, 64, 1), (55, 128, 2), (1024, 1088, 17)]
)
def test_dynamics_of_no_width_hold_a_token_and_the_action(numbers, width, heads):
    assert DeterministicSettings(**SIZED).size_for(numbers) == (width, heads)
    assert width % 64 == 0 and numbers + 10 <= width < numbers + 10 + 64
    assert DeterministicSettings().size_for(numbers) == (192, 3), "a width that is given stays"
    assert MixtureSettings(width=256, num_heads=None).size_for(numbers) == (256, 4)


@pytest.mark.parametrize(
    ("sizes", "remedy"),
    [
        ({"width": None}, "width null .* num_heads is 3; set num_heads to null too"),
        (
            {"width": 96, "num_heads": None},
            "96 does not divide into heads of 64 .* give num_heads",
        ),
        ({"width": 100}, "width 100 must be an even multiple of num_heads 3"),
        ({"width": 0, "num_heads": None}, "width 0 must be"),
    ],
)
def test_a_width_that_fits_no_heads_is_refused(sizes, remedy):
    with pytest.raises(ValidationError, match=remedy):
        DeterministicSettings(**sizes)


@pytest.mark.parametrize("kind", [DeterministicSettings, MixtureSettings])
def test_sized_dynamics_search_as_they_train_and_are_loaded_again(kind, tmp_path):
    torch.manual_seed(0)
    settings = WorldModelSettings(
        latent=TokenLatentSettings(merge=2),
        dynamics=kind(depth=2, context_frames=2, frameskip=2, **SIZED), distance=None,
    )  # fmt: skip
    model = LatentModel(16, 60, 2, settings).eval()
    assert model.dynamics.embed.weight.shape == (128, 60) and model.dynamics.num_heads == 2
    for p in model.dynamics.parameters():
        torch.nn.init.normal_(p, std=0.1)
    context, past, plans = torch.randn(2, 3, 4, 60), torch.randn(2, 2, 4), torch.randn(2, 5, 3, 4)
    with torch.no_grad():
        whole = model.dynamics.rollout(context, past, plans)
        latents = context[:1]
        for h in range(3):
            actions = torch.cat([past[:1], plans[:1, 0, : h + 1]], 1)
            latents = torch.cat([latents, model.dynamics(latents, actions)[:, -1:]], 1)
    torch.testing.assert_close(model.dynamics.fast_rollout(context, past, plans), whole)
    torch.testing.assert_close(whole[0, 0], latents[0, 3:], atol=1e-5, rtol=1e-5)
    model.save(tmp_path)
    assert same_weights(LatentModel.load(tmp_path), model)


def test_plans_of_many_tokens_are_counted_by_the_width_that_there_is():
    """Not by one that the settings do not name: a plan's memory grows as the tokens do."""
    each = {
        tokens: DeterministicDynamics(
            LatentShape(tokens, 384, 0), 10, DeterministicSettings(depth=6, **SIZED)
        ).bytes_per_plan(5)[0]
        for tokens in (64, 256)
    }
    assert each[256] > 4 * each[64] > 4 * 64 * 384 * 4 * 5


# ---------------------------------------------------------------- without a store


WORDS = [
    "data.image_size=64", "encoder.patch_size=16", "features.backbone=timm/test_vit",
    "features.num_norm_frames=20", "features.stride=5", "train.pretrain.steps=0",
    "latent={name: tokens, merge: 2}",
    "dynamics={name: deterministic, width: null, num_heads: null, depth: 1}",
    "planner.cost.robust_radius=0", "planner.solver={name: cem, num_samples: 6, iterations: 2, "
    "elites: 3}", "planner.mpc={horizon: 2, also_evaluate: []}",
    "evaluation={episodes: 2, budget: 10}", "train.precision=fp32",
    "train.dynamics={steps: 3, batch: 4, frames: 4}", "train.distance={steps: 3, batch: 8}",
    "train.heads={steps: 3, batch: 8}",
]  # fmt: skip
STAGES = ("features", "dynamics", "heads", "plan")


def config_of(data, *words):
    return load_config("debug", [f"data.path={data}", *WORDS, *words])


def run_all(folder, config, stages=STAGES):
    with Run.open(folder, config) as run:
        return {name: run_stage(name, run) for name in stages}


@pytest.fixture(scope="module")
def both(tmp_path_factory, tiny_data):
    """{whether features are stored: (run folder, results)} of runs that are else the same."""
    runs = {}
    for store in (True, False):
        folder = tmp_path_factory.mktemp("tokens") / "run"
        config = config_of(tiny_data, f"features.store={str(store).lower()}")
        runs[store] = folder, run_all(folder, config)
    return runs


def test_trainings_and_plans_are_the_same_to_the_bit_without_a_store(both):
    (stored, kept), (encoded, made) = both[True], both[False]
    assert (stored / "features/train/features.bf16").exists()
    assert not list(encoded.glob("features/*/features.bf16"))
    assert same_weights(*(LatentModel.load(run / "dynamics") for run in (stored, encoded)))
    assert same_weights(*(Heads.load(run / "heads") for run in (stored, encoded)))
    for stage in STAGES:
        timed = {"seconds", "training_seconds", "commit", "config_digest"}
        timed |= {"train", "heldout"} if stage == "features" else set()
        one, other = ({k: v for k, v in r[stage].items() if k not in timed} for r in (kept, made))
        assert str(without_times(one)) == str(without_times(other)), stage


def without_times(result):
    """A nested result but for what is measured by the clock."""
    if isinstance(result, dict):
        clocked = ("second", "milli", "time")
        return {
            key: without_times(value)
            for key, value in result.items() if not any(word in key for word in clocked)
        }  # fmt: skip
    return result


def test_two_ranks_without_a_store_train_what_one_process_does(both, tmp_path, tiny_data):
    alone, run = both[False][0], tmp_path / "run"
    shutil.copytree(alone / "features", run / "features")
    words = [f"data.path={tiny_data}", *WORDS, "features.store=false"]
    command = ["dynamics", "--config", "debug", "--run", str(run), *words]
    assert run_ranks(2, command, tmp_path / "meet", log=tmp_path / "log") == [0, 0]
    mine, its = (read_metrics(folder, "dynamics_dynamics") for folder in (run, alone))
    assert mine[-1]["step"] == its[-1]["step"] == 3
    assert mine[-1]["loss"] == pytest.approx(its[-1]["loss"], rel=1e-4)
    weights = [LatentModel.load(folder / "dynamics").dynamics for folder in (run, alone)]
    for a, b in zip(*(model.parameters() for model in weights), strict=True):
        assert (a - b).square().mean().sqrt() < 1e-4


def test_a_latent_that_is_trained_is_the_same_to_the_bit_without_a_store(tmp_path, tiny_data):
    """Keypoints ask for distant frames too, and what is static is believed of all frames."""
    latent = "latent={name: keypoints, dynamic_points: 2, static_points: 1, map_channels: 2}"
    words = [latent, "dynamics={name: mlp, width: 16}", "train.latent={steps: 3, batch: 4}"]
    models = []
    for store in ("true", "false"):
        config = config_of(tiny_data, *words, f"features.store={store}")
        run_all(tmp_path / store, config, ["features", "dynamics"])
        models.append(LatentModel.load(tmp_path / store / "dynamics"))
    assert same_weights(*models)


def test_encoded_rows_are_the_stored_ones_in_any_order_and_shape(both, tiny_data):
    data = Trajectories(tiny_data / "train.h5")
    kept, made = (Features(both[store][0] / "features/train", data) for store in (True, False))
    assert kept.shape == made.shape and len(kept) == len(made) == 42
    assert np.array_equal(kept.counts, made.counts) and kept.numbers == made.numbers == 16 * 64
    rows = np.random.default_rng(0).integers(0, 42, (5, 7))
    episode, frame = np.array([[5, 0], [2, 2]]), np.array([[30, 0], [5, 10]])
    for a, b in (
        (kept.rows(rows), made.rows(rows)),
        (kept.tokens(episode, frame), made.tokens(episode, frame)),
        (kept.slab(3, 10**6), made.slab(3, 10**6)),
    ):
        assert a.dtype == b.dtype == torch.bfloat16 and torch.equal(a, b)


def test_what_is_computed_around_it_changes_no_encoding(both, tiny_data):
    """Neither an autocast nor a gradient; and an encoder that is loaded draws nothing."""
    made = Features(both[False][0] / "features/train", Trajectories(tiny_data / "train.h5"))
    state = torch.random.get_rng_state()
    plain = made.rows(np.arange(5))
    assert torch.equal(state, torch.random.get_rng_state())
    with torch.autocast("cpu", torch.bfloat16), torch.enable_grad():
        within = made.rows(np.arange(5))
    assert torch.equal(plain, within) and not within.requires_grad


def test_both_parts_share_one_encoder(both, tiny_data, monkeypatch):
    loads, load = [], FrozenEncoder.load
    monkeypatch.setattr(FrozenEncoder, "load", lambda folder: loads.append(folder) or load(folder))
    for part in Features.both_of_run(both[False][0], str(tiny_data)):
        part.rows(np.arange(2))
    assert len(loads) == 1


def test_features_of_other_data_are_refused_without_a_store_too(both, tiny_data):
    with pytest.raises(UserError, match="of other data than .*heldout.h5; encode again"):
        Features(both[False][0] / "features/train", Trajectories(tiny_data / "heldout.h5"))


def test_the_features_that_a_mean_stands_for_need_no_fitted_map(both):
    model = LatentModel.load(both[True][0] / "dynamics")
    latents = torch.randn(3, 4, 64)
    assert torch.equal(
        feature_decoder(model, None)(latents), model.latent.decoded(latents).flatten(-2)
    )
    row = both[True][1]["dynamics"]["rollout"][0]
    assert row["feature_error_encoded"] > 0 and row["feature_error"] > 0


def test_the_recipe_of_dinov2_in_a_maze_plays_on_a_tiny_backbone(tmp_path):
    """At reduced size by overrides alone: nothing is fetched."""
    for package in ("mujoco", "gymnasium_robotics"):
        pytest.importorskip(package, reason="needs pip install 'jepa-wm[mazes]'")
    small = [word for word in WORDS if not word.startswith(("latent", "dynamics"))]
    small += ["features.weights=null", "features.store=false", "dynamics.depth=1"]
    small += ["collect={episodes: 4, episode_length: 61, heldout_episodes: 2, "
              "heldout_episode_length: 61}", "evaluation.policies=[gcbc]",
              "train.heads.sizes.policies=[gcbc]"]  # fmt: skip
    config = load_config("point_maze_dinov2", small)
    assert config.features.backbone == "timm/test_vit" and config.latent.merge == 2
    stages = [name for name in pipeline(config) if name != "report"]
    assert stages == ["collect", *STAGES], "there is nothing to pretrain"
    assert "pretrain" in pipeline(load_config("point_maze"))
    results = run_all(tmp_path, config, stages)
    model = LatentModel.load(tmp_path / "dynamics")
    assert model.latent.tokens == 4 and model.dynamics.width == 128
    assert results["plan"]["success"]["episodes"] == 2


def test_the_encoder_that_the_recipe_names_has_the_grid_that_it_merges():
    config = load_config("point_maze_dinov2")
    name = config.features.backbone.partition("/")[2]
    encoder = Backbone(name, config.data.image_size)
    latent = config.latent.make(encoder.tokens_per_frame, encoder.width)
    assert (encoder.tokens_per_frame, latent.shape) == (256, LatentShape(64, 384, 0))
    assert config.dynamics.size_for(384) == (448, 7)


def test_the_random_encoder_beside_a_backbone_is_that_backbone_with_random_weights(
    tmp_path, monkeypatch
):
    done = []

    def note(name, run, before=""):
        done.append((name, run._config.features))
        return {"seconds": 1.0, "success": {}}

    monkeypatch.setattr(demo, "_do", note)
    config = load_config("point_maze_dinov2", ["evaluation.random_encoder_baseline=true"])
    with Run.open(tmp_path, config) as run:
        demo.random_encoder_baseline(run, config)
    assert "pretrain" not in dict(done) and "plan" in dict(done)
    assert {(f.backbone, f.weights) for _, f in done} == {(config.features.backbone, None)}
    words = ["features={backbone: vjepa2/vit_large, weights: vitl.pt}"]
    with pytest.raises(UserError, match="vjepa2/vit_large is read from a file; set evaluation"):
        load_config("debug", [*words, "evaluation.random_encoder_baseline=true"])
    assert load_config("debug", words).features.weights == "vitl.pt"


# ---------------------------------------------------------------- a full disk


def test_a_store_that_does_not_fit_is_refused_before_anything_is_begun(
    tmp_path, tiny_data, monkeypatch
):
    needed = (6 * 7 + 3 * 7) * 16 * 64 * 2
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, needed - 1))
    figures = (
        "features of 63 frames, 16 tokens of 64 numbers each, take 0.0 GB, and .* 0.0 GB free"
    )
    with pytest.raises(UserError, match=f"{figures}; set features.store=false"):
        run_all(tmp_path, config_of(tiny_data), ["features"])
    # The remedy is taken in the same folder; and where there is just room enough there is no need.
    done = run_all(tmp_path, config_of(tiny_data, "features.store=false"), ["features"])
    assert done["features"]["tokens"] == 16
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**12, 0, needed))
    run_all(tmp_path / "other", config_of(tiny_data), ["features"])
    sizes = [os.path.getsize(file) for file in tmp_path.glob("other/features/*/features.bf16")]
    assert sum(sizes) == needed


def test_the_record_without_a_store_names_its_encoder(both, tiny_data):
    folder = both[False][0] / "features"
    record = (folder / "train/features.json").read_text()
    assert weights_digest(FrozenEncoder.load(folder)) in record and '"stored": false' in record
