"""Units of actions: what never varies enters as 0 and is left alone by a search, and neither
jitter nor glitches blow up."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from planners import planner
from test_act import SKIP, frames, world_model

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.scaling import ActionStatistics
from jepa_wm.data.clips import Displacement
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import WorldModelSettings
from jepa_wm.planning.action_space import ActionSpace, DiscreteSpace
from jepa_wm.planning.agent import Agent
from jepa_wm.planning.settings import PlannerSettings
from jepa_wm.training.dynamics import make_model
from jepa_wm.world_model.world_model import WorldModel

RANDOM = np.random.default_rng(0)


def moves(count=3000, *columns):
    both = [RANDOM.uniform(-1, 1, (count, 2)), *(np.broadcast_to(x, (count, 1)) for x in columns)]
    return np.concatenate(both, 1).astype(np.float32)


def scaled(values):
    """[N] of values [N] of one number, by their own statistics; and these."""
    found = ActionStatistics.of(np.asarray(values, np.float32)[:, None])
    cut = np.clip(values, found.low[0], found.high[0])
    return (cut - found.centre[0]) / found.scale[0], found


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3, -5.0, 1e6, 1e-7])
def test_a_number_that_never_varies_is_zero_whatever_its_value(value):
    rounded = np.full(1000, value, np.float32) * (1 + 1e-7 * RANDOM.uniform(-1, 1, 1000))
    for values in (np.full(1000, value), rounded):
        units, found = scaled(values.astype(np.float32))
        assert found.low == found.high and found.scale == 1 and np.abs(units).max() == 0
        assert found.centre == pytest.approx(value, rel=1e-6)


def test_what_varies_has_mean_0_and_spread_1_at_any_offset_and_size():
    for offset, size in ((0, 1), (0.3, 5e-3), (1e6, 2e4), (-1e6, 3e5), (0, 1e-9), (0, 1e9)):
        values = (offset + size * RANDOM.standard_normal(20_000)).astype(np.float32)
        units, found = scaled(values)
        assert abs(units.mean()) < 0.02 and 0.9 < units.std() < 1.1, (offset, size)
        assert found.low < values.min() and found.high > values.max()


@pytest.mark.parametrize("value", [0.3, 1.0, -5.0, 1e6])
@pytest.mark.parametrize("jitter", [1e-6, 1e-4, 1e-3])
def test_jitter_on_a_number_that_is_kept_where_it_is_stays_small(value, jitter):
    units, found = scaled((value * (1 + jitter * RANDOM.standard_normal(5000))).astype(np.float32))
    assert found.steady and found.low < found.high
    assert np.std(units) == pytest.approx(jitter / 0.01, rel=0.1) and np.abs(units).max() < 0.5


def test_moves_that_hardly_vary_add_up_to_nothing_and_are_named(tmp_path):
    steady = 0.3 + 3e-4 * RANDOM.standard_normal((60, 1))
    data = trajectories(tmp_path / "a.h5", moves(60, steady), [60])
    config, features = (
        load_config("debug", []),
        SimpleNamespace(data=data, tokens=lambda *_: torch.zeros(1, 25, 64)),
    )
    with pytest.warns(UserWarning, match=r"number 2 is nearly always 0.3"):
        make_model(
            WorldModelSettings(
                latent=config.latent, dynamics=config.dynamics, distance=config.distance
            ),
            features,
        )
    rows = np.arange(50)[None]
    displaced = Displacement(data, absolute=False).at(rows)
    assert displaced[..., 2].abs().max() == 0 and displaced[..., :2].std() > 0.5
    assert (
        Displacement(data, absolute=True).at(rows[:, 1:])[..., 2].abs().max() > 0
    )  # a place is where it is


def test_jitter_beside_seldom_jumps_stays_small_and_a_glitch_is_no_unit():
    jitter = 1e-4 * RANDOM.standard_normal(10_000)
    jumps = jitter + (RANDOM.random(10_000) < 0.01)
    units, _ = scaled(jumps)
    assert np.abs(units[jumps < 0.5]).max() < 0.2 and 5 < units.max() < 25
    seldom = np.zeros(10_000)
    seldom[5] = 1.0  # all others are the same: the range is that of all
    assert scaled(seldom)[0].max() == pytest.approx(20, abs=1) and scaled(seldom)[1].low < 0
    glitch = RANDOM.uniform(-1, 1, 10_000)
    glitch[[7, 4000]] = 1e6, -1e9
    units, found = scaled(glitch)
    assert 0.9 < np.delete(units, [7, 4000]).std() < 1.1 and np.abs(units).max() < 10
    assert -4 < found.low < -2 and 2 < found.high < 4


def test_the_model_undoes_its_units_and_keeps_them(tmp_path):
    model = world_model().latent_model
    assert model.take_units(
        np.stack([RANDOM.uniform(2, 6, 500), np.full(500, 0.7)], 1).astype(np.float32)
    ) == {1: "always 0.7"}
    block = torch.tensor([[2.5, 0.7, 5.5, 0.7]])
    units = model.scaled(block)
    assert units[0, [1, 3]].tolist() == [0, 0] and torch.equal(
        units, model.scaled(block + torch.tensor([0, 9, 0, -9]))
    )
    torch.testing.assert_close(model.unscaled(units), block)
    model.save(tmp_path)
    again = LatentModel.load(tmp_path)
    assert torch.equal(again.scaled(block), units) and again.action_low[1] == again.action_high[1]


def trajectories(path, actions, lengths):
    writer = TrajectoryWriter(
        path, np.array(lengths), {"pixels": ((4, 4, 3), "u1"), "action": ((3,), "f4")}
    )
    writer.write("action", 0, actions)
    writer.write("pixels", 0, np.zeros((len(actions), 4, 4, 3), np.uint8))
    writer.close()
    return Trajectories(path)


def test_training_names_what_never_varies_and_passes_over_the_filling_of_last_rows(tmp_path):
    actions = moves(60, 1.0)
    actions[19], actions[59] = 0, np.nan
    data = trajectories(tmp_path / "a.h5", actions, [20, 40])
    config = load_config("debug", [])
    features = SimpleNamespace(data=data, tokens=lambda *_: torch.zeros(1, 25, 64))
    with pytest.warns(
        UserWarning, match=r"of the 3 action numbers \(from 0\) number 2 is always 1: "
    ):
        model = make_model(
            WorldModelSettings(
                latent=config.latent, dynamics=config.dynamics, distance=config.distance
            ),
            features,
        )
    assert model.action_low.tolist()[2] == model.action_high.tolist()[2] == 1
    assert model.scaled(torch.ones(1, model.block))[0, 2::3].abs().max() == 0
    assert trajectories(tmp_path / "b.h5", moves(3, 1.0), [1, 1, 1]).taken_actions.shape == (3, 3)


@pytest.mark.parametrize("solver", ["cem", "icem", "mppi", "random", "gradient", "cem_gradient"])
@pytest.mark.parametrize("max_norm", [None, 1.0])
def test_a_search_pins_what_never_varied_and_stays_where_the_data_reach(
    solver, max_norm, monkeypatch
):
    model, tried = world_model(), []
    futures = model.futures
    monkeypatch.setattr(
        model, "futures", lambda *given, **rest: tried.append(given[2]) or futures(*given, **rest)
    )
    model.latent_model.take_units(
        np.stack([RANDOM.uniform(-0.1, 0.1, 500), np.full(500, 0.7)], 1).astype(np.float32)
    )
    for hold in (True, False):
        space = ActionSpace.of_block(
            (-1.0, -1.0), (1.0, 1.0), max_norm=max_norm, block=SKIP, action_repeat=hold
        )
        agent = Agent(model, space, planner(solver, horizon=3))
        agent.reset(frames(2, 0), [0, 1])
        for step in range(2):
            taken = agent.act(frames(2, step + 1))
            assert (taken[..., 1] == np.float32(0.7)).all() and np.abs(taken[..., 0]).max() < 0.31
        plans = torch.cat([x.detach().flatten(0, 2) for x in tried])
        assert (plans[:, 1::2] == np.float32(0.7)).all() and 0.1 < plans[
            :, 0::2
        ].abs().max() < 0.31
    with pytest.raises(
        UserError,
        match=r"action number 1 lies in 0.7..0.7 in the data .* and in 2..3 in this world",
    ):
        Agent(
            model,
            ActionSpace.of_block((-1.0, 2.0), (1.0, 3.0), block=SKIP, action_repeat=True),
            PlannerSettings(),
        )


def test_a_number_that_is_pinned_at_the_longest_action_leaves_the_others_none():
    space = ActionSpace.of_block(
        (-1.0, -1.0), (1.0, 1.0), max_norm=1.0, block=SKIP, action_repeat=True
    )
    pinned = space.within([1.0, -9.0], [1.0, 9.0])
    assert pinned.project(torch.randn(50, 2) * 3).tolist() == [
        [1, 0]
    ] * 50 and pinned.first_step() == (1, 0)
    with pytest.raises(
        UserError, match="actions in the data .* are longer than 1.0, the longest of this world"
    ):
        space.within([0.9, 0.9], [0.9, 0.9])
    with pytest.raises(ValueError, match="max_norm 1.0 needs a box around zero"):
        ActionSpace((2.0, 0.0), (3.0, 1.0), 1.0)


def test_a_spread_that_fp32_cannot_divide_by_is_none():
    units, found = scaled(1e-41 * RANDOM.standard_normal(500))
    assert found.low == found.high and found.scale == 1 and np.abs(units).max() < 1e-38


def test_choices_that_were_never_taken_are_not_taken():
    for hold in (True, False):
        space = DiscreteSpace.of_block(4, block=2, action_repeat=hold).within(
            [0, 0, 0, 0], [1, 0, 1, 0]
        )
        assert space.barred == (1, 3)
        assert (
            space.project(torch.ones(3, space.plan_dim)).unflatten(-1, (-1, 4))[..., 0].min() == 1
        )
        wanted = torch.eye(4)[torch.tensor([3, 2, 1])].repeat(
            1, 2
        )  # [3, 2 * 4], what the model takes
        taken = space.to_env(space.to_model(space.to_plan(wanted)))
        assert set(taken.flatten().tolist()) <= {0, 2} and taken[2:4].flatten().tolist() == [2, 2]
        model = world_model()
        model = WorldModel(model.encoder, LatentModel(9, 16, 4, model.latent_model.settings))
        model.latent_model.take_units(np.eye(4, dtype=np.float32)[RANDOM.choice([0, 2], 500)])
        for seed in range(3):
            agent = Agent(
                model,
                space=DiscreteSpace.of_block(4, block=2, action_repeat=hold, idle=3),
                settings=planner(horizon=3),
            )
            agent.reset(frames(2, 0), [seed, 9])
            assert all(set(agent.act(frames(2, step)).flatten()) <= {0, 2} for step in range(3))
    with pytest.raises(UserError, match="none of the world's choices was taken"):
        DiscreteSpace.of_block(2, block=1, action_repeat=True).within([2, 2], [3, 3])
