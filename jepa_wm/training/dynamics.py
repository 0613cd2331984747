"""Learning what actions do: a summary of frozen features, dynamics on it, and the steps-to-go
metric."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.clips import Displacement
from jepa_wm.data.datasets import open_data
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.windows import PairSampler, WindowSampler
from jepa_wm.features.cache import Features
from jepa_wm.models.factored_latent import FactoredLatent, FactoredLatentTraining
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.settings import (
    DistanceSettings,
    DynamicsSettings,
    LatentSettings,
    WorldModelSettings,
)
from jepa_wm.models.temporal_distance import hardest
from jepa_wm.training import vjepa2_ac
from jepa_wm.training.loop import Execution, TrainingTask, fit
from jepa_wm.training.settings import ParallelSettings, TrainDistance, TrainLatent, TrainMotion
from jepa_wm.world_model.latents import SLAB, Latents, of_all_frames
from jepa_wm.world_model.rollout_error import rollout_errors, span
from jepa_wm.world_model.saved import save_latent_model

SAMPLE = 3000  # frames that principal components are found in


@dataclass(frozen=True)
class Recipe:
    """The settings that make up a dynamics training; `precision` is fp32 or bf16."""

    seed: int
    latent: LatentSettings | None
    dynamics: DynamicsSettings
    distance: DistanceSettings
    train_latent: TrainLatent
    train_dynamics: TrainMotion
    train_distance: TrainDistance
    precision: str

    @property
    def model(self) -> WorldModelSettings:
        """The sections that make up one latent model."""
        return WorldModelSettings(
            **dict(self.dynamics), latent=self.latent, distance=self.distance
        )


@stage(
    after="features",
    ranks=True,
    reads=("data.path",),
    unrecorded=("train_keep", "train_parallel"),
    headline=("rollout",),
    seed_offset=1,
)
def dynamics(
    run: Run,
    seed: int,
    data_path: str | None,
    latent: LatentSettings | None,
    dynamics: DynamicsSettings,
    distance: DistanceSettings,
    train_latent: TrainLatent,
    train_dynamics: TrainMotion,
    train_distance: TrainDistance,
    train_precision: str,
    train_keep: int,
    train_parallel: ParallelSettings,
) -> dict[str, object]:
    """Train the latent, the dynamics on it and the temporal distance, save them, and measure the
    rollout error against the horizon; interrupted, it goes on from the newest checkpoint of any of
    these trainings."""
    how = Execution(train_precision, train_keep, train_parallel)
    if dynamics.kind == "vjepa2_ac":
        robot = vjepa2_ac.Recipe(seed, data_path, dynamics, train_dynamics)
        return vjepa2_ac.train(run, robot, how)
    recipe = Recipe(
        seed, latent, dynamics, distance, train_latent, train_dynamics, train_distance,
        train_precision,
    )  # fmt: skip
    data = open_data(run.path, data_path, "train")
    features = Features(run.path / "features" / "train", data)
    heldout = Features(
        run.path / "features" / "heldout", open_data(run.path, data_path, "heldout")
    )
    span(heldout.data, dynamics)  # what is wrong with it is said before the training
    model = make_model(recipe.model, features, data).to(dist().device)
    seconds, frames = 0.0, None
    if model.summary is not None:
        frames = Seen(model.summary, features)
        seconds += fit(run, latent_task(model, frames, recipe), train_latent, how)
        model.summary.standardise(frames.sample())
    seconds += fit(run, dynamics_task(model, features, frames, recipe), train_dynamics, how)
    if model.components is not None:
        model.components.fit(features.rows(sample_rows(features)).to(dist().device))
    latents = Latents(model, features, train_precision)
    seconds += fit(run, distance_task(model, latents, recipe), train_distance, how)
    if dist().first:
        save_latent_model(run.stage_dir("dynamics"), model)
    return {"rollout": rollout_errors(model, heldout, features), "training_seconds": seconds}


def make_model(
    settings: WorldModelSettings, features: Features, data: Trajectories
) -> LatentModel:
    """A fresh latent model of this size, its units of actions taken from the data; warns
    of action numbers that never or hardly vary there."""
    tokens = features.tokens(np.zeros(1, np.int64), np.zeros(1, np.int64))
    model = LatentModel(tokens.shape[-2], tokens.shape[-1], data.actions.shape[1], settings)
    steady = model.take_units(data.taken_actions)
    if steady and dist().first:
        told = ", ".join(f"number {i} is {value}" for i, value in steady.items())
        warnings.warn(
            f"of the {data.actions.shape[1]} action numbers (from 0) {told}: what never varies in the data teaches "
            "nothing, so that the dynamics ignore it and a search leaves it at that value; what hardly varies "
            "beside its own size counts little (if it matters, take its offset off the data)",
            stacklevel=2,
        )
    return model


def sample_rows(features: Features) -> np.ndarray:
    """[S] rows from all over a features file, in which principal components are found."""
    return np.linspace(0, len(features) - 1, min(SAMPLE, len(features))).astype(np.int64)


class Seen:
    """The principal components of all frames, held in memory: 4 K bytes a frame."""

    def __init__(self, summary: FactoredLatent, features: Features) -> None:
        self.features = features
        few = sample_rows(features)
        self._few = torch.from_numpy(few)
        summary.components.fit(features.rows(few).to(dist().device))
        with torch.no_grad():
            self._held = of_all_frames(features, summary.components)

    def at(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., K] of frames (multiples of the stride) of episodes, arrays of one shape, on this
        rank's device."""
        return self._held[torch.from_numpy(self.features.index(episode, frame))].to(dist().device)

    @torch.no_grad()
    def read(self, by: Callable[[Tensor], Tensor]) -> Tensor:
        """[R, ...] what `by` makes of the components of all frames, on the CPU."""
        return torch.cat([by(some.to(dist().device)).cpu() for some in self._held.split(SLAB)])

    def sample(self) -> Tensor:
        """[S, K] of frames from all over the file."""
        return self._held[self._few].to(dist().device)


def latent_task(model: LatentModel, frames: Seen, recipe: Recipe) -> TrainingTask:
    """Trains the dynamic numbers of the summary."""
    settings, latent_settings, data = recipe.train_latent, recipe.latent, frames.features.data
    assert model.summary and latent_settings
    training = FactoredLatentTraining(model.summary, data.actions.shape[1], latent_settings).to(
        dist().device
    )
    sampler = _windows(frames.features, recipe, settings.frames, "train.latent.frames")
    displacement = Displacement(data, absolute=data.action_kind == "absolute")

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        episode, frame, _ = sampler.batch(step, settings.batch)
        # From anywhere in the episode, later than the window too: it only helps to train, an agent
        # never needs it.
        other = sampler.elsewhere(step, episode[:, 0])[:, 0]
        way = displacement.at(data.offsets[episode[some]] + frame[some]).to(dist().device)
        window, elsewhere = (
            frames.at(episode[some], frame[some]),
            frames.at(episode[some, 0], other[some]),
        )
        with autocast(way.device, recipe.precision):
            return training.losses(window, elsewhere, way)

    return TrainingTask("dynamics", training, losses, part="latent")


def dynamics_task(
    model: LatentModel, features: Features, frames: Seen | None, recipe: Recipe
) -> TrainingTask:
    """Trains the dynamics, and with a summary its static numbers too: they are whatever tells
    best where actions lead.

    A window's are read from frames of the episode up to its first one, and averaged over these: an
    agent has no later ones, and read from frames that are to be foretold they would tell of what
    moves."""
    settings, members, summary = (
        recipe.train_dynamics,
        recipe.dynamics.ensemble_size,
        model.summary,
    )
    sampler = _windows(features, recipe, settings.frames, "train.dynamics.frames")

    places = None if summary is None or frames is None else frames.read(summary.dynamic)

    def latents(step: int, some: slice, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        if summary is None or frames is None or places is None:
            return features.tokens(episode[some], frame[some]).float().to(dist().device)
        dynamic = places[torch.from_numpy(features.index(episode[some], frame[some]))].to(
            dist().device
        )
        if summary.static is None:
            return dynamic[..., None, :]
        seen = sampler.up_to(step, frame[:, 0], count=settings.static_frames)[some]
        static_frames = frames.at(np.broadcast_to(episode[some, :1], seen.shape), seen)
        static = (
            summary.static(static_frames)
            .float()
            .mean(1, keepdim=True)
            .expand(-1, dynamic.shape[1], -1)
        )
        return torch.cat([dynamic, static], -1)[..., None, :]

    def of_member(step: int, some: slice, member: int) -> dict[str, Tensor]:
        drawn = step * members + member
        episode, frame, actions = sampler.batch(drawn, settings.batch)
        acts = torch.from_numpy(actions[some]).to(dist().device)
        with autocast(acts.device, recipe.precision):
            truth = latents(drawn, some, episode, frame)
            weight, context = settings.rollout, settings.context
            return model.dynamics_losses(
                truth, acts, rollout=weight, context=context, member=member
            )

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        each = [of_member(step, some, member) for member in range(members)]
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    learning = (
        [*model.members]
        if summary is None or summary.static is None
        else [*model.members, summary.static]
    )
    return TrainingTask(
        "dynamics",
        learning[0] if len(learning) == 1 else nn.ModuleList(learning),
        losses,
        part="dynamics",
    )


def distance_task(model: LatentModel, latents: Latents, recipe: Recipe) -> TrainingTask:
    """Trains the metric head; what it stands on is fixed by now."""
    settings, hard_pool = recipe.train_distance, recipe.distance.hard_pool
    sampler = PairSampler(latents.features.data, stride=latents.features.stride, seed=recipe.seed)
    hard = settings.batch // 2
    episode, frames, _ = sampler.batch(0, settings.batch)
    model.distance.standardise(latents.toward(episode, frames)[0].to(dist().device))

    def losses(step: int, part: slice) -> dict[str, Tensor]:
        # Which pairs are the hardest depends on the whole batch; each rank has all latents and
        # looks for itself.
        episode, frames, gap = sampler.batch(step, hard * hard_pool + settings.batch - hard)
        flat = latents.toward(episode, frames)  # [2, n, F]
        steps = torch.from_numpy(gap / recipe.dynamics.frameskip).float()
        some = hard * hard_pool
        chosen = hardest(flat[:, :some], steps[:some], count=hard, hard_pool=hard_pool)
        rows = torch.cat([chosen, torch.arange(some, len(steps))])[part]
        pairs, apart = (x.to(dist().device) for x in (flat[:, rows], steps[rows]))
        with autocast(pairs.device, recipe.precision):
            return model.distance.losses(pairs, apart)

    return TrainingTask("dynamics", model.distance, losses, part="distance")


def _windows(features: Features, recipe: Recipe, frames: int, setting: str) -> WindowSampler:
    return WindowSampler(
        features.data, frames=frames, frameskip=recipe.dynamics.frameskip, stride=features.stride,
        seed=recipe.seed, setting=setting,
    )  # fmt: skip
