"""Planning for reward in a foreign world with discrete actions, from recording to returns; and its
baselines."""

import json

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import STAGES
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.evals import returns
from jepa_wm.evals.episodes import play
from jepa_wm.evals.scores import bootstrap
from jepa_wm.report.page import number
from jepa_wm.world_model.world_model import WorldModel
from jepa_wm.worlds.gym import GymSettings, GymWorld
from jepa_wm.worlds.two_rooms.world import RewardRegion, TwoRooms, TwoRoomsSettings


class Bar(gymnasium.Env):
    """A bright bar on a dark strip: stay, left or right; each step pays 1 at the middle and less
    away from it."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    action_space = spaces.Discrete(3)
    render_mode = "rgb_array"

    def __init__(self, render_mode=None):
        pass

    def reset(self, *, seed=None, options=None):
        self.x = np.random.default_rng(seed).integers(1, 15)
        return self.picture(), {}

    def step(self, action):
        self.x = int(np.clip(self.x + (0, -1, 1)[action], 1, 14))
        return self.picture(), 1 - abs(self.x - 8) / 4, False, False, {}

    def picture(self):
        image = np.zeros((16, 16, 3), np.uint8)
        image[:, self.x - 1 : self.x + 2] = 255
        return image


SETTINGS = [
    "world={name: gym, id: Bar-v0, size: 16, exploration: {mean_repeat: 3}}",
    "collect.episodes=40", "collect.episode_length=24",
    "collect.heldout_episode_length=24", "data.image_size=16", "encoder.patch_size=4",
    "dynamics.frameskip=1",
    "latent.name=tokens", "planner.cost.robust_radius=0", "train.pretrain.steps=0",
    "train.dynamics.steps=150",
    "train.distance.steps=1",
    "train.heads.steps=150", "train.heads.batch=64", "train.heads.sizes.width=32",
    "features.stride=1",
    "planner.cost.objective=reward", "planner.mpc.horizon=4", "planner.mpc.action_repeat=false",
    "evaluation.episodes=30", "evaluation.budget=20",
]  # fmt: skip


@pytest.fixture(scope="module")
def bar():
    gymnasium.register(id="Bar-v0", entry_point=Bar)
    yield
    del gymnasium.registry["Bar-v0"]


@pytest.fixture(scope="module")
def played(bar, tmp_path_factory):
    """(run folder, result of the plan stage) in the strip."""
    folder = tmp_path_factory.mktemp("bar") / "run"
    with Run.open(folder, load_config("debug", SETTINGS)) as run:
        for name in ("collect", "features", "dynamics", "heads"):
            run_stage(name, run)
        return folder, run_stage("plan", run)


def test_discrete_actions_are_recorded_one_hot(played):
    data = Trajectories(played[0] / "collect" / "train.h5")
    assert data.actions.shape == (40 * 24, 3) and (data.actions.sum(1) == 1).all()
    assert set(data.actions.argmax(1)) == {0, 1, 2} and "reward" in data


def test_planning_for_reward_beats_random_and_the_best_constant_action(played):
    result = played[1]
    earned, baselines = result["return"], result["baselines"]
    assert earned["episodes"] == 30 and earned["low"] <= earned["mean"] <= earned["high"] <= 20
    for name in ("random", "constant"):
        assert baselines[name]["high"] < earned["low"], (name, result)
    assert baselines["constant"]["action"] == [0.0], (
        "staying where one began is the best of the constants"
    )


def test_the_report_shows_what_was_earned_and_what_was_seen(played, monkeypatch):
    folder, result = played
    with np.load(folder / "plan" / "film.npz") as film:
        assert film["frames"].shape == (returns.FILMED, 20, 16, 16, 3), "a frame a decision"
        assert (film["frames"][:, 0] != film["frames"][:, -1]).any()
    contexts, imagine = [], WorldModel.imagine
    monkeypatch.setattr(
        WorldModel,
        "imagine",
        lambda self, c, p, a: contexts.append((c, p)) or imagine(self, c, p, a),
    )
    config = load_config("debug", SETTINGS)
    told = run_stage("report", folder, config)
    window = config.dynamics.context_frames
    assert window > 1 and {(c.shape[1], p.shape[1]) for c, p in contexts} == {
        (window, window - 1)
    }, "as an agent does"
    text = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert {"return", "episodes", "heads"} <= set(told["sections"])
    assert not {"success", "search", "energy"} & set(told["missing"])
    assert text.count("data:image/gif") == returns.FILMED and "state error" not in text
    for said in (
        "plans for reward",
        "random actions",
        "best constant action 0",
        number(result["return"]["mean"]),
    ):
        assert said in text, said


def test_finished_episodes_are_kept_and_the_verb_tells_the_return(played, capsys):
    folder, result = played
    (folder / "plan" / "result.json").unlink()
    file = folder / "plan" / "returns" / "00025.npz"
    with np.load(file) as stored:
        changed = dict(stored, earned=stored["earned"] + 30)
    np.savez(file, **changed)
    assert cli.main(["plan", "--config", "debug", "--run", str(folder), "--json", *SETTINGS]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again["return"]["mean"] == pytest.approx(result["return"]["mean"] + 5 * 30 / 30)
    assert again["baselines"] == result["baselines"], "baselines are drawn from the seeds alone"


def test_shares_of_the_episodes_are_found_by_the_whole(played):
    folder, result = played
    with Run.open(folder, load_config("debug", SETTINGS)) as run:
        kept = {
            file: file.read_bytes() for file in sorted((folder / "plan" / "returns").iterdir())
        }
        assert [file.stem for file in kept] == ["00000", "00025"]
        for file in kept:
            file.unlink()
        told = [run_stage("plan", run, shard=(shard, 3)) for shard in range(3)]
        assert [shard["episodes"] for shard in told] == [10, 10, 10]
        parts = sorted((folder / "plan" / "returns").iterdir())
        assert [file.stem for file in parts] == ["00000", "00010", "00020"]
        earned = np.concatenate([np.load(file)["earned"] for file in parts])
        assert earned.mean() == pytest.approx(result["return"]["mean"])
        for file in parts:
            file.unlink()
        for file, content in kept.items():
            file.write_bytes(content)


def test_goal_tasks_and_rewards_are_asked_for_where_they_are(bar, played, tmp_path):
    folder, _ = played
    for goal in ("planner.cost.objective=temporal", "planner.cost.objective=l2"):
        config = load_config("debug", [*SETTINGS, goal])
        run = Run(folder, config, -1)
        with pytest.raises(
            UserError, match="the world gym has no goal tasks.*planner.cost.objective=reward"
        ):
            plan = STAGES.get("plan")
            plan(run, **plan.settings(config))
    with pytest.raises(UserError, match="world two_rooms has no reward as it is .* reward_region"):
        returns.rewarding_world(TwoRoomsSettings())
    assert returns.rewarding_world(TwoRoomsSettings(reward_region=RewardRegion())).has_reward
    with pytest.raises(UserError, match="world.id Nowhere-v0: the environment cannot be made"):
        GymSettings(id="Nowhere-v0").make()


# ---------------------------------------------------------------- baselines


def test_returns_are_what_the_world_paid_within_the_budget():
    spot = RewardRegion(at=(30.0, 30.0), radius=30)
    world, r = TwoRoomsSettings(reward_region=spot).make(), np.random.default_rng(0)
    moves = r.uniform(-2, 2, (12, 3, 2)).astype(np.float32)  # [T, B, A]
    asked = iter(np.moveaxis(moves.reshape(4, 3, 3, 2), 1, 2))
    world.reset(np.arange(3))
    earned = play(world, lambda world: next(asked), budget=10).returns
    world.reset(np.arange(3))
    expected = np.zeros(3)
    for move in moves[:10]:
        world.step(move)
        expected += world.reward()
    assert np.array_equal(earned, expected) and 0 < earned.sum() < 30


def test_constant_actions_cover_the_box_or_the_choices():
    assert returns.constant_actions(GymWorld(Bar)).tolist() == [[0], [1], [2]]
    grid = returns.constant_actions(TwoRooms())
    assert len(grid) == 81 and grid.min() == pytest.approx(-2.45) and [0, 0] in grid.tolist()

    class Arm(Bar):
        action_space = spaces.Box(-1, 2, (7,))

    drawn = returns.constant_actions(GymWorld(Arm))
    assert drawn.shape == (81, 7) and drawn.min() >= -1 and drawn.max() <= 2 and not drawn[0].any()


def test_the_bootstrap_interval_covers_the_mean_about_as_often_as_it_says():
    r = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap(r.exponential(size=(1, 40)), draws=500)
        inside += low <= 1 <= high
    assert 0.87 < inside / 200 < 0.98
    assert bootstrap(np.ones((1, 5))) == (1, 1)
    with pytest.raises(ValueError, match="at least one each"):
        bootstrap(np.zeros((1, 0)))
