"""The command line: every way out has its exit code and its message, and scripts get one JSON
line."""

import errno
import importlib.metadata
import json
import os
import signal
from dataclasses import replace

import pytest

from jepa_wm import cli
from jepa_wm.core.commands import parse
from jepa_wm.core.errors import Interrupted, TrainingDiverged, UserError
from jepa_wm.core.run import Run
from jepa_wm.core.stage import STAGES


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Put a function in the place of `collect`; returns a caller of the command line that runs
    it."""

    def call(body, *argv):
        monkeypatch.setitem(
            STAGES._entries, "collect", replace(STAGES.get("collect"), function=body)
        )
        return cli.main(["collect", "--config", "debug", "--run", str(tmp_path / "run"), *argv])

    return call


def test_json_is_the_last_line_and_the_only_one_on_stdout(command, capsys):
    def body(run: Run, seed: int) -> dict:
        print("chatter")
        return {"seed": seed, "loss": float("nan")}

    assert command(body, "seed=7", "--json") == 0
    seen = capsys.readouterr()
    result = json.loads(seen.out)
    assert (result["seed"], result["loss"]) == (7, None) and seen.out.count("\n") == 1
    assert "chatter" in seen.err


def test_an_evaluation_shows_all_of_its_figures():
    result = {
        "rollout": [{"horizon": 1, "errors": {"agent": 0.25}}, {"horizon": 2, "errors": {}}],
        "agent": {"error": 1.5, "unit": "px"},
        "by": {"run": {"error": 0.5}, "random": {"error": 2.0}},
    }
    assert list(cli._all_figures(result)) == [
        "rollout: horizon 1, errors agent 0.25",
        "rollout: horizon 2, errors ",
        "agent: error 1.5, unit px",
        "by.run: error 0.5",
        "by.random: error 2",
    ]


def test_without_json_the_result_is_for_reading(command, capsys):
    success = {"success_final": 2 / 3, "low": 0.3, "high": 0.9032, "episodes": 6}
    result = {
        "frames": 12,
        "more": {},
        "errors": {"a": 0.5},
        "success": success,
        "baselines": {"random": success},
    }
    assert command(lambda run: result) == 0
    seen = capsys.readouterr().out
    assert (
        "  frames: 12\n" in seen
        and "  success: success_final 0.6667, low 0.3, high 0.9032, episodes 6\n" in seen
    )
    assert not any(name in seen for name in ("more", "errors", "baselines"))


def stop_by(signum: int):
    def body(run: Run) -> dict:
        os.kill(os.getpid(), signum)
        signal.pause()
        return {}

    return body


def raise_(error: BaseException):
    def body(run: Run) -> dict:
        raise error

    return body


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (raise_(UserError("no [such] thing")), 2, "error: no [such] thing"),
        (raise_(TrainingDiverged("the loss is NaN at step 3")), 2, "NaN at step 3"),
        (raise_(KeyboardInterrupt()), 130, "stopped by SIGINT; run the same command again"),
        (
            raise_(Interrupted(signal.SIGTERM)),
            143,
            "stopped by SIGTERM; run the same command again",
        ),
        (stop_by(signal.SIGTERM), 143, "stopped by SIGTERM"),
        (stop_by(signal.SIGUSR2), 128 + signal.SIGUSR2, "stopped by SIGUSR2"),
        (
            raise_(OSError(errno.ENOSPC, "full", "/data/x")),
            1,
            "no space left on the disk of /data/x",
        ),
    ],
)
def test_every_way_out_has_its_code_and_message(command, capsys, body, code, message):
    before = signal.getsignal(signal.SIGTERM)
    assert command(body) == code
    seen = capsys.readouterr()
    assert message in seen.err and "Traceback" not in seen.err and seen.out == ""
    assert signal.getsignal(signal.SIGTERM) is before


def test_other_system_errors_are_not_hidden(command):
    with pytest.raises(OSError, match="odd"):
        command(raise_(OSError(errno.EIO, "odd")))


def test_a_wrong_override_is_a_message(command, capsys):
    assert command(lambda run: {}, "seed=x") == 2
    assert "override 'seed=x'" in capsys.readouterr().err


def test_options_and_overrides_come_in_any_order():
    words = parse(["pretrain", "a.b=1", "--run", "x", "c.d=-2", "--json"])
    assert (words.overrides, words.run, words.json, words.config) == (
        ["a.b=1", "c.d=-2"],
        "x",
        True,
        "two_rooms",
    )
    words = parse(["eval", "--json", "state", "a=1", "--config", "debug"])
    assert (words.stage, words.overrides, words.config) == ("eval_state", ["a=1"], "debug")


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["eval"], ["eval", "dance"], ["plan", "--runn", "x", "--what"]]
)
def test_misuse_exits_with_two(words, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2 and "usage: jepa-wm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pretrian"], "there is no command 'pretrian'; nearest: pretrain;"),
        (["eval", "lineer"], "no evaluation is named 'lineer'; nearest: linear;"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(words, said, capsys):
    with pytest.raises(SystemExit):
        cli.main(words)
    assert said in " ".join(capsys.readouterr().err.split())


def test_data_that_are_not_there_are_named_with_their_key(tmp_path, capsys):
    words = ["pretrain", "--config", "debug", "--run", str(tmp_path / "run")]
    assert cli.main([*words, "data.path=/nope"]) == 2
    assert "data.path /nope: there is no such folder; name a folder" in capsys.readouterr().err
    assert cli.main([*words, f"data.path={tmp_path}"]) == 2
    assert f"data.path {tmp_path}: it has no train.h5; name" in capsys.readouterr().err


def test_a_broken_package_of_others_is_named_and_hinders_nothing_else(monkeypatch, capsys):
    point = importlib.metadata.EntryPoint("theirs", "their_missing_module", "jepa_wm.stages")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda group: [point] if group == "jepa_wm.stages" else [],
    )
    assert cli.main(["theirs"]) == 2
    assert "the stage 'theirs', cannot be imported" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert "theirs" in shown and "collect" in shown
