"""Trajectory files appear whole and say what is wrong with them; samplers are pure and stay inside episodes."""

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa_wm.core.errors import UserError
from jepa_wm.observe.clips import ClipSampler, to_input
from jepa_wm.observe.datasets import open_data, state_groups
from jepa_wm.observe.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.observe.windows import PairSampler, WindowSampler, way_of

COLUMNS = {"pixels": ((4, 6, 3), "u1"), "action": ((2,), "f4"), "state": ((3,), "f4")}


def write(path, lengths, **attributes):
    """A file in which every row can be recognised: pixels hold the row number, actions row + .25 and row + .5."""
    rows = int(sum(lengths))
    writer = TrajectoryWriter(path, np.array(lengths), COLUMNS)
    number = np.arange(rows)
    writer.write("pixels", 0, np.broadcast_to((number % 256)[:, None, None, None], (rows, 4, 6, 3)).astype("u1"))
    writer.write("action", 0, np.stack([number + 0.25, number + 0.5], 1).astype("f4"))
    writer.write("state", 0, np.repeat(number[:, None], 3, 1).astype("f4"))
    writer.close(**attributes)
    return Trajectories(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write(tmp_path_factory.mktemp("data") / "train.h5", [13, 40, 17, 25], state_groups="dot:0,1 wall:2")


def test_what_was_written_is_read(data):
    assert data.episodes == 4 and data.lengths.tolist() == [13, 40, 17, 25] and data.offsets.tolist() == [0, 13, 53, 70]
    assert data.frames.shape == (95, 4, 6, 3) and (data.frames[:, 0, 0, 0] == np.arange(95)).all()
    assert data.actions.dtype == np.float32 and data.actions[7].tolist() == [7.25, 7.5]
    assert (data.column("state")[:, 1] == np.arange(95)).all()
    assert state_groups(data) == {"dot": [0, 1], "wall": [2]}


def test_frames_are_memory_mapped_and_read_only(data):
    assert isinstance(data.frames, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        data.frames[0] = 0


def test_a_chunked_file_of_another_maker_is_read_too(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["ep_len"], file["ep_offset"] = [3], [0]
        file.create_dataset("pixels", data=np.arange(3 * 4 * 4 * 3, dtype="u1").reshape(3, 4, 4, 3), chunks=True)
        file["action"] = np.zeros((3, 2))
    data = Trajectories(tmp_path / "other.h5")
    assert data.frames[2, 3, 3, 2] == 143 and data.actions.dtype == np.float32
    assert state_groups(data) == {} and data.digest


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
    with pytest.raises(UserError, match=r"gone\.h5: no such trajectory file; run `jepa-wm collect`"):
        Trajectories(tmp_path / "gone.h5")
    (tmp_path / "text.h5").write_text("hello")
    with pytest.raises(UserError, match=r"text\.h5: not a readable HDF5 file"):
        Trajectories(tmp_path / "text.h5")
    whole = write(tmp_path / "whole.h5", [50])
    (tmp_path / "cut.h5").write_bytes(whole.path.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"cut\.h5: not a readable HDF5 file"):
        Trajectories(tmp_path / "cut.h5")
    with pytest.raises(UserError, match=r"column 'image' is missing; it has \['action', 'ep_len'"):
        Trajectories(whole.path, pixels="image")
    with pytest.raises(UserError, match="column 'reward' is missing"):
        whole.column("reward")


def test_the_runs_own_data_or_that_of_another_folder(tmp_path):
    from jepa_wm.core.schema import Config

    write(tmp_path / "run" / "collect" / "train.h5", [5])
    write(tmp_path / "elsewhere" / "train.h5", [7])
    assert len(open_data(tmp_path / "run", Config(), "train").actions) == 5
    other = Config(observe={"path": str(tmp_path / "elsewhere")})
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


@given(st.integers(1, 4), st.integers(0, 3), st.integers(1, 60), st.integers(0, 10**6), st.integers(1, 64))
@settings(max_examples=60, deadline=None)
def test_far_frames_are_of_the_same_episode_and_as_far_as_it_allows(data, frames, count, apart, step, batch):
    sampler = ClipSampler(data, frames=frames, gaps=(1, 3), seed=0)
    rows, far = sampler.rows(step, batch), sampler.far_rows(step, batch, count=count, apart=apart)
    assert far.shape == (batch, count)
    assert (sampler.far_rows(step, batch, count=count, apart=apart) == far).all()
    episode = episode_of(data, rows[:, :1])
    assert (episode_of(data, far) == episode).all() and (far < 95).all()
    first, last = data.offsets[episode], data.offsets[episode] + data.lengths[episode] - 1
    possible = np.maximum(rows[:, :1] - first, last - rows[:, -1:])
    distance = np.maximum(rows[:, :1] - far, far - rows[:, -1:])
    assert (distance >= np.minimum(apart, possible)).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_the_way_is_the_sum_of_moves_or_the_difference_of_places(data, absolute):
    sampler = ClipSampler(data, frames=3, gaps=(2,), seed=0, absolute=absolute)
    rows = sampler.rows(0, 5)
    for way, clip in zip(sampler.path_at(rows).numpy(), rows, strict=True):
        for t, row in enumerate(clip):
            a = data.actions
            there = a[row] - a[clip[0]] if absolute else a[clip[0] : row].sum(0)
            np.testing.assert_allclose(way[t], there, atol=1e-5)


def test_the_way_through_a_window_by_either_kind_of_action():
    acts = torch.tensor([[[[1.0], [2.0]], [[4.0], [8.0]]]])  # two model steps of two actions of one number
    assert way_of(acts, "delta").flatten().tolist() == [0, 3, 15]
    assert way_of(acts, "absolute").flatten().tolist() == [1, 2, 8]


def test_clips_begin_anywhere_and_differ_from_step_to_step(data):
    sampler = ClipSampler(data, frames=4, gaps=(1, 4), seed=0)
    rows = np.concatenate([sampler.rows(step, 100) for step in range(30)])
    assert set(rows.flatten().tolist()) == set(range(95)), "every frame is in some clip, the last ones too"
    assert not (sampler.rows(0, 100) == sampler.rows(1, 100)).all()
    assert not (sampler.rows(0, 100) == ClipSampler(data, frames=4, gaps=(1, 4), seed=1).rows(0, 100)).all()


@given(
    st.integers(2, 4), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2), (4, 4), (3, 3)]),
    st.integers(0, 99), st.integers(0, 10**6), st.integers(1, 64),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_windows_stay_inside_episodes_and_blocks_belong_to_their_frames(data, frames, skip_stride, seed, step, batch):
    skip, stride = skip_stride
    sampler = WindowSampler(data, frames=frames, frameskip=skip, stride=stride, seed=seed)
    episode, frame, blocks = sampler.batch(step, batch)
    assert episode.shape == frame.shape == (batch, frames) and blocks.shape == (batch, frames - 1, 2 * skip)
    assert (frame % stride == 0).all() and (frame >= 0).all() and (frame < data.lengths[episode]).all()
    assert (np.diff(frame, axis=1) == skip).all() and (episode == episode[:, :1]).all()
    taken = (data.offsets[episode] + frame)[:, :-1, None] + np.arange(skip)  # rows from each frame up to the next
    assert (blocks.reshape(batch, frames - 1, skip, 2) == np.stack([taken + 0.25, taken + 0.5], -1)).all()
    again = WindowSampler(data, frames=frames, frameskip=skip, stride=stride, seed=seed).batch(step, batch)
    assert all((a == b).all() for a, b in zip(again, (episode, frame, blocks), strict=True))


def test_the_last_window_of_an_episode_is_drawn_too(data):
    sampler = WindowSampler(data, frames=4, frameskip=4, stride=1, seed=0)  # 13 frames: exactly one episode 0 window
    seen = [sampler.batch(step, 100)[:2] for step in range(10)]
    for e in range(4):
        last = max(int(frame[episode == e].max()) for episode, frame in seen)
        assert last == data.lengths[e] - 1


@pytest.mark.parametrize("stride", [1, 5])
def test_frames_from_elsewhere_are_any_of_the_episode(data, stride):
    sampler = WindowSampler(data, frames=3, frameskip=2, stride=stride, seed=0)
    drawn = sampler.elsewhere(7, np.arange(4).repeat(100), count=3)
    assert drawn.shape == (400, 3) and (drawn == sampler.elsewhere(7, np.arange(4).repeat(100), count=3)).all()
    for e in range(4):
        assert set(drawn[e * 100 : e * 100 + 100].flat) == set(range(0, data.lengths[e], stride))
    assert (drawn[:, 0] != drawn[:, 1]).any()


@given(st.sampled_from([1, 2, 5]), st.integers(0, 10**6), st.integers(1, 64))
@settings(max_examples=40, deadline=None)
def test_pairs_come_from_one_episode_at_the_gap_they_state(data, stride, step, batch):
    sampler = PairSampler(data, stride=stride, seed=0)
    episode, frames, gap = sampler.batch(step, batch)
    assert frames.shape == (2, batch) and (frames % stride == 0).all()
    assert (frames >= 0).all() and (frames < data.lengths[episode]).all()
    assert (frames[1] - frames[0] == gap).all() and (gap >= stride).all()
    assert all((a == b).all() for a, b in zip(sampler.batch(step, batch), (episode, frames, gap), strict=True))


def test_episodes_that_are_too_short_are_named(data):
    with pytest.raises(UserError, match=r"13 frames is shorter than a clip \(observe.frames 8 x gap 2 needs 15\)"):
        ClipSampler(data, frames=8, gaps=(1, 2), seed=0)
    with pytest.raises(UserError, match="too short for train.dynamics.frames 5 at dynamics.frameskip 4 .17 needed"):
        WindowSampler(data, frames=5, frameskip=4, stride=1, seed=0)


def test_a_frame_a_little_too_large_is_cut_and_others_are_resized():
    frames = torch.randint(256, (2, 3, 67, 66, 3), dtype=torch.uint8)
    cut = to_input(frames, 65)
    assert cut.shape == (2, 3, 3, 65, 65)
    assert torch.equal(((cut + 1) * 127.5).round(), frames[:, :, :65, :65].movedim(-1, -3).float())
    for size in (33, 65):
        small = to_input(torch.full((1, 130, 98, 3), 255, dtype=torch.uint8), size)
        assert small.shape == (1, 3, size, size) and (small - 1).abs().max() < 1e-5
    assert (to_input(torch.zeros(1, 20, 20, 3, dtype=torch.uint8), 65) == -1).all(), "enlarging resizes as well"


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
    with pytest.raises(UserError, match=r"2 actions are not finite, the first in episode 1; .*--without 1"):
        Trajectories(changed(tiny_data, tmp_path, inside))


def test_lengths_that_do_not_fit_the_rows_are_refused(tiny_data, tmp_path):
    def long(file):
        file["ep_len"][5] = 32

    def empty(file):
        file["ep_len"][2] = 0

    with pytest.raises(UserError, match=r"episodes need 187 rows, it has of 'pixels' 186, 'action' 186"):
        Trajectories(changed(tiny_data, tmp_path, long))
    with pytest.raises(UserError, match="an episode is empty"):
        Trajectories(changed(tiny_data, tmp_path, empty))


def test_a_file_says_whether_its_actions_are_moves_or_places(tmp_path):
    assert write(tmp_path / "silent.h5", [5]).action_kind == "delta"
    for word in ("delta", "absolute", np.bytes_(b"absolute")):
        told = write(tmp_path / f"{len(str(word))}.h5", [5], action_kind=word).action_kind
        assert told == ("delta" if word == "delta" else "absolute")
    with pytest.raises(UserError, match=r"x\.h5: its attribute action_kind is 'continuous', neither delta nor absolute"):
        _ = write(tmp_path / "x.h5", [5], action_kind="continuous").action_kind


def test_the_digest_tells_where_episodes_end(tmp_path):
    digests = [write(tmp_path / f"{i}.h5", lengths).digest for i, lengths in enumerate(([5, 7], [5, 7], [7, 5]))]
    assert digests[0] == digests[1] != digests[2]
