"""Configs: what is read, what is merged, and that every mistake is named with place, key and
remedy."""

from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, field_validator

from jepa_wm.config import load_config
from jepa_wm.core.config import config_diff, digest, load_yaml_config, pick, save_config
from jepa_wm.core.errors import UserError


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EncoderSettings(Section):
    width: int = 64
    rope: Literal["rotary", "vjepa2"] = "rotary"
    heads: int | None = None

    @field_validator("width")
    @classmethod
    def _even(cls, width: int) -> int:
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        return width


class Train(Section):
    lr: float = 1e-3
    steps: int = 10
    amp: bool = False
    betas: tuple[float, float] = (0.9, 0.95)


class Toy(Section):
    seed: int = 0
    name: str = "toy"
    encoder: EncoderSettings = EncoderSettings()
    train: Train = Train()


def test_what_does_not_fit_together_is_blamed_on_where_it_was_written(tmp_path):
    file = write(tmp_path, "base: debug\ndata:\n  image_size: 60\n")
    with pytest.raises(UserError, match=f"^{file}:3: data.image_size 60 is not a multiple of"):
        load_config(file)
    with pytest.raises(UserError, match="^override 'encoder.patch_size=7': data.image_size"):
        load_config("debug", ["encoder.patch_size=7", "seed=1"])


def write(folder: Path, text: str, name: str = "toy.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_yaml_config(path, overrides, Toy)
    return str(caught.value)


def test_numbers_without_a_dot_are_floats(tmp_path):
    toy = load_yaml_config(
        write(tmp_path, "train: {lr: 1e-4, betas: [5e-1, 1]}\nname: yes\n"), [], Toy
    )
    assert toy.train.lr == 1e-4 and toy.train.betas == (0.5, 1.0) and toy.name == "yes"


def test_base_is_merged_beneath_and_overrides_on_top(tmp_path):
    write(tmp_path, "seed: 1\ntrain: {lr: 0.5, steps: 7}\n", "lower.yaml")
    path = write(tmp_path, "base: lower\ntrain: {steps: 8}\n")
    toy = load_yaml_config(path, ["encoder.width=32", "train.betas=[0.1, 0.2]"], Toy)
    assert (toy.seed, toy.train.lr, toy.train.steps, toy.encoder.width) == (1, 0.5, 8, 32)
    assert toy.train.betas == (0.1, 0.2)


def test_a_problem_in_the_base_names_the_base(tmp_path):
    lower = write(tmp_path, "train:\n  stepz: 7\n", "lower.yaml")
    assert f"{lower}:2: unknown key 'train.stepz'" in refusal(
        write(tmp_path, "base: lower.yaml\n")
    )


def test_bases_in_a_circle_are_refused(tmp_path):
    write(tmp_path, "base: toy.yaml\n", "lower.yaml")
    assert "circle" in refusal(write(tmp_path, "base: lower.yaml\n"))


def test_unknown_key_names_file_line_key_and_nearest(tmp_path):
    path = write(tmp_path, "seed: 1\nencoder:\n  width: 4\n  widht: 5\n")
    assert (
        refusal(path)
        == f"{path}:4: unknown key 'encoder.widht'; nearest valid key: 'encoder.width'"
    )


def test_a_key_in_the_wrong_section_is_found_in_the_right_one(tmp_path):
    assert "nearest valid key: 'train.betas'" in refusal(
        write(tmp_path, "encoder: {betas: [1, 2]}\n")
    )


def test_an_unlike_key_lists_the_valid_ones(tmp_path):
    assert "valid keys here: heads, rope, width" in refusal(write(tmp_path, "encoder: {zzz: 1}\n"))


def test_wrong_type_names_line_key_expectation_and_value(tmp_path):
    path = write(tmp_path, "train:\n  steps: many\n")
    assert refusal(path) == f"{path}:2: 'train.steps' must be a valid integer, got 'many'"


@pytest.mark.parametrize(
    "line",
    [
        "train.steps=3.0",
        "train.steps=true",
        "train.amp=1",
        "train.amp=yes",
        "train.lr='0.1'",
        "name=3",
    ],
)
def test_types_are_not_bent(tmp_path, line):
    assert f"override '{line}'" in refusal(write(tmp_path, ""), line)


def test_all_problems_come_in_one_message(tmp_path):
    path = write(tmp_path, "seed: x\nencoder: {rope: 3, width: 3, heads: []}\ntrain: {lr: .inf}\n")
    lines = refusal(path, "train.step=3", "nonsense").splitlines()
    assert len(lines) == 7
    for part in (
        "'seed' must be a valid integer, got 'x'",
        "'rotary' or 'vjepa2'",
        "width must be even",
        "'encoder.heads'",
    ):
        assert any(part in line for line in lines), part
    assert any(
        line.startswith("override 'train.step=3': unknown key") and "'train.steps'" in line
        for line in lines
    )
    assert any(
        "override 'nonsense': an override has the form section.key=value" in line for line in lines
    )


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan", "1e999"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, value):
    assert "'train.lr' must be a finite number" in refusal(
        write(tmp_path, f"train: {{lr: {value}}}\n")
    )
    assert "'train.lr' must be a finite number" in refusal(
        write(tmp_path, ""), f"train.lr={value}"
    )


def test_files_that_are_no_config(tmp_path):
    assert f"{tmp_path}/toy.yaml:2: is not YAML" in refusal(
        write(tmp_path, "seed: 1\nencoder: ]\nname: x\n")
    )
    assert "is given twice" in refusal(write(tmp_path, "seed: 1\nseed: 2\n"))
    assert "must be a mapping" in refusal(write(tmp_path, "- 1\n"))
    assert "there is no file" in refusal(tmp_path / "absent.yaml")
    assert "is not YAML" in refusal(write(tmp_path, "name: !!python/object/apply:os.getcwd []\n"))
    assert "override 'seed=[': is not YAML" in refusal(write(tmp_path, ""), "seed=[")


def test_an_unknown_name_gets_the_nearest_shipped_one():
    with pytest.raises(UserError, match="no config is named 'two_romms'; nearest: two_rooms"):
        load_config("two_romms")


names = st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12
)


@settings(max_examples=60, deadline=None)
@given(
    name=names
    | st.sampled_from(
        ["1e-4", "yes", "null", "010", "2020-01-01", "~", "<<", "0x1f", "true", "1_0", "=", ""]
    ),
    lr=st.floats(allow_nan=False, allow_infinity=False),
)
def test_saving_and_loading_gives_an_equal_config(tmp_path_factory, name, lr):
    toy = Toy(name=name, train=Train(lr=lr))
    path = tmp_path_factory.getbasetemp() / "saved.yaml"
    save_config(toy, path)
    assert load_yaml_config(path, [], Toy) == toy


def test_diff_and_digest_see_the_same_changes():
    a, b = Toy(), Toy(train=Train(steps=11))
    assert config_diff(a, b) == ["train.steps: 10 -> 11"]
    assert config_diff({"x": 1}, {"x": 1, "y": {"z": 2}}) == ["y.z: (absent) -> 2"]
    assert digest(a) != digest(b) and digest(pick(a, ["train"])) != digest(pick(b, ["train"]))
    keys = ["seed", "encoder.width"]
    assert digest(pick(a, keys)) == digest(pick(b, keys[::-1]))
    assert digest(pick(a, ["seed"])) == "bd0488843468e63c", (
        "stored digests of all run folders would become void"
    )


@pytest.mark.parametrize("first", [True, False])
def test_settings_of_an_entry_hold_whether_they_stand_before_its_name_or_after(first):
    chosen = ["planner.solver.name=mppi", "latent.name=keypoints"]
    its_own = ["planner.solver.num_samples=7", "latent.dynamic_points=3"]
    config = load_config("two_rooms", [*chosen, *its_own] if first else [*its_own, *chosen])
    assert config.planner.solver.num_samples == 7 and config.latent.dynamic_points == 3


def test_a_key_of_another_entry_is_named_as_that():
    """Its nearest valid key would be itself."""
    for key, name in (("latent.straightening=1", "latent"), ("dynamics.num_heads=1", "dynamics")):
        with pytest.raises(UserError, match=f"it goes with another {name}.name than the one"):
            load_config("two_rooms", [key])
        assert load_config("two_rooms_actions", [key])


def test_of_two_names_the_later_holds():
    config = load_config("two_rooms", ["latent.name=tokens", "latent.name=keypoints"])
    assert config.latent.name == "keypoints"
    config = load_config("two_rooms", ["latent={name: tokens}", "latent.name=keypoints"])
    assert config.latent.name == "keypoints"
