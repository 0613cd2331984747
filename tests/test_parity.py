"""`jepa-wm eval parity`: agreement with the public code is measured, disagreement is seen, misuse
is answered."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from jepa_wm import cli
from jepa_wm.features.weights import to_released
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.predictor import (
    ActionPredictor,
    ActionPredictorSizes,
    Predictor,
    PredictorSizes,
)
from jepa_wm.models.vit import Encoder

SIZES = {
    "img_size": 16,
    "encoder_dim": 24,
    "encoder_depth": 1,
    "encoder_heads": 2,
    "predictor_heads": 2,
    "ac_heads": 1,
}


@pytest.fixture
def triple(tmp_path):
    """A pretraining file, an action-conditioned one, and inputs with the outputs of the models in
    them."""
    torch.manual_seed(0)
    sizes = {"depth": 1, "rope": "vjepa2", "rope_base": 10_000.0}
    settings = EncoderSettings(
        patch_size=4, tubelet_size=2, width=24, num_heads=2, attention="clip", locality=0, **sizes
    )
    encoder = Encoder(16, settings)
    predictor = Predictor(
        PredictorSizes(
            width=12, num_heads=2, encoder_width=24, output_width=24, mask_types=2, **sizes
        )
    )
    action = ActionPredictor(
        ActionPredictorSizes(encoder_width=24, grid=4, width=12, num_heads=1, **sizes)
    )
    clip = torch.randn(2, 4, 3, 16, 16)
    seen, wanted = torch.randperm(32)[:20].view(2, 10), torch.randperm(32)[:6].view(2, 3)
    tokens, actions, states = torch.randn(2, 3, 16, 24), torch.randn(2, 3, 7), torch.randn(2, 3, 7)
    with torch.no_grad():
        context, where = encoder(clip, seen), encoder.positions(clip)
        entries = {
            "encoder.full": encoder(clip),
            "encoder.context": context,
            "predictor.mask_token_1": predictor(context, where[seen], where[wanted], 1),
            "ac.output": action(tokens, actions, states).flatten(1, 2),
        }
    inputs = {"video": clip.transpose(1, 2), "context_index": seen, "target_index": wanted}
    inputs |= {"ac.tokens": tokens.flatten(1, 2), "ac.actions": actions, "ac.states": states}
    entries = {name: value.contiguous() for name, value in (inputs | entries).items()}
    save_file(
        entries, tmp_path / "io.safetensors", {key: str(value) for key, value in SIZES.items()}
    )
    torch.save(
        {
            "encoder": to_released(encoder, "encoder"),
            "predictor": to_released(predictor, "predictor"),
        },
        tmp_path / "pretrain.pt",
    )
    torch.save(
        {
            "encoder": to_released(encoder, "encoder"),
            "predictor": to_released(action, "action_predictor"),
        },
        tmp_path / "ac.pt",
    )
    return tmp_path


def words(folder, *more):
    files = {"weights": "pretrain.pt", "ac": "ac.pt", "io": "io.safetensors"}
    return [
        "eval",
        "parity",
        *(f"--{name}={folder / file}" for name, file in files.items()),
        *more,
    ]


def change_io(folder, change, **sizes):
    entries = load_file(folder / "io.safetensors")
    change(entries)
    save_file(
        entries,
        folder / "io.safetensors",
        {key: str(value) for key, value in (SIZES | sizes).items()},
    )


@pytest.mark.shared
def test_released_weights_agree_with_the_public_code(shared, capsys):
    reference = shared / "reference"
    files = {name: str(reference / f"vjepa2_tiny_{file}") for name, file in
             (("weights", "pretrain.pt"), ("ac", "ac.pt"), ("io", "io.safetensors"))}  # fmt: skip
    assert (
        cli.main(
            ["eval", "parity", "--json", *(f"--{name}={file}" for name, file in files.items())]
        )
        == 0
    )
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result["max_abs_error"]) == {
        "encoder.full", "encoder.context", "encoder.one_tubelet", "encoder.wide",
        "predictor.mask_token_0", "predictor.mask_token_1", "ac.output", "ac.output_first_step",
    }  # fmt: skip
    assert result["entries"] == 8 and max(result["max_abs_error"].values()) < 1e-5, result


def test_any_triple_is_compared_entry_by_entry(triple, capsys, monkeypatch):
    monkeypatch.chdir(triple)
    assert cli.main(words(triple, "--json")) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["entries"] == 4 and max(result["max_abs_error"].values()) < 1e-6
    assert not (triple / "runs").exists(), "it needs no run folder"
    change_io(triple, lambda entries: entries["ac.output"].add_(0.5))
    assert cli.main(words(triple)) == 0
    seen = capsys.readouterr().out
    assert "ac.output: 5.0e-01" in seen and "eval parity: done\n" in seen
    assert "  entries: 4\n" in seen and "ac.output 0.5" in seen


@pytest.mark.parametrize(
    ("change", "sizes", "message"),
    [
        (lambda entries: entries.update(odd=torch.zeros(1)), {}, "nothing here computes odd"),
        (lambda entries: entries.pop("video"), {}, "has no entry 'video'"),
        (lambda entries: None, {"ac_heads": "many"}, "its metadata tells no number for ac_heads"),
        (
            lambda entries: None,
            {"layer_norm_eps": 1e-5},
            "layer_norm_eps is 1e-05, but only 1e-6 is known here",
        ),
        (
            lambda entries: None,
            {"encoder_depth": 2},
            "has 1 blocks of width 24, but the size asked for has 2 of 24",
        ),
        (
            lambda entries: entries.update({"encoder.full": torch.zeros(2, 5, 24)}),
            {},
            r"encoder.full has shape (2, 5, 24), computed (2, 32, 24)",
        ),
    ],
)
def test_files_that_do_not_fit_are_named(triple, capsys, change, sizes, message):
    change_io(triple, change, **sizes)
    assert cli.main(words(triple, "--json")) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("file", ["pretrain.pt", "ac.pt", "io.safetensors"])
def test_a_missing_or_cut_file_is_named(triple, capsys, file):
    (triple / file).write_bytes((triple / file).read_bytes()[:-50])
    assert cli.main(words(triple)) == 2
    (triple / file).unlink()
    assert cli.main(words(triple)) == 2
    assert capsys.readouterr().err.count(file) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "eval parity --weights a --ac b",
            "parity takes files of its own: --weights and --ac and --io",
        ),
        ("eval state --io c", "state takes files of its own: none"),
        (
            "eval parity --weights a --ac b --io c seed=1",
            "it takes no --run, --config or settings",
        ),
        (
            "eval parity --weights a --ac b --io c --run x",
            "it takes no --run, --config or settings",
        ),
    ],
)
def test_files_and_runs_are_not_mixed(line, message, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(line.split())
    assert caught.value.code == 2 and message in capsys.readouterr().err
