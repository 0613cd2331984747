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
from jepa_wm.data.held_out import check_same_state
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import FrameSampler, WindowSampler, usual_steps
from jepa_wm.features.cache import Features
from jepa_wm.features.probes import RidgeProbe
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import DynamicsSettings
from jepa_wm.world_model.latents import Latents, Recording

PROBE_FRAMES = 8000
# Numbers of frozen features that are held in one go; four times as many in fitting the map to
# them.
NUMBERS = 2**24
WORK = 2**37  # products of one fit; the probe of a wide latent is fitted on fewer frames

Totals = dict[Any, np.ndarray]  # {what is summed over windows: [H]}
Decoder = Callable[[Tensor], Tensor]  # latents [..., N, D] to features [..., n * W]
# Imagined latents [e, H, N, D] of frames [e, H] of episodes to {state group: sums of errors [H]}
StateReader = Callable[[Tensor, np.ndarray, np.ndarray], dict[str, np.ndarray]]


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
    device, latent = model.action_scale.device, model.latent
    most = min(horizon, model.dynamics.longest_horizon)
    seen, horizon = span(heldout.data, model.settings.dynamics, most=most)
    sampler = WindowSampler(
        heldout.data, frames=seen + horizon, frameskip=model.frameskip, stride=heldout.stride,
        seed=0, setting="rollout errors: frames seen and imagined",
    )  # fmt: skip
    episode, frame, actions = sampler.batch(0, windows)
    blocks = Recording(heldout.data, model).blocks(episode, frame, actions)
    past, ahead = model.scaled(blocks.to(device)).split([seen - 1, horizon], 1)
    # Another window's actions from the last frame seen on; what led there stays true.
    plans = {"": ahead, "_shuffled": ahead.roll(1, 0)}
    believed, known = Latents(model, heldout), Latents(model, train)
    decode, read_state = feature_decoder(model, known), _state_reader(model, heldout, known)
    total: Totals = defaultdict(lambda: np.zeros(horizon))

    def add(name: str, guess: Tensor, truth: Tensor) -> None:
        """Mean |guess - truth| of each window, for [e, H, ...] (they broadcast)."""
        error = (guess - truth).abs().flatten(2).double().mean(2)
        total[name] += error.sum(0).cpu().numpy()

    together = max(1, NUMBERS // (frame.shape[1] * heldout.numbers))
    for start in range(0, windows, together):
        rows = slice(start, start + together)
        e, f = episode[rows], frame[rows]  # [e, C+H]
        tokens, latents = encoded_windows(model, believed, e, f, seen)
        truth = latent.compared(latents[..., : latent.dynamic_dim])
        features = decode(latents) if latent.lossless else tokens.flatten(2)
        # What it would be to copy the last frame seen, and what the latent dropped.
        add("copied_latent", truth[:, seen - 1 : seen], truth[:, seen:])
        add("copied_features", features[:, seen - 1 : seen], features[:, seen:])
        add("feature_error_encoded", decode(latents[:, seen:]), features[:, seen:])
        for kind, plan in plans.items():
            guess = model.dynamics.rollout_one(latents[:, :seen], past[rows], plan[rows]).float()
            dynamic = latent.compared(guess[..., : latent.dynamic_dim])
            add(f"relative_error{kind}", dynamic, truth[:, seen:])
            add(f"feature_error{kind}", decode(guess), features[:, seen:])
            for name, missed in read_state(guess, e[:, seen:], f[:, seen:]).items():
                total["state", name, kind] += missed
    return [_row(total, known, h, windows) for h in range(horizon)]


def span(data: Trajectories, settings: DynamicsSettings, *, most: int = 32) -> tuple[int, int]:
    """(frames that are seen, horizon) for which at least half of the held-out episodes are long
    enough; UserError if all are too short for a single step."""
    if data.lengths.max() <= settings.frameskip:
        raise UserError(
            f"{data.path}: no episode is long enough for a model step of dynamics.frameskip "
            f"{settings.frameskip}, the longest has {data.lengths.max()} frames; lower it, or "
            "give longer episodes"
        )
    steps = usual_steps(data.lengths, settings.frameskip)
    seen = min(settings.context_frames, steps)
    return seen, min(most, steps - seen + 1)


def encoded_windows(
    model: LatentModel, believed: Latents, episode: np.ndarray, frame: np.ndarray, seen: int
) -> tuple[Tensor, Tensor]:
    """(frozen tokens [e, C+H, n, W], latents [e, C+H, N, D]) of frames [e, C+H] of episodes; the
    static numbers are those believed at the last of the `seen` frames, which no later one may
    mend."""
    latent, device = model.latent, model.action_scale.device
    tokens = believed.features.tokens(episode, frame).to(device).float()
    now = believed.at(episode[:, seen - 1 : seen], frame[:, seen - 1 : seen])  # [e, 1, N, D]
    latents = latent.encode(tokens, believed.recording.proprio(episode, frame))
    return tokens, latent.with_static(latents, latent.static_of(now.to(device)))


def _row(total: Totals, latents: Latents, h: int, windows: int) -> dict[str, object]:
    row: dict[str, object] = {"horizon": h + 1}
    names = {
        "copied_latent": ("relative_error", "relative_error_shuffled"),
        "copied_features": ("feature_error", "feature_error_shuffled", "feature_error_encoded"),
    }
    for copied, errors in names.items():
        change = total[copied][h]  # 0: nothing changes there
        row |= {name: total[name][h] / change if change else None for name in errors}
    known = latents.features.data.quantities
    row["state_errors"] = {
        name: {
            "error": total["state", name, ""][h] / windows,
            "shuffled": total["state", name, "_shuffled"][h] / windows,
            "unit": known.unit(name),
        }
        for name in known.groups
        if ("state", name, "") in total
    }
    return row


# ---------------------------------------------------------------- linear maps of latents


def feature_decoder(model: LatentModel, latents: Latents) -> Decoder:
    """A linear map from latents to frozen features, fitted on training frames where the latent
    has none of its own."""
    if model.latent.decodes:
        return lambda latents: model.latent.decoded(latents).flatten(-2)
    train, device = latents.features, model.action_scale.device
    count = min(PROBE_FRAMES, max(500, 4 * NUMBERS // train.numbers))
    episode, frame, flat = _sample(latents, count)
    features = train.tokens(episode, frame).float().flatten(1).cpu().numpy()
    (ridge,) = fit_ridge(flat.numpy(), features, (1e-2,), standardise=True)
    weight = torch.from_numpy(ridge.weight).float().to(device)
    constant = torch.from_numpy(ridge.constant - ridge.centre @ ridge.weight).float().to(device)
    return lambda latents: latents.flatten(-2) @ weight + constant


def _state_reader(model: LatentModel, heldout: Features, latents: Latents) -> StateReader:
    """The errors of a linear probe of the state (angles unrolled), on the CPU, that is fitted on
    latents of training frames."""
    train, known = latents.features.data, latents.features.data.quantities
    whole = (
        model.latent.proprio is None and model.latent.proprio_size
    )  # the state is in the latent
    if not known.groups or whole:
        return lambda *_: {}
    check_same_state(train, heldout.data)
    count = min(PROBE_FRAMES, max(1000, int((WORK / model.numbers) ** 0.5)))
    episode, frame, flat = _sample(latents, count)
    state = known.unrolled(train.states()[train.offsets[episode] + frame])
    probe, states = RidgeProbe(flat, torch.from_numpy(state)), heldout.data.states()

    def read(guess: Tensor, episode: np.ndarray, frame: np.ndarray) -> dict[str, np.ndarray]:
        values = probe.predict(guess.flatten(0, 1).flatten(1).cpu()).numpy()
        state = known.rolled(values).reshape(*frame.shape, -1)
        errors = known.errors(state, states[heldout.data.offsets[episode] + frame])
        return {name: missed.astype(np.float64).sum(0) for name, missed in errors.items()}

    return read


def _sample(latents: Latents, count: int) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """(episode [count], frame [count], latents [count, F]) drawn from all that are encoded, each
    with the static numbers believed there, on the CPU."""
    train = latents.features
    episode, frame = FrameSampler(train.data, stride=train.stride, seed=6).batch(0, count)
    parts = zip(np.array_split(episode, 16), np.array_split(frame, 16), strict=True)
    return episode, frame, torch.cat([latents.at(e, f) for e, f in parts]).flatten(1)
