"""`jepa-wm eval rollout`: how the error of an imagined future grows with the horizon, on held-out
trajectories."""

from __future__ import annotations

from jepa_wm.core.distributed import dist
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import open_data
from jepa_wm.features.cache import Features
from jepa_wm.models.settings import DynamicsSettings
from jepa_wm.training import vjepa2_ac
from jepa_wm.training.settings import TrainMotion
from jepa_wm.world_model.rollout_error import rollout_errors
from jepa_wm.world_model.saved import is_action_predictor, load_action_predictor, load_latent_model


@stage("eval_rollout", after="dynamics", keep="newest", reads=("data.path",))
def rollout(
    run: Run,
    seed: int,
    data_path: str | None,
    dynamics: DynamicsSettings,
    train_dynamics: TrainMotion,
) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32, measured anew from the saved model."""
    folder = run.path / "dynamics"
    if is_action_predictor(folder):
        predictor = load_action_predictor(folder)[0].eval().to(dist().device)
        recipe = vjepa2_ac.Recipe(seed, data_path, dynamics, train_dynamics)
        return {"rollout": vjepa2_ac.heldout_errors(run.path, recipe, predictor)}
    model = load_latent_model(folder).to(dist().device)
    train, heldout = (
        Features(run.path / "features" / "train", open_data(run.path, data_path, "train")),
        Features(run.path / "features" / "heldout", open_data(run.path, data_path, "heldout")),
    )
    return {"rollout": rollout_errors(model, heldout, train)}
