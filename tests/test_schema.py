"""Settings that contradict each other are refused before anything is done, in words that name
them."""

import ast
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from jepa_wm.config import Config, load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.registry import Choice
from jepa_wm.core.settings import OptimiserSettings, Section, learning_rate

ROOT = Path(__file__).resolve().parents[1]
NO_REGULARISER = ["jepa.temporal_contrast=0", "jepa.episode_contrast=0", "jepa.inverse_dynamics=0"]
MASK = "jepa.masks=[{{{}}}]"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["encoder.width=30", "encoder.num_heads=4"],
            "encoder: width 30 must be an even multiple of num_heads 4",
        ),
        (["jepa.width=65"], "jepa: width 65 must be an even multiple of num_heads 1"),
        (["jepa.num_heads=3"], "jepa: width 64 must be an even multiple of num_heads 3"),
        (["dynamics.num_heads=64"], "dynamics: width 64 must be an even multiple of num_heads 64"),
        (["dynamics.width=0"], "dynamics: width 0 must be"),
        (
            ["encoder.tubelet_size=3"],
            "data.num_frames 5 is not a multiple of encoder.tubelet_size 3",
        ),
        (["jepa.masks=[]"], "jepa: masks is empty"),
        (
            [MASK.format("num_blocks: 8"), "jepa.temporal_contrast=1"],
            "need a mask that leaves at least two of 5 time steps whole",
        ),
        (["jepa.temporal_contrast=1"], "of 5 time steps jepa.masks hide every other one"),
        ([MASK.format("spatial_scale: [0.7, 0.2]")], "spatial_scale [0.7, 0.2] is a range"),
        (
            [MASK.format("temporal_scale: [0.5, 1.5]")],
            "temporal_scale [0.5, 1.5] must lie within 0..1",
        ),
        (
            [MASK.format("spatial_scale: [-0.1, 0.5]")],
            "spatial_scale [-0.1, 0.5] must lie within 0..1",
        ),
        ([MASK.format("aspect_ratio: [1.5, 0.75]")], "aspect_ratio [1.5, 0.75] is a range"),
        ([MASK.format("aspect_ratio: [0, 1]")], "aspect_ratio [0.0, 1.0] must be above 0"),
        (
            ["evaluation.task={name: two_rooms, radius: 0}"],
            "'evaluation.task.radius' must be greater than 0",
        ),
        (
            ["dynamics.context_frames=0"],
            "'dynamics.context_frames' must be greater than or equal to 1",
        ),
        (["planner.mpc.execute=5"], "planner.mpc: execute 5 exceeds horizon 4"),
        (
            ["planner.solver={name: icem, elites: 17, num_samples: 32}"],
            "planner.solver: elites 17 with num_samples 32: solver icem shrinks",
        ),
        (
            ["planner.solver.name=gradient", "planner.cost.steps=last", "planner.mpc.truncate=2"],
            "planner: mpc.truncate 2 below mpc.horizon 4 leaves the first actions "
            "without gradient",
        ),
        (
            ["planner.solver.name=adam"],
            "no solver is named 'adam'; nearest: random; there are cem",
        ),
        (
            ["planner.solver={name: gradient, num_samples: 1}"],
            "'planner.solver.num_samples' must be greater than or equal to 2",
        ),
        (["planner.mpc.memory_mb=0"], "'planner.mpc.memory_mb' must be greater than 0"),
        (["planner.solver={name: icem, noise_bta: 1}"], "unknown key 'planner.solver.noise_bta'"),
        (
            ["train.dynamics.frames=4", "dynamics.rollout_context=4"],
            "dynamics.rollout_context 4 leaves nothing to imagine of windows of "
            "train.dynamics.frames 4",
        ),
        (
            ["latent.straightening=1", "train.latent.frames=2"],
            "latent.straightening 1 compares two steps, and train.latent.frames 2 make one",
        ),
        (["planner.solver.elites=33"], "planner.solver: elites 33 exceed num_samples 32"),
    ],
)
def test_a_contradiction_names_the_fields(overrides, said):
    with pytest.raises(UserError) as caught:
        load_config("debug", overrides)
    assert said in str(caught.value)


def test_what_just_fits_is_taken():
    two_halves = MASK.format(
        "spatial_scale: [0, 1], temporal_scale: [0.5, 0.5], aspect_ratio: [0.1, 9]"
    )
    no_rollout = ["train.dynamics.rollout=0", "dynamics.rollout_context=99"]
    fits = [
        "encoder.tubelet_size=5",
        "planner.mpc.execute=4",
        two_halves,
        "dynamics.num_heads=32",
        *no_rollout,
        *NO_REGULARISER,
    ]
    config = load_config("debug", fits)
    assert (
        config.jepa.masks[0].spatial_scale == (0, 1)
        and config.planner.mpc.execute == config.planner.mpc.horizon
    )


def test_learning_rates_rise_hold_and_fall():
    rate = OptimiserSettings(
        steps=100, lr=2.0, warmup=10, first_lr=0.2, schedule="constant", cooldown=20, final_lr=0.1
    )
    rates = [learning_rate(step, rate) for step in range(100)]
    assert rates[0] == pytest.approx(2 * (0.2 + 0.08)) and rates[9] == rates[10] == rates[80] == 2
    assert rates[90] == pytest.approx(2 * (0.1 + 0.9 / 2)) and rates[99] == pytest.approx(
        2 * (0.1 + 0.9 / 20)
    )
    steady = OptimiserSettings(steps=100, lr=2.0, warmup=0, schedule="constant")
    assert {learning_rate(step, steady) for step in range(100)} == {2}
    falling = OptimiserSettings(steps=100, lr=2.0, warmup=0, schedule="linear", final_lr=0)
    assert [learning_rate(step, falling) for step in (0, 50)] == [2, 1]
    with pytest.raises(
        ValidationError, match="cooldown 5 belongs to schedule constant, not to cosine"
    ):
        OptimiserSettings(cooldown=5)


def sections(section):
    """The section and all below it that are there by default."""
    inner = [value for value in vars(section).values() if isinstance(value, Section)]
    return [section, *(each for part in inner for each in sections(part))]


def test_naming_one_key_of_a_section_leaves_the_others_at_their_defaults():
    for section in sections(Config()):
        assert section == type(section)(), type(section).__name__
    assert (
        load_config("two_rooms", ["train.distance={steps: 5}"]).train.distance.frames
        == Config().train.distance.frames
    )


def leaves(section: type[BaseModel], path: tuple[str, ...] = ()) -> dict[str, str]:
    """{dotted key: name} of every setting, those of sections inside included."""
    found = {}
    for name, field in section.model_fields.items():
        inside = list(sections_in(field.annotation))
        for choice in field.metadata:
            if isinstance(choice, Choice):
                inside += map(choice.registry.get, choice.registry)
        found |= {} if inside else {".".join((*path, name)): name}
        for one in inside:
            found |= leaves(one, (*path, name))
    return found


def sections_in(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from sections_in(part)


def test_every_setting_is_read_by_some_code():
    read = set()
    for place in ("jepa_wm", "evals", "launch"):
        for file in (ROOT / place).rglob("*.py"):
            if not file.name.startswith("schema"):
                tree = ast.parse(file.read_text(encoding="utf-8"))
                read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    settings = leaves(Config)
    assert (
        len(settings) > 150
        and "planner.solver.noise_beta" in settings
        and "jepa.masks.min_context_ratio" in settings
    )
    assert not {key for key, name in settings.items() if name not in read}
