"""Converted files hold the source's rows, split and sized as asked, and appear whole or not at
all."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from made_formats import LENGTHS, MAKERS, ROWS, make_npz, make_ogbench, rows, spoil_nan

from jepa_wm import cli
from jepa_wm.core.errors import Interrupted, UserError
from jepa_wm.data import convert
from jepa_wm.data import converted as rows_written
from jepa_wm.data.clips import ClipSampler
from jepa_wm.data.convert import Conversion
from jepa_wm.data.held_out import common_episodes
from jepa_wm.data.readers.registry import open_trajectories
from jepa_wm.data.readers.view import View
from jepa_wm.data.trajectories import Trajectories, open_data
from jepa_wm.data.windows import WindowSampler


def test_one_file_of_all_episodes(tmp_path, capsys):
    source, target = make_npz(tmp_path), tmp_path / "out" / "train.h5"
    assert cli.main(["convert", str(source), str(target), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == {
        "train": {"path": str(target), "episodes": 3, "frames": ROWS},
        "left_out": [],
    }
    assert [file.name for file in target.parent.iterdir()] == ["train.h5"]
    data, expected = Trajectories(target), rows()
    assert data.lengths.tolist() == list(LENGTHS) and isinstance(data.frames, np.memmap)
    assert (data.frames == expected["img"]).all() and (data.actions == expected["action"]).all()
    assert (data.column("state") == expected["state"]).all() and data.quantities.groups == {
        "state": [0, 1, 2]
    }
    assert tuple(open_trajectories(target).lengths) == LENGTHS, "what we write is a format we read"


def test_the_parts_serve_observe_path(tmp_path, capsys):
    target = tmp_path / "data" / "train.h5"
    words = ["convert", str(make_ogbench(tmp_path)), str(target), "--heldout", "2", "--size", "8"]
    assert cli.main(words) == 0
    seen = capsys.readouterr()
    assert (
        f"{target}: 1 episodes, 5 frames" in seen.out
        and "heldout.h5: 2 episodes, 16 frames" in seen.out
    )
    train, heldout = (
        open_data(tmp_path, str(target.parent), part) for part in ("train", "heldout")
    )
    assert train.frames.shape == (5, 8, 8, 3) and heldout.lengths.tolist() == [7, 9]
    assert (
        heldout.frames[:, 0, 0, 0] == rows()["img"][[*range(7), *range(12, 21)], 0, 0, 0]
    ).all()
    assert ClipSampler(train, frames=2, gaps=(1,), seed=0).rows(0, 4).shape == (4, 2)
    assert WindowSampler(heldout, frames=3, frameskip=2, stride=1, seed=0).batch(0, 4)[
        2
    ].shape == (4, 2, 4)
    assert train.digest != heldout.digest and len(train.digest) == 16


def test_statistics_are_those_of_actions_that_lead_somewhere_in_training(tmp_path):
    convert.convert(
        View(open_trajectories(make_npz(tmp_path))), Conversion(tmp_path / "train.h5", heldout=2)
    )
    taken = rows()["action"][7:11].astype(float)  # episode 1 without its last action
    for part in ("train", "heldout"):
        about = Trajectories(tmp_path / f"{part}.h5").attributes
        assert np.allclose(about["action_mean"], taken.mean(0)) and np.allclose(
            about["action_std"], taken.std(0)
        )
        assert np.allclose(about["action_min"], taken.min(0)) and np.allclose(
            about["action_max"], taken.max(0)
        )


def test_what_actions_are_is_said_once_and_stays_with_the_data(tmp_path, capsys):
    source, first, again = make_npz(tmp_path), tmp_path / "first.h5", tmp_path / "again.h5"
    assert cli.main(["convert", str(source), str(first), "--action-kind", "absolute"]) == 0
    assert cli.main(["convert", str(first), str(again)]) == 0
    assert Trajectories(first).action_kind == Trajectories(again).action_kind == "absolute"
    assert (
        cli.main(["convert", str(first), str(tmp_path / "moves.h5"), "--action-kind", "delta"])
        == 0
    )
    assert Trajectories(tmp_path / "moves.h5").action_kind == "delta"
    convert.convert(View(open_trajectories(source)), Conversion(tmp_path / "plain.h5"))
    assert Trajectories(tmp_path / "plain.h5").action_kind == "delta"
    capsys.readouterr()
    assert cli.main(["inspect", str(again)]) == 0
    seen = capsys.readouterr().out
    assert "actions: continuous, 2 numbers, absolute" in seen and "source first.h5" in seen


def test_splits_are_drawn_once_and_cover_all(tmp_path):
    lengths = np.full(40, 5)
    lengths[[3, 8]] = 1, 4
    for heldout, count in ((0.1, 4), (10, 4), (0.0, 0)):
        made = Conversion(tmp_path / "train.h5", heldout=heldout, without=(11,))
        parts, left_out = convert.split(lengths, made)
        assert left_out == [3, 11] and parts == convert.split(lengths, made)[0]
        assert sorted(sum(parts.values(), left_out)) == list(range(40))
        assert len(parts.get("heldout", [])) == count
    assert parts["train"] and convert.split(lengths, Conversion(tmp_path / "t.h5", shortest=5))[
        1
    ] == [3, 8]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out.h5"], "'action' of episode 1 is not finite in 1 rows"),
        (["out.zip"], "let its name end in .h5"),
        (["out.h5", "--heldout", "0.1"], "with --heldout name it FOLDER/train.h5"),
        (["train.h5", "--heldout", "1.5"], "a whole number k >= 2"),
        (["train.h5", "--heldout", "1"], "a whole number k >= 2"),
        (["out.h5", "--shortest", "1"], "--shortest 1: an episode needs 2 frames"),
        (["out.h5", "--size", "0"], "--size 0: frames need at least 1 px"),
        (["out.h5", "--without", "3"], "--without 3: the episodes are 0 to 2"),
        (["out.h5", "--shortest", "99"], "leave none for train.h5"),
        (
            ["out.h5", "--state", "pose"],
            r"column 'pose' is missing; name one of ['action', 'state'] with --state",
        ),
        (["out.h5", "--pixels", "state"], "column 'state' holds no pictures"),
    ],
)
def test_a_mistake_is_a_message_and_leaves_nothing(tmp_path, capsys, words, message):
    source = spoil_nan(tmp_path)
    (tmp_path / "out").mkdir()
    assert cli.main(["convert", str(source), str(tmp_path / "out" / words[0]), *words[1:]]) == 2
    assert message in capsys.readouterr().err and not list((tmp_path / "out").iterdir())


def test_a_broken_episode_can_be_left_out(tmp_path, capsys):
    target = tmp_path / "out.h5"
    assert cli.main(["convert", str(spoil_nan(tmp_path)), str(target), "--without", "1"]) == 0
    assert "left out: episodes 1" in capsys.readouterr().out
    assert Trajectories(target).lengths.tolist() == [7, 9]


def test_episodes_of_differing_frames_need_a_size(tmp_path):
    (tmp_path / "set").mkdir()
    for e, side in enumerate((16, 20)):
        arrays = {"img": np.zeros((3, side, side, 3), "u1"), "action": np.zeros((3, 2))}
        np.savez(tmp_path / "set" / f"{e}.npz", **arrays)
    view = View(open_trajectories(tmp_path / "set"))
    with pytest.raises(
        UserError, match=r"'pixels' is \(20, 20, 3\) in episode 1, but \(16, 16, 3\) in the first"
    ):
        convert.convert(view, Conversion(tmp_path / "out.h5"))
    convert.convert(view, Conversion(tmp_path / "out.h5", size=8))
    assert Trajectories(tmp_path / "out.h5").frames.shape == (6, 8, 8, 3)


def test_nothing_is_overwritten(tmp_path):
    view = View(open_trajectories(make_npz(tmp_path)))
    (tmp_path / "heldout.h5").write_text("precious")
    with pytest.raises(
        UserError, match=r"heldout\.h5: is there already; delete it or choose another target"
    ):
        convert.convert(view, Conversion(tmp_path / "train.h5", heldout=0.3))
    assert (tmp_path / "heldout.h5").read_text() == "precious" and not (
        tmp_path / "train.h5"
    ).exists()


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    view = View(open_trajectories(make_npz(tmp_path)))
    read = view.frames

    def interrupted(name, episode, start, stop):
        if episode == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return read(name, episode, start, stop)

    monkeypatch.setattr(view, "frames", interrupted)
    with pytest.raises(Interrupted):
        convert.convert(view, Conversion(tmp_path / "out" / "train.h5", heldout=0.3))
    assert not list((tmp_path / "out").iterdir())


def test_long_episodes_are_copied_by_windows(tmp_path, monkeypatch):
    monkeypatch.setattr(rows_written, "WINDOW", 4 * 16 * 20 * 3 * 2)  # two frames
    convert.convert(View(open_trajectories(make_npz(tmp_path))), Conversion(tmp_path / "out.h5"))
    data = Trajectories(tmp_path / "out.h5")
    assert (data.frames == rows()["img"]).all() and (data.column("state") == rows()["state"]).all()


@pytest.mark.parametrize("arriving", [False, True])
def test_rewards_and_ends_come_along_beside_the_action_they_are_of(tmp_path, arriving):
    pay, over = np.arange(ROWS, dtype=np.float32), np.arange(ROWS) % 3 == 0
    source = tmp_path / "rows.npz"
    np.savez(source, **rows(), rewards=pay, terminals=over, episode_ends=np.cumsum(LENGTHS))
    words = ["--action-row", "arriving"] if arriving else []
    assert cli.main(["convert", str(source), str(tmp_path / "train.h5"), *words]) == 0
    data = Trajectories(tmp_path / "train.h5")
    for first, length in zip(data.offsets, data.lengths, strict=True):
        inside, led = (
            slice(first, first + length - 1),
            slice(first + arriving, first + length - 1 + arriving),
        )
        assert np.array_equal(data.column("reward")[inside], pay[led])
        assert np.array_equal(data.column("terminated")[inside], over[led])


def with_copies(folder, *, lengths=(4, 5, 4, 5, 4, 6), copies=((0, 2), (1, 3)), actions="drawn"):
    """npz of episodes of which some are copies of others."""
    r = np.random.default_rng(0)
    pixels = [r.integers(0, 256, (n, 8, 8, 3), np.uint8) for n in lengths]
    moves = [r.normal(size=(n, 2)) * (actions == "drawn") for n in lengths]
    for one, other in copies:
        pixels[other], moves[other] = pixels[one], moves[one].copy()
        moves[other][-1] = -7.0  # the last action leads nowhere
    path = folder / "copies.npz"
    np.savez(
        path,
        pixels=np.concatenate(pixels),
        action=np.concatenate(moves),
        episode_ends=np.cumsum(lengths),
    )
    return path


@pytest.mark.parametrize("heldout", [2, 3, 0.3, 0.5])
@pytest.mark.parametrize("actions", ["drawn", "zero"])
def test_copies_of_an_episode_are_not_parted(tmp_path, heldout, actions):
    """Whichever way of parting, what the message names to leave out is enough; where none are
    parted none need go."""
    source = with_copies(
        tmp_path, copies=((0, 3), (1, 2)), lengths=(4, 5, 5, 4, 4, 6), actions=actions
    )
    first = Conversion(tmp_path / "train.h5", heldout=heldout)
    parts, _ = convert.split(View(open_trajectories(source)).source.lengths, first)
    parted = [len({0, 3} & set(parts["train"])) == 1, len({1, 2} & set(parts["train"])) == 1]
    if not any(parted):
        convert.convert(View(open_trajectories(source)), first)
        return
    with pytest.raises(UserError, match=r"are the same .* --without 2 3$"):
        convert.convert(View(open_trajectories(source)), first)
    assert not (tmp_path / "train.h5").exists()
    convert.convert(
        View(open_trajectories(source)),
        Conversion(tmp_path / "train.h5", heldout=heldout, without=(2, 3)),
    )
    train, held = (Trajectories(tmp_path / f"{part}.h5") for part in ("train", "heldout"))
    assert common_episodes(train, held) == 0 and train.episodes + held.episodes == 4


def test_copies_may_stay_where_nothing_is_held_out_and_a_common_episode_is_warned_of(tmp_path):
    source = with_copies(tmp_path)
    convert.convert(View(open_trajectories(source)), Conversion(tmp_path / "train.h5"))
    data = Trajectories(tmp_path / "train.h5")
    assert data.episodes == 6
    with pytest.warns(UserWarning, match="6 of its 6 episodes are in"):
        assert common_episodes(data, data) == 6


def test_some_cases_part_copies(tmp_path):
    """So that the test above is about something."""
    lengths = np.array((4, 5, 5, 4, 4, 6))
    shares = [
        convert.split(lengths, Conversion(tmp_path / "train.h5", heldout=h))[0]["train"]
        for h in (2, 3, 0.3, 0.5)
    ]
    assert (
        sum(len({0, 3} & set(train)) == 1 or len({1, 2} & set(train)) == 1 for train in shares)
        >= 2
    )


SLOWLY = """
import sys, time
from jepa_wm import cli
from jepa_wm.data.readers.view import View
read = View.frames
View.frames = lambda *words: (time.sleep(0.2), read(*words))[1]
sys.exit(cli.main(sys.argv[1:]))
"""


def converted(source, target, seed, *, killed=False):
    """The bytes of both parts as a process of its own writes them; or what is there once it was
    killed at work."""
    words = ["convert", str(source), str(target), "--heldout", "0.3"]
    process = subprocess.Popen(
        [sys.executable, "-c", SLOWLY if killed else SLOWLY.replace("0.2", "0"), *words],
        env={**os.environ, "PYTHONHASHSEED": str(seed)}, stderr=subprocess.PIPE,
    )  # fmt: skip
    if killed:
        while process.poll() is None and not list(target.parent.glob("*.partial")):
            time.sleep(0.02)
        process.kill()
    _, said = process.communicate()
    assert killed or process.returncode == 0, said
    return {file.name: file.read_bytes() for file in target.parent.glob("*.h5")}


@pytest.mark.parametrize("kind", ["minari", "npz"])
def test_the_same_source_gives_the_same_bytes_in_any_process_and_after_one_was_killed(
    kind, tmp_path
):
    source = MAKERS[kind](tmp_path)
    whole = converted(source, tmp_path / "a/train.h5", 1)
    assert set(whole) == {"train.h5", "heldout.h5"}
    assert converted(source, tmp_path / "b/train.h5", 2, killed=True) == {}
    time.sleep(1)  # so that a time of writing would differ
    assert converted(source, tmp_path / "b/train.h5", 3) == whole
    assert not list((tmp_path / "b").glob("*.partial"))
