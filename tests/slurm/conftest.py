"""One cluster for all tests of this folder."""

import os

import pytest
from cluster import Cluster, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory):
    """A SLURM that runs; the environment points at it."""
    reason = why_not()
    if reason is not None:
        pytest.skip(f"no SLURM here: {reason}")
    slurm = Cluster(tmp_path_factory.mktemp("slurm"))
    before = dict(os.environ)
    try:
        slurm.up()
        os.environ.update(slurm.env, OMP_NUM_THREADS="1")
        yield slurm
    finally:
        slurm.down()
        os.environ.clear()
        os.environ.update(before)
