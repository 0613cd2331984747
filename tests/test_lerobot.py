"""LeRobot sets whose tables, rows and films do not agree: every row's picture is its own, or its
episode is named."""

import json

import films
import made_formats as made
import numpy as np
import pytest
from made_formats import LENGTHS, ROWS

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import open_trajectories
from jepa_wm.data.readers.view import Chosen, View
from jepa_wm.data.trajectories import Trajectories

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
FILM = "videos/observation.images.front/c000/f000.mp4"  # of the first two episodes in version 3
BEGIN = "videos/observation.images.front/from_timestamp"
STARTS = np.cumsum(LENGTHS) - LENGTHS


def changed(file, **columns):
    """Give a parquet file other columns, or take rows in another order with `order`."""
    table = pq.read_table(file).to_pydict() | columns
    order = table.pop("order", range(len(table["episode_index"])))
    pq.write_table(
        pa.table({name: [values[i] for i in order] for name, values in table.items()}), file
    )


def meta(root):
    return next(root.glob("meta/episodes/*/*.parquet"))


def broken(root, capsys):
    """{number: why} that inspect tells of the film's camera."""
    assert cli.main(["inspect", str(root), "--camera", "front", "--json"]) == 0
    return {
        int(number): why for number, why in json.loads(capsys.readouterr().out)["broken"].items()
    }


def refused(root, tmp_path, capsys, *words):
    """What convert says, which writes nothing."""
    assert (
        cli.main(["convert", str(root), str(tmp_path / "o.h5"), "--camera", "front", *words]) == 2
    )
    assert not (tmp_path / "o.h5").exists()
    return capsys.readouterr().err


def right(root, numbers):
    """The set's episodes are called so, and their pictures and states are those that were
    written."""
    view = View(open_trajectories(root), Chosen(cameras=("front",)))
    assert view.source.numbers.tolist() == numbers and view.source.lengths.tolist() == list(
        LENGTHS
    )
    for e, (start, length) in enumerate(zip(STARTS, LENGTHS, strict=True)):
        rows = list(range(start, start + length))
        assert [films.number_of(frame) for frame in view.frames("pixels", e, 0, length)] == rows
        assert view.states(e, 0, length)[:, 0].tolist() == rows
        view.check(e)


def test_a_film_that_ends_before_its_rows_is_missed_by_number(tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    changed(meta(root), **{BEGIN: [40.0, 80.0, 0.0]})
    assert list(broken(root, capsys)) == [0, 1]
    assert "broken are in all: --without 0 1" in refused(root, tmp_path, capsys)
    assert (
        cli.main(
            [
                "convert",
                str(root),
                str(tmp_path / "o.h5"),
                "--camera",
                "front",
                "--without",
                "0",
                "1",
            ]
        )
        == 0
    )
    assert Trajectories(tmp_path / "o.h5").lengths.tolist() == [LENGTHS[2]]


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_a_film_of_too_few_frames_is_missed(version, tmp_path, capsys):
    root = made.make_lerobot(tmp_path, version)
    film = (
        root / FILM
        if version == "v3.0"
        else root / "videos/observation.images.front/c0/000001.mp4"
    )
    count = sum(LENGTHS[:2]) if version == "v3.0" else LENGTHS[1]
    films.write(film, films.frames(count)[:-1])
    assert list(broken(root, capsys)) == [1] and "no frame near" in broken(root, capsys)[1]
    assert "repair it, or leave it out with --without 1" in refused(root, tmp_path, capsys)


def test_a_gap_in_the_middle_of_a_film_is_missed(tmp_path, capsys):
    root, seconds = made.make_lerobot(tmp_path, "v3.0"), np.arange(12) / 10
    seconds[3:] += 1.0  # the recorder stood still for a second
    films.write(root / FILM, films.frames(12), seconds=seconds)
    assert list(broken(root, capsys)) == [0, 1] and "no frame near" in broken(root, capsys)[0]
    kept = np.delete(np.arange(12), 4)  # and here one frame is lost
    films.write(root / FILM, films.frames(12)[kept], seconds=kept / 10)
    assert (
        list(broken(root, capsys)) == [0] and "in all 1 rows have none" in broken(root, capsys)[0]
    )
    view = View(open_trajectories(root), Chosen(cameras=("front",)))
    with pytest.raises(UserError, match=r"episode 0: .*has no frame near 0\.400 s"):
        view.frames("pixels", 0, 0, 7)
    assert [films.number_of(frame) for frame in view.frames("pixels", 0, 5, 7)] == [5, 6]


def test_pictures_are_found_by_the_time_of_their_rows(tmp_path):
    root = made.make_lerobot(tmp_path, "v3.0")
    seconds = np.array([0, 0.1, 0.3, 0.35, 0.5, 0.9, 1.0])  # as the camera gave them
    films.write(root / FILM, films.frames(12), seconds=np.append(seconds, 1.5 + np.arange(5) / 10))
    changed(meta(root), **{BEGIN: [0.0, 1.5, 0.0]})
    first, second = np.float32(seconds).tolist(), np.float32(np.arange(5) / 10).tolist()
    changed(
        root / "data/c000/f000.parquet",
        timestamp=first + second,
        frame_index=[*range(7), *range(5)],
    )
    right(root, [0, 1, 2])


def test_a_lost_episode_leaves_a_gap_in_the_numbers_alone(tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    changed(meta(root), episode_index=[0, 1, 4], dataset_from_index=[0, 7, 40])
    changed(root / "data/c000/f001.parquet", episode_index=[4] * LENGTHS[2])
    right(root, [0, 1, 4])
    assert broken(root, capsys) == {}
    assert "--without 2: the episodes are 0 to 4, not all of them" in refused(
        root, tmp_path, capsys, "--without", "2"
    )
    assert (
        cli.main(
            ["convert", str(root), str(tmp_path / "o.h5"), "--camera", "front", "--without", "4"]
        )
        == 0
    )
    assert "left out: episodes 4" in capsys.readouterr().out
    assert Trajectories(tmp_path / "o.h5").lengths.tolist() == list(LENGTHS[:2])


def test_a_gap_in_the_numbers_of_version_2(tmp_path, capsys):
    root = made.make_lerobot(tmp_path)
    lines = [
        {"episode_index": number, "length": length}
        for number, length in zip((0, 1, 1005), LENGTHS, strict=True)
    ]
    (root / "meta/episodes.jsonl").write_text(
        "\n".join(json.dumps(line) for line in [lines[2], *lines[:2]])
    )
    for kind, name in (("data", "data"), ("videos/observation.images.front", "film")):
        file = next((root / kind).rglob("000002.*"))
        moved = file.parents[1] / "c1" / f"001005{file.suffix}"
        moved.parent.mkdir(exist_ok=True)
        file.rename(moved)
        if name == "data":
            changed(moved, episode_index=[1005] * LENGTHS[2])
    right(root, [0, 1, 1005])
    next(root.rglob("001005.parquet")).unlink()
    assert list(broken(root, capsys)) == [1005]
    assert "001005.parquet is missing" in refused(root, tmp_path, capsys)
    assert (
        cli.main(
            [
                "convert",
                str(root),
                str(tmp_path / "o.h5"),
                "--camera",
                "front",
                "--without",
                "1005",
            ]
        )
        == 0
    )


def test_rows_are_found_by_the_number_they_carry_in_whatever_order_episodes_lie(tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    changed(
        root / "data/c000/f000.parquet", order=[*range(7, 12), *range(7)]
    )  # episode 1 before episode 0
    changed(meta(root), order=[2, 1, 0])
    right(root, [0, 1, 2])
    file, steps = root / "data/c000/f001.parquet", [0, 1, 3, 2, *range(4, 9)]
    changed(file, frame_index=steps)
    assert list(broken(root, capsys)) == [2] and "order of frame_index" in broken(root, capsys)[2]
    changed(file, episode_index=[1] * 9)
    assert "holds 0 rows of the 9 that meta promises" in broken(root, capsys)[2]


def test_two_episodes_in_one_stretch_of_a_film_are_both_named(tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    changed(meta(root), **{BEGIN: [0.0, 0.0, 0.0]})
    why = broken(root, capsys)
    assert (
        list(why) == [0, 1]
        and "has it and episode 0 in one stretch of" in why[1]
        and "episode 1" in why[0]
    )
    changed(meta(root), **{BEGIN: [0.0, None, 0.0]})
    assert "does not say where it begins" in broken(root, capsys)[1]
    changed(meta(root), episode_index=[0, 1, 1])
    with pytest.raises(UserError, match="tells of episode 1 twice"):
        open_trajectories(root)


@pytest.mark.parametrize(
    "dtype", ["language", "audio", "object", "large_string", "datetime64[ns]", None]
)
def test_features_that_are_no_numbers_are_passed_over(dtype, tmp_path):
    root = made.make_lerobot(tmp_path, "v3.0")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["words"] = {"dtype": dtype, "shape": [1], "names": None}
    (root / "meta/info.json").write_text(json.dumps(info))
    assert "words" not in open_trajectories(root).columns
    right(root, [0, 1, 2])


def test_films_of_dino_wm_are_read_frame_by_frame_at_any_rate(tmp_path):
    root = made.make_dino_wm(tmp_path, films_too=True)
    film = root / "obses/episode_001.mp4"
    films.write(film, films.frames(ROWS)[7:12], seconds=np.array([0, 0.1, 0.15, 0.9, 1.0]))
    view = View(open_trajectories(root))
    assert view.source.lengths.tolist() == list(LENGTHS)
    assert [films.number_of(frame) for frame in view.frames("pixels", 1, 0, 5)] == [
        7,
        8,
        9,
        10,
        11,
    ]
    film.write_text("no film")
    view = View(open_trajectories(root))
    with pytest.raises(UserError, match=r"episode 1: .*episode_001\.mp4: cannot be .*--without 1"):
        view.frames("pixels", 1, 0, 5)
    assert films.number_of(view.frames("pixels", 2, 0, 1)[0]) == 12
    film.rename(root / "obses/episode_004.mp4")
    with pytest.raises(UserError, match="3 in obses; episode 1 is the first that is missing"):
        open_trajectories(root)


@pytest.mark.parametrize(("times", "why"), [
    (lambda t: [None, *t[1:]], "a timestamp is missing or no number"),
    (lambda t: [second + 0.5 for second in t], "its first timestamp is 0.500 s instead of 0"),
])  # fmt: skip
def test_times_that_lead_nowhere_or_into_other_episodes_are_missed(times, why, tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    file = sorted(root.glob("data/**/*.parquet"))[0]
    fps = json.loads((root / "meta/info.json").read_text())["fps"]
    frames = [t for length in LENGTHS[:2] for t in range(length)]
    changed(file, timestamp=times([t / fps for t in frames]))
    assert why in broken(root, capsys)[0]
    assert why in refused(root, tmp_path, capsys)


def test_what_info_leaves_empty_is_said(tmp_path, capsys):
    root = made.make_lerobot(tmp_path, "v3.0")
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(
        json.dumps({**info, "features": {**info["features"], "note": None}})
    )
    right(root, [0, 1, 2])
    (root / "meta/info.json").write_text(json.dumps({**info, "fps": None}))
    assert "lacks fps" in refused(root, tmp_path, capsys)
