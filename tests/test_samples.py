"""Which files make a sample: classes by key, no thumbnails for videos, nothing hidden, and no film
lost in silence."""

import io
import json
import tarfile
import warnings
import zipfile
from pathlib import Path

import films
import made_formats as made
import numpy as np
import pytest
from PIL import Image

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.images import ImageSequence
from jepa_wm.data.readers.registry import format_of, open_trajectories
from jepa_wm.data.samples import VIDEOS, is_hidden, keys, natural
from jepa_wm.data.video import VideoError
from jepa_wm.data.videos import Entry, find, without_class

DOUBLE = bytes.fromhex("00051607000200004d6163204f53205820") + bytes(
    163
)  # what macOS leaves beside a file


def shard(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def found(path, **options):
    return [(entry.path.name, entry.label) for entry in find(path, **options)]


@pytest.mark.parametrize("order", [("0.mp4", "0.jpg"), ("0.jpg", "0.mp4"), ("0.JPG", "0.MP4")])
def test_a_video_is_not_lost_to_its_thumbnail(tmp_path, order):
    path = shard(tmp_path / "s.tar", {**dict.fromkeys(order, b"x"), "0.cls": b"7"})
    with pytest.warns(
        UserWarning, match=r"0\.(jpg|JPG): it and 0 others are passed over, pictures beside"
    ):
        assert [(name.lower(), label) for name, label in found(path)] == [("0.mp4", "7")]
    members = {
        "000.video.mp4": b"x",
        "000.thumb.jpg": b"x",
        "001.mp4": b"x",
        "001.poster.png": b"x",
        "002.png": b"x",
    }
    with pytest.warns(UserWarning, match="it and 1 others"):
        assert found(shard(tmp_path / "t.tar", members)) == [
            ("000.video.mp4", None),
            ("001.mp4", None),
            ("002.png", None),
        ]


def test_a_sample_of_two_films_is_refused(tmp_path):
    for members in (
        ("0.mp4", "0.webm"),
        ("0.jpg", "0.png"),
        ("0.jpg", "0.mask.png", "0.cls"),
        ("a/0.jpg", "a/0.png"),
    ):
        path = shard(tmp_path / "s.tar", dict.fromkeys(members, b"x"))
        with pytest.raises(
            UserError,
            match=rf"s\.tar: sample '(a/)?0' has two films, {members[0]} and {members[1]}",
        ):
            find(path)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("0.mp4"), io.BytesIO())
    with pytest.raises(UserError, match=r"s\.tar: holds 0\.mp4 twice"):
        find(tmp_path / "s.tar")
    several = {"0.front.mp4": b"x", "0.side.mp4": b"x", "b/0.mp4": b"x", "0.json": b"{}"}
    assert len(find(shard(tmp_path / "s.tar", several))) == 3, (
        "without a class to share, each is a video of its own"
    )


def test_classes_are_those_of_the_key(tmp_path):
    members = {"000.video.mp4": b"x", "000.cls": b"0", "000.txt": b"a caption",
               "./001.video.MP4": b"x", "./001.cls": b"1\n",
               "a.b/2.mp4": b"x", "a.b/2.cls": b"\xef\xbb\xbftwo", "3.mp4": b"x",
               "3.label": "drei".encode("utf-16"),
               "4.mp4": b"x", "4.cls": b" \n"}  # fmt: skip
    assert found(shard(tmp_path / "s.tar", members)) == [
        ("000.video.mp4", "0"), ("001.video.MP4", "1"), ("2.mp4", "two"), ("3.mp4", "drei"),
        ("4.mp4", None),
    ]  # fmt: skip
    titles = {
        f"Track {n}.{kind}": f"{n}".encode()
        for n in ("2.0", "2.1", "2.1.5")
        for kind in ("mp4", "cls")
    }
    assert found(shard(tmp_path / "t.tar", titles)) == [
        (f"Track {n}.mp4", n) for n in ("2.0", "2.1", "2.1.5")
    ]
    with pytest.raises(UserError, match=r"s\.tar/0\.cls: is not UTF-8 text"):
        find(shard(tmp_path / "s.tar", {"0.mp4": b"x", "0.cls": "Käse".encode("latin-1")}))
    assert keys("a.b/c.d.mp4") == ["a.b/c.d", "a.b/c"]


def test_what_was_looked_for_is_said_where_a_class_is_missing(tmp_path):
    inside = Entry(tmp_path / "s.tar" / "000.video.mp4", None, (0, 1))
    wanted = "000.video.cls, 000.video.label, 000.cls, 000.label"
    assert (
        f"000.video.mp4 has none: its shard should hold one of {wanted}; pack it so, or use"
        in without_class(inside)
    )
    assert "x.mp4 has none; use class folders, or a manifest with path,label" in without_class(
        Entry(tmp_path / "x.mp4")
    )


def test_thumbnails_beside_videos_in_a_folder_are_no_frames(tmp_path):
    for number in range(3):
        films.write(tmp_path / f"{number}.mp4", films.frames(4))
        Image.fromarray(films.frames(1)[0]).save(tmp_path / f"{number}.jpg")
    for single in (False, True):
        with pytest.warns(UserWarning, match=r"0\.jpg: it and 2 others are passed over"):
            assert found(tmp_path, single_images=single) == [
                (f"{number}.mp4", None) for number in range(3)
            ]
    with pytest.warns(UserWarning, match="passed over"):
        assert cli.main(["pack", str(tmp_path), str(tmp_path / "packed")]) == 0
    assert found(tmp_path / "packed") == [(f"{number:09d}.mp4", None) for number in range(3)]


def test_two_pictures_of_one_frame_are_refused(tmp_path):
    for name in ("0.png", "1.png", "1.jpg"):
        Image.fromarray(films.frames(1)[0]).save(tmp_path / name)
    with pytest.raises(
        VideoError, match=r"1\.(jpg|png) and 1\.(jpg|png) are one frame; leave one of them there"
    ):
        ImageSequence(tmp_path, fps=1)
    assert len(find(tmp_path, single_images=True)) == 3


@pytest.mark.parametrize(
    "name",
    [
        "._0.mp4",
        ".Trash/0.mp4",
        "__MACOSX/a/0.mp4",
        "a/@eaDir/0.mp4/x.jpg",
        ".DS_Store",
        "$RECYCLE.BIN/0.mp4",
    ],
)
def test_what_is_hidden_is_passed_over_in_folders_and_shards(tmp_path, name):
    root = tmp_path / ".cache" / "set"  # that one looks in a hidden folder hides nothing there
    for label in ("a", "b"):
        (root / label).mkdir(parents=True)
        films.write(root / label / "0.mp4", films.frames(4))
    hidden = root / "a" / name
    hidden.parent.mkdir(parents=True, exist_ok=True)
    hidden.write_bytes(DOUBLE)
    assert [(e.path.relative_to(root).as_posix(), e.label) for e in find(root)] == [
        ("a/0.mp4", "a"),
        ("b/0.mp4", "b"),
    ]
    members = {"./0.mp4": b"x", "./0.cls": b"1", f"./{name}": DOUBLE, f"a/{name}": DOUBLE}
    assert found(shard(tmp_path / "s.tar", members)) == [("0.mp4", "1")]


def test_hidden_frames_are_no_frames(tmp_path):
    for number in range(3):
        Image.fromarray(films.frames(3)[number]).save(tmp_path / f"{number}.png")
        (tmp_path / f"._{number}.png").write_bytes(DOUBLE)
    assert (
        ImageSequence(tmp_path, fps=1).facts().frames == 3
        and len(find(tmp_path, single_images=True)) == 3
    )


def test_hidden_files_are_no_episodes(tmp_path):
    pytest.importorskip("pyarrow")
    folder = made.make_npz_folder(tmp_path)
    (folder / "._000.npz").write_bytes(DOUBLE)
    assert tuple(open_trajectories(folder).lengths) == made.LENGTHS
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "._000.npz").write_bytes(DOUBLE)
    assert format_of(tmp_path / "only") is None
    robot = made.make_lerobot(tmp_path, "v3.0")
    (robot / "meta/episodes/chunk-000/._file-000.parquet").write_bytes(DOUBLE)
    (robot / "meta/info.json").write_bytes(
        b"\xef\xbb\xbf" + (robot / "meta/info.json").read_bytes()
    )
    assert tuple(open_trajectories(robot).lengths) == made.LENGTHS
    with zipfile.ZipFile(made.make_npz(tmp_path), "a") as archive:
        archive.writestr("__MACOSX/._img.npy", DOUBLE)
    assert tuple(open_trajectories(tmp_path / "rows.npz").lengths) == made.LENGTHS


def test_every_ordinary_ending_in_any_case_is_a_video(tmp_path, capsys):
    endings = [
        ".mts",
        ".3gp",
        ".ts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".ogv",
        ".m4v",
        ".mov",
        ".webm",
        ".mkv",
        ".avi",
        ".mp4",
    ]
    assert set(endings) <= VIDEOS
    for number, ending in enumerate(endings):
        (tmp_path / f"{number}{ending.upper() if number % 2 else ending}").write_bytes(b"")
    assert len(find(tmp_path)) == len(endings)
    (tmp_path / "set").mkdir()
    films.write(tmp_path / "set" / "0.ts", films.frames(24))
    films.write(tmp_path / "set" / "1.ts", films.frames(24)).rename(tmp_path / "set" / "1.MTS")
    assert cli.main(["inspect", str(tmp_path / "set"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["videos"] == 2 and not result["unreadable"] and result["fps"] == {"10": 2}
    assert result["seconds"]["shortest"] == pytest.approx(2.4, abs=0.05)
    source = find(tmp_path / "set")[1].open(fps=1)
    assert [films.number_of(frame) for frame in source.at(np.array([2.35, 0.05, 1.25]))] == [
        23,
        0,
        12,
    ]
    source.close()


def test_nothing_is_said_where_nothing_is_passed_over(tmp_path):
    films.write(tmp_path / "0.mp4", films.frames(2))
    Image.fromarray(films.frames(1)[0]).save(tmp_path / "1.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find(tmp_path)) == 2 and not is_hidden(
            (tmp_path / "0.mp4").relative_to(tmp_path)
        )


def test_a_folder_of_sets_names_one_that_is_seen(tmp_path):
    made.make_npz(tmp_path).rename(tmp_path / "b.npz")
    (tmp_path / "inside").mkdir()
    (tmp_path / "b.npz").rename(tmp_path / "inside" / "b.npz")
    (tmp_path / "._a.npz").write_bytes(DOUBLE)
    with pytest.raises(UserError) as error:
        open_trajectories(tmp_path)
    assert "._a.npz" not in str(error.value)


def test_members_with_absolute_names_are_read_in_their_shard(tmp_path):
    films.write(tmp_path / "0.mp4", films.frames(3))
    path = shard(
        tmp_path / "s.tar", {"/data/0.mp4": (tmp_path / "0.mp4").read_bytes(), "/data/0.cls": b"7"}
    )
    (entry,) = find(path)
    assert entry.path == path / "data/0.mp4" and entry.label == "7"
    assert entry.content() == (tmp_path / "0.mp4").read_bytes()


def test_frames_whose_numbers_are_equal_have_one_order():
    assert sorted(map(Path, ["1\N{SUPERSCRIPT TWO}1.png", "10.png", "2.png"]), key=natural)[
        -1
    ] == Path("10.png")
    for order in (["1.png", "01.png"], ["01.png", "1.png"]):
        assert [path.name for path in sorted(map(Path, order), key=natural)] == ["01.png", "1.png"]
