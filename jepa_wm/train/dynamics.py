"""Learning what actions do: dynamics on frozen features, then the steps-to-go metric on its latents."""

from __future__ import annotations

import time

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.precision import autocast, set_threads
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Config
from jepa_wm.dynamics.latent import LatentModel
from jepa_wm.freeze.cache import Features
from jepa_wm.imagine.world_model import save_latent_model
from jepa_wm.observe.datasets import open_data
from jepa_wm.observe.trajectories import Trajectories
from jepa_wm.observe.windows import PairSampler, WindowSampler
from jepa_wm.train.loop import Task, fit
from jepa_wm.train.rollout_errors import rollout_errors


def run(run: RunFolder) -> dict[str, object]:
    """The `dynamics` stage: trains, saves the latent model, and measures rollout error against the horizon."""
    done = run.finished("dynamics")
    if done is not None:
        return done
    config = run.config
    began = time.monotonic()
    set_threads(config.train.threads)
    data = open_data(run.path, config, "train")
    features = Features(run.path / "encode" / "train", data)
    torch.manual_seed(config.seed + 1)
    model = make_model(config, features, data)
    seconds = fit(run, dynamics_task(model, features, config), config.train.dynamics)
    seconds += fit(run, metric_task(model, features, config), config.train.metric)
    save_latent_model(run.stage_dir("dynamics"), model)
    heldout = open_data(run.path, config, "heldout")
    rollout = rollout_errors(model, Features(run.path / "encode" / "heldout", heldout), features)
    result: dict[str, object] = {"rollout": rollout, "training_seconds": seconds, "seconds": time.monotonic() - began}
    run.write_result("dynamics", result)
    return result


def make_model(config: Config, features: Features, data: Trajectories) -> LatentModel:
    """A fresh latent model of the config's size, its action scale taken from the data."""
    tokens = features.tokens(np.zeros(1, np.int64), np.zeros(1, np.int64))
    model = LatentModel(tokens.shape[-2], tokens.shape[-1], data.actions.shape[1], config.dynamics)
    model.action_scale.copy_(torch.from_numpy(data.actions.std(0)) + 1e-6)
    return model


def dynamics_task(model: LatentModel, features: Features, config: Config) -> Task:
    """Trains slots, dynamics and inverse dynamics."""
    settings = config.train.dynamics
    sampler = WindowSampler(
        features.data, frames=settings.frames, frameskip=config.dynamics.frameskip,
        stride=features.stride, seed=config.seed,
    )  # fmt: skip
    trained = nn.ModuleList(m for m in (model.slots, model.dynamics, model.inverse, model.contrast) if m is not None)

    def losses(step: int) -> dict[str, Tensor]:
        episode, frame, actions = sampler.batch(step, settings.batch)
        with autocast("cpu", config.train.precision):
            return model.dynamics_losses(
                features.tokens(episode, frame), torch.from_numpy(actions), rollout=settings.rollout
            )

    return Task("dynamics", trained, losses, part="dynamics")


def metric_task(model: LatentModel, features: Features, config: Config) -> Task:
    """Trains the metric head; what it stands on is fixed by now."""
    settings = config.train.metric
    skip = config.dynamics.frameskip
    sampler = PairSampler(features.data, stride=features.stride, nearest=2 * skip, seed=config.seed)

    def losses(step: int) -> dict[str, Tensor]:
        episode, frames, gap = sampler.batch(step, settings.batch)
        with torch.no_grad(), autocast("cpu", config.train.precision):
            tokens = features.tokens(np.broadcast_to(episode, frames.shape), frames)
            latents = model.summarise(tokens).flatten(2)  # [3, B, F]
        steps = torch.from_numpy(gap / skip).float()
        with autocast("cpu", config.train.precision):
            return model.metric.losses(latents[:2], steps, latents[2])

    return Task("dynamics", model.metric, losses, part="metric")
