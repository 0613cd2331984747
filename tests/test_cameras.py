"""Several cameras: one by name, or side by side in one picture; what shows others is refused."""

import numpy as np
import pytest
from gymnasium import spaces
from test_gym_kinds import COLOUR, shown

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run, run_stage
from jepa_wm.data.images import joined_cameras, resized
from jepa_wm.data.trajectories import Trajectories, TrajectoryWriter
from jepa_wm.evals.frozen_tasks import refuse_recording_of_data

FRONT, WRIST = 200, 50  # brightness that each camera sees on its left, and half of it on its right


def picture(bright, height, width, count=1):
    frames = np.full((count, height, width, 3), bright, np.uint8)
    frames[:, :, width // 2 :] //= 2
    return frames


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    """Two cameras of different sizes, in 6 episodes of 5 frames."""
    path, r = tmp_path_factory.mktemp("cameras") / "two.h5", np.random.default_rng(0)
    columns = {"front": ((24, 32, 3), "u1"), "wrist": ((16, 16, 3), "u1"), "action": ((2,), "f4")}
    writer = TrajectoryWriter(path, np.full(6, 5), columns)
    for row in map(int, writer.offset):
        writer.write("front", row, picture(FRONT, 24, 32, 5))
        writer.write("wrist", row, picture(WRIST, 16, 16, 5))
        writer.write("action", row, r.normal(size=(5, 2)).astype(np.float32))
    writer.close()
    return path


def converted(recording, target, *words):
    assert cli.main(["convert", str(recording), str(target), "--format", "hdf5", *words]) == 0
    return Trajectories(target)


def test_cameras_stand_side_by_side_in_the_order_they_are_named(recording, tmp_path):
    words = ("--join-cameras", "--size", "16")
    for order, left, right in ((("front", "wrist"), FRONT, WRIST),
                               (("wrist", "front"), WRIST, FRONT)):  # fmt: skip
        data = converted(recording, tmp_path / f"{left}.h5", "--camera", *order, *words)
        assert data.frames.shape == (30, 16, 16, 3) and data.text("cameras") == " ".join(order)
        # Each keeps all that it shows, in half of the width: its edges lie at 4 and at 12.
        row = data.frames[7, 8, :, 0]
        assert row[[0, 1, 6, 7, 8, 9, 14, 15]].tolist() == [
            left, left, left // 2, left // 2, right, right, right // 2, right // 2
        ]  # fmt: skip
        assert "pixels_wrist" not in data and "pixels_front" not in data


def test_one_camera_is_chosen_by_name(recording, tmp_path):
    data = converted(recording, tmp_path / "wrist.h5", "--camera", "wrist", "--size", "8")
    assert (data.frames == resized(picture(WRIST, 16, 16, 30), 8)).all()
    assert data.text("cameras") == "wrist"


def test_a_picture_that_cameras_cannot_share_is_refused(recording, tmp_path, capsys):
    for words, said in (
        (
            ("--camera", "front", "--size", "16"),
            "--join-cameras 1: so many of --camera cannot share",
        ),
        (("--camera", "front", "wrist"), "a picture of --size none"),
        (
            ("--camera", "front", "wrist", "--size", "15"),
            "--join-cameras 2: so many of --camera cannot share a picture of --size 15",
        ),
    ):
        target = str(tmp_path / "no.h5")
        command = ["convert", str(recording), target, "--format", "hdf5", "--join-cameras", *words]
        assert cli.main(command) == 2
        message = capsys.readouterr().err
        assert said in message and "name two or more with --camera, and a --size" in message
        assert not list(tmp_path.iterdir())


def test_held_out_episodes_and_goals_of_another_camera_are_refused(recording, tmp_path):
    for name, words in (
        ("train", ("--camera", "front", "--size", "16")),
        ("heldout", ("--camera", "wrist", "--size", "16")),
        ("both", ("--camera", "front", "wrist", "--join-cameras", "--size", "16")),
    ):
        converted(recording, tmp_path / f"{name}.h5", *words)
    message = r"of the cameras wrist, those of .*train.h5 of front; convert both with the same"
    config = load_config("debug", [f"data.path={tmp_path}"])
    with Run.open(tmp_path / "run", config) as run, pytest.raises(UserError, match=message):
        run_stage("collect", run)
    with pytest.raises(UserError, match=message):
        refuse_recording_of_data(tmp_path / "train.h5", tmp_path / "heldout.h5")
    with pytest.raises(UserError, match="of the cameras front wrist, those of .* of front;"):
        refuse_recording_of_data(tmp_path / "train.h5", tmp_path / "both.h5")


def test_an_environment_shows_its_pictures_side_by_side(tmp_path):
    both = {"front": COLOUR, "wrist": COLOUR[::-1].copy()}
    box = spaces.Box(0, 255, (20, 24, 3), np.uint8)
    space = spaces.Dict(front=box, wrist=box)
    world = shown(("wrist", "front"), 16, shows=both, observation_space=space)
    expected = joined_cameras([both["wrist"][None], both["front"][None]], 16)
    assert np.array_equal(world.render(), expected)
    world.step(np.zeros((1, 2), np.float32))
    assert np.array_equal(world.render(), expected)
    for names, size in ((("wrist", "front"), None), (("wrist", "front"), 15),
                        (("wrist", "render"), 16)):  # fmt: skip
        with pytest.raises(UserError, match="side by side are entries of the observation"):
            shown(names, size, shows=both, observation_space=space)
    with pytest.raises(UserError, match="world.picture is 'side', which is no picture"):
        shown(("wrist", "side"), 16, shows=both, observation_space=space)
