"""Released weights: what is written in their layout comes back the same, every fault is named, no
pickle is run."""

import contextlib
import pickle
import random

import pytest
import torch
from safetensors.torch import save_file
from small_models import same_weights

from jepa_wm.core.errors import UserError
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.foreign_file import read_parts
from jepa_wm.features.weights import (
    SIZES,
    Size,
    load_action_predictor,
    load_encoder,
    load_predictor,
    to_released,
)
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.predictor import (
    ActionPredictor,
    ActionPredictorSizes,
    Predictor,
    PredictorSizes,
)
from jepa_wm.models.vit import Encoder

SIZE = Size(image_size=16, heads=2, predictor_heads=1, action_heads=2)
RELEASED = {"rope": "vjepa2", "rope_base": 10_000.0}


@pytest.fixture(scope="module")
def models():
    """Freshly initialised models of a made-up small size, by part."""
    torch.manual_seed(0)
    encoder = {
        "patch_size": 4,
        "tubelet_size": 2,
        "width": 44,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 48 / 11,
        "attention": "clip",
        "locality": 0.0,
    }
    predictor = {
        "width": 12,
        "depth": 1,
        "num_heads": 1,
        "encoder_width": 44,
        "output_width": 30,
        "mask_types": 3,
    }
    action = {
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "encoder_width": 44,
        "grid": 4,
        "action_size": 3,
        "state_size": 5,
    }
    return {
        "target_encoder": Encoder(16, EncoderSettings(**encoder, **RELEASED)),
        "encoder": Encoder(16, EncoderSettings(**encoder, **RELEASED)),
        "predictor": Predictor(PredictorSizes(**predictor, **RELEASED)),
        "action_predictor": ActionPredictor(ActionPredictorSizes(**action, **RELEASED)),
    }


def in_layout(models, parts, wrapper="module.backbone."):
    """What a released file holds: {part: {prefixed name: tensor}}."""
    file = {}
    for part in parts:
        weights = to_released(models[part], part)
        file[part.removeprefix("action_")] = {
            wrapper + name: value.clone() for name, value in weights.items()
        }
    return file


def pretrained(models):
    return in_layout(models, ("encoder", "target_encoder", "predictor"))


@pytest.mark.parametrize("wrapper", ["module.backbone.", "module.", ""])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_what_is_written_in_the_released_layout_comes_back(models, tmp_path, wrapper, kind):
    path, ac = tmp_path / f"pretrain.{kind}", tmp_path / f"ac.{kind}"
    for file, parts in (
        (path, ("encoder", "target_encoder", "predictor")),
        (ac, ("encoder", "action_predictor")),
    ):
        content = in_layout(models, parts, wrapper)
        if kind == "safetensors":
            flat = {
                f"{part}.{name}": value
                for part, names in content.items()
                for name, value in names.items()
            }
            save_file({name: value.contiguous() for name, value in flat.items()}, file)
        else:
            torch.save({**content, "epoch": 3, "opt": {"state": {}}}, file)
    target = load_encoder(path, SIZE)
    assert same_weights(
        target, models["target_encoder"]
    ) and target.settings.mlp_ratio == pytest.approx(48 / 11)
    assert same_weights(load_encoder(path, SIZE, part="encoder"), models["encoder"])
    assert same_weights(load_encoder(ac, SIZE), models["encoder"]), "the only one there is"
    assert same_weights(load_predictor(path, SIZE), models["predictor"])
    assert same_weights(load_action_predictor(ac, SIZE, patch=4), models["action_predictor"])
    clip = torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(target(clip), models["target_encoder"](clip))
    assert not target.training and not any(p.requires_grad for p in target.parameters())


def test_the_layout_is_the_released_one(models):
    """Names and shapes as published, not as this library happens to write and read them."""
    weights = to_released(models["encoder"], "encoder")
    assert weights["patch_embed.proj.weight"].shape == (44, 3, 2, 4, 4)
    assert {
        "patch_embed.proj.bias",
        "blocks.1.attn.qkv.weight",
        "blocks.0.mlp.fc2.bias",
        "norm.weight",
    } < set(weights)
    clip = torch.randn(1, 2, 3, 16, 16)
    kernel = torch.nn.functional.conv3d(
        clip.transpose(1, 2), weights["patch_embed.proj.weight"], stride=(2, 4, 4)
    )
    ours = models["encoder"].embed(models["encoder"].patches(clip)) - models["encoder"].embed.bias
    torch.testing.assert_close(ours, kernel.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)
    weights = to_released(models["predictor"], "predictor")
    assert (
        weights["mask_tokens.2"].shape == (1, 1, 12)
        and "predictor_blocks.0.norm1.weight" in weights
    )
    assert {"predictor_embed.bias", "predictor_norm.bias", "predictor_proj.weight"} < set(weights)
    weights = to_released(models["action_predictor"], "action_predictor")
    assert {f"{name}_encoder.bias" for name in ("action", "state", "extrinsics")} < set(weights)


def test_position_tables_that_rope_models_ignore_are_let_pass(models, tmp_path):
    content = pretrained(models)
    content["target_encoder"]["module.backbone.pos_embed"] = torch.zeros(1, 32, 44)
    content["predictor"]["module.backbone.predictor_pos_embed"] = torch.zeros(1, 32, 12)
    torch.save(content, tmp_path / "x.pt")
    load_encoder(tmp_path / "x.pt", SIZE)
    load_predictor(tmp_path / "x.pt", SIZE)


def test_a_loaded_encoder_can_be_kept_frozen(models, tmp_path):
    torch.save(pretrained(models), tmp_path / "x.pt")
    encoder = load_encoder(tmp_path / "x.pt", SIZE)
    frozen = FrozenEncoder(encoder, SIZE.image_size, precision="fp32")
    frozen.save(tmp_path)
    frames = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    assert torch.equal(FrozenEncoder.load(tmp_path)(frames), frozen(frames))


# ---------------------------------------------------------------- faults


def drop(name):
    return lambda weights: weights.pop(f"module.backbone.{name}")


def put(name, value):
    return lambda weights: weights.update({f"module.backbone.{name}": value})


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("target_encoder", put("head.weight", torch.zeros(3)), "1 unexpected: head.weight"),
        ("target_encoder", drop("blocks.0.attn.proj.bias"), "1 missing: blocks.0.attn.proj.bias"),
        (
            "target_encoder",
            drop("patch_embed.proj.weight"),
            "'patch_embed.proj.weight' is missing",
        ),
        (
            "target_encoder",
            drop("blocks.0.mlp.fc1.weight"),
            "'blocks.0.mlp.fc1.weight' is missing",
        ),
        (
            "target_encoder",
            put("norm.weight", torch.zeros(23)),
            r"1 of another shape: norm.weight \(23,\), the model has \(44,\)",
        ),
        (
            "target_encoder",
            put("patch_embed.proj.weight", torch.zeros(44, 96)),
            "instead of 5 dimensions",
        ),
        (
            "target_encoder",
            lambda weights: weights.update({"norm.bias": torch.zeros(44)}),
            "holds 'norm.bias' twice",
        ),
        (
            "target_encoder",
            put("blocks.0.scale", 0.5),
            "'module.backbone.blocks.0.scale' is no tensor",
        ),
        (
            "predictor",
            put("predictor_blocks.0.fc3", torch.zeros(3)),
            "1 unexpected: predictor_blocks.0.fc3",
        ),
        (
            "predictor",
            drop("mask_tokens.1"),
            "1 missing: mask_tokens.1\n  1 unexpected: mask_tokens.2",
        ),
        (
            "predictor",
            put("action_encoder.bias", torch.zeros(3)),
            "1 unexpected: action_encoder.bias",
        ),
    ],
)
def test_every_fault_of_the_content_is_named(models, tmp_path, part, change, message):
    content = pretrained(models)
    change(content[part])
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=message) as caught:
        if part == "predictor":
            load_predictor(tmp_path / "x.pt", SIZE)
        else:
            load_encoder(tmp_path / "x.pt", SIZE)
    assert f"x.pt: the weights of '{part}'" in str(caught.value)


def test_a_file_without_the_part_says_what_it_has(models, tmp_path):
    torch.save(in_layout(models, ("encoder",)), tmp_path / "x.pt")
    with pytest.raises(UserError, match="has no part 'predictor', only 'encoder'"):
        load_predictor(tmp_path / "x.pt", SIZE)


def test_a_size_that_does_not_fit_is_refused(models, tmp_path):
    torch.save(pretrained(models), tmp_path / "x.pt")
    with pytest.raises(
        UserError, match="has 2 blocks of width 44, but the size asked for has 24 of 1024"
    ):
        load_encoder(tmp_path / "x.pt", "vit_large")
    with pytest.raises(UserError, match="size 'vit_tiny' is unknown; it is one of vit_large"):
        load_encoder(tmp_path / "x.pt", "vit_tiny")
    with pytest.raises(
        UserError, match="width 44 does not divide into 4 heads; give a Size with other heads"
    ):
        load_encoder(tmp_path / "x.pt", Size(16, heads=4))
    with pytest.raises(
        UserError, match="width 12 does not divide into 12 heads.* other predictor_heads"
    ):
        load_predictor(tmp_path / "x.pt", "vit_large")


@pytest.mark.parametrize("name", SIZES)
def test_the_heads_of_the_released_sizes_divide_their_width(name):
    assert SIZES[name].width % (2 * SIZES[name].heads) == 0


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (open, (str(self.target), "w"))  # harmless, but leaves a trace


@pytest.mark.parametrize(
    "write", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))], ids=["zip", "bare"]
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_a_pickle_bomb_never_goes_off(models, tmp_path, write, name):
    write({**pretrained(models), "epoch": Bomb(tmp_path / "trace")}, tmp_path / name)
    with pytest.raises(
        UserError, match=f"{name}: (holds Python objects|is cut short|is no whole safetensors)"
    ):
        load_encoder(tmp_path / name, SIZE)
    assert not (tmp_path / "trace").exists()
    if write is not torch.save:
        pickle.loads((tmp_path / name).read_bytes())["epoch"].close()
        assert (tmp_path / "trace").exists(), "it was live"


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_a_truncated_file_is_named(models, tmp_path, keep, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "pt":
        torch.save(pretrained(models), path)
    else:
        save_file({"encoder.norm.weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(keep * len(whole))])
    with pytest.raises(
        UserError, match=rf"x\.{kind}: is (cut short|no whole safetensors file).*download it again"
    ):
        load_encoder(path, SIZE)


def test_a_file_with_wrong_bytes_is_named_or_read(tmp_path):
    path = tmp_path / "x.pt"
    torch.save({"encoder": {"module.norm.weight": torch.arange(8.0)}, "epoch": 1}, path)
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] = draw.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            read_parts(path)
            continue
        refused += 1
    assert 20 < refused < 180


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3)])
def test_a_file_of_something_else_is_named(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match="not the parts of a model by name"):
        load_encoder(tmp_path / "x.pt", SIZE)


def test_a_path_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(UserError, match="there is no such file; download the weights first"):
        load_encoder(tmp_path / "x.pt", SIZE)
