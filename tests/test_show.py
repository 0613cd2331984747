"""The report: one page that holds everything a run has, says what it has not, and hides nothing
that went wrong."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.progress import Metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.core.stage import STAGES, stage
from jepa_wm.report.artifacts import nearest
from jepa_wm.report.page import PARTS, Group, Section, Text
from jepa_wm.report.pictures import _counter, _with_trail, encode_gif

E, K, T, R, SIDE = 6, 8, 40, 4, 33
LOST = (2, 5)
SUCCESS = {
    "success_final": 4 / 6,
    "success_any": 5 / 6,
    "low": 0.3,
    "high": 0.903,
    "episodes": 6,
    "seeds": 1,
    "budget": T,
}
VOID = {"meta", "link", "img", "br", "hr", "source", "input", "base"}


class Page(HTMLParser):
    """Every address and id on a page; fails on tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "srcset", "href", "xlink:href", "data", "action", "poster"):
                self.addresses.append(value)
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def room(position, *, noise=None):
    """[SIDE, SIDE, 3] with a bright agent, a wall and, if asked, pixel noise."""
    frame = np.full((SIDE, SIDE, 3), 20, np.uint8)
    frame[:, SIDE // 2] = (80, 150, 190)
    x, y = (int(round(value)) for value in position)
    frame[y - 1 : y + 2, x - 1 : x + 2] = (255, 120, 60)
    return (
        frame if noise is None else noise.integers(0, 256, frame.shape, np.uint8) // 2 + frame // 2
    )


def episodes(*, lost=LOST, noise=None):
    goal, start = np.array([24.0, 20.0]), np.array([6.0, 8.0])
    share = np.linspace(0, 1, T + 1)
    distance = np.linalg.norm(start - goal) * (
        1 - np.stack([share * (0.5 if e in lost else 1) for e in range(E)])
    )
    way = np.stack([np.linspace(0, 0.5 if e in lost else 1, K + 1) for e in range(E)])
    positions = start + way[..., None] * (goal - start)
    frames = np.stack([[room(p, noise=noise) for p in row] for row in positions])
    final = np.array([e not in lost for e in range(E)])
    cost = np.linspace(2, 1, R) * np.ones((E, K, R))
    cost[0, -1] = np.nan  # a decision that was not taken
    latched = final | (np.arange(E) == 5)
    goals = np.stack([room(goal, noise=noise)] * E)
    return {
        "goal_frame": goals,
        "frames": frames,
        "positions": positions,
        "goal_position": np.stack([goal] * E),
        "distance": distance,
        "success_final": final,
        "success_any": latched,
        "cost": cost,
        "radius": 4.5,
    }


def report(run):
    return run_stage("report", run)


def open_run(folder):
    return Run.open(folder / "two_rooms", load_config("debug"))


def fill(run, *, noise=None, lost=LOST):
    """Leave behind what every stage would."""
    run.write_result("collect", {"seconds": 2.0})
    probe = {
        "agent": {"error": 0.7, "unit": "px", "random_encoder": 2.1, "normalised_error": 0.04},
        "a<b": {"error": 3.0, "unit": "px"},
    }
    seen = {
        "collapsed": False,
        "feature_std": 0.31,
        "effective_rank": 20.5,
        "probe": probe,
        "velocity": {"agent": {"error": 0.9, "unit": "px", "random_encoder": 1.1}},
        "patch_spectrum": {"pixels": [0.9, 0.1], "embedded": [0.4, 0.3, 0.0]},
        "seconds": 65.0,
    }
    run.write_result("pretrain", seen)
    run.write_result("features", {})
    errors = {"relative_error": 0.2, "relative_error_shuffled": 0.9}
    errors |= {"feature_error": 0.61, "feature_error_shuffled": 1.1, "feature_error_encoded": 0.55}
    states = {"agent": {"error": 1.5, "shuffled": 9.0, "unit": "px"},
              "block_angle": {"error": 0.25, "shuffled": 0.75,
              "unit": "rad"}, "x<y": {"error": 4.25, "shuffled": 5.0, "unit": ""}}  # fmt: skip
    rows = [{"horizon": h, **errors, "state_errors": states} for h in (1, 2, 4, 8)]
    run.write_result("dynamics", {"rollout": rows})
    baselines = {
        "random": SUCCESS,
        "straight_line": None,
        "random_encoder": {**SUCCESS, "success_final": 0.0},
    }
    plan = {
        "success": SUCCESS,
        "success_by": {"raw_l2": SUCCESS},
        "baselines": baselines,
        "oracle": 1.0,
    }
    plan |= {
        "success_training_layouts": {**SUCCESS, "success_final": 5 / 6},
        "baselines_training_layouts": baselines,
    }
    plan["layouts"] = {
        "heldout": {"episodes": 6, "met": 0, "nearest": 2.0},
        "training": {"episodes": 6, "met": 5},
        "unit": "px",
    }
    run.write_result("plan", {**plan, "seconds_per_decision": 0.2})
    with Metrics(run.path, "pretrain", tensorboard=False) as metrics:
        for step in range(0, 50, 10):
            loss = float("nan") if step == 20 else 1.0 / (1 + step)
            metrics.log(
                step,
                {
                    "loss": loss,
                    "masked_prediction": 0.5,
                    "lr": 0.1,
                    "feature_std": 0.3,
                    "effective_rank": 9.0,
                    "probe/agent": 1.0,
                    "gradient_share/masked_prediction": 0.25,
                    "gradient_share/temporal_contrast": 0.75,
                },
            )
    with Metrics(run.path, "dynamics_dynamics", tensorboard=False) as metrics:
        metrics.log(10, {"loss": 1.0, "loss/rollout": 0.6})
    recorded = episodes(noise=noise, lost=lost)
    folder = run.stage_dir("plan")
    np.savez(folder / "episodes.npz", **recorded)
    axis, energy = np.linspace(2, SIDE - 3, 7), np.random.default_rng(0).random((2, 7, 7))
    energy[0, 0, 0] = np.nan  # inside a wall
    frames, goals = recorded["goal_frame"][:2], recorded["goal_position"][:2]
    np.savez(
        folder / "energy.npz",
        learned=energy,
        raw=energy,
        xs=axis,
        ys=axis,
        frame=frames,
        goal=goals,
    )
    strip = recorded["frames"][:2]
    np.savez(
        run.stage_dir("report") / "strips.npz", true=strip, imagined=strip, shuffled=strip[:, ::-1]
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(result, text of the page, folder of the run) of a run in which every stage has left its
    files."""
    with open_run(tmp_path_factory.mktemp("runs")) as run:
        fill(run)
        result = report(run)
    return result, (run.path / "report" / "index.html").read_text(encoding="utf-8"), run.path


def gifs(text):
    found = re.findall(r'src="data:image/gif;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_the_page_stands_alone_and_parses(whole):
    result, text, _ = whole
    page = Page(text)
    assert page.addresses and all(a.startswith(("data:image/", "#")) for a in page.addresses)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import|https?://", re.sub(r"base64,[^\"]+", "", text))
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses if a.startswith("#")} <= set(page.ids)
    assert result["bytes"] == len(text.encode()) < 8e6


def test_every_section_is_there_when_every_stage_is(whole):
    result, text, folder = whole
    assert result["missing"] == [] and len(result["sections"]) > 8
    assert set(result["sections"]) <= set(Page(text).ids)
    assert "Not there yet" not in text
    assert (
        json.loads((folder / "report" / "result.json").read_text())["sections"]
        == result["sections"]
    )
    for said in ("66.7 %", "83.3 %", "30.0 – 90.3 %", "raw l2", "not measured", "a&lt;b",
                 "1 min 07 s",
                 "episodes on held-out layouts", "on training layouts in 83.3 %",
                 "none is nearer than 2 px"):  # fmt: skip
        assert said in text, said


def test_every_error_of_a_rollout_is_told_in_its_own_unit(whole):
    """A curve and two columns for the latent, for the frozen features, and for each group of state
    numbers."""
    section = whole[1].split('<section id="rollout">')[1].split("</section>")[0]
    assert section.count("<svg") == 5
    for said in ("<td>0.200</td><td>0.900</td><td>0.610</td><td>1.10</td>", "agent, px",
                 "block angle, rad", "<td>0.250</td><td>0.750</td>", ">x&lt;y<",
                 "<td>4.25</td><td>5.00</td>"):  # fmt: skip
        assert said in section, said
    tiles = whole[1].split("<section")[0]
    assert "1.5 px" in tiles and "0.25 rad" in tiles and "imagined block_angle after 8" in tiles


def test_lengths_are_in_the_unit_that_the_result_tells(tmp_path):
    for unit in ("m", None):
        with open_run(tmp_path / str(unit)) as run:
            fill(run)
            plan = run.finished("plan")
            plan["success"] = {**SUCCESS, **({"unit": unit} if unit else {})}
            run.write_result("plan", plan)
            result = report(run)
            text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
        acting = text.split('<h2 id="acting">')[1].split("<h2")[0]
        assert (
            ("4.5 m" in acting) == (unit == "m")
            and "4.5 px" not in acting
            and "px from the goal" not in acting
        )
        assert result["missing"] == []


def test_lost_episodes_are_shown_with_the_won_ones(whole):
    _, text, _ = whole
    assert "Won: 4 of 6" in text and "Lost: 2 of 6" in text
    assert "after it had been there" in text  # episode 6 was within the radius on its way
    assert len(gifs(text)) == 3 + 2


def test_a_gif_has_a_frame_for_the_start_and_for_every_decision(whole):
    for gif in gifs(whole[1]):
        assert gif.n_frames == K + 1
        gif.seek(K)
        assert gif.info["duration"] > 1000  # the end is held
        agent = np.abs(np.asarray(gif.convert("RGB")).astype(int) - (255, 120, 60)).sum(2)
        assert (agent < 40).sum() > 9  # the few pixels that matter keep their colour


def test_every_term_of_the_loss_has_a_curve(whole):
    curves = whole[1].split('<section id="collapse">')[1].split("</section>")[0]
    assert curves.count("<svg") == 6 and "Its terms." in curves and "which loss trains" in curves
    curves = whole[1].split('<section id="dynamics_curves">')[1].split("</section>")[0]
    assert curves.count("<svg") == 2


def test_a_gap_in_the_curves_is_said(whole):
    assert "not finite, gaps in the curves: 1." in whole[1]


def test_a_stage_of_others_is_shown_by_its_figures_or_by_a_part_of_its_own(tmp_path):
    @stage("polish", after="dynamics")
    def polish(run):
        return {}

    try:
        with open_run(tmp_path) as run:
            run.write_result("polish", {"gloss": {"before": 1.5, "after": 7}, "note": "a<b"})
            assert "figures_polish" in report(run)["sections"]
            text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
            assert "gloss before" in text and "<td>1.5</td>" in text and "a<b" not in text
            assert "jepa-wm polish --config" in text

            says = Section("shine", "Shine", "It shines.", [Text("as new")], "polish")
            PARTS.register("polish")(lambda artifacts: Group("polished", "Polished", [says]))
            assert "shine" in report(run)["sections"]
            assert "as new" in (run.path / "report" / "index.html").read_text(encoding="utf-8")
    finally:
        STAGES._entries.pop("polish")
        PARTS._entries.pop("polish", None)


def test_the_figures_of_an_evaluation_of_others_are_shown(tmp_path):
    with open_run(tmp_path) as run:
        folder = run.path / "eval_stillness"
        folder.mkdir()
        rows = [{"horizon": 1, "error": 0.25}, {"horizon": 2, "error": 0.5}]
        result = {"stillness": 0.875, "rows": rows, "commit": "abc", "seconds": 1.0}
        (folder / "result.json").write_text(json.dumps(result))
        assert "figures_eval_stillness" in report(run)["sections"]
        text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
        for figure in ("eval stillness", "0.875", "rows horizon 2 error"):
            assert figure in text
        (folder / "result.json").write_text("{")
        with pytest.raises(UserError, match="result.json: is damaged .*evaluate again"):
            report(run)


def test_what_is_absent_names_the_verb_that_makes_it(tmp_path):
    with open_run(tmp_path) as run:
        result = report(run)
        text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    Page(text)
    assert {"episodes", "success", "energy", "imagined", "rollout", "probes", "collapse"} <= set(
        result["missing"]
    )
    for section in result["missing"]:
        part = text.split(f'<section id="{section}">')[1].split("</section>")[0]
        assert re.search(
            r"Not there yet: <code>jepa-wm (plan|dynamics|pretrain) --config", part
        ), section
    assert not gifs(text) and "%" not in re.sub(r"<style>.*?</style>", "", text, flags=re.S)


def test_no_lost_episode_is_said_too(tmp_path):
    with open_run(tmp_path) as run:
        fill(run, lost=())
        report(run)
        text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert "None of the 6 recorded episodes was lost" in text


def test_noise_does_not_swell_the_page(tmp_path):
    with open_run(tmp_path) as run:
        fill(run, noise=np.random.default_rng(0))
        assert report(run)["bytes"] < 8e6


def test_positions_that_are_no_places_in_a_frame_are_shown_without_a_trail(tmp_path):
    with open_run(tmp_path) as run:
        fill(run)
        recorded = episodes()
        for name in ("positions", "goal_position"):
            recorded[name] = np.repeat(recorded[name], 5, -1)
        np.savez(run.stage_dir("plan") / "episodes.npz", **recorded)
        report(run)
        text = (run.path / "report" / "index.html").read_text(encoding="utf-8")
    assert len(gifs(text)) == 3 + 2
    shown = SimpleNamespace(**recorded, unit="")
    assert np.array_equal(_with_trail(recorded["frames"][0, 1], shown, 0, 1, 1),
                          recorded["frames"][0, 1])  # fmt: skip
    assert _counter(shown, 0, K).endswith(f" · {recorded['distance'][0, -1]:.3g}")


@pytest.mark.parametrize("harm", ["cut short", "other shape", "no such array"])
def test_a_damaged_file_is_named_with_the_remedy(tmp_path, harm):
    with open_run(tmp_path) as run:
        file = run.stage_dir("plan") / "episodes.npz"
        recorded = episodes()
        if harm == "other shape":
            recorded["positions"] = recorded["positions"][:, :-1]
        elif harm == "no such array":
            del recorded["cost"]
        np.savez(file, **recorded)
        if harm == "cut short":
            file.write_bytes(file.read_bytes()[:2000])
        with pytest.raises(UserError, match="episodes.npz.*run 'jepa-wm plan' again"):
            report(run)


def test_a_gif_gives_up_frames_before_it_grows_too_large():
    noise = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), np.uint8)
    full = Image.open(io.BytesIO(encode_gif(noise, [100] * 17, max_bytes=10**9)))
    small = encode_gif(noise, [100] * 17, max_bytes=12_000)
    assert full.n_frames == 17 and len(small) <= 12_000
    image, lasts = Image.open(io.BytesIO(small)), 0
    assert 1 < image.n_frames < 17
    for frame in range(image.n_frames):
        image.seek(frame)
        lasts += image.info["duration"]
    assert lasts == 1700


def test_the_frame_nearest_to_a_latent_is_found_among_near_ones():
    bank = 1000 + 1e-3 * torch.randn(300, 24, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    assert (nearest(bank[order], bank) == order.numpy()).all()
    with pytest.raises(ValueError, match="not finite"):
        nearest(torch.full((1, 24), torch.nan), bank)


def test_strips_are_of_the_dynamics_that_are_there(tmp_path, monkeypatch):
    made = []

    def make(run, heldout, path, *, context_frames, frameskip):
        made.append((run / "dynamics" / "latent_model.safetensors").read_bytes())

    monkeypatch.setattr("jepa_wm.report.report.make_strips", make)
    with open_run(tmp_path) as run:
        fill(run)
        for weights in (b"first", b"first", b"second"):
            (run.path / "dynamics" / "latent_model.safetensors").write_bytes(weights)
            report(run)
    assert made == [b"first", b"second"]
