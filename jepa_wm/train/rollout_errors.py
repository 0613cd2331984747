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
NUMBERS = 2**26  # of frozen features or latents that are held in one go
WORK = 2**37  # products of one fit; the probe of a wide latent is fitted on fewer frames


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
    acts = model.scaled(torch.from_numpy(actions).to(device))
    futures = (acts, torch.cat([acts[:, : seen - 1], acts[:, seen - 1 :].roll(1, 0)], 1))
    probe = fit_latent_probe(model, train) if state_groups(train.data) else None
    moved, states = np.zeros((3, horizon)), np.zeros((2, horizon))  # copying, true, shuffled; true, shuffled
    together = max(1, NUMBERS // (frame.shape[1] * heldout.numbers))
    for start in range(0, windows, together):
        some = slice(start, start + together)
        latents = model.summarise(heldout.tokens(episode[some], frame[some]).to(device))  # [e, C+H, N, D]
        imagined = [
            unroll(model.dynamics, latents[:, :seen], a[some, : seen - 1], a[some, seen - 1 :]).float() for a in futures
        ]
        truth, last = latents[:, seen:], latents[:, seen - 1 : seen].expand(-1, horizon, -1, -1)
        for k, guess in enumerate((last, *imagined)):
            moved[k] += (guess - truth)[..., : model.moving].abs().mean((2, 3)).sum(0).cpu().numpy()
        if probe is not None:
            rows = data.offsets[episode[some]] + frame[some]
            states += _state_errors(probe, train, data.column("state")[rows[:, seen:]], imagined)
    copying, *relative = moved
    return [
        {
            "horizon": h + 1,
            "relative_error": relative[0][h] / copying[h], "relative_error_shuffled": relative[1][h] / copying[h],
            "state_error": None if probe is None else states[0, h] / windows,
            "state_error_shuffled": None if probe is None else states[1, h] / windows, "unit": "px",
        }
        for h in range(horizon)
    ]  # fmt: skip


def _state_errors(probe: RidgeProbe, train: Features, state: np.ndarray, imagined: list[torch.Tensor]) -> np.ndarray:
    """Sums over windows [2, H] of the error of the first state group (the agent), read from each set of imagined
    latents [e, H, N, D], for states [e, H, Y]."""
    ids = next(iter(state_groups(train.data).values()))
    truth = torch.from_numpy(state).float()[..., ids]
    errors = []
    for guess in imagined:
        read = probe.read(guess.flatten(0, 1).flatten(1).cpu())[:, ids].view_as(truth)
        errors.append((read - truth).norm(dim=-1).sum(0).numpy())
    return np.stack(errors)


def fit_latent_probe(model: LatentModel, train: Features) -> RidgeProbe:
    """The linear state probe on latents of training frames, on the CPU."""
    device = model.action_scale.device
    data, r = train.data, np.random.default_rng(6)
    count = min(PROBE_FRAMES, max(1000, int((WORK / model.numbers) ** 0.5)))
    episode = r.integers(data.episodes, size=count)
    frame = (r.random(count) * data.lengths[episode]).astype(np.int64) // train.stride * train.stride
    state = torch.from_numpy(data.column("state")[data.offsets[episode] + frame]).float()
    latents = [model.summarise(train.tokens(e, f).to(device)).cpu() for e, f in zip(
        np.array_split(episode, 16), np.array_split(frame, 16), strict=True)]  # fmt: skip
    return RidgeProbe(torch.cat(latents).flatten(1), state)
