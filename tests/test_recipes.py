"""Every recipe that is shipped takes real steps at reduced size by overrides alone, and goes on
from other weights."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_video_pretrain import sets, weights  # noqa: F401  (sets is a fixture)
from test_weights import in_layout

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.trajectories import TrajectoryWriter
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.predictor import (
    ActionPredictor,
    ActionPredictorSizes,
    Predictor,
    PredictorSizes,
)
from jepa_wm.models.vit import Encoder
from jepa_wm.models.vjepa2_ac import VJEPA2AC, difference, normalised, parted, with_pose
from jepa_wm.training import patch_init

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(file.stem for file in CONFIGS.glob("vjepa2_*.yaml") if "_ac_" not in file.stem)
SMALL = [
    "data.image_size=32", "data.num_frames=4", "encoder.width=24", "encoder.depth=4",
    "encoder.num_heads=2",
    "jepa.width=12", "jepa.depth=1", "jepa.num_heads=1", "train.pretrain.batch=3",
    "train.pretrain.steps=3",
    "train.pretrain.probe_frames=8", "data.num_workers=2",
]  # fmt: skip


def take_steps(recipe, folder, *words):
    with Run.open(folder, load_config(recipe, [*SMALL, *words])) as run:
        return run_stage("pretrain", run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_takes_real_steps(recipe, sets, tmp_path):  # noqa: F811
    films, photos = sets / "films", sets / "photos"
    listed = f"{{path: {films}, weight: 3}}, {{path: {photos}, single_images: true}}"
    videos = f"data.videos=[{listed}]"
    result = take_steps(recipe, tmp_path / "run", videos)
    assert result["steps"] == 3 and result["clips"] == 9 and result["feature_std"] > 0
    assert read_metrics(tmp_path / "run", "pretrain")[-1]["loss"] > 0
    moved = weights(tmp_path / "run")
    assert not torch.equal(moved["encoder.embed.weight"], moved["target.embed.weight"])


@pytest.mark.parametrize(
    "recipe", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_no_action_supervises_an_encoder_unless_its_recipe_says_so(recipe):
    """Off where nobody asks; a recipe that turns it on names it, itself or in what it is based
    on."""
    assert JepaSettings().inverse_dynamics == 0
    files, texts = [recipe], []
    while files:
        text = files.pop().read_text(encoding="utf-8")
        texts.append(text)
        files += [recipe.parent / f"{name}.yaml" for name in re.findall(r"(?m)^base: (\w+)", text)]
    if load_config(recipe.stem).jepa.inverse_dynamics:
        assert any("action supervision" in text for text in texts)


def test_the_recipe_for_photos_predicts_hidden_blocks_alone(sets, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(patch_init, "PATCHES", 2000)
    videos = f"data.videos=[{{path: {sets / 'photos'}, single_images: true}}]"
    result = take_steps("signs", tmp_path / "run", videos, "data.num_frames=1")
    metrics = read_metrics(tmp_path / "run", "pretrain")[-1]
    assert result["clips"] == 9 and metrics["masked_prediction"] > 0
    assert not any("contrast" in name for name in metrics)


def test_the_recipes_are_true_to_the_paper():
    sizes = {"vitl16": (1024, 24, 16), "vith16": (1280, 32, 16), "vitg16": (1408, 40, 22)}
    for name, size in sizes.items():
        config, cooldown = (
            load_config(f"vjepa2_{name}", []),
            load_config(f"vjepa2_{name}_cooldown", []),
        )
        e, t, p = config.encoder, config.train.pretrain, config.jepa
        assert (e.width, e.depth, e.num_heads) == size and (
            e.patch_size,
            e.tubelet_size,
            e.rope_base,
        ) == (16, 2, 10_000)
        assert e.mlp_ratio == (48 / 11 if name == "vitg16" else 4)
        assert (p.width, p.depth, p.num_heads, p.ema) == (384, 12, 12, (0.99925, 0.99925))
        assert [(m.num_blocks, m.spatial_scale, m.aspect_ratio) for m in p.masks] == [
            (8, (0.15, 0.15), (0.75, 1.5)), (2, (0.7, 0.7), (0.75, 1.5)),
        ]  # fmt: skip
        assert (t.lr, t.weight_decay, t.batch, t.warmup, t.steps) == (
            5.25e-4,
            0.04,
            3072,
            12_000,
            240_000,
        )
        assert t.lr * t.first_lr == pytest.approx(1e-4, rel=0.01) and t.schedule == "constant"
        assert (config.data.num_frames, config.data.image_size, config.data.fps) == (16, 256, (4,))
        assert cooldown.encoder == e and cooldown.train.pretrain.steps == 12_000
        assert cooldown.data.num_frames == 64 and cooldown.data.image_size == (
            384 if name == "vitg16" else 256
        )
    assert load_config("vjepa2_dense_vitl16", []).jepa.target_levels == 4


def test_a_cooldown_goes_on_with_larger_frames_and_longer_clips(sets, tmp_path):  # noqa: F811
    videos = f"data.videos={sets / 'films'}"
    take_steps("vjepa2_vitl16", tmp_path / "first", videos)
    still = ["train.pretrain.lr=0", "data.image_size=48", "data.num_frames=6"]
    start = f"train.pretrain.start={tmp_path / 'first'}"
    take_steps("vjepa2_vitl16_cooldown", tmp_path / "next", videos, start, *still)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "next")
    for name in before:
        if name.startswith(("encoder.", "predictor.")):
            assert torch.equal(before[name], after[name]), name
    with pytest.raises(UserError, match="no run folder with a checkpoint"):
        take_steps("vjepa2_vitl16", tmp_path / "other", videos, f"train.pretrain.start={tmp_path}")
    with pytest.raises(UserError, match="encoder do not fit Encoder"):
        take_steps("vjepa2_vitl16", tmp_path / "deeper", videos, start, "encoder.depth=5")


@pytest.fixture
def released(tmp_path):
    """A file in the released layout, of the size of SMALL, whose encoder and target differ."""
    torch.manual_seed(3)
    encoder = {
        "patch_size": 16,
        "tubelet_size": 2,
        "width": 24,
        "depth": 4,
        "num_heads": 2,
        "attention": "clip",
        "locality": 0,
    }
    predictor = {
        "width": 12,
        "depth": 1,
        "num_heads": 1,
        "encoder_width": 24,
        "output_width": 24,
        "mask_types": 10,
    }
    rope = {"rope": "vjepa2", "rope_base": 10_000.0}
    models = {
        "encoder": Encoder(32, EncoderSettings(**encoder, **rope)),
        "target_encoder": Encoder(32, EncoderSettings(**encoder, **rope)),
        "predictor": Predictor(PredictorSizes(**predictor, **rope)),
    }  # fmt: skip
    torch.save(
        in_layout(models, ("encoder", "target_encoder", "predictor")), tmp_path / "released.pt"
    )
    return tmp_path / "released.pt", models


def test_fine_tuning_begins_at_released_weights(released, sets, tmp_path):  # noqa: F811
    file, models = released
    words = [f"data.videos={sets / 'films'}", f"train.pretrain.start={file}"]
    take_steps(
        "vjepa2_vitl16_cooldown", tmp_path / "run", *words, "train.pretrain.lr=0", "jepa.ema=[1,1]"
    )
    found = weights(tmp_path / "run")
    for ours, theirs in (
        ("encoder", "encoder"),
        ("target", "target_encoder"),
        ("predictor", "predictor"),
    ):
        name = "blocks.0.mlp.fc1.weight"
        assert torch.equal(found[f"{ours}.{name}"], models[theirs].state_dict()[name])
    assert torch.equal(found["predictor.mask_tokens"], models["predictor"].mask_tokens[:2])
    with pytest.raises(UserError, match="released.pt: is a model with depth 4"):
        take_steps("vjepa2_vitl16", tmp_path / "b", *words, "encoder.depth=3")
    with pytest.raises(UserError, match="set jepa.target_levels=1"):
        take_steps("vjepa2_dense_vitl16", tmp_path / "c", *words)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """Trajectories of a bright square that goes where the first two numbers of a 7-number pose
    say."""
    root, r = tmp_path_factory.mktemp("arm"), np.random.default_rng(0)
    for part, episodes in (("train", 6), ("heldout", 3)):
        columns = {"pixels": ((32, 32, 3), "u1"), "action": ((7,), "f4"), "state": ((7,), "f4")}
        writer = TrajectoryWriter(root / f"{part}.h5", np.full(episodes, 20), columns)
        for row in writer.offset:
            change = r.uniform(-0.08, 0.08, (20, 7)).astype(np.float32)
            pose = np.clip(0.5 + np.cumsum(change, 0), 0.05, 0.95).astype(np.float32)
            frames = np.zeros((20, 32, 32, 3), np.uint8)
            for t, (x, y) in enumerate((24 * pose[:, :2]).astype(int)):
                frames[t, y : y + 8, x : x + 8] = 255
            for name, values in (("pixels", frames), ("action", change), ("state", pose)):
                writer.write(name, int(row), values)
        writer.close()
    return root


def test_the_action_conditioned_recipe_takes_real_steps(arm, tmp_path):
    words = [
        f"data.path={arm}", "data.image_size=32", "encoder.width=24", "encoder.depth=1",
        "encoder.num_heads=2",
        "features={stride: 2, num_norm_frames: 40, backbone: null, weights: null}",
        "train.pretrain.steps=0",
        "dynamics.frameskip=2", "dynamics.width=24",
        "dynamics.depth=1", "dynamics.num_heads=2", "train.dynamics.frames=4",
        "train.dynamics.batch=4",
        "train.dynamics.steps=6",
    ]  # fmt: skip
    with Run.open(tmp_path / "run", load_config("vjepa2_ac_droid", words)) as run:
        for name in ("features", "dynamics"):
            result = run_stage(name, run)
    assert [row["horizon"] for row in result["rollout"]] == list(range(1, 8))
    assert all(
        row["relative_error"] > 0 and row["relative_error_shuffled"] > 0
        for row in result["rollout"]
    )
    seen = read_metrics(tmp_path / "run", "dynamics_dynamics")[-1]
    assert seen["forced"] + seen["rollout"] == pytest.approx(seen["loss"])
    assert (tmp_path / "run" / "dynamics" / "latent_model.safetensors").exists()


RECORDED = [
    "data.image_size=32", "data.frame_gaps=[1]", "encoder.width=24", "encoder.depth=2",
    "encoder.num_heads=2", "jepa.width=12", "jepa.min_gap=2", "jepa.neighbor_width=8",
    "jepa.depth=1", "jepa.num_heads=1",
    "train.pretrain={steps: 3, batch: 4, probe_frames: 8, probe_steps: 2}",
    "train.pretrain.final_probe_steps=2", "train.latent={steps: 20, batch: 16}",
    "train.distance.steps=1",
    "train.dynamics={steps: 5, batch: 8, frames: 4}", "latent.width=32",
]  # fmt: skip


@pytest.mark.parametrize("recipe", ["pusht", "donkeycar", "bridge"])
def test_a_recipe_for_recordings_takes_real_steps(recipe, arm, tmp_path, monkeypatch):
    monkeypatch.setattr(patch_init, "PATCHES", 2000)
    with Run.open(tmp_path / "run", load_config(recipe, [f"data.path={arm}", *RECORDED])) as run:
        results = [run_stage(name, run) for name in ("pretrain", "features", "dynamics")]
    assert results[0]["steps"] == 3 and all(
        row["relative_error"] > 0 for row in results[2]["rollout"]
    )
    of_encoder = read_metrics(tmp_path / "run", "pretrain")[-1]
    assert of_encoder["masked_prediction"] > 0
    assert not any("inverse" in name or "contrast" in name for name in of_encoder)
    assert read_metrics(tmp_path / "run", "dynamics_latent")[-1]["inverse_dynamics"] > 0


def test_the_action_conditioned_recipe_is_true_to_the_paper():
    config = load_config("vjepa2_ac_droid", [])
    d, t = config.dynamics, config.train.dynamics
    assert (d.width, d.depth, d.num_heads) == (1024, 24, 16) and t.frames == 15 + 1
    assert t.lr * t.first_lr == pytest.approx(7.5e-5, rel=0.01) and t.lr == 4.25e-4
    assert (t.warmup, t.cooldown) == (4500, 4500)
    assert t.steps - t.warmup - t.cooldown == 85_500 and t.batch == 256


def test_the_predictor_is_trained_on_errors_of_normalised_frames():
    torch.manual_seed(0)
    sizes = ActionPredictorSizes(encoder_width=24, grid=2, width=24, depth=1, num_heads=2)
    model = ActionPredictor(sizes)
    tokens, poses = normalised(torch.randn(2, 3, 4, 24)), torch.rand(2, 3, 7)
    actions = difference(poses[:, :-1], poses[:, 1:])
    latents = with_pose(tokens, poses)
    found = VJEPA2AC(model).loss(latents, actions, rollout=0.5)
    one = normalised(model(tokens[:, :1], actions[:, :1], poses[:, :1]))
    two = normalised(model(tokens[:, :2], actions, poses[:, :2])[:, 1:])
    forced = (torch.cat([one, two], 1) - tokens[:, 1:]).abs().mean()
    torch.testing.assert_close(found["forced"], forced)
    again = normalised(model(torch.cat([tokens[:, :1], one], 1), actions, poses[:, :2])[:, 1])
    torch.testing.assert_close(found["rollout"], (again - tokens[:, 2]).abs().mean())
    torch.testing.assert_close(found["loss"], forced + 0.5 * found["rollout"])
    imagined = VJEPA2AC(model).rollout_one(latents[:, :1], actions[:, :0], actions)
    torch.testing.assert_close(parted(imagined)[0][:, 1], again)
