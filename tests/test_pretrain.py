"""The pretrain stage: what is judged once, what is read, and what an interrupt does to the
seconds."""

import json
import shutil
import signal

import h5py
import pytest
import torch
from test_train import STAGES, at_steps, overrides, train

from jepa_wm.config import load_config
from jepa_wm.core.errors import Interrupted
from jepa_wm.core.progress import read_metrics
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.clips import BatchShape
from jepa_wm.data.trajectories import open_data
from jepa_wm.features.cache import pretrained
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.vit import Encoder
from jepa_wm.training import pretrain


def test_the_final_and_the_random_encoder_are_judged_once(tmp_path, tiny_data, monkeypatch):
    original, judged = pretrain.OnlineProbe.__call__, []

    def judge(self, encoder, *, steps, **shown):
        judged.append(steps)
        return original(self, encoder, steps=steps, **shown)

    monkeypatch.setattr(pretrain.OnlineProbe, "__call__", judge)
    probes = ["train.pretrain.probe_steps=4", "train.pretrain.final_probe_steps=7"]
    config = load_config("debug", [*overrides(tiny_data), *probes])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_result", lambda *args: pytest.fail("not this time"))
        with Run.open(tmp_path / "run", config) as run, pytest.raises(pytest.fail.Exception):
            run_stage("pretrain", run)
    assert judged == [4, 4, 7, 7], "at steps 11 and 22, the final encoder, and the random encoder"
    with Run.open(tmp_path / "run", config) as run:
        result = run_stage("pretrain", run)
    assert judged[4:] == [7], (
        "the final encoder is judged again after an interrupt, the random encoder is not"
    )
    seen = read_metrics(tmp_path / "run", "pretrain")[-1]
    assert result["effective_rank"] == seen["effective_rank"]


def test_seconds_count_what_an_interrupted_process_took(tmp_path, tiny_data, monkeypatch):
    with monkeypatch.context() as patch:
        at_steps(patch, (3,), lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Interrupted):
            train(tmp_path / "run", tiny_data)
    file = tmp_path / "run" / "pretrain" / "seconds.json"
    assert json.loads(file.read_text())["seconds"] > 0
    file.write_text('{"seconds": 1000.0}')
    train(tmp_path / "run", tiny_data)
    seconds = {
        stage: json.loads((tmp_path / "run" / stage / "result.json").read_text())["seconds"]
        for stage in STAGES
    }
    assert 1000 < seconds["pretrain"] < 1100 and all(
        0 < seconds[stage] < 100 for stage in ("features", "dynamics")
    )
    assert not file.exists()


def test_without_far_frames_none_is_read(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(
        pretrain.ClipSampler, "distant_rows", lambda *a, **k: pytest.fail("a far frame was drawn")
    )
    words = ["jepa.num_distant_frames=0", "jepa.target_kinds=[tokens]"]
    words += ["data.image_size=26", "train.pretrain.steps=2"]
    with Run.open(tmp_path / "run", load_config("debug", [*overrides(tiny_data), *words])) as run:
        assert run_stage("pretrain", run)["probe"]["agent"]["error"] > 0


def test_no_step_leaves_the_encoder_as_it_begins(tmp_path, tiny_data):
    """Patches that start from the data do so where nothing is trained on them too, also when it
    has to be finished after an interrupt; and the features are of that encoder."""
    words = ["train.pretrain.steps=0", "jepa.patch_init=whitening"]
    config = load_config("debug", [*overrides(tiny_data), *words])
    for _ in range(2):
        with Run.open(tmp_path / "run", config) as run:
            run_stage("pretrain", run)
        (tmp_path / "run" / "pretrain" / "result.json").unlink()
    with Run.open(tmp_path / "run", config) as run:
        run_stage("pretrain", run)
        run_stage("features", run)
    begun = pretrained(tmp_path / "run")
    frozen = FrozenEncoder.load(tmp_path / "run" / "features").encoder.state_dict()
    assert all(torch.equal(frozen[name], value) for name, value in begun.items())
    torch.manual_seed(config.seed)
    random = Encoder(config.data.image_size, config.encoder).state_dict()
    assert not torch.equal(frozen["embed.weight"], random["embed.weight"])
    assert torch.equal(frozen["norm.weight"], random["norm.weight"])


def test_the_data_says_whether_its_actions_are_places(tmp_path, tiny_data, monkeypatch):
    """Of a copy of the data that says so; what is looked at is the sampler that the stage
    makes."""
    for part in ("train", "heldout"):
        shutil.copy(tiny_data / f"{part}.h5", tmp_path)
        with h5py.File(tmp_path / f"{part}.h5", "a") as file:
            file.attrs["action_kind"] = "absolute"
    made = []
    monkeypatch.setattr(
        pretrain, "ClipSampler", lambda data, **words: made.append(words) or exit_early()
    )
    for folder, expected in ((tiny_data, False), (tmp_path, True)):
        config = load_config("debug", [f"data.path={folder}"])
        with Run.open(tmp_path / f"run_{expected}", config) as run, pytest.raises(StopIteration):
            run_stage("pretrain", run)
        assert made[-1]["absolute"] is expected


def exit_early():
    raise StopIteration


def test_a_probe_is_fitted_to_the_states_of_its_own_frames(tmp_path, tiny_data):
    """Also where a file tells of its episodes in another order than they lie in it."""
    for part in ("train", "heldout"):
        shutil.copy(tiny_data / f"{part}.h5", tmp_path)
        with h5py.File(tmp_path / f"{part}.h5", "a") as file:
            for name in ("ep_offset", "ep_len"):
                file[name][:] = file[name][()][::-1].copy()
    config = load_config("debug", [*overrides(tmp_path), "data.frame_gaps=[2,3]"])
    with Run.open(tmp_path / "run", config) as run:
        opened = pretrain._trajectories(run, config.data, BatchShape(clips=2), 0, 40)
    train = open_data(tmp_path / "run", str(tmp_path), "train")
    by_picture = {f.tobytes(): s for f, s in zip(train.frames[:], train.states(), strict=True)}
    for frame, state in zip(opened.frames, opened.states.train.states(), strict=True):
        assert (by_picture[frame.tobytes()] == state).all()
    pairs, first = opened.states.pairs[0], set(train.offsets) | set(train.offsets + 1)
    assert opened.states.gap == 2 and not first & set(pairs.rows)
    assert (pairs.states(before=2) == train.states()[pairs.rows - 2]).all()
