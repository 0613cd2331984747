"""Success against the steps from start to goal: a row for each, kept by itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from jepa_wm.config import load_config
from jepa_wm.core.commands import parse
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.report.artifacts import RunArtifacts
from jepa_wm.report.offsets import group, outcomes
from jepa_wm.report.page import Bar

SMALL = [
    "train.pretrain.steps=0", "train.pretrain.final_probe_steps=5", "collect.episodes=40",
    "train.latent.steps=20", "train.dynamics.steps=20", "train.distance.steps=20",
    "train.heads={steps: 20, batch: 32, warmup: 2}", "train.heads.sizes.width=16",
    "evaluation.episodes=3", "evaluation.policies=[gcbc]", "planner.mpc.also_evaluate=[]",
    "evaluation.task={name: recorded}",
]  # fmt: skip


def measured(folder, *words):
    with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
        return run_stage("eval_offsets", run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with heads."""
    folder = tmp_path_factory.mktemp("offsets") / "run"
    with Run.open(folder, load_config("debug", SMALL)) as run:
        for name in ("collect", "features", "dynamics", "heads"):
            run_stage(name, run)
    return folder


def test_a_row_for_each_offset_with_twice_as_many_steps(folder):
    result = measured(folder, "evaluation.offsets=[8,12]")
    assert [(row["offset"], row["budget"]) for row in result["rows"]] == [(8, 16), (12, 24)]
    for row in result["rows"]:
        assert row["success"]["budget"] == row["budget"] and row["success"]["episodes"] == 3
        assert row["policies"]["gcbc"]["over_search"]["low"] <= 0
        assert {"random", "straight_line"} <= row["baselines"].keys() and row["oracle"]
    tasks = [json.loads(file.read_text()) for file in folder.glob("eval_offsets/*/tasks.json")]
    assert sorted(task["offset"] for task in tasks) == [8, 12]
    picture = folder / "eval_offsets" / "success.png"
    assert result["picture"] == str(picture) and picture.read_bytes()[:4] == b"\x89PNG"
    assert not (folder / "plan").exists()

    # One more row: those that are there are not played again; other settings have other rows.
    more = measured(folder, "evaluation.offsets=[12,10]")["rows"]
    assert more[0] == result["rows"][1] and more[1]["offset"] == 10
    assert len(list(folder.glob("eval_offsets/*/tasks.json"))) == 3
    other = measured(folder, "evaluation.offsets=[12]", "planner.solver.iterations=1")
    assert other["rows"][0]["success"]["episodes"] == 3
    assert len(list(folder.glob("eval_offsets/*/tasks.json"))) == 4

    # The report has a curve for each set of settings, whichever commands the rows came by.
    with Run.open(folder, load_config("debug", SMALL)) as run:
        artifacts, made = RunArtifacts.read(run), run_stage("report", run)
    curves = [[block for block in section.blocks] for section in group(artifacts).sections]
    assert {"offsets", "offsets_2"} <= set(made["sections"]) and len(curves) == 2
    heads = [[row.cells[0] for row in blocks[1].rows if row.style == "head"] for blocks in curves]
    ahead = [f"{steps} steps from start to goal" for steps in (8, 10, 12)]
    assert sorted(heads, key=len) == [ahead[2:], ahead]
    page = Path(made["report"]).read_text(encoding="utf-8")
    assert "environment steps from start to goal" in page, "the chart is part of the page"
    assert not any(name.startswith("figures_eval") for name in made["sections"])


def test_curves_and_table_say_what_was_measured():
    def reached(rate):
        return {"success_final": rate, "low": rate - 0.1, "high": rate + 0.1, "success_any": 1.0}

    over = {"difference": 0.25, "low": 0.05, "high": 0.4}
    rows = [
        {
            "offset": offset, "curve": "a", "success": reached(rate),
            "baselines": {"random": reached(0.2), "unmeasured": None},
            "policies": {"gcbc": reached(0.5) | {"over_search": over}},
            "oracle": None if offset == 50 else reached(0.9),
        }
        for offset, rate in ((50, 0.25), (25, 0.75))
    ]  # fmt: skip
    lines = outcomes(rows)
    assert list(lines) == ["search", "gcbc", "random", "oracle"]
    assert [one["success_final"] for one in lines["search"]] == [0.25, 0.75]
    assert lines["oracle"][0] is None
    (section,) = group(SimpleNamespace(offsets=rows)).sections
    chart, table, *beside = section.blocks
    first = table.rows[1]
    assert first.style == "ours" and first.cells[1:3] == ["75.0 %", "65.0 – 85.0 %"], "25 first"
    assert first.cells[3] == Bar(0.65, 0.75, 0.85)
    names = [row.cells[0] for row in table.rows]
    assert names.count("policy gcbc, no search") == 2 and names.count("random actions") == 2
    heads = [f"{steps} steps from start to goal" for steps in (25, 50)]
    assert [block.text for block in beside[::2]] == heads
    assert beside[1].rows[0].cells[:3] == ["gcbc", "+25.0 %", "+5.0 to +40.0 %"]
    assert not group(SimpleNamespace(offsets=[])).sections
    assert "25" in chart.figures[0].picture.svg("x")


def test_offsets_are_no_setting_of_plan(folder):
    with Run.open(folder, load_config("debug", [*SMALL, "evaluation.offsets=[7]"])) as run:
        assert "evaluation.offsets" not in run.recorded("plan")
        assert "evaluation.episodes" in run.recorded("plan")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["evaluation.task=null"],
            "task two_rooms has no offset.*evaluation.task={name: recorded}",
        ),
        (["planner.cost.objective=reward", "evaluation.policies=[]"], "plays toward goal images"),
    ],
)
def test_what_has_no_offset_is_refused(folder, words, message):
    with pytest.raises(UserError, match=message):
        measured(folder, *words)


@pytest.mark.parametrize("offsets", ["[]", "[0]", "[5,5]"])
def test_offsets_that_are_none_are_refused(offsets):
    with pytest.raises(UserError, match="give one or more numbers of steps from 1 on, none twice"):
        load_config("debug", [f"evaluation.offsets={offsets}"])


def test_planning_takes_offsets_on_the_command_line(capsys):
    arguments = parse(["eval", "planning", "--offsets", "25,50", "evaluation.episodes=9"])
    assert arguments.stage == "eval_offsets"
    config = load_config("two_rooms", arguments.overrides)
    assert config.evaluation.offsets == (25, 50) and config.evaluation.episodes == 9
    assert parse(["eval", "planning"]).stage == "plan"
    with pytest.raises(SystemExit):
        parse(["eval", "linear", "--offsets", "25"])
    assert "linear takes no --offsets" in capsys.readouterr().err
