"""`jepa-wm eval state`: attentive state probe on frozen, standardised features, beside a randomly initialised encoder.

The probe's steps are chosen on a part of the training set; the held-out file is looked at once.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import set_threads
from jepa_wm.core.run import RunFolder
from jepa_wm.encode.vit import Encoder
from jepa_wm.freeze.eye import Eye
from jepa_wm.freeze.probe import fit_attentive, state_errors
from jepa_wm.observe.datasets import open_data, state_groups
from jepa_wm.observe.trajectories import Trajectories

FRAMES, TEST_FRAMES = 12_000, 3_000
STEPS = (1_000, 2_500)  # lengths of training to choose from
RATES = (1e-3, 3e-3)


def run(run: RunFolder) -> dict[str, object]:
    """`probe` {name: {error, unit, random_encoder}} and the settings chosen for each encoder."""
    config = run.config
    set_threads(config.train.threads)
    train, heldout = open_data(run.path, config, "train"), open_data(run.path, config, "heldout")
    groups = state_groups(train)
    if not groups:
        raise UserError(f"{train.path}: has no state columns, so there is nothing to probe; use rollout or planning")
    torch.manual_seed(config.seed)
    trained = Eye.load(run.path / "encode")
    untrained = Encoder.from_settings(config.observe.image_size, config.encode)
    random_eye = Eye(untrained, config.observe.image_size, precision=trained.precision)
    eyes = {"trained": trained, "random_encoder": random_eye}
    found = {name: probe_eye(eye, train, heldout, groups) for name, eye in eyes.items()}
    probe = {
        name: {"error": found["trained"][0][name], "unit": "px", "random_encoder": found["random_encoder"][0][name]}
        for name in groups
    }
    result: dict[str, object] = {"probe": probe, "chosen": {name: chosen for name, (_, chosen) in found.items()}}
    run.write_result("eval_state", result)
    return result


def probe_eye(
    eye: Eye, train: Trajectories, heldout: Trajectories, groups: dict[str, list[int]]
) -> tuple[dict[str, float], dict[str, float]]:
    """(test error of each group, the chosen rate and steps)."""
    rows = np.unique(np.linspace(0, len(train.actions) - 1, FRAMES).astype(np.int64))
    np.random.default_rng(8).shuffle(rows)
    tokens = eye.standardise_on(train.frames[rows]).bfloat16()
    state = torch.from_numpy(train.column("state")[rows]).float()
    cut = len(rows) * 5 // 6

    def validation(rate: float, steps: int) -> float:
        probe = fit_attentive(tokens[:cut], state[:cut], steps=steps, lr=rate)
        return _relative(probe.read(tokens[cut:]), state[cut:])

    rate, steps = min(((r, s) for r in RATES for s in STEPS), key=lambda choice: validation(*choice))
    probe = fit_attentive(tokens, state, steps=steps, lr=rate)
    test = np.unique(np.linspace(0, len(heldout.actions) - 1, TEST_FRAMES).astype(np.int64))
    guess = probe.read(eye(torch.from_numpy(heldout.frames[test])).bfloat16())
    truth = torch.from_numpy(heldout.column("state")[test]).float()
    return state_errors(guess, truth, groups), {"lr": rate, "steps": steps}


def _relative(guess: Tensor, truth: Tensor) -> float:
    """Mean squared error in units of each state dimension's variance."""
    return float(((guess - truth) / truth.std(0)).square().mean())
