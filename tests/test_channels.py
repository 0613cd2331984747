"""What the channels of pictures are is told by the rows: stacked frames come again, alpha is
opaque; else one asks."""

import h5py
import made_formats as made
import numpy as np
import pytest

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.registry import open_trajectories
from jepa_wm.data.readers.view import Chosen, View
from jepa_wm.data.trajectories import Trajectories

LENGTH = 12


def moment(t, *, colours=1):
    """[24, 20, u] a bright block whose column tells the time, in colours where there are three."""
    frame = np.zeros((24, 20, colours), np.uint8)
    frame[5:9, max(t, 0)] = np.arange(colours) * 20 + 200
    return frame


def stacks(count, *, colours=1, apart=1, newest_first=False, still=0):
    """[L, 24, 20, count * u] the latest frames of each row, `apart` rows from one to the next."""
    times = [[max(t - still - apart * k, 0) for k in range(count)] for t in range(LENGTH)]
    rows = [
        [moment(t, colours=colours) for t in (row if newest_first else row[::-1])] for row in times
    ]
    return np.stack([np.concatenate(row, -1) for row in rows])


def view_of(tmp_path, pictures, **chosen):
    path = tmp_path / "rows.npz"
    length, action = len(pictures), np.zeros((len(pictures), 2))
    np.savez(path, img=np.concatenate([pictures, pictures]), action=np.tile(action, (2, 1)),
             episode_ends=[length, 2 * length])  # fmt: skip
    return View(open_trajectories(path), Chosen(**chosen))


def shown(view):
    return view.frames("pixels", 1, 0, LENGTH)


def expected(colours=1):
    frames = np.stack([moment(t, colours=colours) for t in range(LENGTH)])
    return np.repeat(frames, 3, -1) if colours == 1 else frames


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("axis", ["first", "last"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 6, 8, 12])
def test_of_stacked_grey_frames_the_newest_is_shown(count, axis, first, tmp_path):
    pictures = stacks(count, newest_first=first)
    view = view_of(tmp_path, np.moveaxis(pictures, -1, 1) if axis == "first" else pictures)
    assert (shown(view) == expected()).all() and view.kind(
        "pixels"
    ) == f"grey, the newest of {count} stacked frames"


@pytest.mark.parametrize("apart", [2, 4])
def test_frames_of_a_stack_may_lie_some_rows_apart(apart, tmp_path):
    assert (shown(view_of(tmp_path, stacks(3, apart=apart))) == expected()).all()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_of_stacked_colour_frames_the_newest_is_shown(count, first, tmp_path):
    pictures = stacks(count, colours=3, newest_first=first)
    assert (shown(view_of(tmp_path, pictures)) == expected(3)).all()
    apart = np.moveaxis(
        pictures.reshape(LENGTH, 24, 20, count, 3), 3, 1
    )  # as gymnasium's wrapper stacks them
    assert (shown(view_of(tmp_path, apart)) == expected(3)).all()


def test_floats_are_told_apart_too(tmp_path):
    assert (shown(view_of(tmp_path, (stacks(4) / 255).astype("f4"))) == expected()).all()
    opaque = np.concatenate([expected(3), np.full((LENGTH, 24, 20, 1), 255)], -1) / 255
    assert (shown(view_of(tmp_path, opaque.astype("f4"))) == expected(3)).all()


def test_a_stack_that_begins_with_a_standing_picture_is_looked_through(tmp_path):
    pictures = np.concatenate([stacks(3, still=LENGTH)[:1]] * 40 + [stacks(3)])
    view = view_of(tmp_path, pictures)
    assert (view.frames("pixels", 1, 40, 40 + LENGTH) == expected()).all()


@pytest.mark.parametrize("axis", ["first", "last"])
def test_colours_and_opaque_alpha_stay_what_they_are(axis, tmp_path):
    for colours in (expected(3), np.repeat(expected(1)[..., :1], 3, -1)):
        for alpha in (0, 1):
            pictures = np.concatenate(
                [colours, *[np.full((LENGTH, 24, 20, 1), 255, np.uint8)] * alpha], -1
            )
            view = view_of(tmp_path, np.moveaxis(pictures, -1, 1) if axis == "first" else pictures)
            assert (shown(view) == colours).all() and view.kind("pixels") == (
                "rgba" if alpha else "rgb"
            )
    grey = np.stack([expected()[..., 0], np.full((LENGTH, 24, 20), 255, np.uint8)], -1)
    assert (shown(view_of(tmp_path, grey)) == expected()).all()


def test_where_nothing_shows_it_the_user_says_what_a_frame_is(tmp_path, capsys):
    noise = np.random.default_rng(0).integers(0, 255, (LENGTH, 24, 20, 4), dtype=np.uint8)
    with pytest.raises(
        UserError,
        match=r"the 4 channels of 'img' are stacked frames; say .*--channels grey or .*rgba",
    ):
        view_of(tmp_path, noise)
    assert (shown(view_of(tmp_path, noise, channels="rgba")) == noise[..., :3]).all()
    assert (shown(view_of(tmp_path, noise, channels="grey")) == noise[..., 3:]).all()
    assert (shown(view_of(tmp_path, noise[..., :3], channels="grey")) == noise[..., 2:3]).all()
    with pytest.raises(UserError, match=r"--channels rgb: 'img' has 4 channels, no multiple of 3"):
        view_of(tmp_path, noise, channels="rgb")
    path, words = str(tmp_path / "rows.npz"), ["--channels", "rgba"]
    view_of(tmp_path, noise, channels="rgba")
    assert cli.main(["inspect", path]) == 0 and "cannot be used: " in capsys.readouterr().out
    assert (
        cli.main(["inspect", path, *words]) == 0 and "-> pixels (rgba)" in capsys.readouterr().out
    )
    assert cli.main(["convert", path, str(tmp_path / "o.h5"), *words]) == 0
    cameras = (
        noise.reshape(LENGTH, 24, 20, 4)[..., None]
        .repeat(3, -1)
        .transpose(0, 3, 1, 2, 4)[:, :2, :, :, :3]
    )
    with pytest.raises(UserError, match="nothing shows whether the 6 channels"):
        view_of(tmp_path, np.ascontiguousarray(cameras))


def test_minari_of_grey_stacks(tmp_path):
    path = made.make_minari(tmp_path)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        for e, length in enumerate(made.LENGTHS):
            del file[f"episode_{e}/observations/image"]
            file[f"episode_{e}/observations/image"] = np.moveaxis(stacks(4), -1, 1)[:length]
    assert cli.main(["convert", str(path), str(tmp_path / "o.h5")]) == 0
    first = Trajectories(tmp_path / "o.h5").frames[: made.LENGTHS[0]]
    assert (first == expected()[: made.LENGTHS[0]]).all()
