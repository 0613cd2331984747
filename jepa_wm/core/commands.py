"""What the command line offers, by name: stages, evaluations, benches and tools with the module
that is loaded for each; and how its arguments are read."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from jepa_wm import __version__
from jepa_wm.core.errors import UserError, nearest
from jepa_wm.core.stage import ALSO, EVAL, OWN, STAGES, in_shards

CONFIG = "two_rooms"  # what --config is where it is not given
DEMO = "the whole pipeline in minutes: every stage in its order, then the report"
# bench -> its module (`run(threads=..., quick=...) -> dict`); they need no run folder
BENCHES = {name: f"jepa_wm.evals.bench.{name}" for name in ("plan", "data", "train")}
# evaluations of files instead of a run -> the files, which `run(weights=Path, ...)` of the module
# is given by these names
FILES = {
    "parity": {
        "weights": "a released V-JEPA 2 pretraining file",
        "ac": "one with the action-conditioned predictor",
        "io": "safetensors with inputs and the outputs of the public code",
    }
}
# tool -> its module (`add_arguments(parser)`, `run(arguments) -> dict`, `lines(result)`) and its
# line in the help
TOOLS = {
    "convert": (
        "jepa_wm.data.convert",
        "trajectories of another format as the HDF5 that data.path takes",
    ),
    "pack": ("jepa_wm.data.pack", "videos and images as tar shards with an index, for large sets"),
    "inspect": (
        "jepa_wm.data.inspect",
        "what is in a set of trajectories or videos, and what is broken there",
    ),
    "compare": (
        "jepa_wm.evals.compare",
        "success or return over training seeds and tasks, and what methods differ by",
    ),
    "launch": ("jepa_wm.launch.command", "a command as a job: here, under torchrun or on SLURM"),
}


def stages() -> dict[str, str]:
    """{stage of the pipeline: its line in the help}, ours in their order, then those of others."""
    theirs = [name for name in STAGES if name not in OWN]
    lines = {name: own.summary for name, own in OWN.items()}
    for name in theirs:
        try:
            lines[name] = STAGES.get(name).summary
        except UserError as error:  # a broken package of others hinders nothing else
            lines[name] = str(error)
    return {name: line for name, line in lines.items() if not name.startswith(EVAL)}


def evaluations() -> list[str]:
    """The names that `eval` takes."""
    measured = [name.removeprefix(EVAL) for name in STAGES if name.startswith(EVAL)]
    return sorted([*measured, *ALSO, *FILES])


def commands() -> dict[str, str]:
    """{command: its line in the help}."""
    return {
        "demo": DEMO,
        **stages(),
        **{name: line for name, (_, line) in TOOLS.items()},
        "eval": f"one evaluation of a trained run: {', '.join(evaluations())}",
        "bench": f"measure the speed of a part here: {', '.join(BENCHES)}",
    }


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments, with `stage` where a stage is meant; exits with 2 on misuse."""
    front = argparse.ArgumentParser(
        prog="jepa-wm", description="Encode, imagine, plan: a world model without a decoder."
    )
    front.add_argument("--version", action="version", version=f"jepa-wm {__version__}")
    offered = front.add_subparsers(dest="command", required=True, metavar="COMMAND")
    known = commands()
    for command, summary in known.items():
        offered.add_parser(command, help=summary, add_help=False)
    if argv and argv[0] not in known and (close := nearest(argv[0], known)):
        front.error(f"there is no command {argv[0]!r}; {close}jepa-wm --help lists all")
    # A command's own arguments are parsed apart: only so may options and overrides come in any
    # order.
    command = front.parse_known_args(argv[:1])[0].command
    parser = command_parser(command)
    arguments = parser.parse_intermixed_args(argv[1:])
    arguments.command = command
    arguments.files = _files(parser, arguments) if command == "eval" else {}
    arguments.stage = None
    if command in stages():
        arguments.stage = command
    elif command == "eval" and not arguments.files:
        arguments.stage = ALSO.get(arguments.name, EVAL + arguments.name)
        if arguments.offsets is not None:
            if arguments.name != "planning":
                parser.error(f"{arguments.name} takes no --offsets: planning does")
            arguments.stage = f"{EVAL}offsets"
            arguments.overrides.append(f"evaluation.offsets=[{arguments.offsets}]")
    arguments.runless = arguments.stage is None and command not in ("demo", "launch")
    return arguments


def command_parser(command: str) -> argparse.ArgumentParser:
    """What the arguments of one command are read by."""
    parser = argparse.ArgumentParser(
        prog=f"jepa-wm {command}", description=commands()[command].partition(":")[0]
    )
    # A bench is for programs and has no run; all else ends for reading, unless JSON is asked for.
    if command == "bench":
        parser.set_defaults(run=None, json=True)
        parser.add_argument("--json", action="store_true", help="the default, and all there is")
        parser.add_argument("name", choices=list(BENCHES), help="what to measure")
        parser.add_argument(
            "--quick", action="store_true", help="tiny sizes: whether it runs, not how fast"
        )
    else:
        parser.add_argument(
            "--json", action="store_true", help="end with the result as one JSON line on stdout"
        )
    # A tool's arguments are its own; settings and a config are those of all other commands.
    if command in TOOLS:
        importlib.import_module(TOOLS[command][0]).add_arguments(parser)
        return parser
    if command == "eval":
        parser.add_argument(
            "name", type=_evaluation, choices=evaluations(), help="which evaluation"
        )
        parser.add_argument(
            "--offsets", metavar="K,K,...",
            help="planning only: success against so many environment steps from start to goal",
        )  # fmt: skip
        for name, files in FILES.items():
            for file, meaning in files.items():
                parser.add_argument(
                    f"--{file}", type=Path, metavar="FILE", help=f"{name} only: {meaning}"
                )
    if command != "bench":
        parser.add_argument(
            "--run", metavar="DIR", help="the run folder; default: runs/<name of the config>"
        )
    if in_shards(command):
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


def _files(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> dict[str, Path]:
    """The files an evaluation compares, empty for one that measures a run; exits with 2 where the
    two are mixed."""
    asked = FILES.get(arguments.name, {})
    given = {
        file: getattr(arguments, file)
        for files in FILES.values()
        for file in files
        if getattr(arguments, file)
    }
    if set(given) != set(asked):
        needs = " and ".join(f"--{file}" for file in asked) or "none"
        parser.error(f"{arguments.name} takes files of its own: {needs}")
    if asked and (
        arguments.overrides or arguments.run or arguments.config != parser.get_default("config")
    ):
        parser.error(f"{arguments.name} compares files: it takes no --run, --config or settings")
    return given


def _evaluation(text: str) -> str:
    if text not in evaluations() and (close := nearest(text, evaluations())):
        raise argparse.ArgumentTypeError(f"no evaluation is named {text!r}; {close}see --help")
    return text


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not (shard.isdigit() and shards.isdigit() and int(shard) < int(shards)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N with 0 <= K < N")
    return int(shard), int(shards)
