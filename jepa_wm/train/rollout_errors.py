"""Rollout error against the horizon: imagined latents against the encoded truth, with true and with shuffled actions.

E held-out windows, C frames seen, H horizon, N latent tokens of width D, Y state dimensions.
"""

from __future__ import annotations

import numpy as np
import torch

from jepa_wm.dynamics.latent import LatentModel
from jepa_wm.freeze.cache import Features
from jepa_wm.freeze.probe import RidgeProbe
from jepa_wm.imagine.rollout import unroll
from jepa_wm.observe.datasets import state_groups
from jepa_wm.observe.windows import WindowSampler

PROBE_FRAMES = 8000


@torch.no_grad()
def rollout_errors(
    model: LatentModel, heldout: Features, train: Features, *, horizon: int = 32, windows: int = 200
) -> list[dict[str, float | int | str | None]]:
    """One row a horizon: `relative_error` (mean |imagined - true| over mean |last seen - true|, of the numbers that
    move), the same with actions taken from another window, and the error of the first state group as a linear probe
    reads it from the imagined latent.

    Before it imagines, the model sees as many frames as it does when an agent acts, since one frame shows no speed.
    The horizon is cut to what the held-out episodes hold."""
    data, skip = heldout.data, model.settings.frameskip
    steps = int(data.lengths.min() - 1) // skip
    seen = min(model.settings.window, steps)  # C
    horizon = min(horizon, steps - seen + 1)
    sampler = WindowSampler(data, frames=seen + horizon, frameskip=skip, stride=heldout.stride, seed=0)
    episode, frame, actions = sampler.batch(0, windows)
    device = model.action_scale.device
    latents = model.summarise(heldout.tokens(episode, frame).to(device))  # [E, C+H, N, D]
    past, acts = model.scaled(torch.from_numpy(actions).to(device)).split([seen - 1, horizon], 1)
    imagined = [unroll(model.dynamics, latents[:, :seen], past, a).float() for a in (acts, acts.roll(1, 0))]
    moving = slice(model.moving)
    truth, last = latents[:, seen:, :, moving], latents[:, seen - 1 : seen, :, moving]
    copying = (last - truth).abs().mean((0, 2, 3))
    relative = [((guess[..., moving] - truth).abs().mean((0, 2, 3)) / copying).tolist() for guess in imagined]
    state = _state_errors(model, heldout, train, episode[:, seen:], frame[:, seen:], imagined)
    return [
        {
            "horizon": h + 1,
            "relative_error": relative[0][h], "relative_error_shuffled": relative[1][h],
            "state_error": state[0][h], "state_error_shuffled": state[1][h], "unit": "px",
        }
        for h in range(horizon)
    ]  # fmt: skip


def _state_errors(
    model: LatentModel, heldout: Features, train: Features, episode: np.ndarray, frame: np.ndarray,
    imagined: list[torch.Tensor],
) -> list[list[float | None]]:  # fmt: skip
    """Mean error [2][H] of the first state group (the agent) read from each set of imagined latents [E, H, N, D]."""
    groups = state_groups(train.data)
    if not groups:
        return [[None] * frame.shape[1]] * 2
    probe = fit_latent_probe(model, train)
    rows = heldout.data.offsets[episode] + frame
    ids = next(iter(groups.values()))
    truth = torch.from_numpy(heldout.data.column("state")[rows]).float()[..., ids]
    errors: list[list[float | None]] = []
    for guess in imagined:
        read = probe.read(guess.flatten(0, 1).flatten(1).cpu())[:, ids].view_as(truth)
        errors.append((read - truth).norm(dim=-1).mean(0).tolist())
    return errors


def fit_latent_probe(model: LatentModel, train: Features) -> RidgeProbe:
    """The linear state probe on latents of training frames, on the CPU."""
    device = model.action_scale.device
    data, r = train.data, np.random.default_rng(6)
    episode = r.integers(data.episodes, size=PROBE_FRAMES)
    frame = (r.random(PROBE_FRAMES) * data.lengths[episode]).astype(np.int64) // train.stride * train.stride
    state = torch.from_numpy(data.column("state")[data.offsets[episode] + frame]).float()
    latents = [model.summarise(train.tokens(e, f).to(device)).cpu() for e, f in zip(
        np.array_split(episode, 16), np.array_split(frame, 16), strict=True)]  # fmt: skip
    return RidgeProbe(torch.cat(latents).flatten(1), state)
