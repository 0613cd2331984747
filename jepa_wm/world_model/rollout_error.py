"""Rollout error against the horizon: imagined latents against the encoded truth, with true and
with shuffled actions.

E held-out windows, e of them at a time, C frames seen, H horizon, N latent tokens of width D, F
numbers of a latent, n frozen tokens of width W, Y state numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.data.datasets import check_same_state, quantities
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import FrameSampler, WindowSampler, usual_steps
from jepa_wm.features.cache import Features
from jepa_wm.features.probes import RidgeProbe
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.rollout import unroll
from jepa_wm.models.settings import DynamicsSettings
from jepa_wm.world_model.latents import Latents

PROBE_FRAMES = 8000
NUMBERS = (
    2**24
)  # of frozen features that are held in one go; four times as many in fitting the map to them
WORK = 2**37  # products of one fit; the probe of a wide latent is fitted on fewer frames

Sums = dict[Any, np.ndarray]  # {what is summed over windows: [H]}
Decoder = Callable[[Tensor], Tensor]  # latents [..., N, D] to features [..., n * W]


@torch.no_grad()
def rollout_errors(
    model: LatentModel,
    heldout: Features,
    train: Features,
    *,
    horizon: int = 32,
    windows: int = 200,
) -> list[dict[str, object]]:
    """One row a horizon, each error with the true actions and `_shuffled`, with those of another
    window.

    `relative_error`: mean |imagined - true| over mean |last seen - true|, of the latent's numbers
    that move. `feature_error`: the same in the frozen features, to which a linear map leads from
    the imagined latent, so that what the latent dropped counts as error; `feature_error_encoded`
    is that of the true frame's own latent. `state_errors`: for each group of state numbers
    `error`, `shuffled` and `unit`, as a linear probe reads the state from the imagined latent.
    Before it imagines, the model sees as many frames as it does when an agent acts, since one
    frame shows no speed, and has the static numbers that an agent believes there which saw the
    episode from its first frame. The horizon is cut to what at least half of the held-out episodes
    hold; shorter ones are left out, which is said."""
    data, skip, device = heldout.data, model.settings.frameskip, model.action_scale.device
    seen, horizon = span(data, model.settings, most=horizon)
    sampler = WindowSampler(data, frames=seen + horizon, frameskip=skip, stride=heldout.stride, seed=0,
                            setting="rollout errors: frames seen and imagined")  # fmt: skip
    episode, frame, actions = sampler.batch(0, windows)
    acts = model.scaled(torch.from_numpy(actions).to(device))
    futures = {
        "": acts,
        "_shuffled": torch.cat([acts[:, : seen - 1], acts[:, seen - 1 :].roll(1, 0)], 1),
    }
    believed, known = Latents(model, heldout, "fp32"), Latents(model, train, "fp32")
    decode, read_state = fit_decoder(model, known), _state_reader(model, heldout, known)
    sums: Sums = defaultdict(lambda: np.zeros(horizon))
    together = max(1, NUMBERS // (frame.shape[1] * heldout.numbers))
    for start in range(0, windows, together):
        some = slice(start, start + together)
        tokens = heldout.tokens(episode[some], frame[some]).to(device).float()  # [e, C+H, n, W]
        now = believed.at(episode[some, seen - 1 : seen], frame[some, seen - 1 : seen]).to(
            device
        )  # [e, 1, N, D]
        latents = model.with_static(model.summarise(tokens), model.static(now))  # [e, C+H, N, D]
        truth, features = latents[:, seen:, :, : model.dynamic_dim], tokens[:, seen:].flatten(2)
        sums["copied_latent"] += _apart(latents[:, seen - 1 : seen, :, : model.dynamic_dim], truth)
        sums["copied_features"] += _apart(tokens[:, seen - 1 : seen].flatten(2), features)
        sums["feature_error_encoded"] += _apart(decode(latents[:, seen:]), features)
        for kind, a in futures.items():
            past, ahead = a[some].split([seen - 1, horizon], 1)
            guess = unroll(model.dynamics, latents[:, :seen], past, ahead).float()
            sums[f"relative_error{kind}"] += _apart(guess[..., : model.dynamic_dim], truth)
            sums[f"feature_error{kind}"] += _apart(decode(guess), features)
            for name, missed in read_state(
                guess, episode[some, seen:], frame[some, seen:]
            ).items():
                sums["state", name, kind] += missed
    return [_row(sums, train, h, windows) for h in range(horizon)]


def span(data: Trajectories, settings: DynamicsSettings, *, most: int = 32) -> tuple[int, int]:
    """(frames that are seen, horizon) for which at least half of the held-out episodes are long
    enough; UserError if all are too short for a single step."""
    if data.lengths.max() <= settings.frameskip:
        raise UserError(
            f"{data.path}: no episode is long enough for a model step of dynamics.frameskip {settings.frameskip}, the "
            f"longest has {data.lengths.max()} frames; lower it, or give longer episodes"
        )
    steps = usual_steps(data.lengths, settings.frameskip)
    seen = min(settings.context_frames, steps)
    return seen, min(most, steps - seen + 1)


def _row(sums: Sums, train: Features, h: int, windows: int) -> dict[str, object]:
    row: dict[str, object] = {"horizon": h + 1}
    for copied, names in (
        ("copied_latent", ("relative_error", "relative_error_shuffled")),
        ("copied_features", ("feature_error", "feature_error_shuffled", "feature_error_encoded")),
    ):
        moved = sums[copied][h]
        row |= {
            name: sums[name][h] / moved if moved else None for name in names
        }  # None: nothing moves there
    known = quantities(train.data)
    row["state_errors"] = {
        name: {
            "error": sums["state", name, ""][h] / windows, "shuffled": sums["state", name, "_shuffled"][h] / windows,
            "unit": known.unit(name),
        }
        for name in known.groups
    }  # fmt: skip
    return row


def _apart(guess: Tensor, truth: Tensor) -> np.ndarray:
    """[H] sums over windows of mean |guess - truth|, for [e, H, ...] (they broadcast)."""
    gap: np.ndarray = (guess - truth).abs().flatten(2).double().mean(2).sum(0).cpu().numpy()
    return gap


def _state_reader(
    model: LatentModel, heldout: Features, latents: Latents
) -> Callable[[Tensor, np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """Imagined latents [e, H, N, D] of frames [e, H] of episodes to {state group: sums of its
    errors [H]}, by a probe on the latents of training frames."""
    train = latents.features
    known = quantities(train.data)
    if not known.groups:
        return lambda *_: {}
    check_same_state(train.data, heldout.data)
    probe, states = fit_latent_probe(model, latents), heldout.data.states()

    def read(guess: Tensor, episode: np.ndarray, frame: np.ndarray) -> dict[str, np.ndarray]:
        values = probe.predict(guess.flatten(0, 1).flatten(1).cpu()).numpy()
        state = known.rolled(values).reshape(*frame.shape, -1)
        errors = known.errors(state, states[heldout.data.offsets[episode] + frame])
        return {name: missed.astype(np.float64).sum(0) for name, missed in errors.items()}

    return read


def fit_decoder(model: LatentModel, latents: Latents) -> Decoder:
    """A linear map from latents to frozen features, fitted on training frames; nothing to do where
    the latent is all of these."""
    if model.summary is None:
        return lambda latents: latents.flatten(-2)
    train = latents.features
    episode, frame = _frames(train, min(PROBE_FRAMES, max(500, 4 * NUMBERS // train.numbers)))
    features = train.tokens(episode, frame).float().flatten(1).numpy()
    (ridge,) = fit_ridge(
        _flat(latents, episode, frame).numpy(), features, (1e-2,), standardise=True
    )
    device = model.action_scale.device
    weight = torch.from_numpy(ridge.weight).float().to(device)
    constant = torch.from_numpy(ridge.constant - ridge.centre @ ridge.weight).float().to(device)
    return lambda latents: latents.flatten(-2) @ weight + constant


def fit_latent_probe(model: LatentModel, latents: Latents) -> RidgeProbe:
    """The linear probe of the state (angles unrolled) on latents of training frames, on the
    CPU."""
    train = latents.features
    episode, frame = _frames(
        train, min(PROBE_FRAMES, max(1000, int((WORK / model.numbers) ** 0.5)))
    )
    state = quantities(train.data).unrolled(
        train.data.states()[train.data.offsets[episode] + frame]
    )
    return RidgeProbe(_flat(latents, episode, frame), torch.from_numpy(state))


def _frames(train: Features, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(episode, frame) [count] drawn from all that are encoded."""
    return FrameSampler(train.data, stride=train.stride, seed=6).batch(0, count)


def _flat(latents: Latents, episode: np.ndarray, frame: np.ndarray) -> Tensor:
    """[count, F] latents of frames, each with the static numbers believed there, on the CPU."""
    parts = zip(np.array_split(episode, 16), np.array_split(frame, 16), strict=True)
    return torch.cat([latents.at(e, f) for e, f in parts]).flatten(1)
