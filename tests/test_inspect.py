"""Inspecting tells what is there, names what is broken, and draws a sheet."""

import json

import films
import made_formats as made
import numpy as np
import pytest
from PIL import Image

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.inspect import contact_sheet


def inspected(capsys, *words):
    assert cli.main(["inspect", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_set_of_trajectories(tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    told = inspected(capsys, made.make_npz(tmp_path), "--sheet", sheet)
    assert (told["format"], told["episodes"], told["frames"]) == ("npz", 3, 21)
    assert told["length"] == {"shortest": 5, "median": 7.0, "longest": 9}
    assert told["columns"]["img"] == {"shape": [16, 20, 3], "dtype": "uint8", "pictures": True}
    assert told["used"] == {"pixels": "img", "action": "action", "state": "state"}
    assert told["image_size"] == [16, 20] and told["broken"] == {}
    taken = np.delete(made.rows()["action"], np.cumsum(made.LENGTHS) - 1, 0).astype(float)
    assert (
        np.allclose(told["action"]["action_mean"], taken.mean(0)) and told["action"]["size"] == 2
    )
    assert Image.open(sheet).size[0] > 3 * 100


def test_broken_episodes_are_named_and_the_rest_is_told(tmp_path, capsys):
    path = made.spoil_nan(tmp_path)
    told = inspected(capsys, path)
    assert (
        list(told["broken"]) == ["1"]
        and "--without 1" in told["broken"]["1"]
        and told["action"]["size"] == 2
    )
    assert cli.main(["inspect", str(path)]) == 0
    seen = capsys.readouterr().out
    assert "3 episodes, 21 frames" in seen and "img: 16 x 20 x 3 uint8  -> pixels" in seen
    assert "broken, episode 1:" in seen


def test_a_set_that_cannot_be_used_still_shows_its_columns(tmp_path, capsys):
    told = inspected(capsys, made.spoil_missing(tmp_path))
    assert "a column for the action is missing" in told["unusable"] and set(told["columns"]) == {
        "img",
        "state",
    }


def test_a_folder_of_trajectory_files_tells_each_of_them(tmp_path, capsys):
    one = made.make_hdf5(tmp_path)
    folder = tmp_path / "collected"
    folder.mkdir()
    for name in ("train.h5", "heldout.h5"):
        (folder / name).write_bytes(one.read_bytes())
    sets = inspected(capsys, folder)["sets"]
    assert list(sets) == ["heldout.h5", "train.h5"]
    assert all(found["episodes"] == 3 and found["format"] == "hdf5" for found in sets.values())
    assert cli.main(["inspect", str(folder)]) == 0
    seen = capsys.readouterr().out
    assert "2 sets of trajectories" in seen and "train.h5: hdf5, 3 episodes, 21 frames" in seen
    assert cli.main(["inspect", str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "holds 2 sets; name one" in capsys.readouterr().err


def test_a_sheet_is_a_png_of_pictures_of_any_size(tmp_path):
    pictures = {
        f"a name that is far too long to stand there {i}": np.zeros((9 + i, 300, 3), np.uint8)
        for i in range(8)
    }
    contact_sheet(tmp_path / "new" / "sheet.png", pictures)
    assert Image.open(tmp_path / "new" / "sheet.png").size == (6 * 168 + 8, 2 * 188 + 8)
    with pytest.raises(UserError, match=r"sheet\.jpg: the sheet is a PNG"):
        contact_sheet(tmp_path / "sheet.jpg", pictures)
    with pytest.raises(UserError, match="no picture could be read"):
        contact_sheet(tmp_path / "sheet.png", {})


def test_a_set_of_videos(tmp_path, capsys):
    for label, name, count in (("a", "one.mp4", 24), ("b", "two.mkv", 12)):
        (tmp_path / "set" / label).mkdir(parents=True)
        films.write(tmp_path / "set" / label / name, films.frames(count))
    (tmp_path / "set" / "b" / "bad.mp4").write_text("no video")
    sheet = tmp_path / "sheet.png"
    told = inspected(capsys, tmp_path / "set", "--sheet", sheet)
    assert (
        told["videos"] == 3
        and told["classes"] == {"a": 1, "b": 2}
        and list(told["unreadable"]) == ["b/bad.mp4"]
    )
    assert told["fps"] == {"10": 2} and told["sizes"] == {"64 x 48": 2}
    assert told["seconds"]["total"] == pytest.approx(3.6, abs=0.05) and sheet.exists()
    assert cli.main(["inspect", str(tmp_path / "set")]) == 0
    seen = capsys.readouterr().out
    assert (
        "3 videos, 1 of them unreadable" in seen
        and "sizes: 64 x 48 (2)" in seen
        and "bad.mp4: cannot be" in seen
    )
