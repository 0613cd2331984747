"""The command line: one verb a stage of the story, every verb with the same options.

jepa-wm <verb> [--config NAME_OR_PATH] [--run DIR] [--json] [section.key=value ...]
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from jepa_wm import __version__
from jepa_wm.core.errors import Interrupted, UserError

# verb -> the function that does it, `run(run: RunFolder) -> dict`, and its line in the help
VERBS = {
    "demo": ("jepa_wm.demo:run", "the whole story in minutes: collect, learn to see, learn to act, plan, report"),
    "collect": ("jepa_wm.act.collect:run", "let a policy wander in the world and store the trajectories"),
    "pretrain": ("jepa_wm.train.pretrain:run", "learn to see: masked latent prediction, no labels, no decoder"),
    "encode": ("jepa_wm.freeze.cache:run", "freeze the encoder and compute the features of all frames once"),
    "dynamics": ("jepa_wm.train.dynamics:run", "learn what actions do to the frozen features"),
    "plan": ("jepa_wm.act.evaluate:run", "reach goal images by planning in imagination; success with intervals"),
    "report": ("jepa_wm.show.report:run", "one HTML page: curves, GIFs, tables"),
}
BENCHES = {"plan": "jepa_wm.evals.bench_plan:run"}  # `run(config, quick=...) -> dict`; they need no run folder
EVALS = {name: f"jepa_wm.evals.{name}:run" for name in ("planning", "rollout", "state", "collapse")}

EXIT_FAILED, EXIT_USER = 1, 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    0 done; 1 the disk is full; 2 a mistake the message explains; 128 + signal number when stopped.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    arguments = _parse(words)
    folder = Path(arguments.run or Path("runs") / Path(arguments.config).stem)
    try:
        with _signals_raise():
            _carry_out(arguments, folder)
    except UserError as error:
        return _say(f"error: {error}", EXIT_USER)
    except Interrupted as stop:
        return _say(_how_to_continue(stop.signum, folder), 128 + stop.signum)
    except KeyboardInterrupt:
        return _say(_how_to_continue(signal.SIGINT, folder), 128 + signal.SIGINT)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        place = error.filename or folder
        return _say(
            f"error: no space left on the disk of {place}. What was finished before is whole: free some space, "
            f"or move {folder} to another disk and name it with --run, then run the same command again.",
            EXIT_FAILED,
        )
    return 0


def _carry_out(arguments: argparse.Namespace, folder: Path) -> None:
    """Check the config, open the run folder, do the verb, print its result."""
    from jepa_wm.core.config import load_config
    from jepa_wm.core.run import RunFolder

    config = load_config(arguments.config, arguments.overrides)
    # What a stage prints must not come between a script and the one line it reads.
    output = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    if arguments.verb == "bench":
        with output:
            result = _function(arguments.target)(config, quick=arguments.quick)
    else:
        with RunFolder.open(folder, config) as run, output:
            result = _function(arguments.target)(run)
    from jepa_wm.core.files import finite

    result = finite(result)
    if arguments.json:
        print(json.dumps(result, allow_nan=False), flush=True)
    else:
        figures = [f"  {key}: {value}" for key, value in result.items() if not isinstance(value, (dict, list))]
        print("\n".join([f"{arguments.verb}: done, in {folder}", *figures]), flush=True)


def _function(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def _parse(words: list[str]) -> argparse.Namespace:
    """The arguments, with `target` the dotted name of the function to call; exits with 2 on misuse."""
    front = argparse.ArgumentParser(prog="jepa-wm", description="See, imagine, plan: a world model without a decoder.")
    front.add_argument("--version", action="version", version=f"jepa-wm {__version__}")
    verbs = front.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, summary) in VERBS.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    verbs.add_parser("eval", help=f"one evaluation of a trained run: {', '.join(EVALS)}", add_help=False)
    verbs.add_parser("bench", help=f"measure the speed of a part here: {', '.join(BENCHES)}", add_help=False)
    # The verb's own words are parsed apart: only so may options and overrides come in any order.
    verb = front.parse_known_args(words[:1])[0].verb
    parser = _verb_parser(verb)
    arguments = parser.parse_intermixed_args(words[1:])
    arguments.verb = verb
    named = {"eval": EVALS, "bench": BENCHES}
    arguments.target = named[verb][arguments.name] if verb in named else VERBS[verb][0]
    return arguments


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    others = {"eval": "one evaluation of a trained run", "bench": "measure speed on this machine; ends with JSON"}
    summary = VERBS[verb][1] if verb in VERBS else others[verb]
    parser = argparse.ArgumentParser(prog=f"jepa-wm {verb}", description=summary)
    if verb == "eval":
        parser.add_argument("name", choices=list(EVALS), help="which evaluation")
    if verb == "bench":
        parser.set_defaults(run=None, json=True)
        parser.add_argument("name", choices=list(BENCHES), help="what to measure")
        parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    else:
        parser.add_argument("--run", metavar="DIR", help="the run folder; default: runs/<name of the config>")
        parser.add_argument("--json", action="store_true", help="end with the result as one JSON line on stdout")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that differ from the file")
    parser.add_argument("--config", default="two_rooms", metavar="NAME_OR_PATH", help="default: two_rooms")
    return parser


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


def _how_to_continue(signum: int, folder: Path) -> str:
    return f"stopped by {signal.Signals(signum).name}; run the same command again to continue ({folder})"


def _say(text: str, code: int) -> int:
    """Print a message on stderr and hand back the exit code."""
    from rich.console import Console

    style = "yellow" if code > 128 else "red"
    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style=style, markup=False)
    return code
