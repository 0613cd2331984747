"""The examples of docs/extend/ enter each table from outside of the package, and work there."""

import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import overrides

from jepa_wm import Run, WorldModel, load_config, run_stage
from jepa_wm.core.commands import parse
from jepa_wm.core.errors import UserError
from jepa_wm.core.stage import STAGES, pipeline
from jepa_wm.data.readers.registry import READERS, format_of, open_trajectories
from jepa_wm.evals.compare import read_run
from jepa_wm.models.head_settings import POLICIES
from jepa_wm.planning.action_space import ActionSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.search import search
from jepa_wm.planning.settings import SOLVERS
from jepa_wm.worlds.tasks import TASKS, make_task
from jepa_wm.worlds.world import WORLDS

EXAMPLES = Path(__file__).resolve().parents[1] / "docs" / "extend"


@pytest.fixture
def extend(monkeypatch, restore):
    """Loads an example; the tables are afterwards as they were."""
    restore(POLICIES, READERS, SOLVERS, STAGES, TASKS, WORLDS)

    def load(name):
        spec = importlib.util.spec_from_file_location(f"extend_{name}", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.py")), ids=lambda file: file.stem)
def test_an_example_is_short(file):
    lines = [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 30 and not any("jepa_wm.core.registry" in line for line in lines)


def test_a_solver_of_ones_own_searches_by_its_name(extend):
    with pytest.raises(UserError, match="no solver is named 'nearby'"):
        load_config("debug", ["planner.solver.name=nearby"])
    extend("solver")
    config = load_config("debug", ["planner.solver.name=nearby", "planner.solver.iterations=8"])
    space = ActionSpace(low=np.full(2, -1.0), high=np.full(2, 1.0))
    solver = config.planner.solver.make(space, 3)
    goal = torch.tensor([0.3, -0.6])
    plan = search(
        solver,
        lambda plans: ((plans - goal) ** 2).mean((-2, -1)),
        generator=[torch.Generator().manual_seed(0)],
    )
    assert (plan.actions - goal).abs().max() < 0.2


def test_a_latent_and_dynamics_of_ones_own_are_trained_and_planned_with(
    extend, alone, tiny_data, tmp_path
):
    words = ["latent={name: pooled, dynamic_dim: 5}", "dynamics={name: markov, ensemble_size: 2}"]
    cost = ["planner.cost.robust_radius=0", "planner.mpc.also_evaluate=[]"]
    with pytest.raises(UserError, match="no latent is named 'pooled'"):
        load_config("debug", words)
    extend("latent")
    extend("dynamics")
    with pytest.raises(UserError, match="which latent.name pooled has not"):
        load_config("debug", [*words, "planner.cost.robust_radius=0.1"])
    config = load_config("debug", [*overrides(tiny_data), *words, *cost])
    shutil.copytree(alone, tmp_path / "run")
    for stage in ("dynamics", "heads", "plan", "report"):
        shutil.rmtree(tmp_path / "run" / stage, ignore_errors=True)
    with Run.open(tmp_path / "run", config) as run:
        rows = run_stage("dynamics", run)["rollout"]
    assert all(row["relative_error"] > 0 for row in rows)
    # The agent plans with the ensemble, and its model is loaded from the files.
    model = WorldModel.load(tmp_path / "run")
    assert len(model.latent_model.ensemble) == 2 and model.latent.shape.width == 5
    space = ActionSpace.of_block([-1] * 2, [1] * 2, block=model.frameskip, action_repeat=True)
    agent = Agent(model, space, config.planner)
    frames = np.random.default_rng(0).integers(0, 255, (2, 65, 65, 3), np.uint8)
    agent.reset(frames[::-1].copy(), seeds=[0, 1])
    assert agent.act(frames).shape == (2, model.frameskip, 2)


def test_a_policy_of_ones_own_is_trained_scored_and_plays(extend, alone, tiny_data, tmp_path):
    words = [
        *overrides(tiny_data), "train.heads={steps: 20, batch: 32, warmup: 2}",
        "train.heads.sizes={width: 16, policies: [gcbc, near_bc]}",
        "evaluation.policies=[near_bc]", "planner.solver={name: policy, policy: near_bc}",
        "planner.mpc.also_evaluate=[]",
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"no policy is named 'near_bc'.*there are gc_idm, gcbc"):
        load_config("debug", words)
    extend("policy")
    config = load_config("debug", words)
    shutil.copytree(alone, tmp_path / "run")
    for stage in ("heads", "plan", "report"):
        shutil.rmtree(tmp_path / "run" / stage, ignore_errors=True)
    with Run.open(tmp_path / "run", config) as run:
        scores = run_stage("heads", run)["heads"]
    assert "all legs" in scores["policy/near_bc"]["measure"] and "policy/gcbc" in scores
    # Loaded from the files, its answer is the plan, and not that of the other policy.
    model = WorldModel.load(tmp_path / "run")
    space = ActionSpace.of_block([-1] * 2, [1] * 2, block=model.frameskip, action_repeat=True)
    frames = np.random.default_rng(0).integers(0, 255, (2, 65, 65, 3), np.uint8)
    acted = []
    for name in ("near_bc", "gcbc"):
        agent = Agent(model, space, config.planner.alone(name))
        agent.reset(frames[::-1].copy(), seeds=[0, 1])
        acted.append(agent.act(frames))
    assert acted[0].shape == (2, model.frameskip, 2) and not np.array_equal(*acted)


def test_latents_of_ones_own_are_fp32_whatever_the_precision(extend):
    latent = extend("latent").PooledLatent(token_width=8, dynamic_dim=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert latent.encode(torch.randn(2, 5, 8)).dtype == torch.float32


def test_a_reader_of_ones_own_recognises_its_format(extend, tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), np.uint8)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
    lines = [f"{number // 3}\t{number / 10}\t{number}.png" for number in range(5)]
    (tmp_path / "frames.tsv").write_text("\n".join(lines), encoding="utf-8")
    assert format_of(tmp_path) is None
    extend("reader")
    source = open_trajectories(tmp_path)
    assert source.lengths.tolist() == [3, 2]
    assert np.array_equal(source.read("pixels", 1, 0, 2), pictures[3:])
    assert source.read("action", 0, 2, 3).item() == pytest.approx(0.2)


def test_a_stage_of_ones_own_is_a_command_done_once(extend, alone, tiny_data, tmp_path):
    with pytest.raises(SystemExit):
        parse(["brightness"])
    stage = extend("stage").brightness
    assert parse(["brightness"]).stage == "brightness"
    config = load_config("debug", overrides(tiny_data))
    assert pipeline(config).index("brightness") > pipeline(config).index("collect")
    with Run.open(tmp_path / "run", config) as run:
        result = run_stage("brightness", run)
        assert 0 < result["brightness"] < 1
        assert run_stage("brightness", run) == result, "the stored result, its seconds included"
    assert stage.recorded(type(config)) == ("data.path", "data.num_frames")
    other = load_config("debug", [*overrides(tiny_data), "data.num_frames=6"])
    with pytest.raises(UserError, match="num_frames: 5 -> 6"):
        Run.open(tmp_path / "run", other)


def test_an_evaluation_of_ones_own_measures_a_run(extend, alone, tiny_data):
    extend("evaluation")
    assert parse(["eval", "stillness"]).stage == "eval_stillness"
    with Run.open(alone, load_config("debug", overrides(tiny_data))) as run:
        assert 0 < run_stage("eval_stillness", run)["stillness"] <= 1


PUCK = [
    "world={name: puck}",
    "collect.episodes=30",
    "collect.episode_length=20",
    "collect.heldout_episodes=6",
    "collect.heldout_episode_length=45",
    "data.image_size=32",
    "encoder.patch_size=8",
    "evaluation={episodes: 4, budget: 20}",
    "planner.mpc.horizon=2",
    *(
        f"train.{part}.steps={steps}"
        for part, steps in (("pretrain", 4), ("latent", 6), ("dynamics", 6), ("distance", 6))
    ),
]


def test_a_world_and_a_task_of_ones_own_go_through_every_stage_to_the_report(extend, tmp_path):
    with pytest.raises(UserError, match="no world is named 'puck'"):
        load_config("debug", PUCK)
    extend("world"), extend("task")
    config = load_config("debug", PUCK)
    with Run.open(tmp_path / "run", config) as run:
        results = {name: run_stage(name, run) for name in pipeline(config)}
    plan = results["plan"]
    # Success, its interval and the unit of its radius; no layouts, so nothing of training ones.
    assert plan["success"]["radius"] == 2 and plan["success"]["unit"] == "px"
    assert not any(key.endswith("_training_layouts") or key == "layouts" for key in plan)
    assert plan["baselines"].keys() == {"random", "straight_line", "random_encoder"}
    assert plan["baselines"]["straight_line"]["success_final"] == 1
    assert plan["oracle"]["success_final"] == 1
    assert plan["tasks"]["name"] == "puck" and plan["success_by"].keys() == {"temporal", "l2"}
    assert results["collect"]["common_layouts"] is None
    page = (tmp_path / "run" / "report" / "index.html").read_text(encoding="utf-8")
    assert "straight line" in page and "2 px" in page
    with Run.open(tmp_path / "run", config) as run:
        assert read_run(run.path).outcomes.keys() == {"success", "success_any"}


def test_a_task_of_ones_own_is_drawn_anew_by_its_seed_and_never_begins_at_its_goal(extend):
    extend("world"), extend("task")
    task = make_task(WORLDS.get("puck")(), None)
    short, long, other = task.sample(5, 0), task.sample(40, 0), task.sample(5, 1)
    assert np.array_equal(short.start, long.part(0, 5).start) and not len(short.of("train"))
    assert not np.array_equal(short.goal, other.goal)
    assert (task.distance(long.start, long.goal) >= task.radius).all()
    assert np.array_equal(task.begin(long).state(), long.start)
