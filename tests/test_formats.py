"""Every format gives the rows it was written with, read by window, and says what is wrong with a
damaged file."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import films
import h5py
import made_formats as made
import numpy as np
import pytest
from made_formats import LENGTHS, MAKERS, ROWS, rows
from PIL import Image

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.readers.channels import usual
from jepa_wm.data.readers.registry import format_of, formats, open_trajectories
from jepa_wm.data.readers.view import Chosen, View
from jepa_wm.data.trajectories import Trajectories

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
NAMES = {"d4rl": "hdf5", "ogbench": "npz", "npz_folder": "npz", "lerobot_3": "lerobot"}
LAST_IS_ZERO = ("minari",)


@pytest.mark.parametrize("kind", MAKERS)
def test_windows_are_the_rows_that_were_written(kind, tmp_path):
    if kind == "zarr":
        pytest.importorskip("zarr")
    path = MAKERS[kind](tmp_path)
    assert format_of(path) == NAMES.get(kind, kind)
    source = open_trajectories(path)
    assert tuple(source.lengths) == LENGTHS
    view = View(source, Chosen(cameras=("wrist", "front") if "lerobot" in kind else ()))
    expected, starts = rows(), np.cumsum(LENGTHS) - LENGTHS
    for e, start, stop in (
        (1, 1, 4),
        (2, 0, 9),
        (0, 3, 7),
        (0, 0, 1),
    ):  # back and forth, whole and in part
        inside = slice(starts[e] + start, starts[e] + stop)
        frames = view.frames("pixels", e, start, stop)
        assert frames.dtype == np.uint8 and (frames == expected["img"][inside]).all()
        actions = expected["action"][starts[e] : starts[e] + LENGTHS[e]].copy()
        actions[-1] *= kind not in LAST_IS_ZERO
        assert view.actions(e).dtype == np.float32 and (view.actions(e) == actions).all()
        assert (view.states(e, start, stop) == expected["state"][inside]).all()
        if "lerobot" in kind:
            film = view.frames("pixels_front", e, start, stop)
            assert [films.number_of(frame) for frame in film] == list(
                range(inside.start, inside.stop)
            )
    assert not view.discrete and view.action_size == 2


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_lerobot_tells_names_and_rate(version, tmp_path):
    view = View(
        open_trajectories(made.make_lerobot(tmp_path, version)),
        Chosen(pixels="observation.images.wrist"),
    )
    assert view.state_names == ("arm_x", "arm_y", "grip") and view.source.about.fps == 10
    with pytest.raises(
        UserError, match=r"several cameras; choose with --camera or --pixels among .*front.*wrist"
    ):
        View(view.source)
    with pytest.raises(UserError, match=r"--camera side fits no column of"):
        View(view.source, Chosen(cameras=("side",)))


def test_dino_wm_films_and_sets_of_sets(tmp_path):
    path = made.make_dino_wm(tmp_path, films_too=True)
    (path / "seq_lengths.pkl").write_bytes(b"never unpickled")
    view = View(open_trajectories(path))
    assert tuple(view.source.lengths) == LENGTHS and view.action == "rel_action"
    assert [films.number_of(frame) for frame in view.frames("pixels", 2, 1, 6)] == list(
        range(13, 18)
    )
    path.rename(tmp_path / "train")
    assert format_of(tmp_path) == "dino_wm"
    with pytest.raises(UserError, match="holds several sets; name one of them: .*train or "):
        open_trajectories(tmp_path)


def test_a_format_is_named_or_recognised(tmp_path):
    path = made.make_npz(tmp_path)
    assert open_trajectories(path, "npz").lengths.sum() == ROWS
    with pytest.raises(UserError, match="gone: no such file or folder"):
        open_trajectories(tmp_path / "gone")
    with pytest.raises(UserError, match=f"--format npx: is none of {', '.join(formats())}"):
        open_trajectories(path, "npx")
    (tmp_path / "notes.txt").write_text("no data")
    with pytest.raises(
        UserError, match="no trajectory format is recognised; name one with --format"
    ):
        open_trajectories(tmp_path / "notes.txt")


THEIRS = '''
import numpy as np
from jepa_wm.data.readers.registry import READERS
from jepa_wm.data.readers.rows import FlatRows

@READERS.register("blocks")
class Blocks:
    """A pair of files: NAME.blocks with frames, NAME.moves with actions; one episode."""

    @staticmethod
    def recognises(path):
        return path.suffix == ".blocks"

    @staticmethod
    def open(path):
        actions = np.fromfile(path.with_suffix(".moves"), "f4").reshape(-1, 2)
        frames = np.fromfile(path, "u1").reshape(len(actions), 16, 16, 3)
        return FlatRows(path, {"pixels": frames, "action": actions}, np.array([len(actions)]))
'''


def test_a_reader_of_others_converts_without_a_change_here(tmp_path):
    """A package with one file and one entry point: its format is recognised and listed."""
    package = tmp_path / "their_package"
    (package / "their_reader-1.0.dist-info").mkdir(parents=True)
    (package / "their_reader.py").write_text(THEIRS)
    (package / "their_reader-1.0.dist-info/METADATA").write_text("Name: their_reader\nVersion: 1")
    (package / "their_reader-1.0.dist-info/entry_points.txt").write_text(
        "[jepa_wm.readers]\nblocks = their_reader\n"
    )
    frames = np.random.default_rng(0).integers(256, size=(6, 16, 16, 3), dtype=np.uint8)
    frames.tofile(tmp_path / "run.blocks")
    np.arange(12, dtype="f4").tofile(tmp_path / "run.moves")

    words = ["convert", str(tmp_path / "run.blocks"), str(tmp_path / "out.h5")]
    done = subprocess.run(
        [sys.executable, "-m", "jepa_wm", *words], env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    data = Trajectories(tmp_path / "out.h5")
    assert (np.asarray(data.frames[:]) == frames).all() and data.actions[1].tolist() == [2, 3]
    assert "blocks" not in formats(), "known only where the package is"


def test_discrete_actions_become_one_hot(tmp_path):
    actions = np.arange(ROWS) % 3
    space = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 4}
    view = View(open_trajectories(made.make_minari(tmp_path, actions=actions, space=space)))
    assert view.discrete and view.action_size == 4
    assert (
        view.actions(1).argmax(1).tolist() == [*actions[7:11], 0]
        and (view.actions(1).sum(1) == 1).all()
    )
    arrays = {**rows(), "action": actions[:, None]}
    np.savez(tmp_path / "rows.npz", **arrays, episode_ends=np.cumsum(LENGTHS))
    assert View(open_trajectories(tmp_path / "rows.npz")).action_size == 3, (
        "one more than the largest that was met"
    )


@pytest.mark.parametrize("equal", [True, False])
def test_minari_may_keep_pictures_as_jpeg(tmp_path, equal):
    path = made.make_minari(tmp_path)
    with h5py.File(path / "data/main_data.hdf5", "a") as file:
        for e, start in enumerate(np.cumsum(LENGTHS) - LENGTHS):
            files = []
            for picture in rows()["img"][start : start + LENGTHS[e]]:
                buffer = io.BytesIO()
                Image.fromarray(picture).save(buffer, "JPEG", quality=95)
                files.append(np.frombuffer(buffer.getvalue(), np.uint8))
            name, longest = f"episode_{e}/observations/image", max(map(len, files))
            del file[name]
            if equal:
                file[name] = np.stack(
                    [np.pad(content, (0, longest - len(content))) for content in files]
                )
                continue
            stored = file.create_dataset(name, (len(files),), h5py.vlen_dtype(np.uint8))
            for i, content in enumerate(files):
                stored[i] = content
    view = View(open_trajectories(path))
    assert view.pictures == {"pixels": "observations/image"}
    assert np.abs(view.frames("pixels", 2, 3, 8).astype(int) - rows()["img"][15:20]).max() <= 2


def test_an_action_that_is_never_taken_may_be_anything(tmp_path):
    arrays = rows()
    arrays["action"][6] = np.nan  # the last of episode 0
    np.savez(tmp_path / "rows.npz", **arrays, episode_ends=np.cumsum(LENGTHS))
    assert View(open_trajectories(tmp_path / "rows.npz")).actions(0)[6].tolist() == [0, 0]


def test_a_replay_buffer_keeps_each_action_beside_what_it_led_to(tmp_path):
    action = np.float32([[0, 0], [1, 1], [2, 2]])
    stacked = (
        np.arange(3)[:, None, None, None]
        + np.repeat([0, 50, 100], 3)[:, None, None]
        + np.zeros((3, 9, 16, 16))
    )
    np.savez(
        tmp_path / "e.npz",
        observation=stacked.astype("u1"),
        action=action,
        discount=np.ones((3, 1)),
    )
    view = View(open_trajectories(tmp_path / "e.npz"))
    assert view.actions(0).tolist() == [[1, 1], [2, 2], [0, 0]]
    assert (view.frames("pixels", 0, 1, 2) == 101).all(), "the newest of the stacked frames"
    assert View(view.source, Chosen(action_row="leaving")).actions(0).tolist() == action.tolist()


def test_wider_integers_are_not_cut_to_bytes(tmp_path):
    arrays = rows("i8")
    np.savez(tmp_path / "rows.npz", **arrays, episode_ends=np.cumsum(LENGTHS))
    assert (
        View(open_trajectories(tmp_path / "rows.npz")).frames("pixels", 2, 0, 9)
        == arrays["img"][12:]
    ).all()
    np.savez(
        tmp_path / "deep.npz",
        **{**arrays, "img": arrays["img"] * 256},
        episode_ends=np.cumsum(LENGTHS),
    )
    with pytest.raises(UserError, match="values outside 0..255; store its frames as uint8"):
        View(open_trajectories(tmp_path / "deep.npz")).frames("pixels", 2, 0, 9)


def test_pictures_of_every_layout_become_frames():
    colour = np.random.default_rng(0).integers(256, size=(2, 16, 20, 4), dtype=np.uint8)
    channels_first = np.moveaxis(colour[..., :3], -1, 1)
    assert (usual(4).frames(colour) == colour[..., :3]).all()
    assert (usual(3).frames(channels_first) == colour[..., :3]).all()
    grey = usual(1).frames(colour[..., 0])
    assert grey.shape[-1] == 3 and (grey == colour[..., :1]).all()


@pytest.mark.parametrize(("scale", "low"), [(1 / 255, 0), (1, 0), (1, -1)])
def test_float_pictures_go_to_one_or_to_255(tmp_path, scale, low):
    arrays = rows("f4")
    np.savez(tmp_path / "rows.npz", **{**arrays, "img": (arrays["img"] + 1 + 2 * low) * scale})
    view = View(open_trajectories(tmp_path / "rows.npz"))
    if low < 0:
        with pytest.raises(
            UserError,
            match="'img' of episode 0 has values outside 0..255; store its frames as uint8",
        ):
            view.frames("pixels", 0, 0, 3)
    else:
        assert (view.frames("pixels", 0, 0, ROWS) == arrays["img"] + 1).all()


def test_pictures_of_yes_and_no_are_black_and_white(tmp_path):
    arrays = rows("f4")
    np.savez(tmp_path / "rows.npz", **{**arrays, "img": arrays["img"] > 100})
    shown = View(open_trajectories(tmp_path / "rows.npz")).frames("pixels", 0, 0, ROWS)
    assert (shown == 255 * (arrays["img"] > 100)).all() and 0 < shown.mean() < 255


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            made.spoil_nan,
            r"rows\.npz: 'action' of episode 1 is not finite in 1 rows; repair it, or leave it "
            r"out with --w",
        ),
        (
            made.spoil_missing,
            r"rows\.npz: a column for the action is missing; name one of \['state'\] with "
            r"--action",
        ),
        (
            made.spoil_short,
            r"rows\.h5: the episodes need 21 rows, but there are fewer of 'action' 19",
        ),
        (
            made.spoil_lengths,
            r"main_data\.hdf5: episode 1 has 5 frames but 2 rows of 'actions'; .* --without 1",
        ),
        (made.spoil_cut(made.make_hdf5), r"rows\.h5: cannot be read .*truncated.*copy it again"),
        (made.spoil_cut(made.make_npz), r"rows\.npz: cannot be read .*copy it again"),
        (made.spoil_pickle, r"states\.pth: holds more than tensors"),
        (made.spoil_film, r"000001\.mp4: no such video file"),
        (made.spoil_meta, r"meta/info.json tells of 21 frames, the episodes of 7"),
        (made.spoil_parquet, r"000002\.parquet: cannot be read .*copy it again"),
        (made.spoil_info, r"info\.json: cannot be read .*copy it again"),
        (made.spoil_zarr_chunk, r"set\.zarr: cannot be read .*copy it again"),
        (made.spoil_chunk, r"set\.zarr: 1 of 3 chunks of 'img' are missing; copy it again"),
    ],
)
def test_what_is_broken_is_said_with_a_remedy(spoil, message, tmp_path):
    path = spoil(tmp_path)
    with pytest.raises(UserError, match=message):
        view = View(
            open_trajectories(path), Chosen(cameras=("front",)) if "v2.1" in path.name else None
        )
        for e, length in enumerate(LENGTHS):
            view.actions(e)
            view.frames("pixels", e, 0, length)


def test_a_missing_reader_tells_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    with pytest.raises(UserError, match=r"reading it needs zarr; pip install 'jepa-wm\[zarr\]'"):
        open_trajectories(made.make_zarr(tmp_path))


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared is not there")
def test_real_pusht_is_the_same_in_zarr_and_npz():
    pytest.importorskip("zarr")
    whole = View(open_trajectories(SHARED / "pusht_human/pusht_cchi_v7_replay.zarr"))
    tenth = View(open_trajectories(SHARED / "pusht_human/pusht_every10th_episode.npz"))
    assert len(whole.source.lengths) == 206 and whole.source.lengths.sum() == 25650
    for e in (0, 7, 20):
        assert whole.source.lengths[10 * e] == tenth.source.lengths[e]
        assert (whole.frames("pixels", 10 * e, 5, 40) == tenth.frames("pixels", e, 5, 40)).all()
        assert (whole.actions(10 * e) == tenth.actions(e)).all()


@pytest.mark.shared
@pytest.mark.skipif(not SHARED.exists(), reason="the folder ../shared is not there")
def test_real_archives_of_other_layouts():
    bridge = View(
        open_trajectories(SHARED / "bridge_v1_octo/bridge_25x10.npz"),
        Chosen(cameras=("image_1", "image_2")),
    )
    assert bridge.source.lengths.tolist() == [10] * 25 and list(bridge.pictures) == [
        "pixels",
        "pixels_image_2",
    ]
    assert bridge.frames("pixels", 24, 2, 9).shape == (7, 64, 64, 3)
    hammer = View(open_trajectories(SHARED / "metaworld_sim/hammer"))
    assert hammer.source.lengths.tolist() == [101] * 5 and hammer.frames(
        "pixels", 2, 0, 5
    ).shape == (5, 64, 64, 3)
    assert hammer.actions(0)[0].any() and not hammer.actions(0)[-1].any()


def locked(path, capsys, *words):
    """What inspect shows of a set whose pictures need something installed: all columns, and why it
    cannot be used."""
    assert cli.main(["inspect", str(path), *words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["columns"]["action"] == {"shape": [2], "dtype": "float32", "pictures": False}
    assert (
        told["columns"]["img"]["pictures"] and told["columns"]["img"]["locked"] in told["unusable"]
    )
    assert "column 'img' is stored by" in told["unusable"] and "damaged" not in told["unusable"]
    return told["unusable"]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("codec", "remedy"),
    [
        ("imagecodecs_jpegxl", "pip install 'imagecodecs'"),
        ("zfpy", "pip install 'numcodecs[zfpy]'"),
        ("own_codec", "install the package that registers it with zarr"),
    ],
)
def test_a_codec_that_is_not_installed_is_called_so(codec, remedy, packed, tmp_path, capsys):
    pytest.importorskip("zarr")
    path = made.make_zarr(tmp_path)
    file = path / "data/img/.zarray"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"compressor": {"id": codec}}))
    if packed:
        path = Path(shutil.make_archive(str(path), "zip", path))
    assert f"by the codec '{codec}', which is not installed: {remedy}" in locked(path, capsys)


def test_a_codec_that_is_not_installed_in_zarr_of_version_3(tmp_path, capsys):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(tmp_path / "set.zarr", mode="w", zarr_format=3)
    group.create_group("meta").create_array("episode_ends", data=np.cumsum(LENGTHS))
    data = group.create_group("data")
    for name, values in rows().items():
        data.create_array(name, data=values)
    file = tmp_path / "set.zarr/data/img/zarr.json"
    about = json.loads(file.read_text())
    about["codecs"][-1] = {"name": "imagecodecs_jpegxl", "configuration": {}}
    file.write_text(json.dumps(about))
    assert "pip install 'imagecodecs'" in locked(tmp_path / "set.zarr", capsys)


@pytest.mark.parametrize(
    ("number", "remedy"), [(32001, "pip install hdf5plugin"), (60000, "HDF5_PLUGIN_PATH")]
)
def test_an_hdf5_filter_that_is_not_installed_is_called_so(
    number, remedy, tmp_path, capsys, monkeypatch
):
    monkeypatch.setitem(sys.modules, "hdf5plugin", None)
    path = made.make_hdf5(tmp_path)
    with h5py.File(path, "a") as file:
        del file["img"]
        space, stored = (
            h5py.h5s.create_simple((ROWS, 16, 20, 3)),
            h5py.h5p.create(h5py.h5p.DATASET_CREATE),
        )
        stored.set_chunk((1, 16, 20, 3))
        stored.set_filter(
            number, h5py.h5z.FLAG_OPTIONAL
        )  # a mandatory one could not be written here
        h5py.h5d.create(file.id, b"img", h5py.h5t.STD_U8LE, space, stored)
    why = locked(path, capsys)
    assert f"by the HDF5 filter {number}" in why and remedy in why
    with h5py.File(path, "a") as file:
        file.move("img", "pixels")
    with pytest.raises(UserError, match=f"column 'pixels' is stored by the HDF5 filter {number}"):
        Trajectories(path)
