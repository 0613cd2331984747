"""Which precision is used: the setting, or what was measured once and written down."""

import json

import pytest
import torch

from jepa_wm.core import precision


@pytest.mark.parametrize(
    ("fp32", "bf16", "chosen"), [(150, 400, "bf16"), (150, 80, "fp32"), (150, 160, "fp32")]
)
def test_auto_takes_the_faster_and_remembers_it(tmp_path, monkeypatch, fp32, bf16, chosen):
    monkeypatch.setattr(
        precision, "matmul_rate", lambda dtype: {torch.float32: fp32, torch.bfloat16: bf16}[dtype]
    )
    assert precision.resolve_precision("auto", tmp_path) == chosen
    assert json.loads((tmp_path / "precision.json").read_text())["gflops"] == {
        "fp32": fp32,
        "bf16": bf16,
    }
    monkeypatch.setattr(precision, "matmul_rate", lambda dtype: pytest.fail("measured again"))
    assert precision.resolve_precision("auto", tmp_path) == chosen


def test_a_named_precision_is_taken_at_its_word(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "matmul_rate", lambda dtype: pytest.fail("measured"))
    for name in ("bf16", "fp32"):
        assert precision.resolve_precision(name, tmp_path) == name
    assert not list(tmp_path.iterdir())


def test_autocast_computes_in_what_it_says():
    a = torch.ones(4, 4)
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        with precision.autocast("cpu", name):
            assert (a @ a).dtype == dtype
    assert precision.matmul_rate(torch.float32) > 0.1
