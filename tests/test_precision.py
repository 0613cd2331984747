"""Which precision is used: the setting, or what was measured once and written down."""

import json

import pytest
import torch

from jepa_wm.core import precision
from jepa_wm.models.blocks import Block


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


@pytest.mark.parametrize(
    ("weights", "given", "expected"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),  # as under autocast: it stays narrow
        (torch.bfloat16, torch.float32, torch.bfloat16),  # as sharded in bf16
    ],
)
def test_blocks_never_widen_what_they_are_given(weights, given, expected):
    block = Block(16, 2).to(weights)
    angles = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 in (weights, given)):
        out = block(torch.randn(1, 4, 16).to(given), angles)
    assert out.dtype == expected
