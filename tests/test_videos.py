"""Sets of videos are found, looked at and sampled: purely, without overlap between ranks, and
never silently wrong."""

from pathlib import Path

import films
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jepa_wm.core.errors import UserError
from jepa_wm.data.clips import BatchShape, ClipSampler
from jepa_wm.data.images import ImageSequence, to_input
from jepa_wm.data.sampling import MixtureSampler, ShuffledOrder
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.video import VideoError
from jepa_wm.data.video_clips import MAX_MICROSECONDS, MixturePart, VideoClipSampler
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import Entry, find


def save_frames(folder, count, *, size=(64, 48)):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", size, (films.grey(number),) * 3).save(folder / f"frame_{number}.png")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes: videos of 24 and 5 frames (10 a second), and a folder of 13 frames."""
    root = tmp_path_factory.mktemp("set")
    (root / "wave").mkdir()
    films.write(root / "wave" / "long one.mp4", films.frames(24))
    films.write(root / "wave" / "short.mkv", films.frames(5, height=32, width=80))
    save_frames(root / "jump" / "clip", 13)
    (root / "wave" / "notes.md").write_text("no video")
    return root


@pytest.fixture(scope="module")
def videos(root):
    return VideoSet(find(root), folder_fps=10)


def test_class_folders_flat_folders_and_single_files(root, tmp_path):
    found = find(root)
    assert [(e.path.relative_to(root).as_posix(), e.label) for e in found] == [
        ("jump/clip", "jump"), ("wave/long one.mp4", "wave"), ("wave/short.mkv", "wave"),
    ]  # fmt: skip
    assert [e.label for e in find(root / "wave")] == [None, None]
    assert find(root / "wave" / "short.mkv") == [Entry(root / "wave" / "short.mkv")]
    assert [e.path.name for e in find(root / "jump", single_images=True)][:3] == [
        f"frame_{n}.png" for n in range(3)
    ]
    with pytest.raises(UserError, match="holds no video"):
        find(tmp_path)
    with pytest.raises(UserError, match="gone: no such file or folder"):
        find(tmp_path / "gone")


def test_a_manifest_knows_spaces_labels_and_relative_paths(root):
    lines = ["path,label", "wave/long one.mp4,wave", '"wave/short.mkv" , "a, b"', "",
    "wave/long one.mp4", "# no",
             "wave/short.mkv 3", f"{root}/jump/clip 0"]  # fmt: skip
    (root / "list.csv").write_text("\n".join(lines))
    found = [(e.path.relative_to(root).as_posix(), e.label) for e in find(root / "list.csv")]
    long, short = "wave/long one.mp4", "wave/short.mkv"
    assert found == [
        (long, "wave"),
        (short, "a, b"),
        (long, None),
        (short, "3"),
        ("jump/clip", "0"),
    ]
    (root / "wrong.csv").write_text("wave/short.mkv,1,2\n")
    with pytest.raises(UserError, match=r"wrong\.csv, line 1: 3 fields instead of path,label"):
        find(root / "wrong.csv")


def test_folders_of_frames_and_images(root, tmp_path):
    stills = ImageSequence(root / "jump" / "clip", fps=10)
    assert stills.facts().frames == 13 and stills.facts().seconds == 1.3
    assert [films.number_of(f) for f in stills.at(np.array([-1, 0, 0.1, 0.29, 1.0, 1.2, 9]))] == [
        0,
        0,
        1,
        2,
        10,
        12,
        12,
    ]
    picture = Image.new("RGBA", (40, 20), (200, 10, 10, 0))
    exif = picture.getexif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    picture.save(tmp_path / "one.png", exif=exif)
    one = ImageSequence(tmp_path / "one.png", fps=10, size=10)
    assert one.facts().seconds == 0 and one.at(np.arange(3)).shape == (3, 20, 10, 3)
    assert one.at(np.zeros(1))[0, 0, 0].tolist() == [200, 10, 10], (
        "alpha is dropped, not laid on black"
    )
    (tmp_path / "two.png").write_bytes((tmp_path / "one.png").read_bytes()[:60])
    with pytest.raises(VideoError, match=r"two\.png: cannot be read"):
        ImageSequence(tmp_path / "two.png", fps=10).at(np.zeros(1))


def test_what_a_set_knows(videos):
    assert (
        len(videos) == 3
        and videos.classes == ["jump", "wave"]
        and videos.labels.tolist() == [0, 1, 1]
    )
    assert np.allclose(videos.seconds, [1.3, 2.4, 0.5], atol=0.01) and not videos.unreadable.why


def test_unreadable_videos_are_named_and_too_many_refused(root, tmp_path):
    for number in range(9):
        (tmp_path / f"{number}.mkv").write_bytes((root / "wave" / "short.mkv").read_bytes())
    (tmp_path / "bad.mp4").write_text("no video")
    with pytest.warns(
        UserWarning, match=r"left out, 1 of 10 so far: .*bad\.mp4: cannot be decoded"
    ):
        some = VideoSet(find(tmp_path), max_unreadable=0.1)
    assert len(some) == 9 and [path.name for path in some.unreadable.why] == ["bad.mp4"]
    with pytest.raises(
        UserError, match=r"1 of 10 videos cannot be read, more than 1.0% of them:\n.*bad\.mp4"
    ):
        VideoSet(find(tmp_path))


@given(st.integers(1, 60), st.integers(0, 9), st.integers(0, 5))
@settings(max_examples=80, deadline=None)
def test_an_epoch_holds_every_sample_once(count, seed, epoch):
    order = ShuffledOrder(count, seed)
    samples = [order.index(epoch, position) for position in range(count)]
    assert sorted(samples) == list(range(count))
    last = ShuffledOrder(count, seed).index(epoch, count - 1)
    assert last == samples[-1], "a position needs no history"
    assert order.nth(epoch * count) == (epoch, samples[0])


@given(
    st.lists(st.floats(0.01, 9), min_size=1, max_size=4), st.integers(0, 9), st.integers(0, 10**6)
)
@settings(max_examples=40, deadline=None)
def test_a_mixture_keeps_its_weights_and_every_part_its_own_order(weights, seed, first):
    mixture, block = MixtureSampler(tuple(weights), seed), MixtureSampler.BLOCK
    first = first // block * block
    dealt = [mixture.nth(first + i) for i in range(block)]
    for part, weight in enumerate(weights):
        own = [before for number, before in dealt if number == part]
        assert abs(len(own) - block * weight / sum(weights)) <= len(weights) and own
        assert own == list(range(own[0], own[0] + len(own))), (
            "no sample of a part is left out or comes twice"
        )
    following = mixture.nth(first + block)
    assert following[1] == sum(number == following[0] for number, _ in dealt) + first // block * (
        sum(number == following[0] for number, _ in dealt)
    )


def test_epochs_and_seeds_differ():
    first = [
        [ShuffledOrder(50, seed).index(epoch, p) for p in range(50)]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in first}) == 4 and all(
        sorted(order) == list(range(50)) for order in first
    )
    with pytest.raises(UserError, match="there is no sample to draw"):
        ShuffledOrder(0, 0)


def sampler_of(videos, *, frames=4, fps=(5.0, 10.0), seed=0):
    part = MixturePart(videos, seed)
    return VideoClipSampler([part], frames=frames, fps=fps, size=16, workers=2)


@given(st.integers(0, 99), st.integers(0, 10**4), st.integers(1, 9), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_clips_are_pure_stay_inside_and_keep_their_rate(videos, seed, step, batch, frames):
    sampler = sampler_of(videos, frames=frames, seed=seed)
    rows = sampler.rows(step, batch)
    assert rows.shape == (batch, frames) and rows.dtype == np.int64
    assert (sampler_of(videos, frames=frames, seed=seed).rows(step, batch) == rows).all()
    whole = sampler.rows(0, batch * 2)
    assert (np.concatenate([sampler.rows(0, batch), sampler.rows(1, batch)]) == whole).all(), (
        "batches cut one sequence"
    )
    video, moment = np.divmod(rows, MAX_MICROSECONDS)
    assert (video == video[:, :1]).all() and (moment >= 0).all()
    interval = np.diff(moment, axis=1)
    assert np.isin(interval, [99999, 100000, 100001, 199999, 200000, 200001]).all()
    seconds = videos.seconds[video[:, 0]]
    fits = (moment[:, -1] - moment[:, 0]) / 1e6 < seconds
    assert (moment[fits, -1] / 1e6 <= seconds[fits]).all() and (moment[~fits, 0] == 0).all()


@given(st.integers(0, 10**4), st.integers(1, 6), st.integers(1, 4), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_far_moments_are_of_the_same_video_and_as_far_as_it_allows(
    videos, step, batch, count, apart
):
    sampler = sampler_of(videos, frames=3)
    rows, far = (
        sampler.rows(step, batch),
        sampler.distant_rows(step, batch, count=count, min_gap=apart),
    )
    assert (
        far.shape == (batch, count)
        and (far // MAX_MICROSECONDS == rows[:, :1] // MAX_MICROSECONDS).all()
    )
    end = (videos.seconds[rows[:, :1] // MAX_MICROSECONDS] * 1e6).astype(np.int64)
    moment, other = rows % MAX_MICROSECONDS, far % MAX_MICROSECONDS
    assert (other <= end).all()
    distance = np.maximum(moment[:, :1] - other, other - moment[:, -1:])
    possible = np.maximum(moment[:, :1], end - moment[:, -1:])
    assert (
        distance >= np.minimum(apart * (moment[:, 1] - moment[:, 0])[:, None], possible) - 1
    ).all()


@pytest.mark.parametrize("kind", ["trajectories", "videos"])
def test_a_sample_is_cut_from_the_batch_of_its_step(kind, videos, tiny_data):
    """One protocol for both kinds of data: clips, then their distant frames, whoever reads."""
    shape, source = BatchShape(6, num_distant=2, min_gap=3), None
    if kind == "videos":
        part = MixturePart(videos, 0)
        source = VideoClipSampler([part], frames=2, fps=(10.0,), size=16, batch=shape)
    else:
        data = Trajectories(tiny_data / "train.h5")
        source = ClipSampler(data, frames=2, gaps=(1, 2), seed=0, batch=shape)
    whole = source.sample(4, slice(0, 6))
    clips, distant = source.rows(4, 6), source.distant_rows(4, 6, count=2, min_gap=3)
    assert (whole.rows.numpy() == np.concatenate([clips, distant], 1)).all()
    assert torch.equal(whole.frames, source.frames_at(whole.rows.numpy()))
    assert whole.displacement.shape == (6, 4, 2 if kind == "trajectories" else 0)
    assert (whole.episode.numpy() == source.episode_at(clips)).all()
    ranks = [source.sample(4, slice(0, 2)), source.sample(4, slice(2, 6))]
    for name, value in whole._asdict().items():
        union = torch.cat([getattr(rank, name) for rank in ranks])
        assert torch.equal(union.nan_to_num(), value.nan_to_num()), name


def test_every_video_gives_as_many_clips_an_epoch_as_asked_for(videos):
    part = MixturePart(videos, 0, clips=3)
    rows = VideoClipSampler([part], frames=2, fps=(10.0,), size=16).rows(0, 9)
    assert sorted(rows[:, 0] // MAX_MICROSECONDS) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({tuple(row) for row in rows}) == 9, "each at its own moment"


def test_frames_are_those_of_their_moments(videos):
    sampler = sampler_of(videos)
    rows = sampler.rows(0, 6)
    frames = sampler.frames_at(rows)
    assert frames.shape == (6, 4, 16, 16, 3) and frames.dtype == torch.uint8
    for row, clip in zip(rows, frames.numpy(), strict=True):
        video, moment = np.divmod(row, MAX_MICROSECONDS)
        count = round(float(videos.seconds[video[0]]) * 10)
        expected = np.minimum(
            np.floor(moment / 1e5 + 1e-3), count - 1
        )  # short videos repeat their last frame
        assert [films.number_of(frame) for frame in clip] == expected.tolist()
    assert to_input(frames, 16).shape == (6, 4, 3, 16, 16) and sampler.displacement_at(
        rows
    ).shape == (6, 4, 0)
    assert sampler.frames_at(sampler.distant_rows(0, 6, count=2, min_gap=3)).shape == (
        6,
        2,
        16,
        16,
        3,
    )


def test_a_video_that_fails_on_the_way_is_said_and_stood_in_for(tmp_path):
    for number in range(4):
        films.write(tmp_path / f"{number}.mp4", films.frames(12))
    sampler = sampler_of(VideoSet(find(tmp_path), max_unreadable=0.3))
    rows = sampler.rows(0, 4)
    whole = sampler.frames_at(rows)
    broken = int(rows[1, 0] // MAX_MICROSECONDS)
    sampler.parts[0].videos.entry(broken).path.write_text("gone bad")
    with pytest.warns(UserWarning, match=rf"left out, 1 of 4 so far: .*{broken}\.mp4"):
        frames = sampler.frames_at(rows)
    assert torch.equal(frames[[0, 2, 3]], whole[[0, 2, 3]]) and torch.equal(frames[1], whole[2])
    other = next(v for v in range(4) if v != broken)
    sampler.parts[0].videos.entry(other).path.write_text("gone bad too")
    with pytest.raises(UserError, match="2 of 4 videos cannot be read, more than 30.0% of them"):
        sampler.frames_at(rows)


def test_a_sampler_refuses_what_cannot_be(videos):
    with pytest.raises(UserError, match="give at least one rate above 0"):
        sampler_of(videos, fps=())
    with pytest.raises(UserError, match="each part of a mixture needs a weight above 0"):
        VideoClipSampler([MixturePart(videos, 0, 0.0)], frames=2, fps=(4.0,), size=16)
    assert isinstance(videos.entry(0).path, Path)


def test_a_batch_of_broken_videos_is_stood_in_for_by_the_next_that_can_be_read(tmp_path):
    for number in range(4):
        films.write(tmp_path / f"{number}.mp4", films.frames(12))
    sampler = sampler_of(VideoSet(find(tmp_path), max_unreadable=0.3))
    row = sampler.rows(0, 1)
    broken = int(row[0, 0] // MAX_MICROSECONDS)
    (tmp_path / f"{broken}.mp4").write_text("gone bad")
    with pytest.warns(UserWarning, match="left out, 1 of 4 so far"):
        frames = sampler.frames_at(row)
    assert torch.equal(
        frames, sampler.frames_at((row + MAX_MICROSECONDS) % (4 * MAX_MICROSECONDS))
    )
    assert len(sampler.unreadable) == 1 and f"{broken}.mp4" in sampler.unreadable[0]


def test_an_index_gives_back_the_set(root, videos, tmp_path):
    with pytest.warns(UserWarning, match="left out"):
        (root / "wave" / "bad.mp4").write_text("no video")
        known = VideoSet(find(root), max_unreadable=0.5, folder_fps=10)
    (root / "wave" / "bad.mp4").unlink()
    known.save(tmp_path / "videos.h5")
    again = VideoSet.open(tmp_path / "videos.h5", max_unreadable=0.5)
    assert [again.entry(v) for v in range(3)] == [videos.entry(v) for v in range(3)]
    assert (
        again.classes == videos.classes
        and again.folder_fps == 10
        and (again.labels == videos.labels).all()
    )
    assert (again.seconds == videos.seconds).all() and again.unreadable.total == 4
    assert [path.name for path in again.unreadable.why] == ["bad.mp4"]
    assert torch.equal(
        *(sampler_of(s).frames_at(sampler_of(s).rows(0, 3)) for s in (again, videos))
    )
    with pytest.raises(UserError, match=r"gone\.h5: no such index"):
        VideoSet.open(tmp_path / "gone.h5")
    (tmp_path / "cut.h5").write_bytes((tmp_path / "videos.h5").read_bytes()[:400])
    with pytest.raises(UserError, match=r"cut\.h5: not a readable HDF5 file"):
        VideoSet.open(tmp_path / "cut.h5")


def test_parquet_manifests(root, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    table = {"path": ["wave/long one.mp4", "jump/clip"], "label": [3, 4]}
    parquet.write_table(pyarrow.table(table), root / "list.parquet")
    assert [(e.path.name, e.label) for e in find(root / "list.parquet")] == [
        ("long one.mp4", "3"),
        ("clip", "4"),
    ]
    parquet.write_table(pyarrow.table({"file": ["a"]}), tmp_path / "wrong.parquet")
    with pytest.raises(UserError, match="column 'path' is missing; it has 'file'"):
        find(tmp_path / "wrong.parquet")
    parquet.write_table(pyarrow.table({"path": ["a", None]}), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="row 1 has no path"):
        find(tmp_path / "empty.parquet")
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match=r"cut\.parquet: cannot be read"):
        find(tmp_path / "cut.parquet")
