"""Pretraining on videos alone: resumable to the sample, over mixtures with stills, with bad files
counted."""

import signal

import films
import numpy as np
import pytest
import torch
from PIL import Image
from test_train import at_steps

from jepa_wm.config import load_config
from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.images import augment, draw_augmentation
from jepa_wm.data.sampling import Prefetcher
from jepa_wm.data.settings import AugmentSettings
from jepa_wm.training import patch_init, pretrain

STEPS = 9
SMALL = [
    "data.image_size=24", "data.num_frames=5", "data.fps=[5,10]", "encoder.patch_size=8",
    "encoder.width=16",
    "encoder.depth=1", "jepa.width=16", "train.pretrain.batch=4",
    "train.pretrain.save_every=4",
    f"train.pretrain.steps={STEPS}", "train.pretrain.probe_frames=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder with `films`, five videos of moving squares, and `photos`, three images."""
    root = tmp_path_factory.mktemp("sets")
    (root / "films").mkdir()
    (root / "photos").mkdir()
    r = np.random.default_rng(0)
    for number in range(5):
        frames = np.repeat(r.integers(0, 255, (1, 32, 40, 3), np.uint8), 20, 0)
        for t in range(20):
            frames[t, 8:16, t : t + 8] = 255
        films.write(root / "films" / f"{number}.mp4", frames)
    for number in range(3):
        Image.fromarray(r.integers(0, 255, (30, 30, 3), np.uint8)).save(
            root / "photos" / f"{number}.png"
        )
    return root


def train(folder, *words):
    with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
        return run_stage("pretrain", run)


def weights(folder):
    return load_checkpoint(newest_checkpoint(folder / "pretrain" / "checkpoints"))[0]


def test_an_interrupted_run_on_videos_goes_on_to_the_same_bits(tmp_path, sets, monkeypatch):
    words = [f"data.videos={sets / 'films'}", "data.augment={}"]
    result = train(tmp_path / "whole", *words)
    assert result["probe"] == {} and result["unreadable"] == [] and result["feature_std"] > 0
    with monkeypatch.context() as patch:
        at_steps(patch, (3, 6), lambda: signal.raise_signal(signal.SIGTERM))
        for _ in range(2):
            with pytest.raises(Interrupted):
                train(tmp_path / "stopped", *words)
        train(tmp_path / "stopped", *words)
    whole, stopped = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
    assert read_metrics(tmp_path / "whole", "pretrain") == read_metrics(
        tmp_path / "stopped", "pretrain"
    )


def test_what_is_decoded_before_the_first_step_is_little_and_says_how_far_it_is(
    tmp_path, sets, monkeypatch, capsys
):
    # Pairs a batch: 4 clips, 3 pairs of their 4 frames, 9 patches each.
    monkeypatch.setattr(patch_init, "DECODED", 2 * 4 * 3 * 9)
    monkeypatch.setattr(pretrain, "SAMPLES", 10)
    train(
        tmp_path, f"data.videos={sets / 'films'}", "jepa.patch_init=predictive", "jepa.min_gap=1",
        "train.pretrain.probe_frames=10000", "train.pretrain.steps=1",
    )  # fmt: skip
    lines = capsys.readouterr().err
    assert (
        "frames of the probe  10/10  100%" in lines and "patches of the data  2/2  100%" in lines
    )


def test_a_mixture_with_stills_and_a_broken_file_that_is_allowed(tmp_path, sets):
    (tmp_path / "films").mkdir()
    for file in (sets / "films").iterdir():
        (tmp_path / "films" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "films" / "bad.mp4").write_bytes(b"no video")
    films, photos = tmp_path / "films", sets / "photos"
    listed = f"{{path: {films}, weight: 3}}, {{path: {photos}, single_images: true}}"
    mixture = f"data.videos=[{listed}]"
    words = [mixture, "jepa.masks=[{num_blocks: 2, spatial_scale: [0.3, 0.3]}]"]
    with pytest.raises(
        UserError, match=r"1 of 6 videos cannot be read, more than 1.0% of them:\n.*bad\.mp4"
    ):
        train(tmp_path / "strict", *words)
    with pytest.warns(UserWarning, match=r"left out, 1 of 6 so far: .*bad\.mp4"):
        result = train(tmp_path / "run", *words, "data.max_unreadable=0.2")
    assert len(result["unreadable"]) == 1 and "bad.mp4" in result["unreadable"][0]
    assert all((tmp_path / "run" / "pretrain" / f"videos_{i}.h5").exists() for i in range(2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["data.videos=x", "jepa.inverse_dynamics=1"],
            r"jepa.inverse_dynamics 1.0 reads actions.*set jepa.inverse_dynamics=0",
        ),
        (
            ["data.videos=[{path: x, single_images: true}]", "jepa.temporal_contrast=1"],
            r"jepa.temporal_contrast .* set jepa.temporal_contrast=0",
        ),
        (
            ["data.augment={}", "jepa.inverse_dynamics=1"],
            r"which data.augment rescales and mirrors",
        ),
        (
            ["data.videos=[{path: x, single_images: true}]", "jepa.episode_contrast=1"],
            r"jepa.episode_contrast .* set jepa.episode_contrast=0",
        ),
        (
            ["data.augment={color_jitter: 0.4}", "encoder.channels=2"],
            r"of frames of 3 channels.*set data.augment.color_jitter=0",
        ),
        (
            [
                "jepa.episode_contrast=1",
                "jepa.num_distant_frames=1",
                "jepa.masks=[{num_blocks: 2, spatial_scale: [0.3, 0.3]}]",
            ],
            r"episode_contrast 1.0 need a mask .*; or set jepa.num_distant_frames >= 2",
        ),
        (["data.augment={scale: [0.5, 0.2]}"], r"scale \[0.5, 0.2\] is a range"),
        (["data.videos=[{path: x, weight: 0}]"], "weight"),
    ],
)
def test_what_videos_cannot_give_is_refused_by_name(words, message):
    with pytest.raises(UserError, match=message):
        load_config("debug", words)


def test_crops_are_parts_of_the_frame_and_the_same_for_all_frames():
    ramp = torch.arange(40, dtype=torch.uint8).expand(30, 40)
    clip = torch.stack([ramp, 2 * ramp])[None, ..., None].expand(6, -1, -1, -1, 3)
    crops = (
        augment(
            clip, AugmentSettings(), 16, draw_augmentation(6, torch.Generator().manual_seed(1))
        )
        + 1
    ) * 127.5
    assert crops.shape == (6, 2, 3, 16, 16)
    assert torch.allclose(crops[:, 1], 2 * crops[:, 0], atol=1e-3), (
        "one crop for all frames of a clip"
    )
    slope = (
        crops[:, 0, 0, 0, -1] - crops[:, 0, 0, 0, 0]
    )  # how much of the ramp is seen, mirrored if negative
    assert (slope.abs() > 40 * 0.3 * 0.5).all() and (slope < 0).any() and (slope > 0).any()
    assert len({round(float(value), 3) for value in slope.abs()}) > 4
    whole_frame = AugmentSettings(scale=(1, 1), aspect_ratio=(4 / 3, 4 / 3), horizontal_flip=False)
    whole = augment(clip, whole_frame, 16, draw_augmentation(6, torch.Generator()))
    assert torch.allclose(whole[:1], whole, atol=1e-6) and (whole[0, 0, 0, 0].diff() > 0).all()


def test_light_changes_from_view_to_view_and_not_within_a_clip():
    clip = torch.rand(1, 1, 20, 20, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte()
    clip = clip.expand(5, 2, -1, -1, -1)
    still = {"scale": (1, 1), "aspect_ratio": (1, 1), "horizontal_flip": False}
    u = draw_augmentation(5, torch.Generator().manual_seed(1))
    plain, lit = (augment(clip, AugmentSettings(**still, color_jitter=j), 20, u) for j in (0, 0.4))
    assert torch.equal(lit[:, 0], lit[:, 1])
    assert (lit.flatten(1) - plain.flatten(1)).abs().mean(1).min() > 0.02
    assert torch.pdist(lit[:, 0].flatten(1)).min() > 1
    u[5:] = 0.5  # the middle of each range
    assert torch.allclose(
        augment(clip, AugmentSettings(**still, color_jitter=0.4), 20, u), plain, atol=1e-2
    )


def test_batches_are_made_ahead_and_are_those_of_their_step():
    made = []

    def make(step, rows):
        made.append(step)
        if step == 3:
            raise UserError("step 3 is bad")
        return step * 10 + rows.start

    ahead, rows = Prefetcher(make), slice(0, 4)
    assert [ahead.batch(step, rows) for step in (0, 1, 7)] == [0, 10, 70]
    assert made[:3] == [0, 1, 2] and 7 in made
    assert ahead.batch(2, rows) == 20
    with pytest.raises(UserError, match="step 3 is bad"):
        ahead.batch(3, rows)
    made.clear()
    parts = [slice(0, 2), slice(2, 4)]
    assert [ahead.batch(step, part) for step in (4, 5) for part in parts] == [40, 42, 50, 52]
    ahead.batch(6, parts[0])
    assert made.count(5) == 2, "each part was prepared once"
