"""What a pretraining run has learned of its pretext task: figures of predictors that are known to
be perfect, ignorant or wrong at one place, and the command on runs of several recipes."""

import json
import shutil
from dataclasses import replace

import films
import numpy as np
import pytest
import torch
from PIL import Image
from test_predict import BOXES, HALF, batch_of, far, generator, jepa
from test_train import SMALL

from jepa_wm.cli import main
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, evaluate, run_stage
from jepa_wm.evals import pretext as stage
from jepa_wm.evals.pretext import predictions
from jepa_wm.evals.pretext_picture import ShownClips
from jepa_wm.evals.pretext_tokens import error_maps, figures, measure, nearest_context, retrieved
from jepa_wm.models.encoder_settings import BlockMask, FrameMask
from jepa_wm.models.jepa import JEPA, take_tokens
from jepa_wm.models.masks import TokenMask
from jepa_wm.models.targets import kinds_of
from jepa_wm.report.pretext import PretextClip, pretext_png, shown_steps

BOTH = {"target_kinds": ("motion", "tokens"), "num_distant_frames": 1}
PLACE, GRID = 5, 3  # one place of the 3 x 3 of a frame


def noise(seed=3):
    """Clips of which no two patches are alike."""
    return torch.randn(8, 4, 3, 12, 12, generator=generator(seed))


def knows_all(self, context, batch):
    targets = self.compute_targets(batch.clip, batch.distant)
    return [take_tokens(targets, mask.target_ids) for mask in batch.masks]


def knows_nothing(self, context, batch):
    return [torch.zeros_like(each) for each in knows_all(self, context, batch)]


def errs_at_one_place(self, context, batch):
    predicted = knows_all(self, context, batch)
    for each, mask in zip(predicted, batch.masks, strict=True):
        each[mask.target_ids % GRID**2 == PLACE] += 1
    return predicted


def measured(model, video):
    """(columns of each mask, batch, targets, predicted) of one batch."""
    batch = batch_of(model, video, far(8, 1), generator())
    with torch.no_grad():
        targets, predicted = predictions(model, batch)
        by_other = predictions(model, replace(batch, clip=batch.clip.roll(1, 0)))[1]
    columns = [
        measure(model, mask, targets, *guesses)
        for mask, *guesses in zip(batch.masks, predicted, by_other, strict=True)
    ]
    return columns, batch, targets, predicted


@pytest.mark.parametrize("recipe", [{}, BOTH, {"error": "squared", "whiten_targets": True}])
def test_a_perfect_predictor_has_no_error_and_finds_every_target(monkeypatch, recipe):
    monkeypatch.setattr(JEPA, "predict", knows_all)
    model = jepa(**recipe)
    result = figures(measured(model, noise())[0], kinds_of(model.settings))
    assert result["relative_error"] == 0
    assert set(result["kinds"]) == set(recipe.get("target_kinds", ("tokens",)))
    for kind in result["kinds"].values():
        assert kind["relative_error"] == 0 and kind["shuffled"] > 1
        for among in ("retrieval_clip", "retrieval_batch"):
            assert kind[among]["top1"] == kind[among]["weighted_top1"] == 1
            assert kind[among]["rank"] == 0 and kind[among]["chance"] < 0.2


@pytest.mark.parametrize("recipe", [{"error": "squared"}, {**BOTH, "error": "squared"}, {}])
def test_a_predictor_that_knows_nothing_is_as_bad_as_the_constant(monkeypatch, recipe):
    monkeypatch.setattr(JEPA, "predict", knows_nothing)
    model = jepa(**recipe)
    result = figures(measured(model, noise())[0], kinds_of(model.settings))
    assert 0.99 < result["relative_error"] < 1.15, "a median is nearer than the mean"
    for kind in result["kinds"].values():
        assert 0.99 < kind["relative_error"] < 1.15
        assert kind["relative_error"] == kind["shuffled"]
        for among in ("retrieval_clip", "retrieval_batch"):
            figure = kind[among]
            assert figure["top1"] == pytest.approx(figure["chance"], rel=0.6)
            assert figure["rank"] == pytest.approx(0.5, abs=0.06)


def test_the_map_shows_the_one_place_that_is_wrong(monkeypatch):
    monkeypatch.setattr(JEPA, "predict", errs_at_one_place)
    model = jepa(**BOTH)
    maps = error_maps(measured(model, noise())[0], kinds_of(model.settings), GRID)
    for kind in ("tokens", "motion"):
        values = np.array(maps[kind]).ravel()
        assert values[PLACE] > 0.3 and (np.delete(values, PLACE) == 0).all()


def test_what_is_wrong_under_one_mask_type_or_at_one_distance_shows_there():
    size, constant = torch.ones(6, 1), torch.full((6, 1), 2.0)
    both = {"clip_chance": torch.ones(6), "batch_chance": torch.ones(6)}
    both |= {f"{a}_{b}": size for a in ("clip", "batch") for b in ("top1", "rank")}
    both |= {"constant": constant, "copying": size, "shuffled": size}
    both |= {"distance": torch.tensor([1, 1, 1, 2, 2, 0]), "place": torch.arange(6)}
    wrong = torch.tensor([0, 0, 0, 2.0, 2, 5])[:, None]
    result = figures([{**both, "error": wrong}, {**both, "error": size}], ["tokens"])
    assert result["masks"] == [{"mask": 1, "tokens": 0.75}, {"mask": 2, "tokens": 0.5}]
    assert result["relative_error"] == 0.625 and result["kinds"]["tokens"]["copying"] == 0.5
    near, far_off = result["by_distance"]
    assert near == {"distance": 1, "share": 0.5, "tokens": 0.25}
    assert far_off["distance"] == 2 and far_off["tokens"] == 0.75


def test_the_nearest_context_is_that_of_the_same_place():
    # Two places, five steps; in view: place 0 at steps 0 and 4, place 1 at no step.
    mask = TokenMask(torch.tensor([[0, 8]]), torch.tensor([[2, 4, 6, 3]]), None)
    ids, distance = nearest_context(mask, 5, 2)
    assert distance.tolist() == [[1, 2, 1, 0]]
    assert ids[0, :3].tolist() == [0, 0, 8]


def test_what_cannot_be_told_apart_shares_the_hit():
    distance = torch.tensor([[1.0, 1.0, 4.0, 4.0], [2.0, 1.0, 3.0, 4.0]])
    rank, top1 = retrieved(distance, torch.tensor([0, 2]))
    assert top1.tolist() == [0.5, 0] and rank.tolist() == pytest.approx([1 / 6, 2 / 3])


def test_copying_is_perfect_where_nothing_moves():
    model = jepa(masks=(FrameMask(frames=1),), error="squared")
    still = noise()[:, :1].expand(-1, 4, -1, -1, -1)
    result = figures(measured(model, still)[0], ["tokens"])
    assert result["kinds"]["tokens"]["copying"] == pytest.approx(0, abs=1e-6)
    assert [row["distance"] for row in result["by_distance"]] == [1]


IMAGE = BlockMask(num_blocks=1, spatial_scale=(0.3, 0.5), image=True)


@pytest.mark.parametrize("masks", [(FrameMask(frames=1),), (HALF, BOXES), (IMAGE,)])
def test_a_prediction_is_shown_as_a_patch_of_another_clip(monkeypatch, masks):
    """The clips come twice: so each perfectly predicted patch has its double, in another clip."""
    monkeypatch.setattr(JEPA, "predict", knows_all)
    model = jepa(masks=masks)
    columns, batch, targets, predicted = measured(model, noise()[:4].repeat(2, 1, 1, 1, 1))
    shown = ShownClips(model, batch, predicted, columns)
    shown.compare(batch, targets)
    for number, clip in enumerate(shown.clips()):
        assert clip.mask == number % len(masks) + 1
        assert (clip.predicted == clip.frames).all() and clip.frames.std() > 0
        mask = batch.masks[clip.mask - 1]
        assert clip.in_view.sum() == mask.context_ids.shape[1]
        assert np.isfinite(clip.error["tokens"]).sum() == mask.target_ids.shape[1]

    # Without the doubles it is others' pixels, since the clip's own are not in the bank.
    alone = replace(batch, clip=batch.clip[:4], masks=[mask.of(slice(4)) for mask in batch.masks])
    half = [{name: part[: len(part) // 2] for name, part in each.items()} for each in columns]
    shown = ShownClips(model, alone, [each[:4] for each in predicted], half)
    shown.compare(alone, targets[:4])
    assert all((clip.predicted != clip.frames).any() for clip in shown.clips())


@pytest.mark.parametrize("steps", [4, 32])
def test_the_only_frame_in_view_is_among_those_that_are_shown(steps):
    for step in range(steps):
        in_view = np.zeros((steps, 2, 2), bool)
        in_view[step, 0] = True
        error = np.where(in_view[:, ::-1], 1.0, np.nan).astype(np.float32)
        frames = np.full((steps, 4, 4, 3), 200, np.uint8)
        clip = PretextClip(1, frames, frames, in_view, {"tokens": error})
        shown = shown_steps(clip)
        assert step in shown and len(shown) == len(set(shown)) == min(steps, 10)
    assert pretext_png([clip], {"tokens": [[1.0, 1.0], [1.0, 1.0]]})


# ------------------------------------------------------------------ runs

TINY = [
    *SMALL, "data.image_size=26", "train.pretrain.steps=2", "train.pretrain.batch=4",
    "train.pretrain.final_probe_steps=2",
]  # fmt: skip
MOTION = [
    "jepa.masks=[{frames: 1}, {num_blocks: 2, spatial_scale: [0.3, 0.3]}]",
    "jepa.target_kinds=[motion,tokens]", "jepa.whiten_targets=true", "jepa.error=squared",
    "jepa.neighbor_width=8", "jepa.temporal_contrast=0", "jepa.inverse_dynamics=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def few_clips(monkeypatch):
    monkeypatch.setattr(stage, "CLIPS", 12)


def pretrained(folder, *words):
    with Run.open(folder, load_config("debug", [*TINY, *words])) as run:
        run_stage("pretrain", run)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_data):
    """(run folder, settings) of a recipe with two mask types and two kinds of target."""
    words = [f"data.path={tiny_data}", *MOTION]
    return pretrained(tmp_path_factory.mktemp("pretext") / "run", *words), [*TINY, *words]


def test_the_command_tells_figures_and_draws_the_same_picture_twice(trained, capsys):
    folder, words = trained
    results, pictures = [], []
    for _ in range(2):
        command = ["eval", "pretext", "--run", str(folder), "--config", "debug", "--json", *words]
        assert main(command) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        pictures.append((folder / "eval_pretext" / "pretext.png").read_bytes())
    assert results[0] == results[1] and pictures[0] == pictures[1]
    result = results[0]
    stored = json.loads((folder / "eval_pretext" / "result.json").read_text())
    assert stored["kinds"] == result["kinds"] and stored["picture"].endswith("pretext.png")
    assert result["checkpoint_step"] == 2 and result["clips"] == 12 and result["held_out"]
    assert [row["mask"] for row in result["masks"]] == [1, 2]
    assert set(result["kinds"]) == set(result["map"]) == {"motion", "tokens"}
    assert np.shape(result["map"]["motion"]) == (2, 2) and result["relative_error"] > 0.3
    with Image.open(folder / "eval_pretext" / "pretext.png") as picture:
        assert picture.width > 500 and len(picture.convert("RGB").getcolors(10**7)) > 30

    with Run.open(folder, load_config("debug", words)) as run:
        assert "figures_eval_pretext" in run_stage("report", run)["sections"]
    page = (folder / "report" / "index.html").read_text(encoding="utf-8")
    assert 'alt="pretext of eval pretext"' in page


def test_the_run_itself_predicts_perfectly_if_its_predictor_does(trained, monkeypatch):
    monkeypatch.setattr(JEPA, "predict", knows_all)
    folder, words = trained
    assert evaluate("pretext", folder, load_config("debug", words))["relative_error"] == 0


def test_a_run_without_a_checkpoint_is_refused(tmp_path, trained):
    folder, words = trained
    with pytest.raises(UserError, match="no whole checkpoint.*run `jepa-wm pretrain` first"):
        evaluate("pretext", tmp_path / "run", load_config("debug", words))
    shutil.copytree(folder / "pretrain", tmp_path / "run" / "pretrain")
    shutil.rmtree(tmp_path / "run" / "pretrain" / "checkpoints")
    backbone = [*words, "features.backbone=timm/test_efficientnet"]
    with pytest.raises(UserError, match="without features.backbone: an encoder from elsewhere"):
        evaluate("pretext", tmp_path / "run", load_config("debug", backbone))


def test_without_held_out_clips_it_is_refused(tmp_path, trained, tiny_data):
    folder, words = trained
    shutil.copy(tiny_data / "train.h5", tmp_path)
    shutil.copytree(folder / "pretrain", tmp_path / "run" / "pretrain")
    (tmp_path / "run" / "pretrain" / "config.yaml").unlink()
    words = [*words, f"data.path={tmp_path}"]
    with pytest.raises(UserError, match="it has no heldout.h5; name a folder with train.h5 and"):
        evaluate("pretext", tmp_path / "run", load_config("debug", words))


def test_videos_and_photos_of_which_nothing_is_held_out(tmp_path):
    r = np.random.default_rng(0)
    (tmp_path / "films").mkdir()
    (tmp_path / "photos").mkdir()
    for number in range(2):
        frames = r.integers(0, 255, (8, 26, 26, 3), np.uint8)
        films.write(tmp_path / "films" / f"{number}.mp4", frames)
    for number in range(3):
        picture = Image.fromarray(r.integers(0, 255, (26, 26, 3), np.uint8))
        picture.save(tmp_path / "photos" / f"{number}.png")
    plain = ["jepa.target_kinds=[tokens]", "jepa.num_distant_frames=0", "jepa.neighbor_width=0"]
    photos = f"data.videos=[{{path: {tmp_path / 'photos'}, single_images: true}}]"
    single = ["data.num_frames=1", "data.augment={}"]
    boxes = "jepa.masks=[{num_blocks: 1, spatial_scale: [0.3, 0.3]}]"
    tubes = ["encoder.tubelet_size=2", "data.num_frames=4", "jepa.context_weight=0.5"]
    tubes.append("jepa.whiten_targets=false")
    for name, words in (
        ("films", [f"data.videos={tmp_path / 'films'}", *tubes, "jepa.center_targets=false"]),
        ("photos", [photos, *single]),
    ):
        folder = pretrained(tmp_path / name, boxes, *plain, *words)
        config = load_config("debug", [*TINY, boxes, *plain, *words])
        result = evaluate("pretext", folder, config)
        assert not result["held_out"] and result["by_distance"] == []
        kind = result["kinds"]["tokens"]
        assert kind["copying"] == 1, "nothing of a place is in view: the constant stands in"
        assert kind["relative_error"] > 0.3
