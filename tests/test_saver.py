"""Saving beside the training: it waits for a copy only, what is written is the state of its step,
failures are told."""

import errno
import signal
import threading

import pytest
import torch

from jepa_wm.core import saver
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.errors import catching_signals
from jepa_wm.core.saver import Saver


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until the gate is opened."""
    opened, write = threading.Event(), saver.save_checkpoint

    def slow(*args, **kwargs):
        assert opened.wait(20)
        return write(*args, **kwargs)

    monkeypatch.setattr(saver, "save_checkpoint", slow)
    return opened


def test_training_goes_on_while_a_copy_of_its_state_is_written(tmp_path, gate):
    weight, moment = torch.zeros(1000, 100), torch.zeros(1000, 100)
    with Saver(tmp_path, keep=2) as writer:
        writer.save(1, {"w": weight}, {"moments": {0: (moment, 3)}, "step": 1})
        assert newest_checkpoint(tmp_path) is None and writer.waited < 1, "nothing is written yet"
        weight += 1
        moment += 1
        gate.set()
        writer.settle()
    weights, state = load_checkpoint(newest_checkpoint(tmp_path))
    assert (
        not weights["w"].any() and not state["moments"][0][0].any() and state["moments"][0][1] == 3
    )


def test_leaving_waits_for_what_was_begun(tmp_path, gate):
    def training():
        with Saver(tmp_path, keep=2) as writer:
            writer.save(1, {"w": torch.zeros(3)}, {})
            threading.Timer(0.2, gate.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        training()
    assert newest_checkpoint(tmp_path) is not None


def test_as_many_as_asked_for_are_kept(tmp_path):
    with Saver(tmp_path, keep=3) as writer:
        for step in range(6):
            writer.save(step, {"w": torch.full((3,), float(step))}, {})
        writer.settle()
    assert sorted(path.name for path in tmp_path.glob("step_*")) == [
        f"step_{step:08d}" for step in (3, 4, 5)
    ]


def test_a_save_that_fails_is_warned_of_and_the_last_one_raises(tmp_path, monkeypatch):
    write = saver.save_checkpoint

    def full(folder, step, *args, **kwargs):
        if step != 2:
            raise OSError(errno.ENOSPC, "full", str(folder))
        return write(folder, step, *args, **kwargs)

    monkeypatch.setattr(saver, "save_checkpoint", full)
    with Saver(tmp_path, keep=2) as writer:
        writer.save(1, {}, {})
        with pytest.warns(
            UserWarning, match="step 1 could not be written .* training goes on, there is none yet"
        ):
            writer.save(2, {}, {})
        writer.save(3, {}, {})
        with pytest.raises(OSError, match="full"):
            writer.settle()
    assert newest_checkpoint(tmp_path).name == "step_00000002"


def test_a_signal_before_the_inner_block_is_not_lost_in_it():

    with catching_signals() as outer:
        signal.raise_signal(signal.SIGUSR2)
        with catching_signals() as inner:
            assert inner is outer and inner.signum == signal.SIGUSR2
        signal.raise_signal(signal.SIGTERM)
        assert outer.signum == signal.SIGUSR2, "handlers are still in place"
    with catching_signals() as later:
        assert not later.requested
