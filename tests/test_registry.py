"""Open tables: entries by name, also of others, and config sections that a name chooses."""

import importlib.metadata
import sys
from types import ModuleType
from typing import Annotated, Literal

import pytest
from pydantic import Field

from jepa_wm.core.config import load_yaml_config, save_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.registry import EntryName, Registry, chosen
from jepa_wm.core.settings import Section
from jepa_wm.models.head_settings import POLICIES

GROUP = ".".join(("jepa_wm", "test_solvers"))  # of entry points, no module

SOLVERS: Registry[type[Section]] = Registry(
    "test_solvers", "solver", {"late": "a_module_of_tests"}
)


@SOLVERS.register("cem")
class CEM(Section):
    name: Literal["cem"] = "cem"
    num_samples: int = Field(64, ge=1)
    scale: tuple[float, float] = (0.5, 1.0)


@SOLVERS.register("mppi")
class MPPI(Section):
    name: Literal["mppi"] = "mppi"
    temperature: float = 0.5


class Planner(Section):
    solver: chosen(SOLVERS, "cem") = CEM()
    horizon: int = 6


class Toy(Section):
    planner: Planner = Planner()
    played: tuple[Annotated[str, EntryName(SOLVERS)], ...] = ()
    first: Annotated[str, EntryName(SOLVERS)] | None = None


def load(tmp_path, text, *overrides):
    (tmp_path / "toy.yaml").write_text(text)
    return load_yaml_config(tmp_path / "toy.yaml", overrides, Toy)


def test_a_name_chooses_what_checks_its_section(tmp_path):
    assert load(tmp_path, "").planner.solver == CEM()
    assert load(tmp_path, "planner: {solver: {num_samples: 3}}").planner.solver == CEM(
        num_samples=3
    )
    chose = load(tmp_path, "planner: {solver: {name: mppi, temperature: 2}}")
    assert chose.planner.solver == MPPI(temperature=2.0)
    save_config(chose, tmp_path / "again.yaml")
    assert load_yaml_config(tmp_path / "again.yaml", [], Toy) == chose


def test_another_name_replaces_the_settings_below(tmp_path):
    below = "planner: {horizon: 3, solver: {name: cem, num_samples: 9}}"
    assert load(tmp_path, below, "planner.solver.num_samples=5").planner.solver == CEM(
        num_samples=5
    )
    changed = load(tmp_path, below, "planner.solver={name: mppi}")
    assert changed.planner.solver == MPPI() and changed.planner.horizon == 3
    assert load(tmp_path, below, "planner.solver.name=mppi").planner.solver == MPPI()
    assert load(tmp_path, below, "planner.solver.name=cem").planner.solver == CEM(num_samples=9)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "planner: {solver: {name: mmpi}}",
            "toy.yaml:1: planner.solver: no solver is named 'mmpi'; nearest: mppi",
        ),
        (
            "planner: {solver: {num_sample: 3}}",
            "unknown key 'planner.solver.num_sample'; nearest valid key: "
            "'planner.solver.num_samples'",
        ),
        (
            "planner: {solver: {name: mppi, tempreture: 3}}",
            "nearest valid key: 'planner.solver.temperature'",
        ),
        ("planner: {solver: {name: mppi, x: 3}}", "valid keys here: name, temperature"),
        (
            "planner: {solver: {num_samples: 0}}",
            "'planner.solver.num_samples' must be greater than or equal to 1",
        ),
        (
            "planner: {solver: {num_samples: '5'}}",
            "'planner.solver.num_samples' must be a valid integer, got '5'",
        ),
        ("planner: {solver: {scale: [1]}}", "planner.solver.scale"),
        (
            "planner: {solver: {name: }}",
            "'planner.solver' must be a mapping with a name, got {'name': None}",
        ),
        ("planner: {solver: cem}", "'planner.solver' must be a mapping with a name, got 'cem'"),
    ],
)
def test_a_mistake_inside_is_named_with_its_place(tmp_path, text, said):
    with pytest.raises(UserError) as error:
        load(tmp_path, text)
    assert said in str(error.value)


def test_a_value_that_names_an_entry_is_checked_and_imports_nothing(tmp_path):
    names = load(tmp_path, "played: [late, cem]\nfirst: mppi")
    assert names.played == ("late", "cem") and names.first == "mppi"
    assert "a_module_of_tests" not in sys.modules and load(tmp_path, "").first is None
    message = "no solver is named 'mpi'; nearest: mppi; there are cem, late, mppi"
    for text, place in (("played: [cem, mpi]", "played"), ("first: mpi", "first")):
        with pytest.raises(UserError, match=rf"(?s)toy.yaml:1: {place}.*{message}"):
            load(tmp_path, text)
    with pytest.raises(UserError, match="'first' must be a valid string"):
        load(tmp_path, "first: 3")


def test_names_import_nothing_and_what_is_asked_for_is_imported(monkeypatch):
    assert SOLVERS.names() == ["cem", "late", "mppi"] and "late" in SOLVERS and "x" not in SOLVERS
    module = ModuleType("a_module_of_tests")
    monkeypatch.setitem(sys.modules, "a_module_of_tests", module)
    with pytest.raises(
        UserError, match="a_module_of_tests, which is to register the solver 'late', does not"
    ):
        SOLVERS.get("late")
    with pytest.raises(
        UserError, match="no solver is named 'cen'; nearest: cem; there are cem, late, mppi"
    ):
        SOLVERS.get("cen")


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match="a solver named 'cem' is registered already"):
        SOLVERS.register("cem")(MPPI)
    assert SOLVERS.register("cem")(CEM) is CEM


@pytest.mark.parametrize("name", ["search", "oracle", "shortest_way", "idle", "true_cost"])
def test_a_policy_takes_no_other_row_of_results(name):
    with pytest.raises(ValueError, match=f"cannot be named '{name}': in results .* another row"):
        POLICIES.register(name)


def test_others_add_theirs_by_entry_points(monkeypatch):
    point = importlib.metadata.EntryPoint("theirs", "their_module", GROUP)
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: [point] if group == GROUP else []
    )

    class Theirs(Section):
        name: Literal["theirs"] = "theirs"

    table: Registry[type[Section]] = Registry("test_solvers", "solver", {})
    monkeypatch.setitem(sys.modules, "their_module", ModuleType("their_module"))
    assert table.names() == ["theirs"]
    table.register("theirs")(Theirs)
    assert table.get("theirs") is Theirs


def test_an_entry_point_may_name_the_class_and_a_broken_package_is_named(monkeypatch):
    points = [
        importlib.metadata.EntryPoint("theirs", "their_module:Theirs", GROUP),
        importlib.metadata.EntryPoint("broken", "their_missing_module", GROUP),
    ]
    monkeypatch.setattr(
        importlib.metadata, "entry_points", lambda group: points if group == GROUP else []
    )

    class Theirs(Section):
        name: Literal["theirs"] = "theirs"

    table: Registry[type[Section]] = Registry("test_solvers", "solver", {})
    module = ModuleType("their_module")
    monkeypatch.setitem(sys.modules, "their_module", module)
    with pytest.raises(UserError, match="their_module, which is to register"):
        table.get("theirs")
    with pytest.raises(UserError, match="the solver 'broken', cannot be imported .*repair or"):
        table.get("broken")
