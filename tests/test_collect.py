"""Recording works in any world with any policy; what is written depends on the seeds alone."""

import signal

import h5py
import numpy as np
import pytest
from test_gym import Drifter

from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.data.quantities import grouped
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.worlds import collect
from jepa_wm.worlds.collect import record
from jepa_wm.worlds.gym import GymSettings, GymWorld
from jepa_wm.worlds.two_rooms.world import RewardRegion, TwoRooms, TwoRoomsSettings
from jepa_wm.worlds.world import RandomActions


def still(seeds):
    return lambda world: np.zeros((len(world), *world.action_space.low.shape), np.float32)


def test_rows_are_what_was_seen_and_done(tmp_path):
    seeds = np.array([5, 9])
    record(tmp_path / "a.h5", TwoRooms(), TwoRoomsSettings().explore(), seeds, 7)
    data, world = Trajectories(tmp_path / "a.h5"), TwoRooms()
    assert data.lengths.tolist() == [7, 7] and data.offsets.tolist() == [0, 7]
    assert data.quantities.groups == {"agent": [0, 1], "wall": [2], "door": [3]}
    assert data.attributes["state_names"] == "agent_x agent_y wall_x door_y"
    for row, seed in zip(data.offsets, seeds, strict=True):
        world.reset(np.array([seed]))
        for step in range(7):
            assert np.array_equal(data.frames[row + step], world.render()[0])
            assert np.array_equal(data.column("state")[row + step], world.state()[0])
            world.step(data.actions[row + step][None])


def test_rewards_are_what_the_action_of_their_row_earned(tmp_path):
    spot = RewardRegion(at=(40.0, 30.0), radius=14)
    record(
        tmp_path / "a.h5",
        TwoRoomsSettings(reward_region=spot).make(),
        TwoRoomsSettings().explore(),
        np.arange(20),
        30,
    )
    data = Trajectories(tmp_path / "a.h5")
    pay = data.column("reward").reshape(20, 30)
    after = np.linalg.norm(data.column("state").reshape(20, 30, 4)[:, 1:, :2] - spot.at, axis=2)
    assert (
        np.array_equal(pay[:, :-1], after < 14)
        and not pay[:, -1].any()
        and 0.02 < pay.mean() < 0.9
    )
    assert not data.column("terminated").any()
    record(tmp_path / "b.h5", TwoRooms(), TwoRoomsSettings().explore(), np.arange(2), 5)
    assert "reward" not in Trajectories(tmp_path / "b.h5")


def test_an_interrupt_is_heard_within_a_batch_and_leaves_nothing_behind(tmp_path):
    steps = []

    def stopping(seeds):
        def policy(world):
            steps.append(len(world))
            if len(steps) == 3:
                signal.raise_signal(signal.SIGTERM)
            return still(seeds)(world)

        return policy

    with pytest.raises(Interrupted):
        record(tmp_path / "a.h5", TwoRooms(), stopping, np.arange(4), 50)
    assert len(steps) == 3 and list(tmp_path.iterdir()) == []


def test_how_many_worlds_step_together_changes_nothing(tmp_path, monkeypatch):
    digests = set()
    for together in (100, 2, 1):
        monkeypatch.setattr(collect, "TOGETHER", together)
        record(tmp_path / f"{together}.h5", TwoRooms(), RandomActions, np.arange(5), 6)
        digests.add(Trajectories(tmp_path / f"{together}.h5").digest)
    assert len(digests) == 1
    record(tmp_path / "other.h5", TwoRooms(), RandomActions, np.arange(1, 6), 6)
    assert Trajectories(tmp_path / "other.h5").digest not in digests, (
        "the digest names the content"
    )


def test_a_world_without_state_writes_no_state(tmp_path):
    record(tmp_path / "a.h5", GymWorld(Drifter, size=16), still, np.arange(3), 4)
    data = Trajectories(tmp_path / "a.h5")
    assert data.frames.shape == (12, 16, 16, 3) and data.actions.shape == (12, 1)
    assert data.quantities.groups == {} and set(data.attributes) == {"digest"}
    with h5py.File(tmp_path / "a.h5") as file:
        assert "state" not in file


def test_a_world_whose_actions_are_places_says_so_in_its_file(tmp_path):
    record(tmp_path / "moves.h5", GymWorld(Drifter, size=16), still, np.arange(2), 4)
    record(
        tmp_path / "places.h5",
        GymWorld(Drifter, size=16, action_kind="absolute"),
        still,
        np.arange(2),
        4,
    )
    assert Trajectories(tmp_path / "moves.h5").action_kind == "delta"
    assert Trajectories(tmp_path / "places.h5").action_kind == "absolute"
    assert GymSettings(action_kind="absolute").make().action_space.kind == "absolute"


def test_an_episode_that_ends_early_is_cut_with_its_last_frame_kept(tmp_path, monkeypatch):
    """World i drifts at 1 / (1 + i) a step and ends at 2: with its 3rd, 5th, 7th frame."""

    def drift(seeds):
        return lambda world: (1 / (1 + seeds[:, None])).astype(np.float32)

    whole = None
    for together in (100, 2):
        monkeypatch.setattr(collect, "TOGETHER", together)
        record(tmp_path / f"{together}.h5", GymWorld(Drifter, size=16), drift, np.arange(4), 7)
        data = Trajectories(tmp_path / f"{together}.h5")
        assert data.lengths.tolist() == [3, 5, 7, 7] and "left_out" not in data.attributes
        assert whole in (None, data.digest)
        whole = data.digest
    for e, (first, length) in enumerate(zip(data.offsets, data.lengths, strict=True)):
        x = np.minimum(np.arange(length) / (1 + e), 2)
        assert np.array_equal(
            data.frames[first : first + length, 0, 0, 0], np.uint8(10 + 10 * x + 1e-4)
        )
        ends = data.column("terminated")[first : first + length]
        assert ends.tolist() == [0] * (length - 2) + [int(e < 3), 0], (
            "the action before the last frame ended it"
        )
    record(tmp_path / "long.h5", GymWorld(Drifter, size=16), drift, np.arange(4), 7, shortest=5)
    data = Trajectories(tmp_path / "long.h5")
    assert data.lengths.tolist() == [5, 7, 7] and data.attributes["left_out"] == 1
    with pytest.raises(
        UserError, match="no episode has 8 frames before it ends, the longest 7; lower"
    ):
        record(
            tmp_path / "none.h5", GymWorld(Drifter, size=16), drift, np.arange(4), 7, shortest=8
        )
    assert not (tmp_path / "none.h5").exists() and not list(tmp_path.glob("*.partial"))


class Chance(Drifter):
    """Ends by chance, whatever its seed; each frame shows how many steps there were."""

    chance = np.random.default_rng(0)
    steps_taken = 0

    def step(self, action):
        Chance.steps_taken += 1
        self.steps += 1
        return self.x, 1.0, bool(self.chance.random() < 0.2), False, {}

    def render(self):
        return np.full((16, 16, 3), self.steps, np.uint8)


def test_episodes_are_played_once_and_stored_as_they_went(tmp_path, monkeypatch):
    monkeypatch.setattr(collect, "TOGETHER", 7)
    monkeypatch.setattr("jepa_wm.data.trajectories.CHUNK", 1000)
    Chance.steps_taken = 0
    record(tmp_path / "a.h5", GymWorld(Chance), still, np.arange(30), 12, shortest=4)
    data = Trajectories(tmp_path / "a.h5")
    assert 5 < data.episodes < 30 and data.attributes["left_out"] == 30 - data.episodes
    assert len(set(data.lengths)) > 2 and data.lengths.min() >= 4 and (data.lengths == 12).any()
    for first, length in zip(data.offsets, data.lengths, strict=True):
        rows = slice(first, first + length)
        assert np.array_equal(data.frames[rows, 0, 0, 0], np.arange(length)), (
            "no frame after the end"
        )
        ends = [0] * length
        if length < 12:
            ends[-2] = 1
        assert data.column("terminated")[rows].tolist()[:11] == ends[:11]
        assert data.column("reward")[rows].tolist() == [1] * (length - 1) + [0]
    assert len(data.frames) == data.lengths.sum() and Chance.steps_taken <= 11 * 30
    played = Chance.steps_taken - (data.lengths - 1).sum()
    assert 0 < played <= 2 * data.attributes["left_out"], (
        "what was left out had 1 or 2 steps; nothing is played twice"
    )


def test_nothing_is_left_behind_where_episodes_that_end_are_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr("jepa_wm.data.trajectories.CHUNK", 1000)
    write = TrajectoryWriter.write

    def interrupted(self, column, row, values):
        if row:
            signal.raise_signal(signal.SIGTERM)
        write(self, column, row, values)

    def full(self, column, row, values):
        raise OSError(28, "No space left on device")

    def stopping(seeds):
        def policy(world):
            signal.raise_signal(signal.SIGTERM)
            return still(seeds)(world)

        return policy

    for policy, writing, error in (
        (stopping, write, Interrupted),
        (still, interrupted, Interrupted),
        (still, full, OSError),
    ):
        monkeypatch.setattr(TrajectoryWriter, "write", writing)
        with pytest.raises(error):
            record(tmp_path / "a.h5", GymWorld(Drifter, size=16), policy, np.arange(4), 9)
        assert list(tmp_path.iterdir()) == []


def test_a_world_that_is_over_at_its_reset_is_left_out(tmp_path):
    class Over(GymWorld):
        def reset(self, seeds, *, start=None):
            super().reset(seeds, start=start)
            self._ended = seeds % 2 == 0

    record(tmp_path / "a.h5", Over(Drifter, size=16), still, np.arange(5), 4)
    data = Trajectories(tmp_path / "a.h5")
    assert data.lengths.tolist() == [4, 4] and data.attributes["left_out"] == 3


def test_state_names_are_grouped_by_what_stands_before_the_last_underscore():
    assert grouped(("agent_x", "agent_y", "wall_x", "door_y")) == "agent:0,1 wall:2 door:3"
    assert grouped(("left_arm_x", "speed", "left_arm_y")) == "left_arm:0,2 speed:1"


def test_random_actions_fit_the_world_and_are_held():
    world, seeds = TwoRooms(), np.arange(40)
    world.reset(seeds)
    both, alone = RandomActions(seeds, mean_repeat=4), RandomActions(seeds[7:8], mean_repeat=4)
    taken = np.stack([both(world) for _ in range(60)])  # [T, B, 2]
    assert (
        taken.dtype == np.float32
        and np.linalg.norm(taken, axis=2).max() <= world.action_space.longest + 1e-5
    )
    changed = (taken[1:] != taken[:-1]).any(2)
    assert 0.2 < changed.mean() < 0.3
    world.reset(seeds[7:8])
    assert np.array_equal(taken[:, 7], np.stack([alone(world)[0] for _ in range(60)]))
    with pytest.raises(ValueError, match="mean_repeat"):
        RandomActions(seeds, mean_repeat=0)
