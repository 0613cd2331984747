"""V-JEPA 2 as `transformers` writes it, in one file or several, and with what training wrapped
around the names."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import same_weights

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.features.foreign_file import unwrapped, without_wrappers
from jepa_wm.features.weights import (
    Size,
    load_encoder,
    load_predictor,
    take_plain_frames,
    to_released,
)
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.jepa import JEPA
from jepa_wm.models.predictor import Predictor, PredictorSizes
from jepa_wm.models.vit import Encoder
from jepa_wm.training.pretrain import start_at

REFERENCE = Path(__file__).resolve().parents[2] / "shared" / "reference"
SIZE = Size(image_size=16, heads=2, predictor_heads=1)
RELEASED = {"rope": "vjepa2", "rope_base": 10_000.0}
WHOLE_CLIP = {"attention": "clip", "locality": 0.0}
CONFIG = {
    "model_type": "vjepa2",
    "num_attention_heads": 2,
    "pred_num_attention_heads": 1,
    "layer_norm_eps": 1e-6,
}


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    predictor = {
        "width": 12,
        "depth": 1,
        "num_heads": 1,
        "encoder_width": 24,
        "output_width": 24,
        "mask_types": 3,
    }
    sizes = {"patch_size": 4, "tubelet_size": 2, "width": 24, "depth": 2, "num_heads": 2}
    encoder = Encoder(16, EncoderSettings(**sizes, **WHOLE_CLIP, **RELEASED))
    models = {"encoder": encoder, "predictor": Predictor(PredictorSizes(**predictor, **RELEASED))}
    for model in models.values():  # nothing is zero or one, as fresh biases and norms are
        for value in model.parameters():
            value.data.normal_(std=0.2)
    return models


def as_transformers(released, part):
    """The public code's weights of a part under the names of transformers' modeling_vjepa2.py."""
    layer = {"encoder": r"^blocks\.", "predictor": r"^predictor_blocks\."}[part]
    renamed = {
        "patch_embed.proj.": "embeddings.patch_embeddings.proj.", "norm.": "layernorm.",
        "predictor_embed.": "embeddings.predictor_embeddings.", "predictor_norm.": "layernorm.",
        "predictor_proj.": "proj.",
    }  # fmt: skip
    theirs = {}
    tokens = [name for name in released if name.startswith("mask_tokens.")]
    for name, value in released.items():
        if ".attn.qkv." in name:
            before, _, kind = re.sub(layer, "layer.", name).partition("attn.qkv.")
            for which, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[f"{part}.{before}attention.{which}.{kind}"] = third.contiguous()
        elif name not in tokens:
            start = next((start for start in renamed if name.startswith(start)), "")
            inside = re.sub(layer, "layer.", renamed.get(start, "") + name.removeprefix(start))
            theirs[f"{part}.{inside.replace('.attn.', '.attention.')}"] = value.contiguous()
    if tokens:
        theirs[f"{part}.embeddings.mask_tokens"] = torch.stack(
            [released[f"mask_tokens.{k}"] for k in range(len(tokens))]
        )
    return theirs


@pytest.fixture
def theirs(models):
    return {
        k: v
        for part, model in models.items()
        for k, v in as_transformers(to_released(model, part), part).items()
    }


def write(folder, flat, config=CONFIG, name="model.safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(flat, folder / name)
    return folder / name


def test_what_is_in_the_layout_comes_back(models, theirs, tmp_path):
    file = write(tmp_path / "x", theirs)
    assert {
        "encoder.layer.0.attention.query.weight",
        "encoder.embeddings.patch_embeddings.proj.weight",
    } < set(theirs)
    assert theirs["predictor.embeddings.mask_tokens"].shape == (3, 1, 1, 12)
    for path in (file, file.parent):
        assert same_weights(load_encoder(path, SIZE), models["encoder"])
        assert same_weights(load_predictor(path, SIZE), models["predictor"])
    clip = torch.randn(1, 4, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(load_encoder(file, SIZE)(clip), models["encoder"](clip))


def test_a_classifier_and_a_torch_file_are_read_too(models, theirs, tmp_path):
    flat = {f"vjepa2.{name}": value for name, value in theirs.items()}
    file = write(
        tmp_path / "x",
        {**flat, "classifier.bias": torch.zeros(3), "pooler.query_tokens": torch.zeros(1, 1, 24)},
    )
    assert same_weights(load_encoder(file, SIZE), models["encoder"])
    torch.save(flat, tmp_path / "pytorch_model.bin")
    assert same_weights(load_encoder(tmp_path, SIZE), models["encoder"])
    half = {name: value.bfloat16() for name, value in theirs.items()}
    read = load_encoder(write(tmp_path / "half", half), SIZE)
    assert read.norm.weight.dtype == torch.float32
    assert torch.equal(read.norm.weight, models["encoder"].norm.weight.bfloat16().float())


def shards(folder, flat, count=2):
    folder.mkdir(exist_ok=True)
    names = [f"model-{k + 1:05d}-of-{count:05d}.safetensors" for k in range(count)]
    places = {
        name: names[k % count] for k, name in enumerate(sorted(flat))
    }  # query, key and value in different files
    for file in names:
        save_file({name: flat[name] for name in flat if places[name] == file}, folder / file)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


def test_weights_in_several_files_are_one_model(models, theirs, tmp_path):
    index = shards(tmp_path / "x", theirs, count=3)
    for path in (index, index.parent):
        assert same_weights(load_encoder(path, SIZE), models["encoder"])
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(
        UserError, match="model-00002-of-00003.safetensors is not beside it; download all files"
    ):
        load_encoder(index, SIZE)
    index = shards(tmp_path / "y", theirs)
    places = json.loads(index.read_text())
    for change, message in (
        (
            {
                **places,
                "weight_map": {**places["weight_map"], "z": "model-00001-of-00002.safetensors"},
            },
            "such as z",
        ),
        (
            {**places, "weight_map": {**places["weight_map"], "z": "../secret.safetensors"}},
            "names '../secret",
        ),
        ({"metadata": {}}, "is no index of safetensors files"),
        ([], "is no index of safetensors files"),
        ({"weight_map": {"a": 3, "b": "x"}}, "is no index|names 3"),
    ):
        index.write_text(json.dumps(change))
        with pytest.raises(UserError, match=message):
            load_encoder(index, SIZE)
    with pytest.raises(UserError, match="is a folder without model.safetensors or"):
        load_encoder(tmp_path, SIZE)


WRAPPERS = [
    "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "_forward_module.",
    "_forward_module.module._orig_mod.",
    "module.backbone._orig_mod.", "_orig_mod.module.backbone.", "_fsdp_wrapped_module.",
    "module.module.",
]  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("layout", ["public", "transformers"])
def test_wrappers_of_training_are_taken_off(models, theirs, tmp_path, wrapper, layout):
    public = {part: to_released(model, part) for part, model in models.items()}
    inside = {
        "public": {
            f"{part}.{wrapper}{name}": value
            for part, names in public.items()
            for name, value in names.items()
        },
        "transformers": {
            re.sub(r"^(\w+)\.", rf"\1.{wrapper}", name): value for name, value in theirs.items()
        },
    }[layout]
    flat = {
        f"{part}.{name}": value for part, names in public.items() for name, value in names.items()
    }
    before = {
        f"{wrapper}{name}": value
        for name, value in (flat if layout == "public" else theirs).items()
    }
    for k, weights in enumerate((inside, before)):
        file = write(
            tmp_path / str(k), {name: value.contiguous() for name, value in weights.items()}
        )
        assert same_weights(load_encoder(file, SIZE), models["encoder"])
        assert same_weights(load_predictor(file, SIZE), models["predictor"])
    nested = {
        part: {f"{wrapper}{name}": value for name, value in names.items()}
        for part, names in public.items()
    }
    torch.save(nested, tmp_path / "x.pt")
    assert same_weights(load_encoder(tmp_path / "x.pt", SIZE), models["encoder"])


def test_wrapped_parts_of_a_model_are_found():
    """torch.compile and checkpointing of single blocks write in the middle of names."""
    assert unwrapped("module.blocks.3._orig_mod.attn.qkv.weight") == "blocks.3.attn.qkv.weight"
    assert (
        unwrapped("blocks.0._checkpoint_wrapped_module._orig_mod.norm1.bias")
        == "blocks.0.norm1.bias"
    )
    assert unwrapped("blocks.0.module_orig_mod.x") == "blocks.0.module_orig_mod.x", (
        "only whole names"
    )
    with pytest.raises(UserError, match="holds 'norm.bias' twice"):
        without_wrappers(
            {"_orig_mod.norm.bias": torch.zeros(1), "module.norm.bias": torch.zeros(1)}, source="x"
        )


def test_every_fault_is_named_shortly(models, theirs, tmp_path):
    def refused(change, message, config=CONFIG, size=SIZE):
        flat = dict(theirs)
        change(flat)
        file = write(tmp_path / "x", flat, config)
        with pytest.raises(UserError, match=message) as caught:
            load_encoder(file, size)
            load_predictor(file, size)
        assert len(str(caught.value)) < 700, "it names a few"

    key = "encoder.layer.1.attention.key.weight"
    refused(
        lambda w: w.pop(key),
        r"blocks.1.attn.qkv.weight there must be query, key and value of one shape",
    )
    refused(lambda w: w.update({key: torch.zeros(24, 23)}), "query, key and value of one shape")
    refused(lambda w: w.pop("encoder.layernorm.bias"), "1 missing: norm.bias")
    refused(lambda w: w.update({"encoder.head": torch.zeros(2)}), "1 unexpected: head")
    many = {f"encoder.extra_{k}": torch.zeros(1) for k in range(500)}
    refused(lambda w: w.update(many), "500 unexpected: extra_0, .* and 492 more")
    refused(
        lambda w: w.update({"encoder.layernorm.weight": torch.zeros(23)}),
        "1 of another shape: norm.weight",
    )
    nothing = dict.fromkeys(())
    refused(
        lambda w: w.update(nothing),
        "states num_attention_heads 4, and the size",
        {**CONFIG, "num_attention_heads": 4},
    )
    heads = {**CONFIG, "pred_num_attention_heads": 3}
    refused(
        lambda w: w.update(nothing), "states pred_num_attention_heads 3.* predictor_heads 1", heads
    )
    refused(lambda w: w.update(nothing), "model_type is 'vit'", {**CONFIG, "model_type": "vit"})
    refused(
        lambda w: w.update(nothing), "layer_norm_eps is 1e-05", {**CONFIG, "layer_norm_eps": 1e-5}
    )
    refused(lambda w: w.update(nothing), "model_type is", [1])
    (tmp_path / "x" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: is no JSON"):
        load_encoder(tmp_path / "x", SIZE)
    (tmp_path / "x" / "config.json").unlink()
    assert same_weights(load_encoder(tmp_path / "x", SIZE), models["encoder"]), (
        "nobody has to state anything"
    )
    torch.save({f"weight_{k}": torch.zeros(1) for k in range(300)}, tmp_path / "flat.pt")
    with pytest.raises(UserError, match="has no part 'encoder', only 'weight_0', .* and 292 more"):
        load_encoder(tmp_path / "flat.pt", SIZE)


def test_attention_without_biases_is_attention_with_zeros(models, theirs, tmp_path):
    without = {
        name: value
        for name, value in theirs.items()
        if not re.search("(query|key|value).bias", name)
    }
    file = write(tmp_path / "x", without, {**CONFIG, "qkv_bias": False})
    read = load_encoder(file, SIZE)
    assert all(not block.attn.qkv.bias.any() for block in read.blocks)
    write(tmp_path / "x", without)
    with pytest.raises(UserError, match="2 missing: blocks.0.attn.qkv.bias"):
        load_encoder(file, SIZE)


def test_pretraining_goes_on_from_it(models, theirs, tmp_path):
    words = [
        "data.image_size=16", "data.num_frames=4", "encoder.patch_size=4",
        "encoder.tubelet_size=2", "encoder.width=24",
        "encoder.depth=2", "encoder.num_heads=2", "encoder.attention=clip", "encoder.rope=vjepa2",
        "encoder.rope_base=10000.0",
        "jepa.width=12", "jepa.depth=1", "jepa.num_heads=1", "jepa.masks=[{num_blocks: 8}]",
        "jepa.target_kinds=[tokens]", "jepa.neighbor_width=0",
    ]  # fmt: skip
    config = load_config("debug", words)
    model = JEPA(config.data.image_size, config.encoder, config.jepa)
    write(tmp_path / "x", theirs)
    start_at(model, tmp_path / "x")
    plain = take_plain_frames(load_encoder(tmp_path / "x", SIZE))
    assert same_weights(model.encoder, plain) and same_weights(model.target, plain)
    assert torch.equal(
        model.predictor.mask_tokens, models["predictor"].mask_tokens[: len(config.jepa.masks)]
    )
    with pytest.raises(
        UserError,
        match="no run folder with a checkpoint of pretraining, and has no model.safetensors",
    ):
        start_at(model, tmp_path)


@pytest.mark.shared
def test_it_computes_what_the_public_code_does(tmp_path, capsys):
    if not REFERENCE.exists():
        pytest.skip("no folder ../shared")
    public = torch.load(REFERENCE / "vjepa2_tiny_pretrain.pt", weights_only=True)
    flat = {}
    for part, source in (("encoder", "target_encoder"), ("predictor", "predictor")):
        flat |= as_transformers(without_wrappers(public[source], source="x"), part)
    config = {**CONFIG, "num_attention_heads": 3, "pred_num_attention_heads": 2}
    for name, path in (
        ("one", write(tmp_path / "one", flat, config)),
        ("two", shards(tmp_path / "two", flat)),
    ):
        words = [
            "eval",
            "parity",
            "--weights",
            str(path),
            "--ac",
            str(REFERENCE / "vjepa2_tiny_ac.pt"),
            "--json",
        ]
        assert cli.main([*words, "--io", str(REFERENCE / "vjepa2_tiny_io.safetensors")]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert result["entries"] == len(load_file(REFERENCE / "vjepa2_tiny_io.safetensors")) - 8, (
            name
        )
        assert max(result["max_abs_error"].values()) < 1e-4
