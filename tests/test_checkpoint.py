"""Checkpoints: exact round trips, and that no failure costs more than the checkpoint being
written."""

import json
import resource
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.core.checkpoint import (
    load_checkpoint,
    load_strict,
    newest_checkpoint,
    save_checkpoint,
)
from jepa_wm.core.errors import UserError

WEIGHTS = {"w": torch.arange(6.0).view(2, 3)}


def same(a: object, b: object) -> bool:
    """Equal in type and bits, order of keys included; NaN equals NaN."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(
            a.detach().contiguous().reshape(-1).view(torch.uint8),
            b.contiguous().reshape(-1).view(torch.uint8),
        )
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b)


tensors = st.builds(
    lambda shape, dtype, seed: (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(99).to(dtype)
    ),
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from(
        [torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int64, torch.bool]
    ),
    st.integers(0, 99),
)
keys = (
    st.integers()
    | st.text(max_size=4)
    | st.sampled_from(["$tensor", "$tuple", "$dict", "$float", "a.b"])
)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors
nested = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(state=st.dictionaries(keys, nested, max_size=3))
def test_any_state_comes_back_exactly(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("any")
    assert same(load_checkpoint(save_checkpoint(folder, 1, WEIGHTS, state))[1], state)
    shutil.rmtree(folder)


def test_an_optimiser_continues_to_the_same_bits(tmp_path):
    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer, torch.Generator]:
        torch.manual_seed(0)
        net = torch.nn.Linear(3, 2)
        return net, torch.optim.AdamW(net.parameters(), lr=0.1), torch.Generator().manual_seed(5)

    def advance(
        net: torch.nn.Module, optimiser: torch.optim.Optimizer, noise: torch.Generator
    ) -> None:
        for _ in range(3):
            optimiser.zero_grad()
            net(torch.randn(4, 3, generator=noise)).square().sum().backward()
            optimiser.step()

    net, optimiser, noise = build()
    advance(net, optimiser, noise)
    state = {"optimiser": optimiser.state_dict(), "noise": noise.get_state(), "step": 3}
    path = save_checkpoint(tmp_path, 3, net.state_dict(), state)
    advance(net, optimiser, noise)

    again, optimiser_again, noise_again = build()
    weights, state = load_checkpoint(path)
    load_strict(again, weights)
    optimiser_again.load_state_dict(state["optimiser"])
    noise_again.set_state(state["noise"])
    advance(again, optimiser_again, noise_again)
    assert same(dict(again.state_dict()), dict(net.state_dict()))


def test_tied_weights_and_views_are_kept(tmp_path):
    whole = torch.arange(10.0)
    weights = {"a": whole, "tied": whole, "view": whole[2:5], "turned": whole.view(2, 5).t()}
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path, 1, weights, {}))
    assert sorted(loaded) == sorted(weights) and all(
        torch.equal(loaded[name], weights[name]) for name in weights
    )


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 3, 3, 10):
        save_checkpoint(tmp_path, step, WEIGHTS, {"step": step}, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000003", "step_00000010"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None and load_checkpoint(newest)[1]["step"] == 10


def test_nothing_saved_yet_is_none(tmp_path):
    assert newest_checkpoint(tmp_path) is None and newest_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("damage", ["cut", "alter", "lose", "no manifest", "empty manifest"])
def test_a_broken_checkpoint_is_named_and_passed_over(tmp_path, damage):
    good = save_checkpoint(tmp_path, 1, WEIGHTS, {"step": 1})
    bad = save_checkpoint(tmp_path, 2, WEIGHTS, {"step": 2})
    weights, manifest = bad / "weights.safetensors", bad / "manifest.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "alter":
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x07")
    elif damage == "lose":
        weights.unlink()
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text("{}")
    with pytest.warns(UserWarning, match="step_00000002 is passed over"):
        assert newest_checkpoint(tmp_path) == good
    with pytest.raises(UserError, match="step_00000002 cannot be loaded"):
        load_checkpoint(bad)


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from jepa_wm.core.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_checkpoint(Path(sys.argv[1]), 2, {"w": torch.zeros(100_000)}, {})
except OSError as error:
    print(type(error).__name__, error.errno)
"""


def test_a_write_the_system_refuses_leaves_the_earlier_ones(tmp_path):
    good = save_checkpoint(tmp_path, 1, WEIGHTS, {})
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True
    )
    assert done.stdout == "OSError 27\n", (
        done.stderr
    )  # EFBIG: the limit a process may set itself, as ENOSPC goes
    assert [path.name for path in tmp_path.iterdir()] == [good.name] and newest_checkpoint(
        tmp_path
    ) == good


def test_a_kill_while_writing_leaves_the_earlier_ones(tmp_path):
    good = save_checkpoint(tmp_path, 1, WEIGHTS, {})
    script = FULL_DISK.replace(
        "signal.SIG_IGN", "signal.SIG_DFL"
    )  # SIGXFSZ kills in the middle of the write
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], preexec_fn=_no_core_file)
    assert done.returncode == -signal.SIGXFSZ
    assert newest_checkpoint(tmp_path) == good
    save_checkpoint(tmp_path, 2, WEIGHTS, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def _no_core_file() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def test_what_cannot_be_kept_is_refused_with_its_place(tmp_path):
    with pytest.raises(TypeError, match=r"state\.a\.0: object cannot be kept"):
        save_checkpoint(tmp_path, 1, WEIGHTS, {"a": [object()]})
    assert list(tmp_path.iterdir()) == []


def test_there_is_no_pickle(tmp_path):
    path = save_checkpoint(tmp_path, 1, WEIGHTS, {"t": torch.ones(2)})
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}
    assert json.loads((path / "state.json").read_text())["state"] == {"t": {"$tensor": "state.t"}}


def test_strict_loading_names_every_key_and_changes_nothing():
    net = torch.nn.Linear(3, 2)
    before = net.weight.detach().clone()
    with pytest.raises(UserError) as caught:
        load_strict(
            net, {"weight": torch.ones(2, 4), "scale": torch.ones(1)}, source="encoder.safetensors"
        )
    message = str(caught.value)
    for part in (
        "encoder.safetensors",
        "1 missing: bias",
        "1 unexpected: scale",
        "weight (2, 4), the model has (2, 3)",
    ):
        assert part in message
    assert torch.equal(net.weight, before)
    load_strict(net, {"weight": torch.ones(2, 3, dtype=torch.bfloat16), "bias": torch.zeros(2)})
    assert torch.equal(net.weight, torch.ones(2, 3))
