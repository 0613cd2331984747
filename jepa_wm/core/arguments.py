"""The words of the command line: which verb, and what it is told."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from jepa_wm import __version__
from jepa_wm.core.verbs import BENCHES, EVALS, FILES, SHARES, TOOLS, VERBS

CONFIG = "two_rooms"  # what --config is where it is not given


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments, with `target` the dotted name of the function to call; exits with 2 on
    misuse."""
    front = argparse.ArgumentParser(
        prog="jepa-wm", description="See, imagine, plan: a world model without a decoder."
    )
    front.add_argument("--version", action="version", version=f"jepa-wm {__version__}")
    verbs = front.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb, (_, summary) in {**VERBS, **TOOLS}.items():
        verbs.add_parser(verb, help=summary, add_help=False)
    verbs.add_parser(
        "eval", help=f"one evaluation of a trained run: {', '.join(EVALS)}", add_help=False
    )
    verbs.add_parser(
        "bench", help=f"measure the speed of a part here: {', '.join(BENCHES)}", add_help=False
    )
    # The verb's own words are parsed apart: only so may options and overrides come in any order.
    verb = front.parse_known_args(words[:1])[0].verb
    parser = _verb_parser(verb)
    arguments = parser.parse_intermixed_args(words[1:])
    arguments.verb = verb
    named = {"eval": EVALS, "bench": BENCHES}
    arguments.target = (
        named[verb][arguments.name] if verb in named else {**VERBS, **TOOLS}[verb][0]
    )
    arguments.files = _files(parser, arguments) if verb == "eval" else {}
    arguments.runless = verb in (*TOOLS, "bench") and verb != "launch" or bool(arguments.files)
    return arguments


def _files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Path]:
    """The files an evaluation compares, empty for one that measures a run; exits with 2 where the
    two are mixed."""
    wanted = FILES.get(arguments.name, {})
    given = {
        file: getattr(arguments, file)
        for files in FILES.values()
        for file in files
        if getattr(arguments, file)
    }
    if set(given) != set(wanted):
        needs = " and ".join(f"--{file}" for file in wanted) or "none"
        parser.error(f"{arguments.name} takes files of its own: {needs}")
    if wanted and (
        arguments.overrides or arguments.run or arguments.config != parser.get_default("config")
    ):
        parser.error(f"{arguments.name} compares files: it takes no --run, --config or settings")
    return given


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    others = {
        "eval": "one evaluation of a trained run",
        "bench": "measure speed on this machine; ends with JSON",
    }
    summary = others[verb] if verb in others else {**VERBS, **TOOLS}[verb][1]
    parser = argparse.ArgumentParser(prog=f"jepa-wm {verb}", description=summary)
    if verb in TOOLS:
        importlib.import_module(TOOLS[verb][0]).add_arguments(parser)
        parser.add_argument(
            "--json", action="store_true", help="end with the result as one JSON line on stdout"
        )
        return parser
    if verb == "eval":
        parser.add_argument("name", choices=list(EVALS), help="which evaluation")
        for name, files in FILES.items():
            for file, meaning in files.items():
                parser.add_argument(
                    f"--{file}", type=Path, metavar="FILE", help=f"{name} only: {meaning}"
                )
    if verb == "bench":
        parser.set_defaults(run=None)
        parser.add_argument(
            "--json", action="store_true", default=True, help="the default, and all there is"
        )
        parser.add_argument("name", choices=list(BENCHES), help="what to measure")
        parser.add_argument(
            "--quick", action="store_true", help="tiny sizes: whether it runs, not how fast"
        )
    else:
        parser.add_argument(
            "--run", metavar="DIR", help="the run folder; default: runs/<name of the config>"
        )
        parser.add_argument(
            "--json", action="store_true", help="end with the result as one JSON line on stdout"
        )
    if verb in SHARES:
        parser.add_argument(
            "--share", type=_share, metavar="K/N", help="only part K (from 0) of N, for others"
        )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="settings that differ from the file",
    )
    parser.add_argument(
        "--config", default=CONFIG, metavar="NAME_OR_PATH", help=f"default: {CONFIG}"
    )
    return parser


def _share(text: str) -> tuple[int, int]:
    share, _, shares = text.partition("/")
    if not (share.isdigit() and shares.isdigit() and int(share) < int(shares)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with 0 <= K < N")
    return int(share), int(shares)
