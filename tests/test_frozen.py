"""Frozen evaluation: heads find what is there, choose without the test set, count exactly, say
what they left out."""

import json
import shutil
from functools import partial
from itertools import product
from pathlib import Path

import films
import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import finite
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import STAGES
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.trajectories import TrajectoryWriter
from jepa_wm.evals.evaluation import Sections, evaluation, extract_features, representations_of
from jepa_wm.evals.labelled import Labelled, Part, open_labelled
from jepa_wm.evals.scores import score, wilson
from jepa_wm.features import cache
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import (
    MAX_NORM,
    AttentiveHead,
    Head,
    NearestNeighbors,
    attentive_loss,
    seeded,
    train_heads,
)
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.features.store import weights_digest
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.pooling import fourier_positions
from jepa_wm.models.vit import Encoder
from jepa_wm.report.page import number as shown

SMALL = [
    "data.image_size=24", "encoder.patch_size=8", "encoder.width=16", "encoder.depth=1",
    "train.pretrain.steps=0", "probes.steps=60", "probes.learning_rates=[0.01]",
    "probes.weight_decays=[0.0,0.1]", "probes.pixel_size=12", "probes.num_neighbors=5",
    "probes.head_dim=8",
]  # fmt: skip


SAID = ("commit", "left_out", "evaluated", "stored", "seconds")  # beside the figures


def photo(r, kind):
    """A picture whose lower half is noise and whose upper half tells its class by brightness."""
    picture = r.integers(0, 255, (24, 24, 3), np.uint8)
    picture[:12] = (60, 130, 200)[kind] + r.integers(-20, 20)
    return Image.fromarray(picture)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Class folders `train` (10 of each of three classes) and `test` (4 of each)."""
    root, r = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for kind, name in enumerate(("dark", "grey", "light")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                photo(r, kind).save(root / part / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def drives(tmp_path_factory):
    """Trajectories in which the brightness of the left half is the state, 8 training and 4
    held-out episodes."""
    root, r = tmp_path_factory.mktemp("drives"), np.random.default_rng(1)
    for part, episodes in (("train", 8), ("heldout", 4)):
        lengths = np.full(episodes, 15)
        columns = {"pixels": ((24, 24, 3), "u1"), "action": ((1,), "f4"), "state": ((2,), "f4")}
        writer = TrajectoryWriter(root / f"{part}.h5", lengths, columns)
        value = r.uniform(0, 1, (lengths.sum(), 2)).astype(np.float32)
        frames = r.integers(100, 110, (len(value), 24, 24, 3)).astype(np.uint8)
        frames[:, :, :12] += (100 * value[:, :1, None, None]).astype(np.uint8)
        for name, values in (("pixels", frames), ("action", value[:, :1]), ("state", value)):
            writer.write(name, 0, values)
        writer.close(state_groups="light:0 hidden:1")
    return root


def evaluate(stage, folder, *words):
    with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
        return run_stage(stage, run)


def of_photos(photos):
    return [
        f"probes.train={photos / 'train'}",
        f"probes.test={photos / 'test'}",
        "probes.single_images=true",
    ]


def test_linear_heads_tell_photos_apart_and_say_all_about_it(photos, tmp_path):
    result = evaluate("eval_linear", tmp_path / "run", *of_photos(photos))
    for name in ("encoder", "random_encoder", "pixels"):
        figures = result[name]
        right = sum(row[k] for k, row in enumerate(figures["confusion_matrix"]))
        assert figures["n"] == 12 and figures["accuracy"] == right / 12 > 0.7
        assert (figures["low"], figures["high"]) == wilson(right, 12)
        assert {entry["n"] for entry in figures["per_class"].values()} == {4}
        assert figures["chosen"]["learning_rate"] == 0.01
        assert Image.open(figures["confusion"]).size[0] > 300
        assert ("encoder_is_better" in figures) == (name != "encoder")
    assert result["pixels"]["chosen"]["kind"] == "all" and result["left_out"] == []
    better = result["pixels"]["encoder_is_better"]
    accuracies = [result[name]["accuracy"] for name in ("encoder", "pixels")]
    assert better["difference"] == pytest.approx(accuracies[0] - accuracies[1])
    assert better["low"] <= better["difference"] <= better["high"]
    with Run.open(tmp_path / "run", load_config("debug", [*SMALL, *of_photos(photos)])) as run:
        page = Path(run_stage("report", run)["report"]).read_text()
    beside = f"; encoder better by {shown(better['difference'])} ({shown(better['low'])} to"
    assert page.split('<section id="frozen">')[1].count(beside) >= 1
    assert (
        json.loads((Path(result["stored"]) / "result.json").read_text())["encoder"]
        == result["encoder"]
    )


def test_attentive_heads_and_neighbours(photos, tmp_path):
    result = evaluate(
        "eval_attentive", tmp_path / "run", *of_photos(photos), "probes.depths=[1,2]"
    )
    assert result.keys() == {"depth_1", "depth_2", *SAID}
    assert all(
        result[depth][name]["accuracy"] > 0.7
        for depth in ("depth_1", "depth_2")
        for name in ("encoder", "pixels")
    )
    result = evaluate("eval_knn", tmp_path / "run", *of_photos(photos))
    assert result["encoder"]["accuracy"] > 0.7 and result["encoder"]["chosen"]["pool"] in (
        "mean",
        "all",
    )


def test_numbers_are_read_from_a_column(drives, tmp_path):
    words = [f"data.path={drives}"]
    result = evaluate("eval_state", tmp_path / "run", *words)
    for name in ("encoder", "random_encoder", "pixels"):
        light, hidden = result[name]["light"], result[name]["hidden"]
        assert (
            light["r2"] > 0.8
            and light["low"] <= light["r2"] <= light["high"]
            and light["error"] < 0.1
        )
        assert hidden["r2"] < 0.2, "what the frames do not show cannot be read"
        assert result[name]["n"] == 60 and result[name]["episodes"] == 4
    for group in ("light", "hidden"):
        better = result["pixels"]["encoder_is_better"][group]
        r2 = [result[name][group]["r2"] for name in ("encoder", "pixels")]
        assert better["difference"] == pytest.approx(r2[0] - r2[1], abs=1e-6)
    assert (
        evaluate("eval_linear", tmp_path / "run", *words, "probes.steps=300")["encoder"]["light"][
            "r2"
        ]
        > 0.8
    )
    assert evaluate("eval_knn", tmp_path / "run", *words)["pixels"]["light"]["r2"] > 0.5
    two = evaluate(
        "eval_state", tmp_path / "run", *words, "probes.num_frames=2", "probes.column=action"
    )
    assert two["encoder"]["action"]["r2"] > 0.8


@pytest.mark.parametrize("stage", ["eval_state", "eval_knn"])
def test_a_group_of_numbers_is_read_as_if_it_were_alone(drives, tmp_path, stage):
    """What no frame shows asks for a high penalty; what they show does not pay for it."""
    both = evaluate(stage, tmp_path / "both", f"data.path={drives}")["pixels"]
    shared = tmp_path / "shared"
    shared.mkdir()
    for part in ("train", "heldout"):
        shutil.copy(drives / f"{part}.h5", tmp_path)
        shutil.copy(drives / f"{part}.h5", shared)
        with h5py.File(tmp_path / f"{part}.h5", "a") as file:
            light = file["state"][:, :1]
            del file["state"]
            file["state"] = light
            file.attrs["state_groups"] = "light:0"
        with h5py.File(shared / f"{part}.h5", "a") as file:
            file.attrs["state_groups"] = "light:0 hidden:1 both:0,1"
    alone = evaluate(stage, tmp_path / "alone", f"data.path={tmp_path}")["pixels"]
    assert alone["light"] == pytest.approx(both["light"])
    assert alone["chosen"]["light"] == both["chosen"]["light"]
    of_several = evaluate(stage, tmp_path / "several", f"data.path={shared}")["pixels"]
    assert of_several["light"] == pytest.approx(both["light"]), "whoever else reads the number"
    if stage == "eval_state":
        assert both["chosen"]["hidden"]["penalty"] > both["chosen"]["light"]["penalty"]


def test_the_command_line_gives_the_result(photos, tmp_path, capsys):
    words = ["eval", "linear", "--config", "debug", "--run", str(tmp_path / "run"), "--json"]
    assert cli.main([*words, *SMALL, *of_photos(photos), "probes.baselines=[]"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() == {"encoder", *SAID} and result["encoder"]["n"] == 12


def test_an_evaluation_of_others_is_one_registration(drives, tmp_path, capsys):
    @evaluation("spread")
    def spread(asked):
        """How far features vary over the test samples."""
        rows = {}
        for name in asked.representations:
            _, test = asked.features(name)
            rows[name] = {"spread": float(test.tokens.float().std())}
        return rows

    try:
        words = ["--config", "debug", "--run", str(tmp_path / "run"), *SMALL]
        assert cli.main(["eval", "spread", *words, "--json", f"data.path={drives}"]) == 0
        result = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert all(
            result[name]["spread"] > 0.5 for name in ("encoder", "random_encoder", "pixels")
        )
        assert Path(result["stored"]).parent.name == "eval_spread"
        assert cli.main(["report", *words, f"data.path={drives}"]) == 0
        page = (tmp_path / "run" / "report" / "index.html").read_text()
        assert f"{result['encoder']['spread']:.3g}" in page.split('<section id="frozen">')[1]
        with pytest.raises(SystemExit):
            cli.main(["eval", "--help"])
        assert "spread" in capsys.readouterr().out
    finally:
        STAGES._entries.pop("eval_spread")


def test_each_distinct_evaluation_keeps_its_own_result(drives, photos, tmp_path):
    folder, words = (
        tmp_path / "run",
        [f"data.path={drives}", "probes.baselines=[]", "features.backbone=timm/test_resnet"],
    )
    first = evaluate("eval_state", folder, *words)
    made = Path(first["stored"]) / "result.json"
    before = made.stat().st_mtime_ns
    assert evaluate("eval_state", folder, *words) == first and made.stat().st_mtime_ns == before, (
        "not done twice"
    )
    results = [
        first,
        evaluate("eval_state", folder, *words, "probes.column=action"),
        evaluate("eval_state", folder, *words, "features.backbone=timm/test_efficientnet"),
        evaluate("eval_knn", folder, *words, *of_photos(photos)),
        evaluate("eval_knn", folder, *words, *of_photos(photos), "probes.num_neighbors=3"),
    ]
    shutil.copytree(photos / "test", tmp_path / "test")
    one = next((tmp_path / "test").rglob("*.png"))
    Image.fromarray(255 - np.asarray(Image.open(one))).save(one)
    changed = [
        *words,
        f"probes.train={photos / 'train'}",
        f"probes.test={tmp_path / 'test'}",
        "probes.single_images=true",
    ]
    results.append(evaluate("eval_knn", folder, *changed))
    Image.fromarray(255 - np.asarray(Image.open(one))).save(one)
    results.append(
        evaluate("eval_knn", folder, *changed)
    )  # the same path and settings, another content
    assert len({result["stored"] for result in results}) == len(results)
    for result in results:
        stored = json.loads((Path(result["stored"]) / "result.json").read_text())
        assert stored["encoder"] == finite(result["encoder"]) and stored["evaluated"] == finite(
            result["evaluated"]
        )
    assert [result["evaluated"]["encoder"]["backbone"] for result in results[1:3]] == [
        "timm/test_resnet", "timm/test_efficientnet"
    ]  # fmt: skip
    assert results[1]["evaluated"]["settings"]["column"] == "action"
    assert results[-1]["evaluated"]["data"]["train"] == results[-2]["evaluated"]["data"]["train"]
    assert results[-1]["evaluated"]["data"]["test"] != results[-2]["evaluated"]["data"]["test"]
    with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
        told = run_stage("report", run)
    page = Path(told["report"]).read_text()
    assert "frozen" in told["sections"] and all(
        Path(result["stored"]).name in page for result in results
    )
    with pytest.raises(UserError, match=r"result.json: is damaged .*; delete"):
        made.write_text("{")
        with Run.open(folder, load_config("debug", [*SMALL, *words])) as run:
            run_stage("report", run)


def test_the_weights_of_the_encoder_tell_evaluations_apart(drives, tmp_path):
    words = [
        f"data.path={drives}",
        "probes.baselines=[]",
        "features.backbone=vjepa2/tiny",
        "features.weights=w",
    ]
    seen = []
    for seed in (0, 1, 0):
        with pytest.MonkeyPatch.context() as patch:
            torch.manual_seed(seed)
            encoder = Encoder(12, EncoderSettings(patch_size=6, width=16, depth=1, num_heads=2))
            patch.setattr(cache, "backbone_of", lambda *_, encoder=encoder: encoder)
            seen.append(
                evaluate(
                    "eval_state",
                    tmp_path / "run",
                    *words,
                    "data.image_size=12",
                    "encoder.patch_size=6",
                )
            )
    assert seen[0]["stored"] == seen[2]["stored"] != seen[1]["stored"]
    assert seen[0]["evaluated"]["encoder"]["digest"] != seen[1]["evaluated"]["encoder"]["digest"]


def test_a_random_backbone_is_evaluated_as_it_was_frozen(drives, tmp_path):
    words = [f"data.path={drives}", "probes.baselines=[]", "features.backbone=timm/test_resnet"]
    torch.manual_seed(7)  # whatever was drawn before
    evaluate("features", tmp_path / "run", *words)
    frozen = weights_digest(FrozenEncoder.load(tmp_path / "run" / "features").encoder)
    assert (
        evaluate("eval_state", tmp_path / "run", *words)["evaluated"]["encoder"]["digest"]
        == frozen
    )
    assert (
        evaluate("eval_state", tmp_path / "other", *words, "seed=1")["evaluated"]["encoder"][
            "digest"
        ]
        != frozen
    )


def test_clips_of_a_video_count_once_together():
    part = Part(
        lambda i: np.zeros(1),
        np.array([0, 0, 1, 1, 1]),
        np.array([3, 3, 5, 5, 9]),
        np.zeros(5, int),
    )
    data = Labelled(part, part, ["a", "b"])
    guess = np.array(
        [[0.9, 0.1], [0.3, 0.7], [0.6, 0.4], [0.1, 0.9], [0.8, 0.2]]
    )  # of video 3, of 5, of 9
    result = score(guess, part, data)
    assert result["confusion_matrix"] == [[1, 0], [1, 1]] and result["n"] == 3
    assert result["per_class"]["b"] == {"accuracy": 0.5, "n": 2}


def test_r2_is_that_of_its_formula():
    truth, guess = np.random.default_rng(0).normal(size=(2, 40, 3))
    part = Part(lambda i: np.zeros(1), truth, np.arange(40), np.arange(40) // 5)
    result = score(guess, part, Labelled(part, part, None, Quantities({"xy": [0, 1], "z": [2]})))
    missed, spread = ((guess - truth) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
    assert result["xy"]["r2"] == pytest.approx(1 - missed[:2].sum() / spread[:2].sum())
    assert result["z"]["r2"] == pytest.approx(1 - missed[2] / spread[2])
    assert result["z"]["error"] == pytest.approx(np.abs(guess - truth)[:, 2].mean())


def test_attentive_heads_read_numbers_and_the_brightness_of_pixels(drives, tmp_path):
    words = [f"data.path={drives}", "probes.depths=[1,2]", "probes.steps=300"]
    result = evaluate("eval_attentive", tmp_path / "run", *words)
    for depth, name in product(("depth_1", "depth_2"), ("encoder", "pixels")):
        figures = result[depth][name]
        assert figures["light"]["r2"] > 0.8 and figures["hidden"]["r2"] < 0.2, (depth, name)
    two = ("probes.num_frames=2", "probes.column=action", "probes.depths=[1]")
    result = evaluate("eval_attentive", tmp_path / "run", *words, *two)
    assert result["depth_1"]["pixels"]["action"]["r2"] > 0.5


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("normed", [True, False])
def test_an_attentive_head_takes_tokens_of_any_width(depth, normed):
    head = AttentiveHead(8, 507, 3, depth=depth, head_dim=32, frames=2, normed=normed)
    assert head(torch.randn(2, 8, 507)).shape == (2, 3)


def test_positions_of_clips_tell_the_frame_and_the_place_in_it():
    alone, clip = (
        fourier_positions(9, 16),
        fourier_positions(36, 24, frames=4).unflatten(0, (4, 9)),
    )
    assert alone.shape == (9, 16) and len(clip.flatten(0, 1).unique(dim=0)) == 36
    kept = (clip == clip[:1]).all(0).all(0)  # numbers of a place, whatever the frame
    assert 0 < kept.sum() < 24 and len(clip[0][:, kept].unique(dim=0)) == 9
    with pytest.raises(ValueError, match="35 tokens are not as many for each of 4 frames"):
        fourier_positions(35, 16, frames=4)


def test_settings_are_chosen_on_whole_groups_at_the_end_of_each_class():
    group = np.repeat(np.arange(10), 3)
    part = Part(lambda i: np.zeros(1), np.repeat([0, 1], 15), group, group)
    fit, choose = part.split(0.2, by_class=True)
    assert (
        sorted(set(group[choose])) == [4, 9]
        and len(fit) + len(choose) == 30
        and not set(fit) & set(choose)
    )
    lone = part.of(np.arange(3))
    with pytest.raises(UserError, match="too small to choose settings"):
        lone.split(0.2, by_class=True)


def test_the_test_part_has_no_say(photos, tmp_path):
    """Other labels in the test folder change the score, never the choice."""
    before = evaluate("eval_linear", tmp_path / "a", *of_photos(photos), "probes.baselines=[]")
    shutil.copytree(photos, tmp_path / "turned")
    (tmp_path / "turned" / "test" / "dark").rename(tmp_path / "turned" / "test" / "x")
    (tmp_path / "turned" / "test" / "light").rename(tmp_path / "turned" / "test" / "dark")
    (tmp_path / "turned" / "test" / "x").rename(tmp_path / "turned" / "test" / "light")
    after = evaluate(
        "eval_linear", tmp_path / "b", *of_photos(tmp_path / "turned"), "probes.baselines=[]"
    )
    assert after["encoder"]["chosen"] == before["encoder"]["chosen"]
    assert after["encoder"]["accuracy"] < before["encoder"]["accuracy"]
    assert sorted(map(sum, after["encoder"]["confusion_matrix"])) == [4, 4, 4]


def test_heads_trained_together_are_those_trained_alone():
    g = torch.Generator().manual_seed(0)
    tokens, target = torch.randn(40, 3, 8, generator=g), torch.randint(3, (40,), generator=g)

    def heads(*settings):
        build = partial(AttentiveHead, 3, 8, 3, depth=2, head_dim=4)
        return [Head("2", rate, decay, seeded(build, 0)) for rate, decay in settings]

    def train(heads):
        train_heads(
            heads, tokens, target, steps=8, batch_size=10, seed=0,
            loss=attentive_loss, max_norm=0.1,
        )  # fmt: skip

    every = [(rate, decay) for rate in (0.01, 0.001) for decay in (0.0, 0.5)]
    together = heads(*every)
    train(together)
    for one, settings in zip(together, every, strict=True):
        (alone,) = heads(settings)
        train([alone])
        torch.testing.assert_close(alone.outputs(tokens), one.outputs(tokens))


@pytest.mark.parametrize("depth", [1, 2])
def test_an_attentive_head_finds_where_a_small_thing_is(depth):
    g = torch.Generator().manual_seed(0)
    tokens = torch.randn(3000, 36, 16, generator=g)
    place = torch.randint(36, (3000,), generator=g)
    tokens[torch.arange(3000), place, 0] += 6
    target = torch.stack([place // 6, place % 6], 1) / 2.5 - 1  # in -1..1
    build = partial(AttentiveHead, 36, 16, 2, depth=depth, head_dim=8)
    head = Head("", 3e-3, 0.01, seeded(build, 0))
    train_heads(
        [head], tokens[:2500], target[:2500], steps=500, batch_size=64, seed=0,
        loss=attentive_loss, max_norm=MAX_NORM,
    )  # fmt: skip
    error = (head.outputs(tokens[2500:]) - target[2500:]).square().mean()
    assert error < 0.1 * target.var(), error / target.var()


def test_ridge_has_one_answer_in_both_forms_and_it_is_right():
    r = np.random.default_rng(0)
    x, y = r.normal(size=(30, 6)).astype(np.float32), r.normal(size=(30, 2)).astype(np.float32)
    wide = np.concatenate([x, np.zeros((30, 50), np.float32)], 1)  # solved through the other form
    for penalty in (0.01, 1.0):
        (primal,), (dual,) = (fit_ridge(x, y, (penalty,)), fit_ridge(wide, y, (penalty,)))
        assert np.allclose(primal.predict(x), dual.predict(wide), atol=1e-5)
        z = x - x.mean(0)
        weight = np.linalg.solve(z.T @ z + penalty * 30 * np.eye(6), z.T @ (y - y.mean(0)))
        assert np.allclose(primal.weight, weight, atol=1e-5)


def test_neighbors_vote_by_cosine():
    known = np.array([[1, 0], [0.6, 0.8], [0, 1]], np.float32)
    neighbors = NearestNeighbors(3 * known, np.eye(2)[[0, 1, 1]])
    votes = neighbors.predict(np.array([[2, 0]], np.float32), 3)
    weight = np.exp(np.array([1, 0.6, 0]) / 0.07)
    expected = [[weight[0] / weight.sum(), weight[1:].sum() / weight.sum()]]
    assert np.allclose(votes, expected, atol=1e-6)


def test_labelled_videos_and_what_cannot_be_read(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(("slow", "fast")):
            (tmp_path / part / name).mkdir(parents=True)
            for clip in range(4):
                shown = films.frames(20)[clip :: 1 + 2 * number][:6]
                films.write(tmp_path / part / name / f"{clip}.mp4", shown)
    films.cut(tmp_path / "test" / "slow" / "2.mp4", 0.3)
    words = [
        f"probes.train={tmp_path / 'train'}", f"probes.test={tmp_path / 'test'}",
        "data.fps=[10]", "probes.num_frames=3", "probes.num_clips=2", "data.max_unreadable=0.2",
        "probes.baselines=[]",
    ]  # fmt: skip
    with pytest.warns(UserWarning, match="left out, 1 of 8"):
        result = evaluate("eval_linear", tmp_path / "run", *words)
    assert (
        result["encoder"]["n"] == 7
        and len(result["left_out"]) == 1
        and "2.mp4" in result["left_out"][0]
    )
    with pytest.raises(UserError, match="1 of 8 videos cannot be read, more than 1.0%"):
        evaluate("eval_linear", tmp_path / "run2", *words, "data.max_unreadable=0.01")


def test_what_does_not_fit_is_said(photos, drives, tmp_path):
    shutil.copytree(photos, tmp_path / "more")
    (tmp_path / "more" / "test" / "grey").rename(tmp_path / "more" / "test" / "green")
    with pytest.raises(
        UserError, match="class 'green' is not among those of .*: dark, grey, light"
    ):
        evaluate("eval_linear", tmp_path / "run", *of_photos(tmp_path / "more"))
    with pytest.raises(UserError, match="reads numbers; use linear, attentive or knn"):
        evaluate("eval_state", tmp_path / "run", *of_photos(photos))
    with pytest.raises(UserError, match="column 'angle' is missing"):
        evaluate("eval_state", tmp_path / "run", f"data.path={drives}", "probes.column=angle")
    with pytest.raises(UserError, match="no class; use class folders|not every video has a class"):
        flat = photos / "train" / "dark"
        evaluate(
            "eval_linear",
            tmp_path / "run",
            f"probes.train={flat}",
            f"probes.test={flat}",
            "probes.single_images=true",
        )
    with pytest.raises(UserError, match="probes.train and probes.test hold the same samples"):
        words = [
            f"probes.train={photos / 'train'}",
            f"probes.test={photos / 'train'}",
            "probes.single_images=true",
        ]
        evaluate("eval_knn", tmp_path / "run", *words)
    with pytest.raises(UserError, match="probes.num_neighbors 500 are more than"):
        evaluate("eval_knn", tmp_path / "run", *of_photos(photos), "probes.num_neighbors=500")
    with pytest.raises(UserError, match="train and test belong together"):
        load_config("debug", ["probes.train=x"])
    with pytest.raises(UserError, match="probes.head_dim"):
        load_config("debug", ["probes.head_dim=5"])


def test_tokens_are_standardised_by_the_training_part_alone(drives):
    config = load_config("debug", [*SMALL, f"data.path={drives}", "train.precision=fp32"])
    data = open_labelled(config.probes, config.data, drives)
    encoder = Encoder(24, config.encoder)
    sections = Sections(
        0, config.data, config.encoder, config.features, config.probes, 1, "normal", "fp32"
    )
    found = representations_of(encoder, sections)["encoder"]
    train, test = extract_features(found, data, "encoder", size=24)
    assert train.tokens.float().mean(0).abs().max() < 0.01
    assert torch.allclose(train.tokens.float().square().mean((0, 1)), torch.ones(16), atol=0.02)
    assert (
        test.tokens.shape[1:] == train.tokens.shape[1:]
        and test.tokens.float().mean(0).abs().max() > 0.01
    )


def test_a_built_in_set_of_torchvision(tmp_path):
    raw, r = tmp_path / "MNIST" / "raw", np.random.default_rng(0)
    raw.mkdir(parents=True)
    for part, count in (("train", 60), ("t10k", 20)):
        label = np.arange(count) % 10
        pictures = r.integers(0, 40, (count, 28, 28)) + 20 * label[:, None, None]
        for name, values in (("images-idx3", pictures), ("labels-idx1", label)):
            head = (0x0800 + values.ndim).to_bytes(4, "big") + b"".join(
                n.to_bytes(4, "big") for n in values.shape
            )
            (raw / f"{part}-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    words = [
        f"probes.train=torchvision/MNIST/{tmp_path}",
        f"probes.test=torchvision/MNIST/{tmp_path}",
    ]
    result = evaluate(
        "eval_linear", tmp_path / "run", *words, "probes.baselines=[pixels]", "probes.steps=150"
    )
    assert result["pixels"]["n"] == 20 and result["pixels"]["accuracy"] > 0.3
    assert list(result["encoder"]["per_class"])[0] == "0 - zero"
    with pytest.raises(UserError, match="torchvision/MNIST/nowhere: is not there"):
        evaluate(
            "eval_linear",
            tmp_path / "run",
            *(word.replace(str(tmp_path), "nowhere") for word in words),
        )
    with pytest.raises(UserError, match="give torchvision/NAME/FOLDER"):
        evaluate(
            "eval_linear",
            tmp_path / "run",
            "probes.train=torchvision/Nothing/x",
            "probes.test=torchvision/Nothing/x",
        )
