"""Tar shards: what was packed is read in place, found again through the index, and what is damaged
is named."""

import json
import tarfile
import warnings

import films
import numpy as np
import pytest
import torch
from PIL import Image
from test_videos import sampler_of

from jepa_wm import cli
from jepa_wm.core.errors import UserError
from jepa_wm.data.samples import shard_of
from jepa_wm.data.video_set import VideoSet
from jepa_wm.data.videos import find
from jepa_wm.evals.bench import data as bench_data


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two classes, with two videos and an image."""
    root = tmp_path_factory.mktemp("loose")
    for name, count in (("b", 13), ("a", 9)):
        (root / name).mkdir()
        films.write(root / name / f"a film {count}.mp4", films.frames(count))
    Image.fromarray(films.frames(4)[3]).save(root / "a" / "photo.png")
    return root


@pytest.fixture(scope="module")
def packed(root, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert cli.main(["pack", str(root), str(folder), "--images", "--shard-mb", "0.001"]) == 0
    return folder


def test_packed_videos_are_the_same_through_the_index_and_without_it(root, packed):
    loose, index = VideoSet(find(root, single_images=True)), VideoSet.open(packed / "index.h5")
    without = VideoSet(find(packed))
    assert len(list(packed.glob("*.tar"))) > 1 and not list(packed.glob("*.partial"))
    for videos in (index, without):
        assert (
            videos.classes == loose.classes == ["a", "b"]
            and (videos.labels[:] == loose.labels).all()
        )
        assert np.allclose(videos.seconds, loose.seconds)
        rows = sampler_of(loose).rows(0, 3)
        assert torch.equal(sampler_of(videos).frames_at(rows), sampler_of(loose).frames_at(rows))
    entry = index.entry(0)
    assert shard_of(entry.path) == packed / "000000.tar" and entry.span == without.entry(0).span
    assert entry.content() == loose.entry(0).path.read_bytes()


def test_shards_are_plain_tar_files_of_the_webdataset_layout(root, packed):
    samples = {}
    for shard in sorted(packed.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for member in tar.getmembers():
                stem, _, suffix = member.name.partition(".")
                samples.setdefault(stem, {})[suffix] = tar.extractfile(member).read()
    assert [sorted(sample) for _, sample in sorted(samples.items())] == [
        ["cls", "mp4"],
        ["cls", "png"],
        ["cls", "mp4"],
    ]
    assert [sample["cls"] for _, sample in sorted(samples.items())] == [b"a", b"a", b"b"]


@pytest.mark.parametrize("name", ["index.h5", "000000.tar", ""])
def test_what_is_packed_can_be_inspected(packed, name, capsys):
    assert cli.main(["inspect", str(packed / name), "--json"]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["videos"] == (1 if name == "000000.tar" else 3) and not result["unreadable"]
    assert sum(result["classes"].values()) == result["videos"]


def test_a_moved_folder_of_shards_still_works(packed, tmp_path):
    packed.rename(tmp_path / "moved")
    try:
        videos = VideoSet.open(tmp_path / "moved" / "index.h5")
        assert sampler_of(videos).frames_at(sampler_of(videos).rows(0, 2)).shape[0] == 2
    finally:
        (tmp_path / "moved").rename(packed)


def test_what_cannot_be_packed_is_said(root, packed, tmp_path, capsys):
    assert cli.main(["pack", str(root), str(packed)]) == 2
    assert "is there already; delete it or choose another folder" in capsys.readouterr().err
    assert cli.main(["pack", str(root), str(tmp_path / "x")]) == 2
    assert "a: a folder of frames cannot be packed" in capsys.readouterr().err
    assert cli.main(["pack", str(root), str(tmp_path / "x"), "--shard-mb", "0"]) == 2
    assert "a shard needs a size above 0" in capsys.readouterr().err


def test_damaged_shards_are_named(packed, tmp_path):
    (tmp_path / "no.tar").write_bytes(b"this is no tar file" * 100)
    with pytest.raises(UserError, match=r"no\.tar: is no whole, uncompressed tar file"):
        find(tmp_path / "no.tar")
    for file in packed.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    index = VideoSet.open(tmp_path / "index.h5", max_unreadable=0.5)
    shard = tmp_path / "000000.tar"
    shard.write_bytes(shard.read_bytes()[:700])  # within its first member
    with pytest.warns(UserWarning, match=r"left out, 1 of 3 so far: .*000000\.tar"):
        frames = sampler_of(index).frames_at(sampler_of(index).rows(0, 3))
    assert frames.shape[0] == 3
    (tmp_path / "000001.tar").unlink()
    with pytest.raises(UserError, match="2 of 3 videos cannot be read"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler_of(index).frames_at(sampler_of(index).rows(0, 3))


def test_the_bench_measures_what_it_says():
    result = bench_data.run(threads=1, quick=True)
    assert result["share_of_decoder"] == result["ours_1"] / result["plain_loop"] > 0
    assert (
        result["index"]["rows"] == 10_000
        and result["index"]["open_s"] < 5
        and result["index"]["private_mb"] < 200
    )


def test_packing_again_gives_the_same_bytes(root, tmp_path):
    for name in ("a", "b"):
        assert (
            cli.main(["pack", str(root), str(tmp_path / name), "--images", "--shard-mb", "0.001"])
            == 0
        )
    files = {
        name: {file.name: file.read_bytes() for file in (tmp_path / name).iterdir()}
        for name in ("a", "b")
    }
    assert len(files["a"]) > 2 and files["a"] == files["b"]
