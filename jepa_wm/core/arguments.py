"""The arguments of the command line: which command, and what it is given."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from jepa_wm import __version__
from jepa_wm.core.commands import BENCHES, COMMANDS, EVALS, FILES, SHARDS, TOOLS

CONFIG = "two_rooms"  # what --config is where it is not given


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, with `target` the dotted name of the function to call; exits with 2 on
    misuse."""
    front = argparse.ArgumentParser(
        prog="jepa-wm", description="See, imagine, plan: a world model without a decoder."
    )
    front.add_argument("--version", action="version", version=f"jepa-wm {__version__}")
    commands = front.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command, (_, summary) in {**COMMANDS, **TOOLS}.items():
        commands.add_parser(command, help=summary, add_help=False)
    commands.add_parser(
        "eval", help=f"one evaluation of a trained run: {', '.join(EVALS)}", add_help=False
    )
    commands.add_parser(
        "bench", help=f"measure the speed of a part here: {', '.join(BENCHES)}", add_help=False
    )
    # A command's own arguments are parsed apart: only so may options and overrides come in any order.
    command = front.parse_known_args(argv[:1])[0].command
    parser = _command_parser(command)
    arguments = parser.parse_intermixed_args(argv[1:])
    arguments.command = command
    named = {"eval": EVALS, "bench": BENCHES}
    arguments.target = (
        named[command][arguments.name] if command in named else {**COMMANDS, **TOOLS}[command][0]
    )
    arguments.files = _files(parser, arguments) if command == "eval" else {}
    arguments.runless = (
        command in (*TOOLS, "bench") and command != "launch" or bool(arguments.files)
    )
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


def _command_parser(command: str) -> argparse.ArgumentParser:
    others = {
        "eval": "one evaluation of a trained run",
        "bench": "measure speed on this machine; ends with JSON",
    }
    summary = others[command] if command in others else {**COMMANDS, **TOOLS}[command][1]
    parser = argparse.ArgumentParser(prog=f"jepa-wm {command}", description=summary)
    if command in TOOLS:
        importlib.import_module(TOOLS[command][0]).add_arguments(parser)
        parser.add_argument(
            "--json", action="store_true", help="end with the result as one JSON line on stdout"
        )
        return parser
    if command == "eval":
        parser.add_argument("name", choices=list(EVALS), help="which evaluation")
        for name, files in FILES.items():
            for file, meaning in files.items():
                parser.add_argument(
                    f"--{file}", type=Path, metavar="FILE", help=f"{name} only: {meaning}"
                )
    if command == "bench":
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
    if command in SHARDS:
        parser.add_argument(
            "--shard", type=_shard, metavar="K/N", help="only part K (from 0) of N, for others"
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


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with 0 <= K < N")
    return int(shard), int(shards)
