"""What several test files share: tiny trajectories of the two-rooms world, collected once; the
folder ../shared.

On a machine with a GPU, test_cuda.py is about it; all other tests are of a process that has none,
and whose results are the same to the bit."""

import os
from functools import partial
from pathlib import Path

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault(
        "OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers))
    )  # before torch is imported

import numpy as np
import pytest
import torch

from jepa_wm.config import load_config
from jepa_wm.core import distributed as world
from jepa_wm.core.run import Run, run_stage
from jepa_wm.worlds.collect import record
from jepa_wm.worlds.two_rooms.world import TwoRooms, TwoRoomsSettings

THERE = world.dist()
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
if THERE.device.type == "cuda":
    torch.cuda.init()  # before the GPU is hidden from child processes


@pytest.hookimpl(tryfirst=True)  # before fixtures are made
def pytest_runtest_setup(item):
    if THERE.device.type == "cpu":
        return
    wanted = item.path.name == "test_cuda.py"
    world._dist = THERE if wanted else world.DistContext()
    if not wanted:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif VISIBLE is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = VISIBLE


def pytest_collection_modifyitems(items):
    """The file that takes longest comes first, so that workers side by side (`-n`) end
    together."""
    items.sort(key=lambda item: item.path.name != "test_pipeline.py")


@pytest.fixture
def restore(request):
    """A function that has tables forget, after the test, what is entered from now on."""

    def forget(table, known):
        for name in set(table._entries) - known:
            del table._entries[name]

    def later(*tables):
        for table in tables:
            request.addfinalizer(partial(forget, table, set(table)))

    return later


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with train.h5 (6 episodes of 31 frames) and heldout.h5 (3 of 31), as `collect`
    makes them."""
    folder = tmp_path_factory.mktemp("tiny_data")
    for part, seeds in (("train", np.arange(6)), ("heldout", 10**6 + np.arange(3))):
        record(
            folder / f"{part}.h5",
            TwoRooms().of_split(part),
            TwoRoomsSettings().explore(),
            seeds,
            31,
        )
    return folder


@pytest.fixture(scope="session")
def shared():
    """The folder ../shared beside the checkout; tests that need it are marked `shared`."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"there is no folder {folder}")
    return folder


@pytest.fixture(scope="session")
def alone(tmp_path_factory, tiny_data):
    """The run folder of a single process, up to dynamics, with the settings of
    `ranks.overrides`."""
    from ranks import overrides
    from test_train import STAGES

    folder = tmp_path_factory.mktemp("alone") / "run"
    with Run.open(folder, load_config("debug", overrides(tiny_data))) as run:
        for name in STAGES:
            run_stage(name, run)
    return folder
