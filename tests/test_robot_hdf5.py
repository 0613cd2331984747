"""HDF5 of robot learning: robomimic's and ALOHA's layouts are read, others are refused in a line;
episodes keep their numbers, and rows that were never written are no pictures."""

import io
import json

import h5py
import made_formats as made
import numpy as np
import pytest
from PIL import Image

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import format_of, open_trajectories
from jepa_wm.data.readers.view import Chosen, View
from jepa_wm.data.trajectories import Trajectories

NUMBERS = (0, 2, 10)
LENGTHS = (4, 6, 5)


def pictures(number, length):
    """Rows whose pictures tell the episode and the step."""
    frames = np.zeros((length, 16, 20, 3), np.uint8)
    frames[..., 0], frames[..., 1] = 10 * number, 20 * np.arange(length)[:, None, None]
    return frames


def robomimic(folder, *, camera="agentview_image", controller=None):
    with h5py.File(folder / "low.hdf5", "w") as file:
        for number, length in zip(NUMBERS, LENGTHS, strict=True):
            demo = file.create_group(f"data/demo_{number}")
            demo["actions"], demo["states"] = (
                np.full((length, 7), number),
                np.full((length, 3), number),
            )
            demo["rewards"], demo["dones"] = np.zeros(length), np.arange(length) == length - 2
            demo[f"obs/{camera}"] = pictures(number, length)
            demo[f"next_obs/{camera}"] = pictures(number + 1, length)
            demo["obs/robot0_eef_pos"] = np.zeros((length, 3))
        file["mask/train"] = np.array([b"demo_0"])
        settings = {"control_freq": 20, "controller_configs": {"control_delta": controller}}
        file["data"].attrs["env_args"] = json.dumps({"env_name": "Lift", "env_kwargs": settings})
    return folder / "low.hdf5"


def jpeg(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def aloha(folder, stored="arrays"):
    (folder / "set").mkdir()
    for number, length in zip(NUMBERS, LENGTHS, strict=True):
        with h5py.File(folder / f"set/episode_{number}.hdf5", "w") as file:
            file["action"] = np.full((length, 14), number, "f4")
            file["observations/qpos"] = file["observations/qvel"] = np.full(
                (length, 14), number, "f4"
            )
            files = [jpeg(picture) for picture in pictures(number, length)]
            longest = max(map(len, files)) + 9
            if stored == "arrays":
                file["observations/images/cam_high"] = pictures(number, length)
            elif stored == "padded":
                padded = [
                    np.frombuffer(content.ljust(longest, b"\0"), np.uint8) for content in files
                ]
                file["observations/images/cam_high"] = np.stack(padded)
                file["compress_len"] = np.array([[len(content) for content in files]])
            elif stored == "strings":
                file["observations/images/cam_high"] = np.array(files, dtype=f"S{longest}")
            else:
                rows = file.create_dataset(
                    "observations/images/cam_high", (length,), h5py.vlen_dtype(np.uint8)
                )
                for i, content in enumerate(files):
                    rows[i] = np.frombuffer(content, np.uint8)
    return folder / "set"


def check(view, tolerance=0):
    assert view.source.numbers.tolist() == list(NUMBERS) and view.source.lengths.tolist() == list(
        LENGTHS
    )
    for e, (number, length) in enumerate(zip(NUMBERS, LENGTHS, strict=True)):
        shown = view.frames("pixels", e, 1, length).astype(int)
        assert np.abs(shown - pictures(number, length)[1:]).max() <= tolerance
        assert (view.actions(e) == number).all() and (view.states(e, 0, length) == number).all()


@pytest.mark.parametrize("camera", ["agentview_image", "agentview_rgb"])
@pytest.mark.parametrize("controller", [None, True, False])
def test_robomimic_is_read_in_the_order_of_its_demos(camera, controller, tmp_path):
    path = robomimic(tmp_path, camera=camera, controller=controller)
    assert format_of(path) == "robomimic"
    view = View(open_trajectories(path))
    check(view)
    assert view.pictures == {"pixels": f"obs/{camera}"} and view.pay == {
        "reward": "rewards",
        "terminated": "dones",
    }
    kind = {None: None, True: "delta", False: "absolute"}[controller]
    assert view.source.about.fps == 20 and view.source.about.action_kind == kind
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5"), "--without", "2"]) == 0
    data = Trajectories(tmp_path / "o.h5")
    assert data.lengths.tolist() == [4, 5] and data.action_kind == (kind or "delta")
    assert data.column("terminated").tolist() == [0, 0, 1, 0, 0, 0, 0, 1, 0]


@pytest.mark.parametrize("stored", ["arrays", "padded", "strings", "varying"])
def test_aloha_is_read_from_a_folder_or_a_file(stored, tmp_path):
    path = aloha(tmp_path, stored)
    assert format_of(path) == format_of(path / "episode_2.hdf5") == "aloha"
    view = View(open_trajectories(path))
    check(view, tolerance=0 if stored == "arrays" else 12)
    assert view.state == "observations/qpos" and view.source.about.action_kind == "absolute"
    assert View(open_trajectories(path / "episode_10.hdf5")).actions(0)[0, 0] == 10


def test_a_damaged_file_of_a_folder_is_named_by_its_number(tmp_path, capsys):
    path = aloha(tmp_path)
    (path / "episode_2.hdf5").write_bytes((path / "episode_2.hdf5").read_bytes()[:900])
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["broken"]) == ["2"]
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5")]) == 2
    assert (
        "episode_2.hdf5: cannot be read" in (seen := capsys.readouterr().err)
        and "--without 2" in seen
    )
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5"), "--without", "2"]) == 0


def test_hdf5_of_another_layout_is_refused_in_a_line(tmp_path, capsys):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        for k in range(500):
            file[f"runs/run_{k}/torque"] = np.zeros(3)
    assert cli.main(["convert", str(tmp_path / "other.hdf5"), str(tmp_path / "o.h5")]) == 2
    seen = capsys.readouterr().err
    assert "nothing says where episodes end" in seen and "and 490 more" in seen and len(seen) < 900
    assert cli.main(["convert", str(tmp_path), str(tmp_path / "o.h5")]) == 2
    assert "it holds other.hdf5: name that" in capsys.readouterr().err
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["ep_len"], file["ep_offset"], file["pixels"] = (
            [4],
            [0],
            np.zeros((4, 16, 16, 3), "u1"),
        )
        for k in range(500):
            file[f"sensor_{k}"] = np.zeros(4)
    assert cli.main(["convert", str(tmp_path / "wide.h5"), str(tmp_path / "o.h5")]) == 2
    assert len(capsys.readouterr().err) < 900


def test_a_folder_of_archives_goes_by_the_numbers_of_its_files(tmp_path, capsys):
    (tmp_path / "set").mkdir()
    for number in (1, 2, 10):
        action = np.full((4, 2), np.nan if number == 10 else number)
        np.savez(tmp_path / f"set/2024_run_{number}.npz", img=pictures(number, 4), action=action)
    view = View(open_trajectories(tmp_path / "set"))
    assert view.source.numbers.tolist() == [1, 2, 10] and view.actions(1)[0, 0] == 2
    with pytest.raises(UserError, match="'action' of episode 10 is not finite .* --without 10"):
        view.actions(2)
    assert (
        cli.main(["convert", str(tmp_path / "set"), str(tmp_path / "o.h5"), "--without", "10"])
        == 0
    )
    assert "left out: episodes 10" in capsys.readouterr().out
    for file, name in zip(
        sorted((tmp_path / "set").iterdir()),
        ("20240101T01_0_4", "20240102T02_1_4", "x"),
        strict=True,
    ):
        file.rename(file.with_name(f"{name}.npz"))
    assert open_trajectories(tmp_path / "set").numbers.tolist() == [0, 1, 2], (
        "no one part of the names is their number"
    )


def test_minari_episodes_keep_their_numbers(tmp_path, capsys):
    path = made.make_minari(tmp_path)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        file.move("episode_1", "episode_11")
        file["episode_11/actions"][0] = np.nan
    assert cli.main(["inspect", str(path), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["broken"]) == ["11"]
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5"), "--without", "11"]) == 0


@pytest.mark.parametrize("chunks", [None, (1, 16, 20, 3), (4, 8, 10, 3)])
def test_rows_that_were_never_written_are_missed(chunks, tmp_path, capsys):
    path = made.make_hdf5(tmp_path)
    with h5py.File(path, "a") as file:
        del file["img"]
        room = file.create_dataset(
            "img", (made.ROWS + 100, 16, 20, 3), "u1", chunks=chunks
        )  # and more than is needed
        if chunks:
            room[:12] = made.rows()["img"][:12]  # the recorder was killed before the third episode
    assert cli.main(["inspect", str(path), "--json"]) == 0
    why = json.loads(capsys.readouterr().out)["broken"]
    assert (
        list(why) == (["2"] if chunks else ["0", "1", "2"])
        and "'img' of episode 2 was never written" in why["2"]
    )
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5")]) == 2
    path = robomimic(tmp_path)
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/agentview_image"]
        file.create_dataset("data/demo_2/obs/agentview_image", (6, 16, 20, 3), "u1", chunks=chunks)
    view = View(open_trajectories(path), Chosen(state="states"))
    assert view.frames("pixels", 2, 0, 1).any()
    with pytest.raises(
        UserError, match=r"obs/agentview_image' of episode 2 was never written.* --without 2"
    ):
        view.frames("pixels", 1, 0, 1)


def test_numbers_too_long_to_be_numbers_are_names(tmp_path):
    path = robomimic(tmp_path)
    with h5py.File(path, "a") as file:
        demos = sorted(file["data"])
        for e, demo in enumerate(demos):
            file["data"].move(demo, f"demo_{10**25 + e}")
    upper = path.rename(path.with_suffix(".HDF5"))
    source = open_trajectories(upper)
    assert source.numbers.tolist() == list(range(len(demos)))
