"""The words are those of docs/glossary.md: a retired one is refused wherever a reader meets it.

The log is history and keeps its words."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RETIRED = {  # in text: what is refused (a regular expression, case ignored) -> what to write
    r"\beyes?\b": "the encoder, FrozenEncoder",
    r"\blearn(s|ed|ing|t)? to see\b": "pretraining",
    r"\bwhat actions do\b": "dynamics",
    r"\bglances?\b": "static_frames",
    r"\blasting (numbers?|part|dim)|\bmoving (numbers?|part|dim)": "static, dynamic",
    r"\bsteps[ -]to[ -]go\b|\bStepsToGo\b": "temporal distance",
    r"\brivals?\b": "negatives",
    r"\bdoubt\b": "uncertainty",
    r"\bmost_targets\b": "max_targets",
    r"\bPathReader\b|\bpath (term|loss|weight|reader)\b": "inverse dynamics",
    r"\bOutlook\b": "MixturePrediction",
    r"\bStepper\b": "FastRollout",
    r"\bFootage\b|\bStills\b": "VideoSource, ImageSequence",
    r"\bDealer\b": "MixtureSampler",
    r"\bSampleOrder\b": "ShuffledOrder",
    r"\bfar frames?\b": "distant frames",
    r"\blearned metric\b|\bmetric head\b": "temporal distance",
    r"\b(slips?|spots?)\b": "process_noise, reward_region",
    r"\bTermOf\b|\bscenes?\b": "CostTerm, PlanningContext",
    r"\btold_by_(first|all)\b": "broadcast, all_gather_object",
    r"\bwhole_batch\b|\bbatch_mean\b": "all_gather, all_mean",
    r"\bamorti[sz]ed\b": "policy",
    r"\blatched\b": "success_any",
    r"\bfloors\b|\brandom_encoder_floor\b": "baselines",
    r"\bceilings?\b": "oracle",
    r"\bblind to walls?\b|\bwall[- ]blind\b": "straight line",
    r"\bwanderers?\b": "ExplorationPolicy",
    r"\bcollapse meters?\b|\bmeters\b": "collapse metrics",
    r"\bverbs?\b": "command, stage",
    r"\bthe (whole )?story\b": "pipeline",
    r"\bRunFolder\b": "Run",
    r"\bbottlenecks?\b": "latent",
    # Keys of the config as they were.
    r"\b(observe|freeze)\.[a-z]\w+": "data, features",
    r"\bpredict\.(targets|path|contrast|episode|spread|masks|far|ema|width|depth)\b": "jepa",
    r"\b(act|plan)\.(episodes|budget|radius|rounds|objective|compare|horizon)\b": "evaluation",
    r"\bjepa\.(path|contrast|episode|spread|far|apart|summary|targets)\b": "see the reference",
    r"\bplanner\.(objective|rounds|elites|propose|margin|draws|steps|horizon)\b": "planner.cost",
    r"\bplanner\.(hold|execute|reward|discount|limits|effort|smoothness)\b": "planner.mpc",
    r"\bdynamics\.(bottleneck|metric|members|outcomes|window|heads)\b": "latent, distance",
    r"\blatent\.(moving|lasting|layout|path|straight)\b": "see the reference",
    r"\btrain\.(summary|metric)\.": "train.latent, train.distance",
    r"\bencoder\.(patch|heads)\b": "patch_size, num_heads",
}
NAMES = {  # of classes, functions and variables, whole
    "Eye", "StepsToGo", "PathReader", "Outlook", "Stepper", "Footage", "Stills", "Ahead", "Dealer",
    "SampleOrder", "Judge", "Scene", "TermOf", "RunFolder", "Wanderer", "Summary", "glances",
    "told_by_first", "told_by_all", "whole_batch", "batch_mean", "look_at_all", "latched",
    "rivals", "doubt", "most_targets", "lasting", "moving",
}  # fmt: skip
PRONOUNS = {"told", "some", "wanted", "said", "found", "others"}  # as names of variables
SOURCES = sorted(
    file for room in ("jepa_wm", "evals", "launch", "docs") for file in (ROOT / room).rglob("*.py")
) + [ROOT / "hubconf.py", ROOT / "setup.py"]  # fmt: skip
TEXTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "mkdocs.yml")]
TEXTS += [file for file in sorted((ROOT / "docs").rglob("*.md")) if file.name != "log.md"]
TEXTS += sorted((ROOT / "configs").glob("*.yaml"))


def said_in(source: str) -> list[tuple[int, str]]:
    """(line, text) of every comment and string of a source; a call such as torch.eye is none."""
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)}
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [(token.start[0], token.string) for token in tokens if token.type in kinds]


def retired(text: str) -> list[str]:
    """What is refused in a text, each with what to write."""
    flat = re.sub(r"\s+", " ", text)  # a line may break within an expression
    return [
        f"{match.group()!r}: write {instead}"
        for pattern, instead in RETIRED.items()
        for match in re.finditer(pattern, flat, re.IGNORECASE)
    ]


def names_in(source: str) -> set[str]:
    """The names that a source gives: to classes, functions, arguments and variables."""
    given: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            given.add(node.name)
        elif isinstance(node, ast.arg):
            given.add(node.arg)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            given.add(node.id)
    return given


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_source_speaks_the_words_of_the_field(file):
    source = file.read_text(encoding="utf-8")
    wrong = [f"{line}: {bad}" for line, text in said_in(source) for bad in retired(text)]
    wrong += [f"the name {name}" for name in names_in(source) & (NAMES | PRONOUNS)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_page_or_config_speaks_the_words_of_the_field(file):
    wrong = retired(file.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


def test_a_retired_word_is_noticed_and_an_ordinary_one_is_not():
    assert (
        retired("the Eye\n  is frozen")
        and retired("what actions\ndo")
        and retired("act.episodes=3")
    )
    assert not retired(
        "the identity, a doorway, the eyepiece; floor(x), planner.solver.num_samples"
    )
    assert said_in("x = torch.eye(3)  # unit\n") == [(1, "# unit")]
    assert names_in("def moving(said): told = 1") == {"moving", "said", "told"}
