"""Disks that offer less than a local one: no file locks, no room taken beforehand, no shared
memory maps."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import warnings

import h5py
import numpy as np
import pytest

from jepa_wm import cli
from jepa_wm.config import load_config
from jepa_wm.core import files
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.data.hdf5 import open_h5
from jepa_wm.features import cache

COLLECT = ["collect", "--config", "debug", "collect.episodes=4", "collect.heldout_episodes=2"]
NO_FLOCK = "#include <errno.h>\nint flock(int fd, int operation) { errno = %s; return -1; }\n"


def failing(number):
    def fail(*words, **settings):
        raise OSError(number, os.strerror(number))

    return fail


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def no_locks(request, monkeypatch):
    """A process whose locks fail, its own and those of the HDF5 library."""
    number, whole = getattr(errno, request.param), h5py.File

    def opened(path, mode="r", locking=None):
        return whole(path, mode, locking=False) if locking is False else failing(number)()

    monkeypatch.setattr(fcntl, "flock", failing(number))
    monkeypatch.setattr(h5py, "File", opened)
    monkeypatch.setattr(files, "_told", False)


def test_without_locks_a_run_works_and_one_warning_says_so(tmp_path, no_locks):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert cli.main([*COLLECT, "--run", str(tmp_path)]) == 0
    assert [str(one.message) for one in told if "locks" in str(one.message)] == [
        f"{tmp_path}: this disk has no file locks, so two jobs in one folder "
        "cannot be kept apart here; "
        "see to it that only one works there at a time"
    ]
    with open_h5(tmp_path / "collect" / "train.h5") as file:
        assert len(file["ep_len"]) == 4


@pytest.mark.skipif(
    shutil.which("cc") is None or sys.platform != "linux", reason="needs a C compiler"
)
@pytest.mark.parametrize("number", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_the_library_itself_works_without_locks(tmp_path, number):
    (tmp_path / "no.c").write_text(NO_FLOCK % number)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", tmp_path / "no.so", tmp_path / "no.c"], check=True
    )
    words = [sys.executable, "-m", "jepa_wm", *COLLECT, "--run", str(tmp_path / "run")]
    env = {**os.environ, "LD_PRELOAD": str(tmp_path / "no.so"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this disk has no file locks") == 1 and "Traceback" not in done.stderr


def test_another_fault_of_a_lock_is_not_taken_for_a_disk_without(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", failing(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.locked(tmp_path, shared=False)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_to_is_named(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "open", failing(number))
    with pytest.raises(
        UserError, match=f"{tmp_path}: may not be written to .*choose another --run"
    ):
        Run.open(tmp_path, load_config("debug"))
    monkeypatch.undo()
    monkeypatch.setattr("pathlib.Path.mkdir", failing(number))
    with pytest.raises(UserError, match="may not be written to .*choose another --run"):
        Run.open(tmp_path / "new", load_config("debug"))


def test_features_are_cached_where_no_room_can_be_taken_and_nothing_mapped_for_sharing(
    tmp_path, monkeypatch, alone, tiny_data
):
    whole, map_file = tmp_path / "whole", np.memmap

    def private_only(file, dtype, mode, *rest):
        return map_file(file, dtype, mode, *rest) if mode == "c" else failing(errno.ENODEV)()

    shutil.copytree(alone, whole)
    shutil.rmtree(whole / "features" / "train")
    (whole / "features" / "result.json").unlink()
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.EOPNOTSUPP))
    monkeypatch.setattr(np, "memmap", private_only)
    words = ["features", "--config", str(alone / "config.yaml"), "--run", str(whole)]
    assert cli.main(words) == 0
    made = (folder / "features/train/features.bf16" for folder in (whole, alone))
    mine, its = (np.fromfile(file, np.int16) for file in made)
    assert len(mine) == len(its) and (mine == its).mean() > 0.99
    data = cache.open_data(whole, str(tiny_data), "train")
    kept = cache.Features(whole / "features/train", data)._source.numbers
    assert np.array_equal(kept.ravel(), mine) and not kept.flags.writeable
    monkeypatch.setattr(np, "memmap", failing(errno.ENODEV))
    with pytest.raises(
        UserError, match="features.bf16: its disk offers no memory maps .*copy it to another disk"
    ):
        cache.Features(whole / "features/train", data)


def test_room_is_taken_beforehand_without_appending(tmp_path, monkeypatch):
    """What stands in for fallocate on disks that lack it refuses a file opened to append."""
    flags, taken = [], os.posix_fallocate

    def note(handle, start, size):
        flags.append(fcntl.fcntl(handle, fcntl.F_GETFL))
        taken(handle, start, size)

    monkeypatch.setattr(os, "posix_fallocate", note)
    files.allocate(tmp_path / "a", 10_000)
    assert (tmp_path / "a").stat().st_size == 10_000 and not flags[0] & os.O_APPEND
    files.allocate(tmp_path / "a", 5000)
    assert (tmp_path / "a").stat().st_size == 5000
    monkeypatch.setattr(os, "posix_fallocate", failing(errno.ENOSPC))
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        files.allocate(tmp_path / "a", 10_000)


def test_a_folder_that_cannot_be_synced_still_gets_its_files(tmp_path, monkeypatch):
    sync = os.fsync

    def only_files(handle):
        return (
            failing(errno.EINVAL)() if os.path.isdir(f"/proc/self/fd/{handle}") else sync(handle)
        )

    monkeypatch.setattr(os, "fsync", only_files)
    files.write_atomic(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text"
