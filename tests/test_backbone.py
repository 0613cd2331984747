"""Encoders from elsewhere, timm models and released V-JEPA 2 encoders, are looked through, kept,
shared, used in a run."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from huggingface_hub import hub_mixin
from pydantic import ValidationError

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.features import weights
from jepa_wm.features.backbone import Backbone, backbone_of
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.settings import FeatureSettings
from jepa_wm.features.weights import IMAGENET_MEAN, IMAGENET_SPREAD, take_plain_frames, to_released
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

VIT, CONV = "test_vit", "test_convnext"  # timm's own, made for tests


def backbone(name=VIT, size=64, seed=0):
    torch.manual_seed(seed)
    return Backbone(name, size)


@pytest.fixture
def released(tmp_path, monkeypatch):
    """(path, encoder) of a small encoder in the released layout, under the size name
    `vit_small`."""
    torch.manual_seed(0)
    size = weights.Size(32, heads=2, width=24, depth=1)
    monkeypatch.setitem(weights.SIZES, "vit_small", size)
    settings = EncoderSettings(
        patch_size=8,
        tubelet_size=2,
        width=24,
        depth=1,
        num_heads=2,
        attention="clip",
        rope="vjepa2",
        rope_base=1e4,
        locality=0,
    )
    encoder = Encoder(32, settings)
    torch.save({"encoder": to_released(encoder, "encoder")}, tmp_path / "small.pt")
    return tmp_path / "small.pt", encoder


@pytest.mark.parametrize(("name", "tokens"), [(VIT, 16), (CONV, 4)])
def test_a_backbone_sees_each_frame_by_itself(name, tokens):
    encoder = backbone(name)
    clip = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        seen = encoder(clip)
        assert seen.shape == (2, 3 * tokens, encoder.width) and encoder.tokens_per_frame == tokens
        for t in range(3):
            alone = encoder(clip[:, t : t + 1])
            torch.testing.assert_close(
                seen[:, t * tokens : (t + 1) * tokens], alone, atol=1e-5, rtol=1e-5
            )


@pytest.mark.parametrize("name", [VIT, CONV])
def test_tokens_lie_in_rows(name):
    """A change in the frame's upper right corner shows most in the last token of the first row."""
    encoder, clip = backbone(name), torch.zeros(1, 1, 3, 64, 64)
    with torch.no_grad():
        before = encoder(clip)
        clip[..., :4, -4:] = 1
        change = (encoder(clip) - before).abs().sum(-1)[0]
    assert change.argmax() == round(encoder.tokens_per_frame**0.5) - 1


def test_frames_are_normalised_as_the_model_wants_them():
    encoder, seen = backbone(), []
    encoder.model.forward_features = lambda x: seen.append(x) or torch.zeros(1, 17, 64)
    colours = torch.rand(1, 1, 3, 64, 64)
    encoder(colours * 2 - 1)
    mean, spread = (
        torch.tensor(encoder.model.pretrained_cfg[key])[:, None, None] for key in ("mean", "std")
    )
    torch.testing.assert_close(seen[0], (colours[0] - mean) / spread)


@pytest.mark.parametrize("name", [VIT, CONV])
def test_an_encoder_of_a_backbone_is_kept_and_shared_whole(name, tmp_path):
    encoder = FrozenEncoder(backbone(name), 64, precision="fp32")
    frames = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), np.uint8)
    encoder.standardise_on(frames)
    encoder.save(tmp_path / "run")
    encoder.save_pretrained(tmp_path / "shared")
    for other in (
        FrozenEncoder.load(tmp_path / "run"),
        FrozenEncoder.from_pretrained(tmp_path / "shared"),
    ):
        assert torch.equal(other(torch.from_numpy(frames)), encoder(torch.from_numpy(frames)))
        assert not any(p.requires_grad for p in other.parameters()) and not other.encoder.training


def test_our_own_encoder_is_shared_whole(tmp_path):
    torch.manual_seed(0)
    settings = EncoderSettings(patch_size=16, width=16, depth=1, num_heads=1)
    encoder = FrozenEncoder(Encoder(32, settings), 32)
    encoder.standardise_on(np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8))
    encoder.save_pretrained(tmp_path)
    assert {"model.safetensors", "config.json"} <= {file.name for file in tmp_path.iterdir()}
    card = (tmp_path / "README.md").read_text()
    assert (
        "library_name: jepa_wm" in card
        and "| tokens a frame | 4 |" in card
        and '"patch_size": 16' in card
        and '"depth": 1' in card
    )
    other = FrozenEncoder.from_pretrained(tmp_path)
    assert all(
        torch.equal(a, b)
        for a, b in zip(encoder.state_dict().values(), other.state_dict().values(), strict=True)
    )
    assert other.encoder.settings == settings and other.precision == "bf16"
    with pytest.raises(UserError, match="an encoder takes no precison"):
        FrozenEncoder.from_pretrained(tmp_path, precison="fp32")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match="config.json: describes another kind of model"):
        FrozenEncoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="model.safetensors: no shared encoder here"):
        FrozenEncoder.from_pretrained(tmp_path)


def test_pushing_uploads_the_whole_encoder_with_its_card(tmp_path, monkeypatch):
    uploaded = {}

    class Hub:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, **options):
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **options):
            uploaded[repo_id] = shutil.copytree(folder_path, tmp_path / "there")

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    encoder = FrozenEncoder(
        Encoder(32, EncoderSettings(patch_size=16, width=16, depth=1, num_heads=1)), 32
    )
    encoder.push_to_hub(
        "me/encoder", token="secret", model_card_kwargs={"measured": "Digits: 81 %."}
    )
    assert "Digits: 81 %." in (uploaded["me/encoder"] / "README.md").read_text()
    assert torch.equal(
        FrozenEncoder.from_pretrained(uploaded["me/encoder"]).encoder.embed.weight,
        encoder.encoder.embed.weight,
    )


def test_torch_hub_finds_encoders_and_released_encoders(released, tmp_path):
    encoder = FrozenEncoder(
        Encoder(32, EncoderSettings(patch_size=16, width=16, depth=1, num_heads=1)), 32
    )
    encoder.save_pretrained(tmp_path / "encoder")
    root = str(Path(__file__).resolve().parents[1])
    again = torch.hub.load(root, "frozen_encoder", tmp_path / "encoder", source="local")
    assert torch.equal(again.encoder.embed.weight, encoder.encoder.embed.weight)
    with pytest.raises(UserError, match="there is no such file"):
        torch.hub.load(root, "vjepa2_encoder", tmp_path / "no.pt", "vit_large", source="local")


def test_folding_imagenet_normalisation_changes_nothing_but_the_input(released):
    path, encoder = released
    colours = torch.rand(2, 2, 3, 32, 32)
    mean, spread = (torch.tensor(x)[:, None, None] for x in (IMAGENET_MEAN, IMAGENET_SPREAD))
    with torch.no_grad():
        expected = encoder((colours - mean) / spread)
        folded = take_plain_frames(weights.load_encoder(path, "vit_small"))
        torch.testing.assert_close(folded(colours * 2 - 1), expected, atol=1e-4, rtol=1e-4)


def test_a_released_encoder_takes_the_size_of_the_run(released):
    encoder = backbone_of(
        FeatureSettings(backbone="vjepa2/vit_small", weights=str(released[0])), 48
    )
    assert encoder.tokens_per_frame == 36
    with pytest.raises(
        UserError, match="data.image_size 60 is not a multiple of 8, the patch of vjepa2/vit_small"
    ):
        backbone_of(FeatureSettings(backbone="vjepa2/vit_small", weights=str(released[0])), 60)


# ---------------------------------------------------------------- in a run


@pytest.mark.parametrize("kind", ["timm", "vjepa2"])
def test_a_run_is_encoded_with_the_backbone_instead_of_pretraining(
    kind, released, tiny_data, tmp_path
):
    chosen = {
        "timm": [f"features.backbone=timm/{VIT}"],
        "vjepa2": ["features.backbone=vjepa2/vit_small"],
    }[kind]
    chosen += [f"features.weights={released[0]}"] if kind == "vjepa2" else []
    config = load_config(
        "debug", [f"data.path={tiny_data}", "data.image_size=64", "encoder.patch_size=8", *chosen]
    )
    with Run.open(tmp_path / "run", config) as run:
        with pytest.raises(
            UserError, match="is the encoder of this run, so there is nothing to pretrain"
        ):
            run_stage("pretrain", run)
        result = run_stage("features", run)
        assert (result["tokens"], result["width"]) == {"timm": (16, 64), "vjepa2": (64, 24)}[kind]
        encoder = FrozenEncoder.load(run.path / "features")
    assert isinstance(encoder.encoder, Backbone) == (kind == "timm")
    assert not (tmp_path / "run" / "pretrain").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backbone": "resnet18"}, "backbone 'resnet18' is neither timm/NAME nor vjepa2/SIZE"),
        ({"backbone": "timm/"}, "backbone 'timm/' is neither"),
        ({"weights": "x.pt"}, "weights x.pt are for a backbone"),
        ({"backbone": "vjepa2/vit_large"}, "needs weights, the path of the released file"),
        ({"backbone": "timm/x", "weights": "x.pt"}, "are 'published', or null for random ones"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        FeatureSettings(**settings)


def test_a_run_folder_always_says_which_encoder_it_has():
    assert FeatureSettings().model_dump()["backbone"] is None
    chosen = FeatureSettings(backbone="timm/x")
    assert FeatureSettings(**chosen.model_dump()) == chosen


def test_what_cannot_be_had_is_said(monkeypatch):
    with pytest.raises(
        UserError, match="timm/test_vitt: there is no such model; did you mean test_vit"
    ):
        Backbone("test_vitt", 64)
    with pytest.raises(
        UserError, match="data.image_size 65 is not a multiple of 16, the patch of timm/test_vit"
    ):
        Backbone(VIT, 65)
    fetched = []

    def create(name, *, pretrained, **sizes):
        fetched.append(pretrained)
        raise OSError("no network")

    monkeypatch.setattr("timm.create_model", create)
    with pytest.raises(
        UserError, match=r"timm/test_vit: its published weights cannot be fetched \(no network\)"
    ):
        Backbone(VIT, 64, published=True)
    with pytest.raises(OSError, match="no network"):
        Backbone(VIT, 64)
    assert fetched == [True, False], "nothing is fetched unless asked for"
