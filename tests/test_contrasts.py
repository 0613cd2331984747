"""What contrasts tell apart: never two clips of one episode or file, and a successor only where it
is one."""

import films
import numpy as np
import pytest
import torch
from test_predict import HALF, PREDICTOR

from jepa_wm.config import load_config
from jepa_wm.data.clips import BatchShape, ClipSampler
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.video_clips import MAX_MICROSECONDS, MixturePart, VideoClipSampler
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import Entry, find
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.losses import EpisodeContrast, FrameTimes, TemporalContrast
from jepa_wm.models.masks import draw_masks
from jepa_wm.training import pretrain


def test_other_clips_of_an_episode_are_not_among_those_it_is_told_from():
    torch.manual_seed(0)
    contrast = EpisodeContrast(8)
    x, y = torch.randn(5, 2, 8), torch.randn(5, 3, 8)
    alone = contrast(x, y, torch.arange(5))
    torch.testing.assert_close(alone, contrast(x, y))
    # Clips 1, 3 and 4 are of one episode: clip 1 is told from 0 and 2 alone, clip 0 from all.
    found = contrast(x, y, torch.tensor([7, 9, 8, 9, 9]))
    a, b = (torch.nn.functional.normalize(contrast.project(z), dim=-1) for z in (x, y))
    scores = torch.einsum("btf,crf->btrc", a, b) / contrast.temperature
    told_from = {0: [0, 1, 2, 3, 4], 1: [1, 0, 2], 2: [2, 0, 1, 3, 4], 3: [3, 0, 2], 4: [4, 0, 2]}
    each = [
        -scores[k][..., others].log_softmax(-1)[..., others.index(k)]
        for k, others in told_from.items()
    ]
    torch.testing.assert_close(found, torch.stack(each).mean())
    assert contrast(x, y, torch.zeros(5, dtype=torch.long)) == 0, (
        "one episode has nothing to be told from"
    )


def test_a_frame_across_the_hidden_stretch_is_no_successor():
    torch.manual_seed(0)
    contrast = TemporalContrast(8)
    x, far = torch.randn(2, 4, 8), torch.randn(2, 3, 8)
    step = torch.tensor([[0, 1, 6, 7], [4, 5, 6, 7]])
    when = FrameTimes(step, 5 * step, torch.tensor([[100, 150, 200]] * 2))
    pairs = [contrast(x[:1, k : k + 2], far[:1]) for k in (0, 2)]
    pairs += [contrast(x[1:, k : k + 2], far[1:]) for k in range(3)]
    torch.testing.assert_close(contrast(x, far, when), torch.stack(pairs).mean())
    torch.testing.assert_close(
        contrast(x, far, FrameTimes(step[:, :1] + torch.arange(4), *when[1:])), contrast(x, far)
    )
    apart = FrameTimes(torch.tensor([[0, 2, 4, 6]] * 2), *when[1:])
    assert contrast(x, far, apart) == contrast(x, None, apart) == 0, (
        "nobody's successor is in view"
    )


def test_a_far_frame_that_is_as_near_as_the_successor_is_not_told_from_it():
    torch.manual_seed(0)
    contrast = TemporalContrast(8)
    x, far = torch.randn(1, 2, 8), torch.randn(1, 3, 8)
    when = FrameTimes(
        torch.tensor([[2, 3]]), torch.tensor([[10, 15]]), torch.tensor([[5, 16, 100]])
    )
    torch.testing.assert_close(contrast(x, far, when), contrast(x, far[:, 1:]))
    none = FrameTimes(when.step, when.time, torch.tensor([[9, 12, 15]]))
    assert contrast(x, far, none) == 0


@pytest.mark.parametrize("frames", [4, 8])
def test_pairs_of_a_drawn_batch_are_never_further_apart_than_a_gap(frames):
    """Half of a clip is hidden, anywhere: the pairs that count are of frames a gap apart."""
    encode = EncoderSettings(patch_size=8, width=16, depth=1, num_heads=1)
    model = JEPA(16, encode, JepaSettings(**PREDICTOR, masks=(HALF,)), action_size=2)
    gap = torch.tensor([3, 5] * 16)[:, None]
    time = 1000 + gap * torch.arange(frames)
    clip, distant = torch.zeros(32, frames, 3, 16, 16), torch.zeros(32, 2, 3, 16, 16)
    taken = torch.cat([time, torch.full((32, 2), 5000)], 1)
    for step in range(5):
        drawn = torch.Generator().manual_seed(step)
        (mask,) = draw_masks(model.settings, (32, frames, model.encoder.grid), drawn)
        when = model._times(mask.full_frames, Batch(clip, distant, [mask], time=taken))
        counts = when.step.diff(dim=1) == 1
        assert counts.any() and not counts.all()
        assert (when.time.diff(dim=1)[counts] == gap.expand(-1, counts.shape[1])[counts]).all()
        assert (when.distant == 5000).all()


def test_a_batch_tells_where_its_frames_come_from(tiny_data, monkeypatch):
    """Six episodes, sixteen clips: some share one, and the contrasts are told which."""
    words = [
        f"data.path={tiny_data}", "encoder.width=16", "encoder.depth=1", "jepa.width=16",
        "jepa.num_distant_frames=2", "jepa.episode_contrast=1", "jepa.temporal_contrast=1",
        "jepa.masks=[{frames: 1}]", "train.pretrain.batch=16",
        "train.precision=fp32",
    ]  # fmt: skip
    config = load_config("debug", words)
    data = Trajectories(tiny_data / "train.h5")
    shape = BatchShape(16, config.jepa.num_distant_frames, config.jepa.min_gap)
    frames, gaps = config.data.num_frames, config.data.frame_gaps
    sampler = ClipSampler(data, frames=frames, gaps=gaps, seed=0, batch=shape)
    model, told = JEPA(config.data.image_size, config.encoder, config.jepa, action_size=2), []
    reader = pretrain.BatchReader(sampler, config.data, config.encoder, config.jepa, 0)
    task = pretrain.make_task(model, reader, config.train.pretrain, config.train.precision)
    original = model.episode_contrast.forward
    monkeypatch.setattr(
        model.episode_contrast, "forward", lambda *given: told.append(given[2]) or original(*given)
    )
    losses = task.losses(3, slice(0, 16))
    rows = sampler.rows(3, 16)
    episode = np.searchsorted(data.offsets, rows[:, 0], side="right") - 1
    assert told and all(given.tolist() == episode.tolist() for given in told)
    assert (
        len(set(episode.tolist())) < 16
        and losses["episode_contrast"] > 0
        and losses["temporal_contrast"] > 0
    )


@pytest.fixture
def folder(tmp_path):
    for number in range(3):
        films.write(tmp_path / f"{number}.mp4", films.frames(20))
    return tmp_path


def of_videos(videos, clips=1, **given):
    part = MixturePart(videos, 0, clips=clips)
    return VideoClipSampler([part], frames=2, fps=(10.0,), size=16, **given)


def test_clips_of_one_file_are_of_one_episode_also_where_it_is_listed_twice(folder):
    entries = find(folder)
    twice = [*entries, Entry(folder / "." / ".." / folder.name / entries[0].path.name, None, None)]
    sampler = of_videos(VideoSet(twice), clips=2)
    rows = sampler.rows(0, 8)
    number, video = sampler.episode_at(rows), rows[:, 0] // MAX_MICROSECONDS
    assert number.dtype == np.int64 and len(set(number.tolist())) == 3
    for i in range(8):
        for j in range(8):
            assert (number[i] == number[j]) == (video[i] % 3 == video[j] % 3)


def test_a_clip_that_stands_in_for_another_is_of_its_own_file(folder):
    sampler = of_videos(VideoSet(find(folder), max_unreadable=0.5))
    rows = sampler.rows(0, 3)
    shown = sampler.read(rows)[1]
    assert (shown == rows).all()
    broken = int(rows[1, 0] // MAX_MICROSECONDS)
    sampler.parts[0].videos.entry(broken).path.write_text("gone bad")
    with pytest.warns(UserWarning, match="left out"):
        frames, shown = sampler.read(rows)
    assert (shown[[0, 2]] == rows[[0, 2]]).all() and (shown[1] == rows[2]).all()
    assert torch.equal(frames[1], frames[2])
    number = sampler.episode_at(shown)
    assert number[1] == number[2] != number[0]
    frames, shown = sampler.read(rows[1:2])
    assert (shown[0] // MAX_MICROSECONDS == (broken + 1) % 3).all() and torch.equal(
        frames, sampler.frames_at(shown)
    )
