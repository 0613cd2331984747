"""`jepa-wm eval rollout`: how the error of an imagined future grows with the horizon, on held-out
trajectories."""

from __future__ import annotations

from jepa_wm.core.distributed import dist
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import open_data
from jepa_wm.features.cache import Features
from jepa_wm.world_model.rollout_error import rollout_errors
from jepa_wm.world_model.saved import load_latent_model


@stage("eval_rollout", after="dynamics", keep="newest", reads=("data.path",))
def rollout(run: Run, data_path: str | None) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32, measured anew from the saved model."""
    model = load_latent_model(run.path / "dynamics").to(dist().device)
    folder = run.path / "features"
    train = Features(folder / "train", open_data(run.path, data_path, "train"))
    heldout = Features(folder / "heldout", open_data(run.path, data_path, "heldout"))
    return {"rollout": rollout_errors(model, heldout, train)}
