"""Learning what actions do: a summary of frozen features, dynamics on it, and the steps-to-go metric."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.precision import autocast, set_threads, settled
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schema import Config, TrainDynamics
from jepa_wm.core.world import here
from jepa_wm.dynamics.latent import LatentModel
from jepa_wm.dynamics.metric import hardest
from jepa_wm.freeze.cache import Features
from jepa_wm.imagine.world_model import save_latent_model
from jepa_wm.observe.datasets import open_data
from jepa_wm.observe.trajectories import Trajectories
from jepa_wm.observe.windows import PairSampler, WindowSampler
from jepa_wm.train import robot
from jepa_wm.train.loop import Task, fit
from jepa_wm.train.rollout_errors import rollout_errors

SLAB = 1024  # frames summarised in one go


def run(run: RunFolder) -> dict[str, object]:
    """The `dynamics` stage: trains, saves the latent model, and measures rollout error against the horizon."""
    return run.once("dynamics", robot.train if run.config.dynamics.kind == "vjepa2_ac" else train)


def train(run: RunFolder) -> dict[str, object]:
    """The work of the stage; interrupted, it goes on from the newest checkpoint of either training."""
    config = settled(run.config, run.path)
    set_threads(config.train.threads)
    data = open_data(run.path, config, "train")
    features = Features(run.path / "encode" / "train", data)
    torch.manual_seed(config.seed + 1)
    model = make_model(config, features, data).to(here().device)
    seconds = 0.0
    if model.slots is not None:
        seconds += fit(run, summary_task(model, features, config), config.train.summary)
    latents = Latents(model, features, config.train.precision)
    seconds += fit(run, dynamics_task(model, latents, config), config.train.dynamics)
    seconds += fit(run, metric_task(model, latents, config), config.train.metric)
    if here().first:
        save_latent_model(run.stage_dir("dynamics"), model)
    heldout = open_data(run.path, config, "heldout")
    rollout = rollout_errors(model, Features(run.path / "encode" / "heldout", heldout), features)
    return {"rollout": rollout, "training_seconds": seconds}


def make_model(config: Config, features: Features, data: Trajectories) -> LatentModel:
    """A fresh latent model of the config's size, its action scale taken from the data."""
    tokens = features.tokens(np.zeros(1, np.int64), np.zeros(1, np.int64))
    model = LatentModel(tokens.shape[-2], tokens.shape[-1], data.actions.shape[1], config.dynamics)
    model.action_scale.copy_(torch.from_numpy(data.actions.std(0)) + 1e-6)
    return model


class Latents:
    """The latents of a features file: all summaries held in memory, or the frozen tokens themselves where the model
    has no bottleneck."""

    def __init__(self, model: LatentModel, features: Features, precision: str) -> None:
        self.features = features
        self._held: Tensor | None = None
        if model.slots is not None:
            device = here().device
            with torch.no_grad(), autocast(device, precision):
                slabs = (features.slab(k, k + SLAB).to(device) for k in range(0, len(features), SLAB))
                self._held = torch.cat([model.summarise(slab).cpu() for slab in slabs])

    def at(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., N, D] fp32 latents of frames (multiples of the stride) of episodes, arrays of one shape."""
        if self._held is None:
            return self.features.tokens(episode, frame).float()
        return self._held[torch.from_numpy(self.features.index(episode, frame))]


def summary_task(model: LatentModel, features: Features, config: Config) -> Task:
    """Trains the slots, with the dynamics and what regularises them beside."""
    sampler = _windows(features, config, config.train.summary)
    parts = (model.slots, model.dynamics, model.path, model.contrast, model.episode)
    trained = nn.ModuleList(part for part in parts if part is not None)

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        episode, frame, actions = (drawn[some] for drawn in sampler.batch(step, config.train.summary.batch))
        tokens, acts = (x.to(here().device) for x in (features.tokens(episode, frame), torch.from_numpy(actions)))
        with autocast(tokens.device, config.train.precision):
            return model.summary_losses(tokens, acts)

    return Task("dynamics", trained, losses, part="summary")


def dynamics_task(model: LatentModel, latents: Latents, config: Config) -> Task:
    """Trains the dynamics on latents that no longer change."""
    settings = config.train.dynamics
    sampler = _windows(latents.features, config, settings)

    members = config.dynamics.members

    def of_member(step: int, some: slice, member: int) -> dict[str, Tensor]:
        episode, frame, actions = (drawn[some] for drawn in sampler.batch(step * members + member, settings.batch))
        truth, acts = (x.to(here().device) for x in (latents.at(episode, frame), torch.from_numpy(actions)))
        with autocast(truth.device, config.train.precision):
            return model.dynamics_losses(truth, acts, rollout=settings.rollout, member=member)

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        each = [of_member(step, some, member) for member in range(members)]
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    trained = model.dynamics if members == 1 else nn.ModuleList(model.members)
    return Task("dynamics", trained, losses, part="dynamics")


def metric_task(model: LatentModel, latents: Latents, config: Config) -> Task:
    """Trains the metric head; what it stands on is fixed by now."""
    settings, rivals = config.train.metric, config.dynamics.metric.rivals
    sampler = PairSampler(latents.features.data, stride=latents.features.stride, seed=config.seed)
    hard = settings.batch // 2

    def losses(step: int, part: slice) -> dict[str, Tensor]:
        # Which pairs are the hardest depends on the whole batch; each rank has all latents and looks for itself.
        episode, frames, gap = sampler.batch(step, hard * rivals + settings.batch - hard)
        flat = latents.at(np.broadcast_to(episode, frames.shape), frames).flatten(2)  # [2, n, F]
        steps = torch.from_numpy(gap / config.dynamics.frameskip).float()
        some = hard * rivals
        chosen = hardest(flat[:, :some], steps[:some], count=hard, rivals=rivals)
        rows = torch.cat([chosen, torch.arange(some, len(steps))])[part]
        pairs, apart = (x.to(here().device) for x in (flat[:, rows], steps[rows]))
        with autocast(pairs.device, config.train.precision):
            return model.metric.losses(pairs, apart)

    return Task("dynamics", model.metric, losses, part="metric")


def _windows(features: Features, config: Config, settings: TrainDynamics) -> WindowSampler:
    return WindowSampler(
        features.data, frames=settings.frames, frameskip=config.dynamics.frameskip, stride=features.stride,
        seed=config.seed,
    )  # fmt: skip
