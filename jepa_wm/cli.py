"""The command line: one command a stage of the pipeline, every command with the same options.

jepa-wm <command> [--config NAME_OR_PATH] [--run DIR] [--json] [section.key=value ...]
jepa-wm <tool> ... [--json]: what works on files and needs no run, with arguments of its own
jepa-wm eval parity --weights FILE --ac FILE --io FILE [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jepa_wm.core.commands import BENCHES, CONFIG, TOOLS, parse, stages
from jepa_wm.core.errors import (
    EXIT_FAILED,
    EXIT_USER,
    Interrupted,
    JobFailed,
    UserError,
    catching_signals,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0 done; 1 the disk is full; 2 a mistake the message explains; 128 + signal number when stopped.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments = parse(argv)
    except UserError as error:  # a stage of others that cannot be imported
        return _say(f"error: {error}", EXIT_USER)
    tool = arguments.command in TOOLS
    runless = arguments.runless
    folder = (
        Path() if runless else Path(arguments.run or Path("runs") / Path(arguments.config).stem)
    )
    # What a user can put right is told in a line; a traceback is for our own faults.
    try:
        with _signals_raise():
            if tool:
                _use_tool(arguments)
            else:
                _carry_out(arguments, folder)
    except UserError as error:
        return _say(f"error: {error}", EXIT_USER)
    except JobFailed as error:
        return _say(f"error: {error}", error.code)
    # The shell's convention for a signal, by which a launched job knows that it can go on.
    except Interrupted as stop:
        return _say(_how_to_continue(stop.signum, None if runless else folder), 128 + stop.signum)
    except KeyboardInterrupt:
        return _say(
            _how_to_continue(signal.SIGINT, None if runless else folder), 128 + signal.SIGINT
        )
    # A full disk is nobody's mistake and not for good: what is whole stays so.
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if runless:
            return _say(
                "error: no space left on the disk: free some, then run the same command again",
                EXIT_FAILED,
            )
        place = error.filename or folder
        return _say(
            f"error: no space left on the disk of {place}. What was finished before is whole: "
            f"free some space, or move {folder} to another disk and name it with --run, then run "
            "the same command again.",
            EXIT_FAILED,
        )
    return 0


def _carry_out(arguments: argparse.Namespace, folder: Path) -> None:
    """Do the command, print its result."""
    with _quiet(arguments.json):
        if arguments.command == "bench":
            result = _bench(arguments)
        elif arguments.files:
            module = importlib.import_module(f"jepa_wm.evals.{arguments.name}")
            result = module.run(**arguments.files)
        else:
            result = _on_run(arguments, folder)

    def lines(result: dict[str, Any]) -> list[str]:
        shown = {key: _in_a_line(value) for key, value in result.items()}
        figures = [f"  {key}: {text}" for key, text in shown.items() if text is not None]
        command = arguments.command
        # an evaluation is asked for its figures: all of them are shown
        if command == "eval":
            command = f"eval {arguments.name}"
            figures = [f"  {line}" for line in _all_figures(result)]
        where = "" if arguments.runless else f", in {folder}"
        return [f"{command}: done{where}", *figures]

    _print(result, lines, as_json=arguments.json)


def _all_figures(result: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A line a figure of a nested result, and one a row where it holds a list of rows."""
    for key, value in result.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and all(isinstance(row, dict) for row in value):
            for row in value:
                yield f"{name}: {_flat(row)}"
        elif isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
            yield from _all_figures(value, f"{name}.")
        else:
            yield f"{name}: {_flat(value)}"


def _flat(value: Any) -> str:
    """Any figure in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(part)}" for name, part in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _in_a_line(value: Any) -> str | None:
    """A figure, or an outcome with its interval; None for what has more in it, which --json
    tells."""
    if isinstance(value, dict):
        return _flat(value) if {"low", "high"} <= value.keys() else None
    return None if isinstance(value, list) else str(value)


def _on_run(arguments: argparse.Namespace, folder: Path) -> Any:
    """Check the config, open the run folder, do the command there."""
    from jepa_wm.config import load_config
    from jepa_wm.core.distributed import joined
    from jepa_wm.core.rendezvous import ranks
    from jepa_wm.core.run import Run, run_stage
    from jepa_wm.core.stage import on_ranks

    config = load_config(arguments.config, arguments.overrides)
    several, name = ranks() > 1, arguments.stage
    if several and not (name and on_ranks(name)):
        together = ", ".join(filter(on_ranks, stages()))
        raise UserError(
            f"{arguments.command} is done by one process; several ranks together do {together}"
        )
    shard = getattr(arguments, "shard", None)
    # A rank that left alone, wherever a signal finds it, would break the others; the loop has all
    # leave together.
    calm = catching_signals() if several else contextlib.nullcontext()
    with calm, joined(), Run.open(folder, config, shared=shard is not None) as run:
        if name is None:
            from jepa_wm.demo import demo

            return demo(run, config)
        return run_stage(name, run, shard=shard)


def _bench(arguments: argparse.Namespace) -> Any:
    """Check the config, measure; no run folder is touched. What is measured has sizes of its
    own."""
    from jepa_wm.config import load_config
    from jepa_wm.core.config import config_diff

    config = load_config(arguments.config, arguments.overrides)
    usual = load_config(CONFIG, [f"train.threads={config.train.threads}"])
    if unread := [line.partition(":")[0] for line in config_diff(usual, config)]:
        raise UserError(
            f"bench {arguments.name} measures cases of its own and reads train.threads alone; "
            "leave out "
            f"{', '.join(unread[:3])}{' and more' * (len(unread) > 3)}"
        )
    module = importlib.import_module(BENCHES[arguments.name])
    return module.run(threads=config.train.threads, quick=arguments.quick)


def _use_tool(arguments: argparse.Namespace) -> None:
    """Do what a tool does, print its result."""
    tool = importlib.import_module(TOOLS[arguments.command][0])
    with _quiet(arguments.json):
        result = tool.run(arguments)
    _print(result, tool.lines, as_json=arguments.json)


def _quiet(as_json: bool) -> contextlib.AbstractContextManager[Any]:
    """What a stage prints must not come between a script and the one line it reads."""
    return contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext()


def _print(result: Any, lines: Callable[[dict[str, Any]], list[str]], *, as_json: bool) -> None:
    from jepa_wm.core.files import finite

    result = finite(result)
    print(json.dumps(result, allow_nan=False) if as_json else "\n".join(lines(result)), flush=True)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGTERM and SIGUSR2 raise Interrupted wherever no loop is catching them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Interrupted(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGUSR2)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _how_to_continue(signum: int, folder: Path | None) -> str:
    """`folder` is where a run goes on; None for a tool, which begins again."""
    name = signal.Signals(signum).name
    if folder is None:
        return f"stopped by {name}; nothing was written: run the same command again"
    return f"stopped by {name}; run the same command again to continue ({folder})"


def _say(text: str, code: int) -> int:
    """Print a message on stderr and hand back the exit code."""
    from rich.console import Console

    style = "yellow" if code > 128 else "red"
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style=style, markup=False)
    return code
