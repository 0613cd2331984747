"""`jepa-wm eval rollout`: how the error of an imagined future grows with the horizon, on held-out trajectories."""

from __future__ import annotations

from jepa_wm.core.precision import set_threads
from jepa_wm.core.run import RunFolder
from jepa_wm.core.world import here
from jepa_wm.freeze.cache import Features
from jepa_wm.imagine.saved import load_latent_model
from jepa_wm.observe.datasets import open_data
from jepa_wm.train.rollout_errors import rollout_errors


def run(run: RunFolder) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32, measured anew from the saved model."""
    set_threads(run.config.train.threads)
    model = load_latent_model(run.path / "dynamics").to(here().device)
    train, heldout = (
        Features(run.path / "encode" / "train", open_data(run.path, run.config, "train")),
        Features(run.path / "encode" / "heldout", open_data(run.path, run.config, "heldout")),
    )
    result: dict[str, object] = {"rollout": rollout_errors(model, heldout, train)}
    run.write_result("eval_rollout", result)
    return result
