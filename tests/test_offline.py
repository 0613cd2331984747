"""Plans judged on recordings: a model whose latent adds up the actions ranks the recorded chunk
first, one that ignores them is at chance, and a run of a recording needs no world."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planners import planner

from jepa_wm.config import load_config
from jepa_wm.core.commands import parse
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.trajectories import EpisodeWriter, Trajectories
from jepa_wm.evals.held_out_windows import HeldOutWindows, RecordedActions, draw_windows
from jepa_wm.evals.offline import OfflinePlans
from jepa_wm.evals.scores import over_episodes
from jepa_wm.models.distance import latent_distance
from jepa_wm.models.latent import Latent
from jepa_wm.world_model.latents import Recording
from jepa_wm.worlds.two_rooms.world import TwoRoomsSettings

STEP = 1000  # the most that a number of the position changes in an environment step


class Adder:
    """A perfect world model: its latent is the position in the frame, to which actions add."""

    def __init__(self, frameskip, *, context_frames=3, blind=False, size=2):
        self.frameskip, self.context_frames, self.blind = frameskip, context_frames, blind
        self.block, self.size, self.device = frameskip * size, size, torch.device("cpu")
        self.latent, self.heads, self.compiled = Latent(1, 2), None, False
        self.latent_model = SimpleNamespace(
            latent=self.latent, ensemble=[None], distance=None,
            action_low=torch.full((size,), -torch.inf), action_high=torch.full((size,), torch.inf),
            settings=SimpleNamespace(
                dynamics=SimpleNamespace(acts_by_proprio=False),
                latent=SimpleNamespace(read_states=()),
            ),
        )  # fmt: skip

    def encode(self, frames, proprio=None):
        assert proprio is None
        return (frames[:, 0].long() * torch.tensor([65536, 256, 1])).sum(-1).float()[:, None]

    def futures(self, latents, past, plans, *, truncate, num_futures):
        assert past.shape[1] == latents.shape[1] - 1 == self.context_frames - 1
        led = past.unflatten(-1, (-1, self.size)).sum(-2)
        if self.size == 2 and not self.blind:  # the actions are those between the frames
            assert torch.equal(latents[:, 0, 0] + led.sum(1), latents[:, -1, 0])
        moves = plans.unflatten(-1, (-1, self.size)).sum(-2)[..., :2].cumsum(2)
        return (latents[:, -1, None, None] + moves[..., None, :] * (not self.blind))[None, None]

    def distance(self, latents, goal, *, kind, robust_radius=0.0):
        return latent_distance(latents, goal, kind=kind)

    def plan_bytes(self, horizon, **how):
        return 1, 0


def walks(file, lengths, *, seed=0, act=None, moved=None, **about):
    """Trajectories whose frames show a position; `act(r, n)` are the actions, `moved` [n, 2] what
    they do, else themselves."""
    columns = {"pixels": ((1, 2, 3), "u1"), "action": ((2,), "f4")}
    r, writer = np.random.default_rng(seed), None
    for length in lengths:
        actions = act(r, length) if act else r.integers(-STEP, STEP + 1, (length, 2))
        if writer is None:
            columns["action"] = ((actions.shape[1],), "f4")
            writer = EpisodeWriter(file, columns)
        steps = actions if moved is None else moved(actions)
        places = 2**23 + np.concatenate([np.zeros((1, 2), int), steps.cumsum(0)[:-1]]).astype(int)
        digits = places[..., None] // np.array([65536, 256, 1]) % 256
        writer.add({"pixels": digits[:, None].astype(np.uint8), "action": actions})
    writer.close(**about)
    return Trajectories(file)


def judged(folder, data, model=None, *, horizon=3, count=20, seed=0, train=None, **search):
    """The result of a toy on a file, with a search of the last step's distance."""
    model = model or Adder(2)
    windows = HeldOutWindows(data, model, horizon=horizon, count=count, seed=seed)
    actions = RecordedActions(Recording(train or data, model.latent_model), windows.recording)
    settings = planner(horizon=horizon, objective="l2", steps="last", **search)
    return OfflinePlans(model, windows, actions, settings, ()).judge(folder)


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    return walks(tmp_path_factory.mktemp("walks") / "heldout.h5", [40, 31, 52, 12, 44])


def rows_of(result):
    return {row["plan"]: row for row in result["rows"]}


# ---------------------------------------------------------------- known answers


def test_a_perfect_model_ranks_the_recorded_actions_first(walked, tmp_path):
    result, model = judged(tmp_path, walked), Adder(2)
    ranks, rows = result["ranking"], rows_of(result)
    assert (ranks["rank"], ranks["top1"], ranks["histogram"]) == (0, 1, [20, *[0] * 9])
    assert ranks["chance"] == 1 / 32 and ranks["candidates"] == 32
    assert ranks["rank_same_episode"] == ranks["rank_other_episodes"] == 0
    assert 0 < ranks["of_same_episode"] <= 15 and result["search_cheaper"]["share"] == 0
    assert ranks["low_top1"] < 1, "all of five episodes is no certainty"
    assert (result["windows"], result["episodes"], result["environment_steps"]) == (20, 5, 6)

    # Where plans end: at the goal, as far off as the start is, or anywhere.
    windows = HeldOutWindows(walked, model, horizon=3, count=20, seed=0)
    at = [model.encode(torch.from_numpy(windows.frames(range(20), step))) for step in (2, 5)]
    spread = float(at[1].double().std(0, unbiased=False).square().mean().sqrt())
    assert result["latent_spread"] == pytest.approx(spread)
    off = (at[0] - at[1]).double().square().mean((1, 2)).sqrt().mean() / spread
    assert rows["recorded"]["final_distance"] == 0
    assert rows["no_motion"]["final_distance"] == pytest.approx(float(off))
    assert rows["another_window"]["final_distance"] > rows["search"]["final_distance"]
    assert all(row["temporal_distance"] is None for row in rows.values())
    assert "action_error" not in rows["recorded"] and "action_error" not in rows["no_motion"]
    # 0 lies inside what was done, so that doing nothing ends where the start is.
    assert rows["idle"]["final_distance"] == rows["no_motion"]["final_distance"]


def test_the_first_action_is_measured_in_the_spread_of_the_data(walked, tmp_path):
    """A model step of one action, which the goal image determines."""
    result = judged(
        tmp_path, walked, Adder(1, context_frames=1), horizon=1, samples=(200, 6, 20),
        action_repeat=False,
    )  # fmt: skip
    rows = rows_of(result)
    assert rows["search"]["action_error"] < 0.15
    windows = HeldOutWindows(walked, Adder(1, context_frames=1), horizon=1, count=20, seed=0)
    truth = windows.blocks(range(20))[1][:, 0].numpy()
    units = RecordedActions(*[windows.recording] * 2)
    assert rows["idle"]["action_error"] == pytest.approx(np.abs(truth / units.scale).mean())
    off = np.abs((truth - units.mean) / units.scale).mean()
    assert rows["mean_action"]["action_error"] == pytest.approx(off)
    other = windows.alternatives(range(20))[0][:, :, 0].numpy()
    off = np.abs((truth[:, None] - other) / units.scale).mean()
    assert rows["another_window"]["action_error"] == pytest.approx(off)
    gap = rows["search"]["action_error"] - rows["mean_action"]["action_error"]
    assert rows["search"]["less_mean_action"] == pytest.approx(gap)
    assert rows["search"]["high_less_mean_action"] < 0


def test_a_model_that_ignores_actions_is_at_chance(walked, tmp_path):
    ranks = judged(tmp_path, walked, Adder(2, blind=True))["ranking"]
    assert ranks["rank"] == 0.5 and ranks["top1"] == pytest.approx(ranks["chance"])


def test_shuffled_actions_are_at_chance(tmp_path):
    def others(actions):
        return np.random.default_rng(9).permutation(actions)

    data = walks(tmp_path / "shuffled.h5", [60] * 12, moved=others)
    model = Adder(2, context_frames=1)
    ranks = judged(tmp_path / "judged", data, model, count=100)["ranking"]
    assert ranks["low_rank"] < 0.5 < ranks["high_rank"]
    assert abs(ranks["rank"] - 0.5) < 0.1 and ranks["top1"] < 0.15


def test_equal_actions_are_a_tie(tmp_path):
    """Nothing but one action, and another in one place: most candidates are the same chunk."""

    def act(r, length):
        actions = np.zeros((length, 2), int)
        actions[length // 2] = STEP
        return actions

    data = walks(tmp_path / "same.h5", [30] * 6, act=act)
    ranks = judged(tmp_path / "judged", data, count=12)["ranking"]
    assert 0.2 < ranks["rank"] < 0.6 and ranks["top1"] < 0.3


def test_choices_agree_or_do_not(tmp_path):
    moves = np.array([[STEP, 0], [-STEP, 0], [0, STEP]])

    def act(r, length):
        return np.eye(3, dtype=int)[r.choice(3, length, p=(0.6, 0.2, 0.2))]

    data = walks(tmp_path / "h.h5", [40] * 5, act=act, moved=lambda a: moves[a.argmax(1)])
    model = Adder(1, context_frames=1, size=3)

    def futures(latents, past, plans, **how):
        path = (plans @ torch.from_numpy(moves).float()).cumsum(2)
        return (latents[:, -1, None, None] + path[..., None, :])[None, None]

    model.futures = futures
    rows = rows_of(judged(tmp_path / "judged", data, model, horizon=1, samples=(60, 3, 6)))
    assert rows["search"]["agreement"] == 1 and rows["search"]["final_distance"] == 0
    assert "idle" not in rows and 0.3 < rows["mean_action"]["agreement"] < 0.9
    assert 0 < rows["another_window"]["agreement"] < 1
    gap = 1 - rows["mean_action"]["agreement"]
    assert rows["search"]["less_mean_action"] == pytest.approx(gap)


def test_doing_nothing_is_the_last_action_where_actions_are_places(tmp_path):
    data = walks(tmp_path / "h.h5", [40] * 4, action_kind="absolute")
    result = judged(tmp_path / "judged", data)
    windows = HeldOutWindows(data, Adder(2), horizon=3, count=20, seed=0)
    past, ahead = windows.blocks(range(20))
    units = RecordedActions(*[windows.recording] * 2)
    off = np.abs((past[:, -1, -2:] - ahead[:, 0, :2]).numpy() / units.scale).mean()
    assert rows_of(result)["idle"]["action_error"] == pytest.approx(off)
    one = judged(tmp_path / "one", data, Adder(2, context_frames=1))
    assert "idle" not in rows_of(one), "no action came before"


# ---------------------------------------------------------------- windows and intervals


def test_what_proprioception_says_was_done_is_no_place(tmp_path):
    data = walks(tmp_path / "a.h5", [40, 41], action_kind="absolute")
    model = Adder(2)
    assert RecordedActions(
        Recording(data, model.latent_model), Recording(data, model.latent_model)
    ).absolute
    model.latent_model.settings.dynamics.acts_by_proprio = True
    model.latent_model.dynamics = SimpleNamespace(actions_of=lambda states: states)
    train = Recording(data, model.latent_model)
    train.taken_actions = lambda: data.taken_actions
    assert not RecordedActions(train, train).absolute


def test_windows_are_drawn_by_seed_and_row(walked):
    made = [HeldOutWindows(walked, Adder(2), horizon=3, count=n, seed=3) for n in (9, 500)]
    short, long = made
    assert len(long) == sum(max(n - 10, 0) for n in walked.lengths), "all there are"
    assert np.array_equal(long.episode[:9], short.episode)
    assert np.array_equal(long.first[:9], short.first) and long.seeds[:9] == short.seeds
    assert len(set(zip(long.episode.tolist(), long.first.tolist(), strict=True))) == len(long)
    assert set(short.episode[:5].tolist()) == {0, 1, 2, 3, 4}, "one of each in turn"
    other = draw_windows(np.array([30, 21, 42, 2, 34]), 9, seed=4)
    assert not np.array_equal(other[1], short.first)
    assert set(draw_windows(np.array([0, 3, 1]), 9, seed=0)[0].tolist()) == {1, 2}


def test_candidates_of_the_same_episode_share_no_action(walked):
    windows = HeldOutWindows(walked, Adder(2), horizon=3, count=30, seed=0)
    chunks, same = windows.alternatives(range(30))
    assert chunks.shape == (30, 31, 3, 4) and (same.sum(1) <= 15).all() and same.any()
    for row in range(30):
        episode, first = windows._drawn(row)
        own = episode == windows.episode[row]
        assert np.array_equal(own, same[row])
        assert (np.abs(first[own] - windows.first[row]) >= 6).all()
        assert len(set(zip(episode.tolist(), first.tolist(), strict=True))) == 31
        rows = walked.offsets[episode[-1]] + first[-1] + 4 + np.arange(6)
        assert np.array_equal(chunks[row, -1].flatten(), walked.actions[rows].ravel())


def test_few_windows_have_fewer_candidates_for_all(tmp_path):
    data = walks(tmp_path / "few.h5", [14, 12])
    result = judged(tmp_path / "judged", data, count=50)
    assert result["windows"] == 6 and result["ranking"]["candidates"] == 3
    assert result["ranking"]["chance"] == 1 / 3
    alone = walks(tmp_path / "alone.h5", [12])
    with pytest.raises(UserError, match=r"alone.h5: has no second chunk of planner.mpc.horizon"):
        judged(tmp_path / "none", alone)

    # In the middle of an only episode every other chunk shares an action.
    middle = HeldOutWindows(
        walks(tmp_path / "middle.h5", [19]), Adder(2), horizon=3, count=50, seed=0
    )
    assert sorted(middle.first.tolist()) == [0, 1, 2, 6, 7, 8] and middle.candidates == 2
    assert len(middle.seeds) == 6


def test_the_same_settings_give_the_same_figures(walked, tmp_path):
    first, again = (judged(tmp_path / name, walked, count=30) for name in ("a", "b"))
    assert first == again and len(list((tmp_path / "a").glob("*.npz"))) == 2
    # A window's figures depend on no other window, but for what all are compared with.
    stored = [np.load(tmp_path / "a" / f"{row:05d}.npz") for row in (0, 25)]
    judged(tmp_path / "c", walked, count=10)
    with np.load(tmp_path / "c" / "00000.npz") as few:
        for key in few:
            np.testing.assert_allclose(few[key], stored[0][key][:10], rtol=1e-5)
    assert first["rows"] != judged(tmp_path / "d", walked, count=30, seed=1)["rows"]


def test_intervals_draw_whole_episodes():
    values, episode = np.repeat([0.0, 1.0], 50), np.repeat([0, 1, 2, 3], 25)
    assert over_episodes(values, episode) == (0.5, None, None), "too few, however many windows"
    mean, low, high = over_episodes(np.repeat([0.0, 1.0], 60), np.repeat(np.arange(6), 20))
    assert mean == 0.5 and low < 0.2 and high > 0.8
    mean, low, high = over_episodes(np.tile([0.0, 1.0], 50), np.arange(100) // 2)
    assert (mean, low, high) == (0.5, 0.5, 0.5), "all episodes are alike"
    assert over_episodes(np.ones(5), np.zeros(5)) == (1, None, None)
    mean, low, high = over_episodes(np.ones(40), np.arange(40) // 4, rate=True)
    assert mean == high == 1 and 0.6 < low < 0.8, "Wilson's of ten episodes"


# ---------------------------------------------------------------- what is refused


def test_what_does_not_fit_is_refused(walked, tmp_path):
    with pytest.raises(UserError, match="planner.mpc.horizon 33 at dynamics.frameskip 2"):
        judged(tmp_path / "a", walked, horizon=30)
    still = walks(tmp_path / "s.h5", [30, 30], act=lambda r, n: np.ones((n, 2), int))
    with pytest.raises(UserError, match="never vary"):
        judged(tmp_path / "b", still, Adder(2, context_frames=1))
    choices = walks(
        tmp_path / "c.h5", [30], act=lambda r, n: np.eye(2, dtype=int)[r.integers(2, size=n)]
    )
    with pytest.raises(UserError, match="c.h5: nothing can be planned.*icem searches"):
        judged(tmp_path / "f", choices, Adder(2, context_frames=1), solver="icem")
    with pytest.raises(UserError, match="are no choices"):
        judged(tmp_path / "d", walked, train=choices)
    three = walks(
        tmp_path / "t.h5", [30], act=lambda r, n: r.normal(size=(n, 3)), moved=lambda a: a[:, :2]
    )
    with pytest.raises(UserError, match="actions of 2 numbers, those that.* have 3"):
        judged(tmp_path / "e", walked, train=three)


# ---------------------------------------------------------------- a run of a recording

SMALL = [
    "train.pretrain.steps=0", "train.latent.steps=10", "train.dynamics.steps=10",
    "train.distance.steps=10", "train.heads={steps: 10, batch: 32, warmup: 2}",
    "train.heads.sizes={width: 16, policies: [gcbc]}", "dynamics.frameskip=2",
    "features.stride=2", "planner.mpc.horizon=3", "planner.solver.num_samples=8",
    "planner.solver.elites=3", "planner.solver.iterations=2", "evaluation.episodes=7",
    "evaluation.policies=[gcbc]",
]  # fmt: skip


def film(file, seed, episodes, *, states=False):
    """A square that three action numbers move, in a world that nobody has: no groups, and no state
    unless asked."""
    r, columns = (
        np.random.default_rng(seed),
        {"pixels": ((65, 65, 3), "u1"), "action": ((3,), "f4")},
    )
    if states:
        columns["state"] = ((2,), "f4")
    writer = EpisodeWriter(file, columns)
    for _ in range(episodes):
        actions = r.uniform(-1, 1, (30, 3)).astype(np.float32)
        place = np.clip(30 + 3 * actions[:, :2].cumsum(0), 5, 55).astype(int)
        pixels = np.zeros((30, 65, 65, 3), np.uint8)
        for frame, (x, y) in zip(pixels, place, strict=True):
            frame[y - 4 : y + 5, x - 4 : x + 5] = 200
        shown = {"pixels": pixels, "action": actions} | ({"state": place} if states else {})
        writer.add(shown)
    writer.close(action_kind="delta", **({"state_names": "row column"} if states else {}))


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """(a folder of data without a world, a run with heads on it)."""
    folder = tmp_path_factory.mktemp("offline")
    for part, seed, episodes in (("train", 0, 12), ("heldout", 1, 4), ("other", 2, 3)):
        film(folder / "data" / f"{part}.h5", seed, episodes)
    words = [*SMALL, f"data.path={folder / 'data'}"]
    with Run.open(folder / "run", load_config("debug", words)) as run:
        for name in ("collect", "features", "dynamics", "heads"):
            run_stage(name, run)
    return folder, words


def evaluated(recording, *words):
    folder, before = recording
    with Run.open(folder / "run", load_config("debug", [*before, *words])) as run:
        return run_stage("eval_offline", run)


def test_a_run_of_a_recording_needs_no_world(recording, monkeypatch):
    def nobody(self):
        raise AssertionError("a world was made")

    monkeypatch.setattr(TwoRoomsSettings, "make", nobody)
    result = evaluated(recording)
    folder, words = recording
    rows = rows_of(result)
    assert list(rows) == [
        "recorded", "search", "gcbc", "mean_action", "idle", "another_window", "no_motion",
    ]  # fmt: skip
    for name, row in rows.items():
        assert row["n"] == 7 and row["final_distance"] > 0 and row["temporal_distance"] >= 0
        assert row["low_final_distance"] is None, "three episodes tell no interval"
        assert name in ("recorded", "no_motion") or row["action_error"] > 0
    ranks = result["ranking"]
    assert sum(ranks["histogram"]) == 7 and 0 <= ranks["rank"] <= 1 and ranks["candidates"] == 32
    assert result["recording"] == str(folder / "data" / "heldout.h5")

    # Found again with the same settings; others lie beside it.
    assert evaluated(recording) == result
    assert evaluated(recording, "evaluation.budget=3") == result, "no budget is spent"
    other = evaluated(recording, "evaluation.task_seed=1", "evaluation.policies=[]")
    assert other["rows"] != result["rows"]
    assert len(list((folder / "run").glob("eval_offline/*/result.json"))) == 2
    with Run.open(folder / "run", load_config("debug", words)) as run:
        made = run_stage("report", run)
    assert {"offline", "offline_2"} <= set(made["sections"])
    page = (folder / "run" / "report" / "index.html").read_text()
    assert "Plans on a recording" in page and "rank of the recorded actions" in page


def test_frames_and_goals_carry_the_named_numbers_of_the_state(tmp_path):
    for part, seed, episodes in (("train", 0, 12), ("heldout", 1, 4)):
        film(tmp_path / "data" / f"{part}.h5", seed, episodes, states=True)
    words = [*SMALL, f"data.path={tmp_path / 'data'}", "latent.proprio=[row, column]"]
    words.append("evaluation.policies=[]")
    with Run.open(tmp_path / "run", load_config("debug", words)) as run:
        for name in ("collect", "features", "dynamics"):
            run_stage(name, run)
    without = evaluated((tmp_path, words))
    compared = evaluated((tmp_path, words), "planner.cost.proprio=5")
    assert compared["states_read"] == without["states_read"] == ["row", "column"]
    assert compared["ranking"] != without["ranking"], "the goal's numbers are priced"


def test_another_recording_is_named_by_a_task(recording):
    folder, _ = recording
    task = "evaluation.task={{name: recorded, path: {}}}"
    result = evaluated(recording, task.format(folder / "data" / "other.h5"))
    assert result["recording"].endswith("other.h5") and result["episodes"] == 3
    with pytest.raises(UserError, match="12 of its episodes are in .*train.h5"):
        evaluated(recording, task.format(folder / "data" / "train.h5"))
    assert evaluated(recording, "evaluation.task={name: recorded}")["episodes"] == 4


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["planner.cost.objective=reward", "evaluation.policies=[]"],
            "eval offline plays toward goal images",
        ),
        (["planner.mpc.horizon=30"], "no episode is long enough for eval offline"),
    ],
)
def test_a_run_that_cannot_be_judged_says_why(recording, words, message):
    with pytest.raises(UserError, match=message):
        evaluated(recording, *words)


def test_a_run_without_dynamics_policies_or_held_out_data_says_what_to_do(recording, tmp_path):
    folder, words = recording
    with (
        Run.open(tmp_path / "empty", load_config("debug", words)) as run,
        pytest.raises(UserError, match="run `jepa-wm"),
    ):
        run_stage("eval_offline", run)
    shutil.copytree(folder / "run", tmp_path / "headless", ignore=lambda *_: ["heads"])
    with (
        Run.open(tmp_path / "headless", load_config("debug", words)) as run,
        pytest.raises(
            UserError, match="^the plan needs policy gcbc.*train it with `jepa-wm heads`"
        ),
    ):
        run_stage("eval_offline", run)
    (folder / "data" / "heldout.h5").rename(folder / "data" / "gone.h5")
    try:
        with pytest.raises(UserError, match="it has no heldout.h5"):
            evaluated(recording, "evaluation.task_seed=5")
    finally:
        (folder / "data" / "gone.h5").rename(folder / "data" / "heldout.h5")


def test_it_is_an_evaluation_of_the_command_line():
    assert parse(["eval", "offline", "--run", "x"]).stage == "eval_offline"
