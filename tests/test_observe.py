"""Trajectory files appear whole and say what is wrong with them; samplers are pure and stay inside
episodes."""

from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.core.errors import UserError
from jepa_wm.data.clips import ClipSampler, Displacement
from jepa_wm.data.images import to_input
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter, open_data
from jepa_wm.data.windows import (
    FrameSampler,
    GoalSampler,
    SpanSampler,
    StepSampler,
    WindowSampler,
    usual_steps,
)
from jepa_wm.models.losses import LinearInverseDynamics

COLUMNS = {"pixels": ((4, 6, 3), "u1"), "action": ((2,), "f4"), "state": ((3,), "f4")}


def write(path, lengths, **attributes):
    """A file in which every row can be recognised: pixels hold the row number, actions row + .25
    and row + .5."""
    rows = int(sum(lengths))
    writer = TrajectoryWriter(path, np.array(lengths), COLUMNS)
    number = np.arange(rows)
    writer.write(
        "pixels",
        0,
        np.broadcast_to((number % 256)[:, None, None, None], (rows, 4, 6, 3)).astype("u1"),
    )
    writer.write("action", 0, np.stack([number + 0.25, number + 0.5], 1).astype("f4"))
    writer.write("state", 0, np.repeat(number[:, None], 3, 1).astype("f4"))
    writer.close(**attributes)
    return Trajectories(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(
        tmp_path_factory.mktemp("data") / "train.h5",
        [13, 40, 17, 25],
        state_groups="agent:0,1 wall:2",
    )


def test_what_was_written_is_read(data):
    assert (
        data.episodes == 4
        and data.lengths.tolist() == [13, 40, 17, 25]
        and data.offsets.tolist() == [0, 13, 53, 70]
    )
    assert data.frames.shape == (95, 4, 6, 3) and (data.frames[:, 0, 0, 0] == np.arange(95)).all()
    assert data.actions.dtype == np.float32 and data.actions[7].tolist() == [7.25, 7.5]
    assert (data.column("state")[:, 1] == np.arange(95)).all()
    assert data.quantities.groups == {"agent": [0, 1], "wall": [2]}


def test_frames_are_memory_mapped_and_read_only(data):
    assert isinstance(data.frames, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.frames[0] = 0


def test_a_chunked_file_of_another_maker_is_read_too(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["ep_len"], file["ep_offset"] = [3], [0]
        file.create_dataset(
            "pixels", data=np.arange(3 * 4 * 4 * 3, dtype="u1").reshape(3, 4, 4, 3), chunks=True
        )
        file["action"] = np.zeros((3, 2))
    data = Trajectories(tmp_path / "other.h5")
    assert data.frames[2, 3, 3, 2] == 143 and data.actions.dtype == np.float32
    assert data.quantities.groups == {} and data.digest


def test_a_file_appears_by_rename_or_not_at_all(tmp_path):
    path = tmp_path / "train.h5"
    writer = TrajectoryWriter(path, np.array([5]), COLUMNS)
    writer.write("action", 0, np.ones((5, 2), "f4"))
    assert not path.exists()
    writer.abandon()
    assert list(tmp_path.iterdir()) == []
    write(path, [5])
    assert [p.name for p in tmp_path.iterdir()] == ["train.h5"]


def test_a_killed_writer_is_in_nobodys_way(tmp_path):
    TrajectoryWriter(tmp_path / "train.h5", np.array([5]), COLUMNS)._file.close()  # never renamed
    with pytest.raises(UserError, match="no such trajectory file"):
        Trajectories(tmp_path / "train.h5")
    assert write(tmp_path / "train.h5", [6]).episodes == 1


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    with pytest.raises(
        UserError, match=r"gone\.h5: no such trajectory file; run `jepa-wm collect`"
    ):
        Trajectories(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UserError, match=r"text\.h5: not a readable HDF5 file"):
        Trajectories(tmp_path / "text.h5")
    whole = write(tmp_path / "whole.h5", [50])
    (tmp_path / "cut.h5").write_bytes(whole.path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.h5: not a readable HDF5 file"):
        Trajectories(tmp_path / "cut.h5")
    with h5py.File(tmp_path / "blind.h5", "w") as file:
        file["ep_len"], file["ep_offset"], file["action"] = [3], [0], np.zeros((3, 2))
    with pytest.raises(
        UserError, match=r"column 'pixels' is missing; it has \['action', 'ep_len'"
    ):
        Trajectories(tmp_path / "blind.h5")
    with pytest.raises(UserError, match="column 'reward' is missing"):
        whole.column("reward")


def test_the_runs_own_data_or_that_of_another_folder(tmp_path):
    write(tmp_path / "run" / "collect" / "train.h5", [5])
    write(tmp_path / "elsewhere" / "train.h5", [7])
    assert len(open_data(tmp_path / "run", None, "train").actions) == 5
    other = str(tmp_path / "elsewhere")
    assert len(open_data(tmp_path / "run", other, "train").actions) == 7


def episode_of(data, rows):
    return np.searchsorted(data.offsets, rows, side="right") - 1


@given(
    st.integers(1, 4), st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_clips_stay_inside_episodes_and_are_pure(data, frames, gaps, seed, step, batch):
    sampler = ClipSampler(data, frames=frames, gaps=tuple(gaps), seed=seed)
    rows = sampler.rows(step, batch)
    assert rows.shape == (batch, frames)
    assert (episode_of(data, rows) == episode_of(data, rows[:, :1])).all() and rows.max() < 95
    apart = np.diff(rows, axis=1)
    assert (apart == apart[:, :1]).all() and set(apart.flatten().tolist()) <= set(gaps)
    again = ClipSampler(data, frames=frames, gaps=tuple(gaps), seed=seed)
    again.rows(step + 1, 3)  # nothing is remembered between calls
    assert (again.rows(step, batch) == rows).all()
    assert (sampler.frames_at(rows)[..., 0, 0, 0].numpy() == rows).all()


@given(
    st.integers(1, 4),
    st.integers(0, 3),
    st.integers(1, 60),
    st.integers(0, 10**6),
    st.integers(1, 64),
)
@settings(max_examples=60, deadline=None)
def test_far_frames_are_of_the_same_episode_and_as_far_as_it_allows(
    data, frames, count, apart, step, batch
):
    sampler = ClipSampler(data, frames=frames, gaps=(1, 3), seed=0)
    rows, far = (
        sampler.rows(step, batch),
        sampler.distant_rows(step, batch, count=count, min_gap=apart),
    )
    assert far.shape == (batch, count)
    assert (sampler.distant_rows(step, batch, count=count, min_gap=apart) == far).all()
    episode = episode_of(data, rows[:, :1])
    assert (episode_of(data, far) == episode).all() and (far < 95).all()
    first, last = data.offsets[episode], data.offsets[episode] + data.lengths[episode] - 1
    possible = np.maximum(rows[:, :1] - first, last - rows[:, -1:])
    distance = np.maximum(rows[:, :1] - far, far - rows[:, -1:])
    assert (distance >= np.minimum(apart, possible)).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_the_way_is_the_sum_of_moves_or_the_difference_of_places(data, absolute):
    """A frame is where the action before it led; of an episode's first frame no action tells."""
    sampler = ClipSampler(data, frames=3, gaps=(2,), seed=0, absolute=absolute)
    rows = np.concatenate([sampler.rows(0, 40), [[0, 2, 4], [13, 20, 52]]])
    far = (
        rows[:, :1] * 0 + data.offsets[episode_of(data, rows[:, :1])]
    )  # first frames, as far ones may be
    a = data.actions
    for way, clip in zip(
        sampler.displacement_at(np.concatenate([rows, far], 1)).numpy(), rows, strict=True
    ):
        first = data.offsets[episode_of(data, clip[0])]
        origin = next(row for row in clip if row > first) if absolute else clip[0]
        for t, row in enumerate([*clip, first]):
            if absolute and row == first:
                assert np.isnan(way[t]).all()
            else:
                there = (
                    a[row - 1] - a[origin - 1] if absolute else a[:row].sum(0) - a[:origin].sum(0)
                )
                np.testing.assert_allclose(way[t], there, atol=2e-3)


def arriving(tmp_path, lengths=(6, 4, 9)):
    """Episodes of an agent whose place is where the action before each frame told it to go, and
    the places [N]."""
    rows, place = (
        sum(lengths),
        np.random.default_rng(0).uniform(10, 60, sum(lengths)).astype(np.float32),
    )
    actions = np.append(place[1:], 0)
    actions[np.cumsum(lengths) - 1] = 999  # what leads nowhere may be anything
    writer = TrajectoryWriter(
        tmp_path / "train.h5", np.array(lengths), COLUMNS | {"action": ((1,), "f4")}
    )
    writer.write("pixels", 0, np.zeros((rows, 4, 6, 3), "u1"))
    writer.write("action", 0, actions[:, None])
    writer.write("state", 0, np.zeros((rows, 3), "f4"))
    writer.close(action_kind="absolute")
    return Trajectories(tmp_path / "train.h5"), place


def test_places_to_go_to_are_paired_with_the_frames_they_led_to(tmp_path):
    """In pretraining and in the latent's training alike, last rows and first frames included."""
    data, place = arriving(tmp_path)
    sampler = ClipSampler(data, frames=3, gaps=(1,), seed=0, absolute=True)
    rows = np.unique(np.concatenate([sampler.rows(step, 30) for step in range(5)]), axis=0)
    assert {2, 5, 9, 18} < set(rows.flatten().tolist()), "first and last frames are among them"
    way = sampler.displacement_at(rows).numpy()[..., 0]
    known = ~np.isin(rows, data.offsets)
    origin = place[rows[np.arange(len(rows)), known.argmax(1)]]
    assert (np.isfinite(way) == known).all()
    np.testing.assert_allclose(way[known], (place[rows] - origin[:, None])[known], atol=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
def test_what_never_varies_adds_up_to_nothing_and_a_move_of_zero_is_no_move(tmp_path, absolute):
    """Moves are not centred, or standing still would be a drift; a constant number's sum would
    only tell the time."""
    moves = np.array([[1, 0.7], [0, 0.7], [0, 0.7], [2, 0.7], [0, 0.7], [9, 0.0]], np.float32)
    writer = TrajectoryWriter(tmp_path / "train.h5", np.array([6]), COLUMNS)
    writer.write("action", 0, moves)
    writer.close()
    way = Displacement(Trajectories(tmp_path / "train.h5"), absolute=absolute).at(
        np.arange(6)[None]
    )[0]
    expected = [np.nan, 0, -1, -1, 1, -1] if absolute else [0, 1, 1, 1, 3, 3]
    np.testing.assert_allclose(way[:, 0].numpy(), expected)
    assert (way[1:, 1] == 0).all()


def test_a_frame_whose_place_is_not_known_does_not_count():
    torch.manual_seed(0)
    reader, summaries = LinearInverseDynamics(3, 2), torch.randn(5, 4, 3)
    way = torch.randn(5, 4, 2)
    torch.testing.assert_close(
        reader(summaries, way), reader(summaries, way + 7)
    )  # only differences count
    hidden = way.clone()
    hidden[:, 0] = torch.nan
    torch.testing.assert_close(reader(summaries, hidden), reader(summaries[:, 1:], way[:, 1:]))
    hidden[2] = torch.nan
    assert torch.isfinite(reader(summaries, hidden))


def test_clips_begin_anywhere_and_differ_from_step_to_step(data):
    sampler = ClipSampler(data, frames=4, gaps=(1, 4), seed=0)
    rows = np.concatenate([sampler.rows(step, 100) for step in range(30)])
    assert set(rows.flatten().tolist()) == set(range(95)), (
        "every frame is in some clip, the last ones too"
    )
    assert not (sampler.rows(0, 100) == sampler.rows(1, 100)).all()
    assert not (
        sampler.rows(0, 100) == ClipSampler(data, frames=4, gaps=(1, 4), seed=1).rows(0, 100)
    ).all()


@given(
    st.integers(2, 4), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (3, 3)]),
    st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows_stay_inside_episodes_and_blocks_belong_to_their_frames(
    data, frames, skip_stride, seed, step, batch
):
    skip, stride = skip_stride
    sampler = WindowSampler(data, frames=frames, frameskip=skip, stride=stride, seed=seed)
    episode, frame, blocks = sampler.batch(step, batch)
    assert episode.shape == frame.shape == (batch, frames) and blocks.shape == (
        batch,
        frames - 1,
        2 * skip,
    )
    assert (
        (frame % stride == 0).all()
        and (frame >= 0).all()
        and (frame < data.lengths[episode]).all()
    )
    assert (np.diff(frame, axis=1) == skip).all() and (episode == episode[:, :1]).all()
    taken = (data.offsets[episode] + frame)[:, :-1, None] + np.arange(
        skip
    )  # rows from each frame up to the next
    assert (
        blocks.reshape(batch, frames - 1, skip, 2) == np.stack([taken + 0.25, taken + 0.5], -1)
    ).all()
    again = WindowSampler(data, frames=frames, frameskip=skip, stride=stride, seed=seed).batch(
        step, batch
    )
    assert all((a == b).all() for a, b in zip(again, (episode, frame, blocks), strict=True))


def test_the_last_window_of_an_episode_is_drawn_too(data):
    sampler = WindowSampler(
        data, frames=4, frameskip=4, stride=1, seed=0
    )  # 13 frames: exactly one episode 0 window
    seen = [sampler.batch(step, 100)[:2] for step in range(10)]
    for e in range(4):
        last = max(int(frame[episode == e].max()) for episode, frame in seen)
        assert last == data.lengths[e] - 1


@pytest.mark.parametrize("stride", [1, 5])
def test_frames_from_elsewhere_are_any_of_the_episode(data, stride):
    sampler = WindowSampler(data, frames=3, frameskip=2, stride=stride, seed=0)
    drawn = sampler.elsewhere(7, np.arange(4).repeat(100), count=3)
    assert (
        drawn.shape == (400, 3)
        and (drawn == sampler.elsewhere(7, np.arange(4).repeat(100), count=3)).all()
    )
    for e in range(4):
        assert set(drawn[e * 100 : e * 100 + 100].flat) == set(range(0, data.lengths[e], stride))
    assert (drawn[:, 0] != drawn[:, 1]).any()


@given(st.sampled_from([1, 2, 5]), st.integers(2, 50), st.integers(0, 10**6), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_a_span_is_of_one_episode_in_the_order_of_time(data, stride, frames, step, batch):
    sampler = SpanSampler(data, frames=frames, stride=stride, seed=0)
    episode, drawn = sampler.batch(step, batch)
    assert drawn.shape == (batch, frames) and (drawn % stride == 0).all()
    assert (drawn >= 0).all() and (drawn < data.lengths[episode][:, None]).all()
    assert (np.diff(drawn) >= 0).all()
    for e, each in zip(episode, drawn, strict=True):
        count = (data.lengths[e] - 1) // stride + 1
        assert len(set(each)) == min(frames, count), "none twice, all of a short episode"
    assert all(
        (a == b).all() for a, b in zip(sampler.batch(step, batch), (episode, drawn), strict=True)
    )


def test_near_and_far_pairs_of_an_episode_are_drawn(data):
    longest = int(data.lengths.argmax())
    sampler = SpanSampler(data, frames=4, stride=1, seed=0)
    episode, drawn = sampler.batch(0, 20000)
    drawn = drawn[episode == longest]
    assert set(drawn.flat) == set(range(data.lengths[longest]))
    often = np.bincount(drawn.flat) / len(drawn)
    assert often.min() > 0.4 * often.mean(), "the ends count"
    spans = drawn[:, -1] - drawn[:, 0]
    assert (spans <= 4).mean() > 0.1, "near ones"
    assert (spans > 0.75 * data.lengths[longest]).mean() > 0.05, "and far ones"


def test_episodes_that_are_too_short_are_left_out_and_counted(data):
    said = (
        r"1 of 4 episodes are left out, too short for a clip of data.num_frames 8 at a gap of 2 "
        r".*15 fr"
    )
    with pytest.warns(UserWarning, match=said):
        clips = ClipSampler(data, frames=8, gaps=(1, 2), seed=0)
    rows = np.concatenate([clips.rows(step, 60) for step in range(20)])
    short, wide = rows[rows[:, 0] < 13], rows[np.diff(rows[:, :2])[:, 0] == 2]
    assert (
        len(short)
        and (np.diff(short) == 1).all()
        and set(episode_of(data, wide[:, 0])) == {1, 2, 3}
    )
    said = "1 of 4 episodes .* train.dynamics.frames 5 at dynamics.frameskip 4 .17 frames"
    with pytest.warns(UserWarning, match=said):
        windows = WindowSampler(data, frames=5, frameskip=4, stride=1, seed=0)
    assert set(windows.batch(0, 500)[0].flat) == {1, 2, 3}
    with pytest.warns(UserWarning, match="3 of 4 episodes"):
        goals = GoalSampler(data, steps=2, frameskip=30, stride=1, seed=0)
    assert set(goals.batch(0, 50)[0]) == {1}
    with pytest.warns(
        UserWarning, match="3 of 4 episodes .* a pair of frames at features.stride 25"
    ):
        pairs = SpanSampler(data, frames=3, stride=25, seed=0)
    assert set(pairs.batch(0, 50)[0]) == {1}


def test_only_where_no_episode_is_long_enough_samplers_refuse(data):
    wrong = (
        "no episode is long enough for .*: 41 frames are needed, and the longest has 40; lower "
        "one of these"
    )
    with pytest.raises(UserError, match=wrong):
        ClipSampler(data, frames=11, gaps=(1, 4), seed=0)
    with pytest.raises(UserError, match=wrong + "|train.latent.frames 6"):
        WindowSampler(data, frames=6, frameskip=8, stride=1, seed=0, setting="train.latent.frames")
    with pytest.raises(UserError, match=wrong):
        GoalSampler(data, steps=2, frameskip=40, stride=1, seed=0)
    with pytest.raises(UserError, match=wrong):
        SpanSampler(data, frames=3, stride=40, seed=0)
    one = SimpleNamespace(
        path="x.h5", lengths=np.array([3]), offsets=np.array([0]), actions=np.zeros((3, 2))
    )
    with pytest.raises(
        UserError, match="no episode has a whole model step of dynamics.frameskip 4 actions"
    ):
        StepSampler(
            one, taken=np.array([2]), ended=np.array([True]), frameskip=4, stride=4, seed=0
        )


@pytest.mark.parametrize("stride", [1, 2])
def test_every_frame_of_a_file_is_drawn_as_often_as_any_other(data, stride):
    """A long episode counts by its frames: with all samplers, from 60000 draws each."""
    count, steps = 20000, range(3)
    taken, ended = data.lengths - 1, np.array([True, False, True, False])
    firsts = {
        "clips": [
            ClipSampler(data, frames=3, gaps=(2,), seed=0).rows(s, count)[:, 0] for s in steps
        ]
    }
    samplers = {
        "windows": WindowSampler(data, frames=3, frameskip=4, stride=stride, seed=0),
        "goals": GoalSampler(data, steps=2, frameskip=4, stride=stride, seed=0),
        "frames": FrameSampler(data, stride=stride, seed=0),
        "steps": StepSampler(data, taken=taken, ended=ended, frameskip=4, stride=stride, seed=0),
    }
    firsts |= {
        name: [starts(data, *sampler.batch(s, count)[:2]) for s in steps]
        for name, sampler in samplers.items()
    }
    expected = {"clips": 95 - 4 * 4, "windows": {1: 95 - 4 * 8, 2: 33}[stride],
                "goals": {1: 95 - 4 * 4, 2: 41}[stride],
                "frames": {1: 95, 2: 49}[stride],
                "steps": {1: 12 + 36 + 16 + 21, 2: 6 + 18 + 8 + 11}[stride]}  # fmt: skip
    for name, drawn in firsts.items():
        _, often = np.unique(np.concatenate(drawn), return_counts=True)
        assert len(often) == expected[name], name
        mean = 60000 / len(often)
        assert np.abs(often - mean).max() < 5.5 * mean**0.5, name


def starts(data, episode, frame):
    """[B] rows of the file at which samples of (episode, frame), of any shapes, begin."""
    episode = episode if episode.ndim == 1 else episode[:, 0]
    first = frame if frame.ndim == 1 else frame[:, 0] if len(frame) == len(episode) else frame[0]
    return data.offsets[episode] + first


@pytest.mark.parametrize(("stride", "skip"), [(1, 5), (2, 2), (5, 5), (1, 3)])
def test_ends_are_drawn_as_often_as_an_agent_meets_them(stride, skip):
    """The share of model steps in which an episode ends, and what they earn, counted by hand at
    every multiple of the stride; what was taken after an end is not counted, and stands in from
    elsewhere."""
    r = np.random.default_rng(0)
    lengths = r.integers(2, 40, 30)
    offsets, rows = np.cumsum(lengths) - lengths, int(lengths.sum())
    ended = r.random(30) < 0.7
    terminated, reward = np.zeros(rows), r.normal(size=rows)
    terminated[(offsets + lengths - 2)[ended]] = 1
    actions = np.arange(rows, dtype=np.float32)[:, None]
    data = SimpleNamespace(path="x.h5", lengths=lengths, offsets=offsets, actions=actions)
    sampler = StepSampler(
        data, taken=lengths - 1, ended=ended, frameskip=skip, stride=stride, seed=0
    )
    truth = {}
    for e, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        for frame in range(0, length - 1, stride):
            last = min(frame + skip, length - 1)
            if last == frame + skip or ended[e]:
                some = slice(offset + frame, offset + last)
                truth[e, frame] = terminated[some].any(), reward[some].sum()
    met, hits = set(), 0
    for step in range(15):
        episode, frame, action_rows, taken, blocks = sampler.batch(step, 1000)
        assert blocks.shape == (1000, skip) and (frame % stride == 0).all()
        hits += terminated[action_rows].any(1).sum()
        for e, f, which, used, block in zip(
            episode, frame, action_rows, taken, blocks, strict=True
        ):
            end, earned = truth[e, f]
            assert end == terminated[which].any() and earned == pytest.approx(
                (reward[which] * used).sum()
            )
            assert (block[used] == which[used]).all() and used[0]
            assert not np.isin(block[~used], offsets + lengths - 1).any(), (
                "what leads nowhere stands in for nothing"
            )
            met.add((e, f))
    assert met == truth.keys(), "every end of every episode is met"
    hazard = np.mean([end for end, _ in truth.values()])
    assert hits / 15000 == pytest.approx(hazard, abs=4 * (hazard / 15000) ** 0.5)


def test_what_most_episodes_hold_is_no_matter_of_the_shortest():
    assert usual_steps(np.array([31, 31, 31]), 5) == 6
    assert usual_steps(np.array([2, 31, 31, 70]), 5) == 6
    assert usual_steps(np.array([1, 1, 1]), 5) == 1


def test_a_frame_a_little_too_large_is_cut_and_others_are_resized():
    frames = torch.randint(256, (2, 3, 67, 66, 3), dtype=torch.uint8)
    cut = to_input(frames, 65)
    assert cut.shape == (2, 3, 3, 65, 65)
    assert torch.equal(((cut + 1) * 127.5).round(), frames[:, :, :65, :65].movedim(-1, -3).float())
    for size in (33, 65):
        small = to_input(torch.full((1, 130, 98, 3), 255, dtype=torch.uint8), size)
        assert small.shape == (1, 3, size, size) and (small - 1).abs().max() < 1e-5
    assert (to_input(torch.zeros(1, 20, 20, 3, dtype=torch.uint8), 65) == -1).all(), (
        "enlarging resizes as well"
    )


def test_input_leaves_the_frames_alone():
    frames = torch.randint(256, (1, 65, 65, 3), dtype=torch.uint8)
    before = frames.clone()
    to_input(frames, 65)
    assert torch.equal(frames, before)


def changed(folder, tmp_path, change):
    """A copy of the training file in which `change` was made."""
    path = tmp_path / "train.h5"
    path.write_bytes((folder / "train.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        change(file)
    return path


def test_actions_that_are_not_finite_are_refused_but_where_they_lead_nowhere(tiny_data, tmp_path):
    def last(file):
        file["action"][30] = np.nan

    def inside(file):
        file["action"][40:42] = np.inf

    assert not Trajectories(changed(tiny_data, tmp_path, last)).actions[30].any()
    with pytest.raises(
        UserError, match=r"2 actions are not finite, the first in episode 1; .*--without 1"
    ):
        Trajectories(changed(tiny_data, tmp_path, inside))


def test_lengths_that_do_not_fit_the_rows_are_refused(tiny_data, tmp_path):
    def long(file):
        file["ep_len"][5] = 32

    def empty(file):
        file["ep_len"][2] = 0

    with pytest.raises(
        UserError, match=r"episodes need 187 rows, it has of 'pixels' 186, 'action' 186"
    ):
        Trajectories(changed(tiny_data, tmp_path, long))
    with pytest.raises(UserError, match="an episode is empty"):
        Trajectories(changed(tiny_data, tmp_path, empty))


def test_a_file_says_whether_its_actions_are_moves_or_places(tmp_path):
    assert write(tmp_path / "silent.h5", [5]).action_kind == "delta"
    for word in ("delta", "absolute", np.bytes_(b"absolute")):
        told = write(tmp_path / f"{len(str(word))}.h5", [5], action_kind=word).action_kind
        assert told == ("delta" if word == "delta" else "absolute")
    with pytest.raises(
        UserError,
        match=r"x\.h5: its attribute action_kind is 'continuous', neither delta nor absolute",
    ):
        _ = write(tmp_path / "x.h5", [5], action_kind="continuous").action_kind


def test_the_digest_tells_where_episodes_end(tmp_path):
    digests = [
        write(tmp_path / f"{i}.h5", lengths).digest
        for i, lengths in enumerate(([5, 7], [5, 7], [7, 5]))
    ]
    assert digests[0] == digests[1] != digests[2]
