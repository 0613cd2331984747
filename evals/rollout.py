"""`jepa-wm eval rollout`: how the error of an imagined future grows with the horizon, on held-out
trajectories."""

from __future__ import annotations

from jepa_wm.core.distributed import dist
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import open_data
from jepa_wm.features.cache import Features
from jepa_wm.training import vjepa2_ac
from jepa_wm.world_model.rollout_error import rollout_errors
from jepa_wm.world_model.saved import is_action_predictor, load_action_predictor, load_latent_model


@stage("eval_rollout", after="dynamics", keep="newest", reads=("data.path",))
def rollout(
    run: Run, data_path: str | None, dynamics_frameskip: int, train_precision: str
) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32, measured anew from the saved model."""
    config, folder = run.config, run.path / "dynamics"
    if is_action_predictor(folder):
        predictor = load_action_predictor(folder)[0].eval().to(dist().device)
        return {"rollout": vjepa2_ac.heldout_errors(run, config, predictor)}
    model = load_latent_model(folder).to(dist().device)
    train, heldout = (
        Features(run.path / "features" / "train", open_data(run.path, run.config.data, "train")),
        Features(
            run.path / "features" / "heldout", open_data(run.path, run.config.data, "heldout")
        ),
    )
    return {"rollout": rollout_errors(model, heldout, train)}
