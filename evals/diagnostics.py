"""What the stored models of a run are measured by anew, on held-out trajectories: collapse of the
frozen encoder, rollout error of the dynamics."""

from __future__ import annotations

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.trajectories import open_data
from jepa_wm.features.cache import Features
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.collapse import collapse_metrics
from jepa_wm.world_model.rollout_error import rollout_errors
from jepa_wm.world_model.saved import load_latent_model

FRAMES = 4_000  # that collapse is measured on


@stage("eval_collapse", after="features", keep="newest", reads=("data.path",))
def collapse(run: Run, data_path: str | None) -> dict[str, object]:
    """`collapsed`, `feature_std`, `effective_rank` of the frozen encoder on held-out frames."""
    heldout = open_data(run.path, data_path, "heldout")
    rows = np.unique(np.linspace(0, len(heldout.actions) - 1, FRAMES).astype(np.int64))
    encoder = FrozenEncoder.load(run.path / "features").to(dist().device)
    frames = heldout.frames[rows]
    return dict(collapse_metrics(encoder.raw(torch.from_numpy(frames)), frames))


@stage("eval_rollout", after="dynamics", keep="newest", reads=("data.path",))
def rollout(run: Run, data_path: str | None) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32."""
    model = load_latent_model(run.path / "dynamics").to(dist().device)
    folder = run.path / "features"
    train = Features(folder / "train", open_data(run.path, data_path, "train"))
    heldout = Features(folder / "heldout", open_data(run.path, data_path, "heldout"))
    return {"rollout": rollout_errors(model, heldout, train)}
