"""Dynamics training: a latent of frozen features, dynamics on it, and the temporal distance.

B batch, T frames of a window, F earlier frames of its episode, N latent tokens, M dynamic numbers
of each."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import states_read
from jepa_wm.data.state_columns import StateColumns
from jepa_wm.data.windows import SpanSampler, WindowSampler
from jepa_wm.features.cache import Features
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import WorldModelSettings
from jepa_wm.training.frames import Frames
from jepa_wm.training.latent_task import LatentBatches, begin, latent_task
from jepa_wm.training.loop import Losses, TrainingTask, begun, fit
from jepa_wm.training.settings import DynamicsTraining, TrainDistance, TrainDynamics
from jepa_wm.world_model.latents import Latents, Recording
from jepa_wm.world_model.rollout_error import rollout_errors, span


@stage(
    after="features",
    ranks=True,
    reads=("data.path",),
    unrecorded=("train.keep", "train.parallel"),
    headline=("rollout", "states_read"),
    seed_offset=1,
)
def dynamics(
    run: Run,
    seed: int,
    data_path: str | None,
    settings: WorldModelSettings,
    train: DynamicsTraining,
) -> dict[str, object]:
    """Train the latent, the dynamics on it and the temporal distance, save them, and measure the
    rollout error against the horizon; interrupted, it goes on from the newest checkpoint of any of
    these trainings."""
    features, heldout = Features.both_of_run(run.path, data_path)
    span(heldout.data, settings.dynamics)  # what is wrong with it is said before the training
    model, precision = make_model(settings, features).to(dist().device), train.precision
    Recording(heldout.data, model)  # of which what is read has to be there

    # The latent: what is found in sample frames, what is trained, its units.
    if model.latent.reads_raw:
        encoder = FrozenEncoder.load(run.path / "features")
        model.latent.undo_standardising(encoder.mean, encoder.scale)
    frames, seconds, figures = Frames(model, features), 0.0, dict[str, object]()
    training = model.latent.training_of(features.data.actions.shape[1], model.block)
    if training is not None:
        sampler = windows(features, settings, seed, train.latent.frames, "latent")
        training.to(dist().device)
        batches = LatentBatches(model, frames, sampler, train.latent.batch, training.num_distant)
        if not begun(run, "dynamics", "latent"):
            begin(training, batches)
        seconds += fit(run, latent_task(training, batches), train.latent, train)
        figures = model.latent.select(batches.judged())
        model.latent.standardise(frames.sample())

    # The dynamics on it.
    frames.hold_known()
    sampler = windows(features, settings, seed, train.dynamics.frames, "dynamics")
    task = dynamics_task(model, frames, sampler, train.dynamics, precision)
    seconds += fit(run, task, train.dynamics, train)

    # The distance, which reads latents as an agent believes them.
    if model.components is not None:
        latents_read = model.latent.visual(frames.sample_latents())
        model.components.fit(model.latent.without_map(latents_read))
    if model.distance is not None:
        latents = Latents(model, features)
        task = distance_task(model, latents, train.distance, seed, precision)
        seconds += fit(run, task, train.distance, train)
    if dist().first:
        model.save(run.stage_dir("dynamics"))
    rollout = rollout_errors(model, heldout, features)
    reads = states_read(settings.latent.read_states)
    return {"rollout": rollout, **figures, **reads, "training_seconds": seconds}


def make_model(settings: WorldModelSettings, features: Features) -> LatentModel:
    """A fresh latent model, its units of actions and of proprioception taken from the data; warns
    of action numbers that never or hardly vary there."""
    data = features.data
    tokens = features.tokens(np.zeros(1, np.int64), np.zeros(1, np.int64))
    size = data.actions.shape[1]
    if settings.dynamics.acts_by_proprio:
        size = settings.latent.proprio_size
    units = StateColumns.of_data(settings.latent.proprio, data).units
    model = LatentModel(tokens.shape[-2], tokens.shape[-1], size, settings, proprio_units=units)
    recording = Recording(data, model)
    recording.fit_proprio()
    steady = model.take_units(recording.taken_actions())
    if steady and dist().first:
        numbers = ", ".join(f"number {i} is {value}" for i, value in steady.items())
        warnings.warn(
            f"of the {size} action numbers (from 0) {numbers}: what never varies in the data "
            "teaches nothing, so that the dynamics ignore it and a search leaves it at that "
            "value; what hardly varies beside its own size counts little (if it matters, take its "
            "offset off the data)",
            stacklevel=2,
        )
    return model


def windows(
    features: Features, settings: WorldModelSettings, seed: int, frames: int, part: str
) -> WindowSampler:
    """What draws windows of so many frames for one part of the training."""
    return WindowSampler(
        features.data, frames=frames, frameskip=settings.dynamics.frameskip,
        stride=features.stride, seed=seed, setting=f"train.{part}.frames",
    )  # fmt: skip


def dynamics_task(
    model: LatentModel, frames: Frames, sampler: WindowSampler, settings: TrainDynamics,
    precision: str,
) -> TrainingTask:  # fmt: skip
    """Trains the dynamics, and with them what the latent leaves to them: all of a joint one, and
    static numbers, which are whatever tells best where actions lead.

    A window's are read from frames of the episode up to its first one, and averaged over these: an
    agent has no later ones, and read from frames that are to be foretold they would tell of what
    moves."""
    latent, members = model.latent, len(model.ensemble)

    def latents(step: int, rows: slice, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        dynamic = frames.dynamic(episode[rows], frame[rows])  # [B, T, N, M]
        if not latent.static_dim:
            return dynamic
        earlier = sampler.up_to(step, frame[:, 0], count=latent.static_frames)[rows]  # [B, F]
        read = frames.static(np.broadcast_to(episode[rows, :1], earlier.shape), earlier)
        static = read.mean(1, keepdim=True)  # [B, 1, N, L]
        return torch.cat([dynamic, static.expand(-1, dynamic.shape[1], -1, -1)], -1)

    def of_member(step: int, rows: slice, member: int) -> Losses:
        drawn = step * members + member  # each member is trained on batches of its own
        episode, frame, actions = sampler.batch(drawn, settings.batch)
        blocks = frames.recording.blocks(episode[rows], frame[rows], actions[rows])
        window = latents(drawn, rows, episode, frame)
        with autocast(dist().device, precision):
            parts = model.dynamics_losses(
                window, blocks.to(dist().device), rollout=settings.rollout, member=member
            )
        if latent.joint:
            # From anywhere in the episode, so that what differs there has to differ in the latent.
            far = sampler.elsewhere(drawn, episode[:, 0], count=2)[rows]
            distant = frames.dynamic(np.broadcast_to(episode[rows, :1], far.shape), far)
            apart = torch.from_numpy(far != frame[rows][:, [0, -1]]).to(dist().device)
            joint = latent.joint_losses(window, distant, apart, drawn)
            parts |= joint | {"loss": torch.stack([parts["loss"], *joint.values()]).sum()}
        return parts

    def losses(step: int, rows: slice) -> Losses:
        each = [of_member(step, rows, member) for member in range(members)]
        return {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}

    trained: list[nn.Module] = [*model.ensemble]
    if latent.joint:
        trained.append(latent)
    elif latent.static is not None:
        trained.append(latent.static)
    together = trained[0] if len(trained) == 1 else nn.ModuleList(trained)
    return TrainingTask("dynamics", together, losses, part="dynamics")


def distance_task(
    model: LatentModel, latents: Latents, settings: TrainDistance, seed: int, precision: str
) -> TrainingTask:
    """Trains the temporal distance; what it stands on is fixed by now."""
    distance, stride = model.needed_distance(), latents.features.stride
    sampler = SpanSampler(latents.features.data, frames=settings.frames, stride=stride, seed=seed)
    path = latents.path() if distance.settings.measure == "path" else None

    def drawn(step: int, part: slice) -> tuple[Tensor, Tensor]:
        """(of a batch's part [b, T, N, D] latents, or where there is no map what the distance
        reads of them [b, T, F]; [b, T] what had passed when each was met)."""
        episode, frames = sampler.batch(step, settings.batch)
        # An agent stands at one of the frames; that or a later one is its goal.
        r = np.random.default_rng([seed, 17, step])
        ends = np.sort(r.integers(0, settings.frames, (settings.batch, 2)), 1)
        standing, goal = np.take_along_axis(frames, ends, 1)[part].T
        episode, frames = episode[part], frames[part]
        together = latents.flat_together if distance.field is None else latents.together
        at = together(episode, frames, standing, goal)
        passed = torch.from_numpy(frames / model.frameskip)
        if path is not None:
            passed = path[torch.from_numpy(latents.features.index(episode[:, None], frames))]
        return at.to(dist().device), passed.float().to(dist().device)

    def read(at: Tensor) -> Tensor:
        # `together` gave the frames of an episode the same static numbers.
        field = None if distance.field is None else model.map_field(at[:, 0])
        return at if field is None else model.distance_input(at, field[:, None])

    first = drawn(0, slice(0, settings.batch))[0]
    if distance.field is not None:
        distance.field.standardise(model.latent.map_of(first[:, 0]))
    with torch.no_grad():
        distance.standardise(read(first).flatten(0, 1))

    def losses(step: int, part: slice) -> Losses:
        at, passed = drawn(step, part)
        with autocast(at.device, precision):
            return distance.losses(read(at), passed)

    return TrainingTask("dynamics", distance, losses, part="distance")
