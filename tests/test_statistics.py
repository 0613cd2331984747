"""Intervals over tasks and training seeds, paired differences, and the command that reads them off
finished runs."""

import json

import numpy as np
import pytest
from rooms import rooms_task

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.core.provenance import code_commit, git
from jepa_wm.core.yaml_source import write_yaml
from jepa_wm.evals.compare import compare, read_run
from jepa_wm.evals.scores import (
    Losses,
    better_by,
    bootstrap,
    paired_difference,
    rate_over_seeds,
    wilson,
)

# ---------------------------------------------------------------- intervals


def won_by(r, seeds, tasks, *, rate=0.9, task_spread=0.15, seed_spread=0.0):
    """[S, T] bool: tasks differ in how often they are won, trainings in how good they are."""
    chance = (
        rate + task_spread * r.standard_normal(tasks) + seed_spread * r.standard_normal((seeds, 1))
    )
    return r.random((seeds, tasks)) < np.clip(chance, 0, 1)


def test_the_bootstrap_has_the_spread_of_seeds_and_tasks():
    """Of outcomes that are a number of the seed plus one of the task, the variance of the mean is
    known."""
    r = np.random.default_rng(0)
    for seeds, tasks, spread in ((3, 200, 2.0), (8, 200, 0.5), (1, 300, 0.0), (5, 40, 0.0)):
        of_seed, of_task = spread * r.standard_normal((seeds, 1)), r.standard_normal(tasks)
        outcomes = 3 + of_seed + of_task
        low, high = bootstrap(outcomes)
        variance = (of_seed.var(ddof=1) / seeds if seeds > 1 else 0.0) + of_task.var() / tasks
        # A seed counts how often it is drawn, which for few seeds is no normal distribution.
        assert high - low == pytest.approx(
            2 * 1.96 * np.sqrt(variance), rel=0.12 if spread == 2.0 else 0.04
        )
        assert low < outcomes.mean() < high
    assert bootstrap(outcomes) == bootstrap(outcomes.copy())


def test_seeds_on_the_same_tasks_are_not_so_many_episodes():
    """Three trainings that win the very same tasks say of tasks what one says."""
    one = np.arange(100) < 90
    low, high = rate_over_seeds(np.stack([one] * 3))
    pooled, single = wilson(270, 300), wilson(90, 100)
    assert high - low > 1.4 * (pooled[1] - pooled[0])
    assert high - low == pytest.approx(single[1] - single[0], rel=0.1)
    assert rate_over_seeds(one[None]) == single


def test_the_interval_holds_the_truth_as_often_as_it_says_and_pooling_does_not():
    r, covered, pooled = np.random.default_rng(1), 0, 0
    truth = won_by(np.random.default_rng(2), 4000, 4000, seed_spread=0.03).mean()
    for _ in range(120):
        won = won_by(r, 3, 100, seed_spread=0.03)
        low, high = rate_over_seeds(won)
        covered += low <= truth <= high
        low, high = wilson(int(won.sum()), won.size)
        pooled += low <= truth <= high
    assert covered / 120 > 0.92 > pooled / 120, (covered, pooled)


def test_all_won_is_no_certainty():
    everything, lost_one = np.ones((3, 100), bool), np.ones((3, 100), bool)
    assert (
        rate_over_seeds(everything) == wilson(100, 100) and rate_over_seeds(everything)[0] < 0.97
    )
    assert rate_over_seeds(~everything) == wilson(0, 100)
    lost_one[1, 7] = False
    assert (
        rate_over_seeds(lost_one)[0] < rate_over_seeds(everything)[0]
        and rate_over_seeds(lost_one)[1] == 1.0
    )
    for first, second, expected in ((everything, everything, 0.0), (everything, ~everything, 1.0)):
        difference, low, high = paired_difference(first, second)
        assert difference == expected and high - low > 0.03 and low <= difference <= high <= 1


def test_a_paired_difference_is_surer_than_two_intervals_and_is_that_of_the_tasks():
    r = np.random.default_rng(3)
    hard = 10 * r.standard_normal(200)
    gain = 1 + 0.5 * r.standard_normal((1, 200))
    difference, low, high = paired_difference(hard + gain, hard[None])
    assert difference == pytest.approx(gain.mean()) and low < 1 < high
    assert high - low == pytest.approx(2 * 1.96 * gain.std() / np.sqrt(200), rel=0.04)
    apart = bootstrap(hard[None])
    assert high - low < 0.1 * (apart[1] - apart[0])
    back = paired_difference(hard[None], hard + gain)
    assert back == pytest.approx((-difference, -high, -low), abs=0.01)


def test_a_paired_difference_over_seeds_knows_how_seeds_differ():
    hard, seeds = np.random.default_rng(4).standard_normal(100), np.array([[-3.0], [0.0], [3.0]])
    _, low, high = paired_difference(hard + seeds, hard + np.zeros((3, 1)))
    assert low < -2 and high > 2


def test_two_probes_of_the_same_episodes_are_compared_in_pairs():
    """Episodes differ far more than probes do: each alone says nothing of which is better."""
    r = np.random.default_rng(0)
    hard, total = r.uniform(0, 1, 40), np.ones(40)
    first, second = (Losses(hard + more, total, np.arange(40)) for more in (0.0, 0.05))
    better = better_by(first, second)
    assert better["difference"] == pytest.approx(0.05)
    assert better["low"] == pytest.approx(0.05) and better["high"] == pytest.approx(0.05)
    fewer = first.of(np.arange(30))
    assert better_by(fewer, second)["difference"] == pytest.approx(0.05), "of what both have"
    alone = better_by(first.of(np.arange(1)), second)
    assert alone["low"] is alone["high"] is None and alone["n"] == 1, "one episode is no interval"
    with pytest.raises(ValueError, match="nothing can be compared"):
        better_by(first.of(np.arange(3)), second.of(np.arange(5, 9)))


def test_equal_classes_of_videos_are_no_proof_of_equal_probes():
    wrong, total = np.arange(40) < 4, np.ones(40)
    first, second = (Losses(wrong, total, np.arange(40)) for _ in range(2))
    same = better_by(first, second)
    assert same["difference"] == 0 and same["low"] < 0 < same["high"] and same["n"] == 40
    worse = Losses(np.arange(40) < 24, total, np.arange(40))
    better = better_by(first, worse)
    assert better["difference"] == pytest.approx(0.5) and better["low"] > 0.3


def test_outcomes_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="3 and 4 tasks"):
        paired_difference(np.ones((2, 3)), np.ones((2, 4)))
    for bad in (np.ones(3), np.ones((0, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(ValueError, match="expected finite"):
            bootstrap(bad)


# ---------------------------------------------------------------- runs


def finished(
    folder,
    seed,
    won,
    *,
    commit="a" * 40,
    met=0,
    task_seed=0,
    settings=(),
    cut=False,
    told=None,
    budget=10,
):
    """A run folder as `plan` leaves it, with the held-out tasks won that `won` [T] says, all
    training ones lost."""
    task, plan = rooms_task(), folder / "plan"
    tasks = task.sample(len(won), task_seed)
    plan.mkdir(parents=True)
    tasks.save(plan / "tasks.json")
    for split, name, ends in (
        ("heldout", "main", won),
        ("train", "main_training_layouts", np.zeros(len(won), bool)),
    ):
        some = tasks.of(split)
        track = np.repeat(some.start[:, None], budget + 1, 1)
        track[ends, -1] = some.goal[ends]
        (plan / name).mkdir()
        for first in range(0, len(won), 4):
            rows = slice(first, first + 4)
            distance = task.distance(track[rows], some.goal[rows, None])
            np.savez(plan / name / f"{first:05d}.npz", distance=distance)
    if cut:
        (plan / "main" / "00004.npz").unlink()
    rule = {"budget": budget, "radius": 4.5}
    result = {
        "success": {"success_final": float(np.mean(won)) if told is None else told, **rule},
        "success_training_layouts": {"success_final": 0.0, **rule},
        "layouts": {"heldout": {"met": met}},
        "commit": commit,
    }
    (plan / "result.json").write_text(json.dumps(result))
    write_yaml(
        {
            "seed": seed,
            "planner": {"cost": {"objective": "temporal"}, "mpc": {"also_evaluate": []}},
            **dict(settings),
        },
        plan / "config.yaml",
    )
    (folder / "features").mkdir()
    (folder / "features" / "result.json").write_text(json.dumps({"commit": commit}))
    return folder


@pytest.fixture
def six(tmp_path):
    """([three runs], [three of another method]), 20 tasks."""
    r, other = (
        np.random.default_rng(0),
        {"planner": {"cost": {"objective": "l2"}, "mpc": {"also_evaluate": []}}}.items(),
    )
    better = [finished(tmp_path / f"a{s}", s, r.random(20) < 0.8) for s in range(3)]
    return better, [
        finished(tmp_path / f"b{s}", s, r.random(20) < 0.4, settings=other) for s in range(3)
    ]


def test_runs_of_several_seeds_are_told_with_their_difference(six, capsys):
    a, b = six
    assert cli.main(["compare", *map(str, a), "--against", *map(str, b), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    won = [np.stack([read_run(path).outcomes["success"] for path in paths]) for paths in six]
    assert won[0].shape == (3, 20) and won[0].dtype == bool
    for outcomes, told in zip(won, (result["runs"], result["against"]), strict=True):
        figure = told["figures"]["success"]
        assert (figure["low"], figure["high"]) == rate_over_seeds(outcomes)
        assert figure["mean"] == pytest.approx(outcomes.mean()) and (
            figure["seeds"],
            figure["tasks"],
        ) == (3, 20)
        assert told["figures"]["success_training_layouts"]["mean"] == 0
        assert told["seeds"] == [0, 1, 2]
    difference = result["difference"]["success"]
    assert (difference["mean"], difference["low"], difference["high"]) == pytest.approx(
        paired_difference(*won)
    )
    assert (
        result["settings_that_differ"] == ["planner.cost.objective: l2 -> temporal"]
        and result["one_commit"]
    )
    assert cli.main(["compare", *map(str, a)]) == 0
    text = capsys.readouterr().out
    assert (
        "seeds 0, 1, 2" in text
        and f"features, plan at commit {'a' * 40}" in text
        and "NOT" not in text
    )


def test_one_run_has_wilsons_interval(six):
    won = read_run(six[0][0]).outcomes["success"]
    figure = compare(six[0][:1])["runs"]["figures"]["success"]
    assert (figure["low"], figure["high"]) == wilson(int(won.sum()), 20)


def test_what_does_not_belong_together_is_refused(six, tmp_path):
    (a, b), won = six, np.ones(20, bool)
    with pytest.raises(
        UserError,
        match="of another method than .*planner.cost.objective: temporal -> l2.*--against",
    ):
        compare([a[0], b[1]])
    with pytest.raises(UserError, match="the same seed"):
        compare([a[0], a[1], finished(tmp_path / "again", 1, won)])
    for name, other in (("t", {"task_seed": 1}), ("b", {"budget": 11})):
        with pytest.raises(UserError, match="played other tasks than .*evaluation.task_seed"):
            compare(a, [finished(tmp_path / name, 3, won, **other)])
    with pytest.raises(UserError, match="00004.npz: is not there"):
        compare([finished(tmp_path / "cut", 3, won, cut=True)])
    with pytest.raises(UserError, match="its episodes give 1, its result 0.5"):
        compare([finished(tmp_path / "told", 3, won, told=0.5)])
    with pytest.raises(UserError, match=r"finish the run first \(`jepa-wm plan --run .*none`\)"):
        compare([tmp_path / "none"])


@pytest.mark.parametrize("commit", ["b" * 40, None, "a" * 40 + "+changed"])
def test_figures_of_other_or_unknown_code_are_marked(six, tmp_path, commit, capsys):
    other = finished(tmp_path / "c", 3, np.ones(20, bool), commit=commit)
    assert not compare([*six[0], other])["one_commit"]
    assert cli.main(["compare", *map(str, six[0]), str(other)]) == 0
    assert "NOT ONE COMMIT" in capsys.readouterr().out


def test_layouts_that_were_not_checked_are_marked(tmp_path, capsys):
    assert cli.main(["compare", str(finished(tmp_path / "a", 0, np.ones(5, bool), met=None))]) == 0
    assert "NOT CHECKED that held-out layouts" in capsys.readouterr().out


def earned(folder, seed, returns, *, digest="d"):
    (folder / "plan" / "returns").mkdir(parents=True)
    for first in range(0, len(returns), 25):
        np.savez(
            folder / "plan" / "returns" / f"{first:05d}.npz", earned=returns[first : first + 25]
        )
    result = {
        "return": {"mean": float(returns.mean()), "episodes": len(returns)},
        "tasks": {"digest": digest},
    }
    (folder / "plan" / "result.json").write_text(json.dumps(result))
    write_yaml({"seed": seed}, folder / "plan" / "config.yaml")
    return folder


def test_returns_are_compared_too(tmp_path, capsys):
    r = np.random.default_rng(0)
    start = 10 * r.standard_normal(30)
    runs = [earned(tmp_path / str(s), s, start + s) for s in range(3)]
    result = compare(runs, [earned(tmp_path / "other", 0, start - 5)])
    figure = result["runs"]["figures"]["return"]
    assert figure["low"] < figure["mean"] < figure["high"] and figure["tasks"] == 30
    difference = result["difference"]["return"]
    assert (
        difference["mean"] == pytest.approx(6) and 4 < difference["low"] < difference["high"] < 8
    )
    with pytest.raises(UserError, match="played other tasks"):
        compare(runs, [earned(tmp_path / "elsewhere", 0, start, digest="e")])
    assert cli.main(["compare", str(earned(tmp_path / "zero", 4, np.zeros(30)))]) == 0
    assert "return: 0 (all equal: no interval)" in capsys.readouterr().out


# ---------------------------------------------------------------- commits


def test_the_commit_of_the_code_is_known_and_that_of_other_files_is_not(tmp_path):
    package, out = tmp_path / "repo" / "jepa_wm", tmp_path / "repo"
    (package / "core").mkdir(parents=True)
    assert code_commit(package) is None, "no checkout"
    (package / "__init__.py").write_text("")
    git(out, "init", "-q")
    assert code_commit(package) is None, (
        "files that git does not track, such as an installed package's"
    )
    git(out, "add", "jepa_wm/__init__.py")
    git(out, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    commit = git(out, "rev-parse", "HEAD")
    (out / "notes.txt").write_text("no code")
    assert code_commit(package) == commit and len(commit) == 40
    (package / "new.py").write_text("")
    assert code_commit(package) == f"{commit}+changed"
    job = tmp_path / "job" / "code" / "jepa_wm"
    job.mkdir(parents=True)
    for changed, expected in (
        ("?? notes.txt", commit),
        (" M jepa_wm/a.py", f"{commit}+changed"),
        ("", commit),
    ):
        (tmp_path / "job" / "git.json").write_text(
            json.dumps({"commit": commit, "changed": changed})
        )
        assert code_commit(job) == expected
