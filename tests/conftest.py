"""What several test files share: tiny trajectories of the two-rooms world, collected once."""

import numpy as np
import pytest

from jepa_wm.act.collect import record
from jepa_wm.core.schema import Worlds


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory):
    """A folder with train.h5 (6 episodes of 31 frames) and heldout.h5 (3 of 31), as `collect` makes them."""
    folder = tmp_path_factory.mktemp("tiny_data")
    record(folder / "train.h5", Worlds(), np.arange(6), 31)
    record(folder / "heldout.h5", Worlds(), 10**6 + np.arange(3), 31)
    return folder
