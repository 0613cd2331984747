"""The frozen encoder: saved and loaded exactly, standardised, its features cached once and for
nobody else."""

import json
import signal

import numpy as np
import pytest
import torch

from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.core.supervision import supervision_of
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.features import store
from jepa_wm.features.cache import Features
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import RidgeProbe, fit_attentive
from jepa_wm.features.store import encoded_rows, weights_digest, write_features
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

ENCODE = EncoderSettings(patch_size=13, width=16, depth=1, num_heads=1)
EVERY_THIRD = np.arange(0, 186, 3)


@pytest.fixture(scope="module")
def data(tiny_data):
    return Trajectories(tiny_data / "train.h5")


def make_encoder(data, seed=0, precision="fp32"):
    torch.manual_seed(seed)
    encoder = FrozenEncoder(Encoder(65, ENCODE), 65, precision=precision)
    encoder.standardise_on(data.frames[EVERY_THIRD])
    return encoder


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_saved_encoder_sees_the_same(data, tmp_path, precision):
    encoder = make_encoder(data, precision=precision)
    encoder.save(tmp_path)
    other = FrozenEncoder.load(tmp_path)
    frames = torch.from_numpy(data.frames[np.arange(5)])
    assert torch.equal(encoder(frames), other(frames)) and other.precision == precision
    assert (
        weights_digest(encoder)
        == weights_digest(other)
        != weights_digest(make_encoder(data, seed=1))
    )
    assert not any(p.requires_grad for p in other.parameters()) and not other.encoder.training


def test_an_encoder_that_does_not_say_how_it_was_made_is_refused(data, tmp_path):
    make_encoder(data).save(tmp_path)
    file = tmp_path / "encoder.json"
    sizes = json.loads(file.read_text())
    del sizes["encoder"]["rope"]
    file.write_text(json.dumps(sizes))
    with pytest.raises(UserError, match="older version that knew no rope; make it again"):
        FrozenEncoder.load(tmp_path)


def test_a_missing_or_foreign_encoder_is_named(data, tmp_path):
    with pytest.raises(
        UserError, match=r"encoder\.json: no frozen encoder here; run `jepa-wm features` first"
    ):
        FrozenEncoder.load(tmp_path)
    make_encoder(data).save(tmp_path)
    sizes = json.loads((tmp_path / "encoder.json").read_text())
    sizes["encoder"]["depth"] = 2
    (tmp_path / "encoder.json").write_text(json.dumps(sizes))
    with pytest.raises(
        UserError,
        match=r"encoder\.safetensors do not fit FrozenEncoder:\n  12 missing: encoder\.blocks\.1",
    ):
        FrozenEncoder.load(tmp_path)


def test_standardised_features_have_no_constant_part_and_unit_scale(data):
    encoder = make_encoder(data)
    seen = encoder(torch.from_numpy(data.frames[EVERY_THIRD]))
    assert seen.mean(0).abs().max() < 1e-4
    torch.testing.assert_close(seen.square().mean((0, 1)), torch.ones(16), atol=1e-3, rtol=1e-3)
    raw = encoder.raw(torch.from_numpy(data.frames[EVERY_THIRD]))
    assert raw.mean(0).abs().max() > 0.1, "there was something to remove"


def test_a_frame_is_seen_the_same_in_any_batch(data):
    encoder = make_encoder(data)
    frames = torch.from_numpy(data.frames[np.arange(7)])
    together = encoder.raw(frames, batch=3)
    torch.testing.assert_close(
        together, torch.cat([encoder.raw(f[None]) for f in frames]), atol=1e-5, rtol=1e-5
    )


# ---------------------------------------------------------------- features on disk


@pytest.mark.parametrize("stride", [1, 5])
def test_cached_features_are_those_of_the_encoder(data, tmp_path, stride):
    encoder = make_encoder(data)
    write_features(tmp_path, encoder, data, stride=stride)
    features = Features(tmp_path, data)
    assert features.stride == stride
    episode, frame = np.array([[0, 5], [2, 2]]), np.array([[0, 30], [5, 10]])
    tokens = features.tokens(episode, frame)
    expected = encoder(
        torch.from_numpy(data.frames[(data.offsets[episode] + frame).flatten()])
    ).bfloat16()
    assert tokens.shape == (2, 2, 25, 16)
    torch.testing.assert_close(
        tokens.flatten(0, 1).float(), expected.float(), atol=0.05, rtol=0.02
    )


def test_rows_of_a_stride_begin_anew_in_each_episode(data):
    rows = encoded_rows(data, 7)
    assert [r for r in rows if r < 31] == [0, 7, 14, 21, 28] and 31 in rows and len(rows) == 6 * 5


def test_an_interrupted_pass_goes_on_to_the_same_bytes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK", 40)
    encoder = make_encoder(data)
    write_features(tmp_path / "whole", encoder, data, stride=1)
    calls = []
    original = FrozenEncoder.forward

    def look(self, frames):
        calls.append(len(frames))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, frames)

    monkeypatch.setattr(FrozenEncoder, "forward", look)
    with pytest.raises(Interrupted):
        write_features(tmp_path / "cut", encoder, data, stride=1)
    assert sum(calls) == 80, "the chunk at hand is finished, then it stops"
    with pytest.raises(UserError, match="unfinished"):
        Features(tmp_path / "cut", data)
    write_features(tmp_path / "cut", encoder, data, stride=1)
    assert sum(calls) == 6 * 31, "what was done is not done again"
    whole, cut = ((tmp_path / name / "features.bf16").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    write_features(tmp_path / "cut", encoder, data, stride=1)
    assert sum(calls) == 6 * 31


@pytest.mark.parametrize("change", ["encoder", "stride"])
def test_another_encoder_or_stride_starts_afresh(data, tmp_path, change):
    write_features(tmp_path / "a", make_encoder(data), data, stride=1)
    encoder, stride = (
        make_encoder(data, seed=int(change == "encoder")),
        5 if change == "stride" else 1,
    )
    write_features(tmp_path / "a", encoder, data, stride=stride)
    write_features(tmp_path / "b", encoder, data, stride=stride)
    assert (tmp_path / "a" / "features.bf16").read_bytes() == (
        tmp_path / "b" / "features.bf16"
    ).read_bytes()
    assert json.loads((tmp_path / "a" / "features.json").read_text())["encoder"] == weights_digest(
        encoder
    )


def test_a_kill_while_a_new_encoder_writes_leaves_no_stale_claim(data, tmp_path, monkeypatch):
    write_features(tmp_path, make_encoder(data), data, stride=1)

    class Killed(BaseException):
        pass

    def die(self, frames):
        raise Killed

    monkeypatch.setattr(FrozenEncoder, "forward", die)
    with pytest.raises(Killed):
        write_features(tmp_path, make_encoder(data, seed=1), data, stride=1)
    with pytest.raises(UserError, match="no cached features"):
        Features(tmp_path, data)


def test_features_of_other_data_are_refused(data, tiny_data, tmp_path):
    write_features(tmp_path, make_encoder(data), data, stride=1)
    with pytest.raises(UserError, match="of other data than .*heldout.h5; encode again"):
        Features(tmp_path, Trajectories(tiny_data / "heldout.h5"))


# ---------------------------------------------------------------- probes


def test_the_ridge_probe_finds_a_known_linear_map():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=g) * torch.tensor([1.0, 10, 100, 0.1, 1, 1]) + 5
    truth = x @ torch.randn(6, 2, generator=g) + torch.tensor([3.0, -7.0])
    probe = RidgeProbe(x, truth, penalty=1e-9)
    new = torch.randn(50, 6, generator=g) * 2 + 5
    slope = torch.linalg.lstsq(
        torch.cat([x, torch.ones(500, 1)], 1).double(), truth.double()
    ).solution
    torch.testing.assert_close(
        probe.predict(new), (new.double() @ slope[:-1] + slope[-1]).float(), atol=1e-2, rtol=1e-3
    )


def test_the_attentive_probe_is_reproducible_and_leaves_the_global_generator_alone():
    tokens = torch.randn(300, 4, 16, generator=torch.Generator().manual_seed(0))
    state = tokens[:, 2, :2] * 10 + 30
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    a, b = (fit_attentive(tokens, state, steps=150, seed=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(a.predict(tokens), b.predict(tokens))
    error = (a.predict(tokens) - state).norm(dim=1).mean()
    assert error < 0.75 * (state - state.mean(0)).norm(dim=1).mean(), (
        "it reads what is plain to see"
    )


def test_errors_are_euclidean_distances_of_each_group():
    guess, truth = np.array([[3.0, 4, 1]]), np.array([[0.0, 0, 3]])
    errors = Quantities({"agent": [0, 1], "wall": [2]}).errors(guess, truth)
    assert errors == {"agent": 5.0, "wall": 2.0}


def test_a_frozen_encoder_says_what_supervised_it(tmp_path):
    asked = {"backbone": None, "weights": None, "start": None, "steps": 5}
    asked["inverse_dynamics"] = 0.0
    said = [
        supervision_of(**{**asked, **changed})
        for changed in (
            {},
            {"inverse_dynamics": 3.0},
            {"steps": 0},
            {"backbone": "timm/x"},
            {"start": "/home/me/run"},
            {"backbone": "timm/x", "weights": "/home/me/w"},
            {"start": "/home/me/run", "steps": 0},
        )  # fmt: skip
    ]
    assert "without actions" in said[0] and "action supervision" in said[1]
    assert "random" in said[2] and "random" in said[3]
    assert "other weights" in said[4] and "others" in said[5]
    assert "other weights" in said[6] and "random" not in said[6]
    assert not any("/home/me" in each for each in said), "a shared card names no path of ours"
    encoder = FrozenEncoder(Encoder(65, ENCODE), 65, supervision=said[1])
    encoder.save(tmp_path / "run")
    FrozenEncoder.load(tmp_path / "run").save_pretrained(tmp_path / "shared")
    assert f"| trained by | {said[1]} |" in (tmp_path / "shared" / "README.md").read_text()
    assert FrozenEncoder.from_pretrained(tmp_path / "shared").supervision == said[1]
