"""Progress, metrics and signals: what a watcher sees, what a resumed run keeps, how a loop is
stopped."""

import io
import json
import os
import signal
import sys

import pytest

from jepa_wm.core import progress
from jepa_wm.core.errors import Interrupted, catching_signals
from jepa_wm.core.progress import Metrics, Progress, read_metrics


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_without_a_terminal_a_line_comes_every_ten_seconds(monkeypatch):
    clock, out = Clock(), io.StringIO()
    monkeypatch.setattr(progress, "time", clock)
    with Progress("pretrain", 100, start=40, stream=out) as bar:
        for step in range(41, 65):
            clock.now += 1.0
            bar.update(step, loss=0.123456, note="[ok]")
    lines = out.getvalue().splitlines()
    assert (
        lines[0] == "pretrain  50/100  50%  0:50 left  loss 0.1235  note [ok]"
    )  # 1 s a step, the 40 not counted
    assert [line.split()[1] for line in lines] == ["50/100", "60/100", "64/100"]


def test_a_bar_writes_to_stderr_only(capsys):
    with Progress("plan", 2) as bar:
        bar.update(2, success=1.0)
        bar.note("episode won")
    seen = capsys.readouterr()
    assert (
        seen.out == "" and "episode won" in seen.err and "plan  2/2  100%  success 1" in seen.err
    )


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with Progress("dynamics", 8, stream=out) as bar:
        bar.update(3, loss=0.5)
    assert "3/8" in out.getvalue() and "loss 0.5" in out.getvalue()


def test_resuming_drops_what_lies_past_the_checkpoint(tmp_path):
    with Metrics(tmp_path, "collect", tensorboard=False) as metrics:
        metrics.log(9, {"frames": 1})
    with Metrics(tmp_path, "pretrain", tensorboard=False) as metrics:
        for step in range(1, 6):
            metrics.log(step, {"loss": step / 2, "bad": float("nan")})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "pretrain", "step": 6, "lo')
    assert [line["step"] for line in read_metrics(tmp_path, "pretrain")] == [1, 2, 3, 4, 5]
    with Metrics(tmp_path, "pretrain", start=3, tensorboard=False) as metrics:
        metrics.log(4, {"loss": 7.0})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in lines] == [
        ("collect", 9),
        *(("pretrain", step) for step in range(1, 5)),
    ]
    assert lines[-1]["loss"] == 7.0 and lines[1]["bad"] is None
    Metrics(tmp_path, "pretrain", tensorboard=False).close()  # a fresh start
    assert read_metrics(tmp_path, "pretrain") == [] and len(read_metrics(tmp_path, "collect")) == 1


def test_lines_are_on_disk_at_once_and_events_follow(tmp_path):
    metrics = Metrics(tmp_path, "pretrain")
    metrics.log(1, {"loss": 0.5, "probe": {"agent": 2.0}})
    assert read_metrics(tmp_path, "pretrain")[0]["probe"] == {"agent": 2.0}
    metrics.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "pretrain")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5)]


def test_tensorboard_is_not_imported_before_it_is_used(tmp_path):
    from subprocess import check_output

    script = "import sys; from jepa_wm.core.progress import Metrics; print('torch' in sys.modules)"
    assert check_output([sys.executable, "-c", script], text=True) == "False\n"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_only_sets_the_flag_and_handlers_come_back(signum):
    before = signal.getsignal(signum)
    with catching_signals() as stop:
        assert not stop.requested
        stop.raise_if_requested()
        os.kill(os.getpid(), signum)
        assert stop.requested and stop.signum == signum
        with pytest.raises(Interrupted) as caught:
            stop.raise_if_requested()
        assert caught.value.signum == signum
    assert signal.getsignal(signum) is before


def test_the_second_ctrl_c_raises_at_once():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), catching_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
