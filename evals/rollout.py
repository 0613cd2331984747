"""`jepa-wm eval rollout`: how the error of an imagined future grows with the horizon, on held-out
trajectories."""

from __future__ import annotations

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import resolve_precision, set_threads
from jepa_wm.core.run import Run
from jepa_wm.data.datasets import open_data
from jepa_wm.features.cache import Features
from jepa_wm.training import vjepa2_ac
from jepa_wm.world_model.rollout_error import rollout_errors
from jepa_wm.world_model.saved import is_action_predictor, load_action_predictor, load_latent_model


def run(run: Run) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32, measured anew from the saved model."""
    set_threads(run.config.train.threads)
    config, folder = resolve_precision(run.config, run.path), run.path / "dynamics"
    if is_action_predictor(folder):
        predictor = load_action_predictor(folder)[0].eval().to(dist().device)
        told: dict[str, object] = {"rollout": vjepa2_ac.heldout_errors(run, config, predictor)}
        run.write_result("eval_rollout", told)
        return told
    model = load_latent_model(folder).to(dist().device)
    train, heldout = (
        Features(run.path / "features" / "train", open_data(run.path, run.config, "train")),
        Features(run.path / "features" / "heldout", open_data(run.path, run.config, "heldout")),
    )
    result: dict[str, object] = {"rollout": rollout_errors(model, heldout, train)}
    run.write_result("eval_rollout", result)
    return result
