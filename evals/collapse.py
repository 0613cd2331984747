"""`jepa-wm eval collapse`: is the frozen encoder still telling samples apart?"""

from __future__ import annotations

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import open_data
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.collapse import collapse_metrics

FRAMES = 4_000


@stage("eval_collapse", after="features", keep="newest", reads=("data.path",))
def collapse(run: Run, data_path: str | None) -> dict[str, object]:
    """`collapsed`, `feature_std`, `effective_rank` of the frozen encoder on held-out frames."""
    heldout = open_data(run.path, data_path, "heldout")
    rows = np.unique(np.linspace(0, len(heldout.actions) - 1, FRAMES).astype(np.int64))
    encoder = FrozenEncoder.load(run.path / "features").to(dist().device)
    frames = heldout.frames[rows]
    return dict(collapse_metrics(encoder.raw(torch.from_numpy(frames)), frames))
