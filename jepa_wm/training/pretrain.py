"""Pretraining: masked latent prediction on clips, watched by an online probe.

B clips, T frames, R distant frames, C channels of px side, h x w px as stored."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import finite, write_atomic
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.settings import linear
from jepa_wm.core.stage import stage
from jepa_wm.data.clips import BatchShape, ClipSampler, ClipSource
from jepa_wm.data.images import augment, draw_augmentation, to_input
from jepa_wm.data.sampling import Prefetcher
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import open_data
from jepa_wm.data.video_clips import VideoClipSampler, clip_sampler, open_sets
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.masks import draw_masks
from jepa_wm.models.vit import Encoder
from jepa_wm.training.loop import TrainingTask, fit
from jepa_wm.training.online_probe import OnlineProbe, ProbeFrames
from jepa_wm.training.settings import PretrainTraining, TrainPretraining
from jepa_wm.training.start import start_at


@stage(
    after="collect",
    ranks=True,
    reads=("data.path", "train.pretrain.start"),
    unrecorded=("train.keep", "train.parallel", "features.backbone"),
    headline=("collapsed", "feature_std", "effective_rank", "probe"),
)
def pretrain(
    run: Run,
    seed: int,
    data: DataSettings,
    encoder: EncoderSettings,
    jepa: JepaSettings,
    train: PretrainTraining,
    features_backbone: str | None,
) -> dict[str, object]:
    """Train the encoder, then write collapse metrics and the probe of the final one beside a
    random encoder's; interrupted, it goes on from the newest checkpoint."""
    if features_backbone is not None:
        raise UserError(
            f"features.backbone {features_backbone} is the encoder of this run, so there is "
            "nothing to pretrain; after `collect` go on with `jepa-wm features`"
        )
    # What it learns from, and what it is probed on.
    settings, precision = train.pretrain, train.precision
    shape = BatchShape(settings.batch, jepa.num_distant_frames, jepa.min_gap)
    opened = _trajectories if data.videos is None else _videos
    source, frames, action_size = opened(run, data, shape, seed, settings.probe_frames)
    probe = OnlineProbe(frames, data.image_size, encoder, precision, seed)

    # The model, and its encoder as it was before training.
    model = JEPA(data.image_size, encoder, jepa, action_size=action_size)
    random_encoder = Encoder(data.image_size, encoder)
    random_encoder.load_state_dict(model.encoder.state_dict())
    if settings.start is not None:
        start_at(model, settings.start)
    model.to(dist().device)

    # Training, then the probe that is reported.
    reader = BatchReader(source, data, encoder, jepa, settings.batch, seed)
    task = make_task(model, reader, settings, precision, probe)
    seconds = fit(run, task, settings, train)
    steps = settings.final_probe_steps
    metrics, errors = probe(model.target, steps=steps, label="probe" if dist().first else "")
    reference = probe_once(run, probe, random_encoder, steps) if settings.steps else errors
    scores = {}
    for name, error in errors.items():
        unit = probe.unit(name)
        scores[name] = {"error": error, "unit": unit, "random_encoder": reference[name]}
    result: dict[str, object] = {
        **metrics,
        "probe": scores,
        "training_seconds": seconds,
        "steps": settings.steps,
        "clips": settings.steps * settings.batch,
    }
    if isinstance(source, VideoClipSampler):
        result["unreadable"] = _unreadable(source)
    return result


def _trajectories(
    run: Run, data: DataSettings, shape: BatchShape, seed: int, probe_frames: int
) -> tuple[ClipSource, ProbeFrames, int]:
    """(clips, frames of the online probe, how many numbers an action has)."""
    train, heldout = (
        open_data(run.path, data.path, "train"),
        open_data(run.path, data.path, "heldout"),
    )
    source = ClipSampler(
        train,
        frames=data.num_frames,
        gaps=data.frame_gaps,
        seed=seed,
        absolute=train.action_kind == "absolute",
        batch=shape,
    )
    frames = ProbeFrames.of_trajectories(train, heldout, count=probe_frames)
    return source, frames, train.actions.shape[1]


def _videos(
    run: Run, data: DataSettings, shape: BatchShape, seed: int, probe_frames: int
) -> tuple[ClipSource, ProbeFrames, int]:
    """The same of the run's videos, which have no actions."""
    # Rank 0 looks into every file and writes down what it finds, which the others then read.
    folder = run.stage_dir("pretrain")
    opened = open_sets(folder, data) if dist().first else []
    dist().broadcast(None)
    sets = opened or open_sets(folder, data)
    source = clip_sampler(sets, data, seed=seed, batch=shape)

    # The probe's frames are drawn as for training, but whole and in another order.
    whole = data.model_copy(update={"augment": None})
    probed = clip_sampler(sets, whole, seed=seed + 1)
    return source, ProbeFrames.of_videos(probed, count=probe_frames), 0


def _unreadable(source: VideoClipSampler) -> list[str]:
    """What any of the ranks could not read."""
    by_rank = dist().all_gather_object(source.unreadable)
    return sorted({reason for reasons in by_rank for reason in reasons})


def probe_once(
    run: Run, probe: OnlineProbe, random_encoder: Encoder, steps: int
) -> dict[str, float | None]:
    """The probe's errors on the encoder before training, measured once for a run folder; null
    where not finite."""
    file = run.stage_dir("pretrain") / "random_encoder.json"
    if dist().first and not file.exists():
        errors = probe(random_encoder, steps=steps, label="probe of a random encoder")[1]
        write_atomic(file, json.dumps(finite(errors)))
    return dist().broadcast(json.loads(file.read_text(encoding="utf-8")) if dist().first else {})


def make_task(
    model: JEPA,
    reader: BatchReader,
    settings: TrainPretraining,
    precision: str,
    probe: OnlineProbe | None = None,
) -> TrainingTask:
    """One pretraining step as a function of its number: clips, views, masks and momentum come from
    (seed, step)."""
    # Decoding takes its time; trajectories are read in none, and would only take it from the
    # training.
    batch_of = Prefetcher(reader.read).batch if reader.source.decodes else reader.read

    def losses(step: int, rows: slice) -> dict[str, Tensor]:
        batch = batch_of(step, rows)
        with autocast(batch.clip.device, precision):
            return model(batch)

    def update_target(step: int) -> None:
        start, end = model.settings.ema
        model.update_target(linear(step, steps=settings.steps, start=start, end=end))

    evaluate = None
    if probe is not None:
        evaluate = partial(probe.metrics, model.target, steps=settings.probe_steps)
    return TrainingTask("pretrain", model, losses, update_target, evaluate)


@dataclass(frozen=True)
class BatchReader:
    """Batches as functions of (step, rows). All that is random is drawn for the whole batch, then
    cut: so the union over ranks is what one process would have drawn."""

    source: ClipSource
    data: DataSettings
    encoder: EncoderSettings
    jepa: JepaSettings
    batch_size: int
    seed: int

    def read(self, step: int, rows: slice) -> Batch:
        """The samples `rows` of the batch of a step, where this process computes."""
        sample, device = self.source.sample(step, rows), dist().device
        grid = self.data.image_size // self.encoder.patch_size
        shape = (self.batch_size, self.data.num_frames // self.encoder.tubelet_size, grid)
        masks = draw_masks(self.jepa, shape, self._generator(step))
        images = self._images(sample.frames, step, rows)
        return Batch(
            clip=images[:, : self.data.num_frames],
            distant=images[:, self.data.num_frames :],
            masks=[mask.of(rows).to(device) for mask in masks],
            actions=sample.displacement.to(device),
            episode=sample.episode.to(device),
            time=sample.rows.to(device),
        )

    def _images(self, frames: Tensor, step: int, rows: slice) -> Tensor:
        """[B, T + R, C, px, px] in -1..1 from uint8 frames [B, T + R, h, w, C]."""
        device, settings = dist().device, self.data.augment
        if settings is None:
            return to_input(frames.to(device), self.data.image_size)
        # One view for all frames of a clip, or one for the clip and each distant frame.
        lengths = [frames.shape[1]]
        if settings.independent_views:
            lengths = [self.data.num_frames, *[1] * self.jepa.num_distant_frames]
        generator, views = self._generator(step + 2**40), []
        for view in frames.split(lengths, 1):
            u = draw_augmentation(self.batch_size, generator)[:, rows]
            views.append(augment(view, settings, self.data.image_size, u))
        return torch.cat(views, 1).to(device)

    def _generator(self, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed * 1_000_003 + number)
