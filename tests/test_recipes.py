"""Every recipe that is shipped takes real steps at reduced size by overrides alone, and goes on from other weights."""

from pathlib import Path

import pytest
import torch
from test_video_pretrain import sets, weights  # noqa: F401  (sets is a fixture)
from test_weights import in_layout

from jepa_wm.core.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import RunFolder
from jepa_wm.encode.vit import Encoder
from jepa_wm.predict.predictor import Predictor
from jepa_wm.train import pretrain

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RECIPES = sorted(file.stem for file in CONFIGS.glob("vjepa2_*.yaml") if "_ac_" not in file.stem)
SMALL = [
    "observe.image_size=32", "observe.frames=4", "encode.width=24", "encode.depth=4", "encode.heads=2",
    "predict.width=12", "predict.depth=1", "predict.heads=1", "train.pretrain.batch=3", "train.pretrain.steps=3",
    "train.pretrain.probe_frames=8", "observe.workers=2",
]  # fmt: skip


def take_steps(recipe, folder, *words):
    with RunFolder.open(folder, load_config(recipe, [*SMALL, *words])) as run:
        return pretrain.run(run)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_takes_real_steps(recipe, sets, tmp_path):  # noqa: F811
    videos = f"observe.videos=[{{path: {sets / 'films'}, weight: 3}}, {{path: {sets / 'photos'}, images: true}}]"
    result = take_steps(recipe, tmp_path / "run", videos)
    assert result["steps"] == 3 and result["clips"] == 9 and result["feature_std"] > 0
    assert read_metrics(tmp_path / "run", "pretrain")[-1]["loss"] > 0
    moved = weights(tmp_path / "run")
    assert not torch.equal(moved["encoder.embed.weight"], moved["target.embed.weight"])


def test_the_recipes_are_true_to_the_paper():
    sizes = {"vitl16": (1024, 24, 16), "vith16": (1280, 32, 16), "vitg16": (1408, 40, 22)}
    for name, size in sizes.items():
        config, cooldown = load_config(f"vjepa2_{name}", []), load_config(f"vjepa2_{name}_cooldown", [])
        e, t, p = config.encode, config.train.pretrain, config.predict
        assert (e.width, e.depth, e.heads) == size and (e.patch, e.tubelet, e.rope_base) == (16, 2, 10_000)
        assert e.mlp_ratio == (48 / 11 if name == "vitg16" else 4)
        assert (p.width, p.depth, p.heads, p.ema) == (384, 12, 12, (0.99925, 0.99925))
        assert [(m.blocks, m.scale, m.aspect) for m in p.masks] == [
            (8, (0.15, 0.15), (0.75, 1.5)), (2, (0.7, 0.7), (0.75, 1.5)),
        ]  # fmt: skip
        assert (t.lr, t.weight_decay, t.batch, t.warmup, t.steps) == (5.25e-4, 0.04, 3072, 12_000, 240_000)
        assert t.lr * t.first_lr == pytest.approx(1e-4, rel=0.01) and t.schedule == "constant"
        assert (config.observe.frames, config.observe.image_size, config.observe.fps) == (16, 256, (4,))
        assert cooldown.encode == e and cooldown.train.pretrain.steps == 12_000
        assert cooldown.observe.frames == 64 and cooldown.observe.image_size == (384 if name == "vitg16" else 256)
    assert load_config("vjepa2_dense_vitl16", []).predict.targets.levels == 4


def test_a_cooldown_goes_on_from_a_run_with_larger_frames_and_longer_clips(sets, tmp_path):  # noqa: F811
    videos = f"observe.videos={sets / 'films'}"
    take_steps("vjepa2_vitl16", tmp_path / "first", videos)
    still = ["train.pretrain.lr=0", "observe.image_size=48", "observe.frames=6"]
    start = f"train.pretrain.start={tmp_path / 'first'}"
    take_steps("vjepa2_vitl16_cooldown", tmp_path / "next", videos, start, *still)
    before, after = weights(tmp_path / "first"), weights(tmp_path / "next")
    for name in before:
        if name.startswith(("encoder.", "predictor.")):
            assert torch.equal(before[name], after[name]), name
    with pytest.raises(UserError, match="no run folder with a checkpoint"):
        take_steps("vjepa2_vitl16", tmp_path / "other", videos, f"train.pretrain.start={tmp_path}")
    with pytest.raises(UserError, match="encoder do not fit Encoder"):
        take_steps("vjepa2_vitl16", tmp_path / "deeper", videos, start, "encode.depth=5")


@pytest.fixture
def released(tmp_path):
    """A file in the released layout, of the size of SMALL, whose encoder and target differ."""
    torch.manual_seed(3)
    encoder = {"image_size": 32, "patch": 16, "tubelet": 2, "width": 24, "depth": 4, "heads": 2}
    predictor = {"width": 12, "depth": 1, "heads": 1, "encoder_width": 24, "output_width": 24, "mask_types": 10}
    rope = {"rope": "vjepa2", "rope_base": 10_000.0}
    models = {
        "encoder": Encoder(**encoder, **rope), "target_encoder": Encoder(**encoder, **rope),
        "predictor": Predictor(**predictor, **rope),
    }  # fmt: skip
    torch.save(in_layout(models, ("encoder", "target_encoder", "predictor")), tmp_path / "released.pt")
    return tmp_path / "released.pt", models


def test_fine_tuning_begins_at_released_weights(released, sets, tmp_path):  # noqa: F811
    file, models = released
    words = [f"observe.videos={sets / 'films'}", f"train.pretrain.start={file}"]
    take_steps("vjepa2_vitl16_cooldown", tmp_path / "run", *words, "train.pretrain.lr=0", "predict.ema=[1,1]")
    found = weights(tmp_path / "run")
    for ours, theirs in (("encoder", "encoder"), ("target", "target_encoder"), ("predictor", "predictor")):
        name = "blocks.0.mlp.fc1.weight"
        assert torch.equal(found[f"{ours}.{name}"], models[theirs].state_dict()[name])
    assert torch.equal(found["predictor.mask_tokens"], models["predictor"].mask_tokens[:2])
    with pytest.raises(UserError, match="released.pt: is a model with depth 4"):
        take_steps("vjepa2_vitl16", tmp_path / "b", *words, "encode.depth=3")
    with pytest.raises(UserError, match="set predict.targets.levels=1"):
        take_steps("vjepa2_dense_vitl16", tmp_path / "c", *words)
