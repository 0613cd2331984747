"""Pretraining: masked latent prediction on clips, from scratch or from other weights, watched by
an online probe.

n frames of the training part, m held-out ones, h x w px, C channels, Y numbers of a state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor

from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.settings import linear
from jepa_wm.core.stage import stage
from jepa_wm.data.clips import BatchShape, ClipSampler, ClipSource
from jepa_wm.data.held_out import check_same_state
from jepa_wm.data.sampling import Prefetcher
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import open_data
from jepa_wm.data.video_clips import clip_sampler, open_sets
from jepa_wm.features.cache import PARTS, part_of
from jepa_wm.features.foreign_file import IN_FOLDERS, read_parts
from jepa_wm.features.weights import Size, load_encoder, load_predictor, take_plain_frames
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA
from jepa_wm.models.losses import SAMPLES
from jepa_wm.models.vit import Encoder
from jepa_wm.training.gradient_shares import gradient_shares, is_sharded
from jepa_wm.training.loop import TrainingTask, begun, fit
from jepa_wm.training.online_probe import OnlineProbe, ProbedFrames, ProbedStates, probe_once
from jepa_wm.training.patch_init import init_patches
from jepa_wm.training.samples import BatchReader
from jepa_wm.training.settings import PretrainTraining, TrainPretraining

# The shares of the gradient are told on clips of a step that is never trained on, so many a rank.
WATCHED, WATCHED_CLIPS = 2**39 - 1, 16
SHOWN = 64  # of the spectrum of patches, at most
AT_ONCE = 16  # frames that are decoded for the probe between two steps of its bar


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
    source, action_size, frames, states = opened(run, data, shape, seed, settings.probe_frames)
    probe = OnlineProbe(frames, states, data.image_size, encoder, precision, seed)

    # The model, and an encoder of random weights.
    model = JEPA(data.image_size, encoder, jepa, action_size=action_size)
    random_encoder = Encoder(data.image_size, encoder)
    random_encoder.load_state_dict(model.encoder.state_dict())
    reader = BatchReader(source, data, encoder, jepa, seed)
    if settings.start is not None:
        start_at(model, settings.start)
    elif not begun(run, "pretrain"):
        init_patches(model, reader, seed)
    model.to(dist().device)

    # Training, then the probe that is reported.
    task = make_task(model, reader, settings, precision, probe)
    seconds = fit(run, task, settings, train)
    metrics, scores = _judged(run, probe, model.target, random_encoder, settings, jepa)
    result: dict[str, object] = {
        **metrics,
        **scores,
        "training_seconds": seconds,
        "steps": settings.steps,
        "clips": settings.steps * settings.batch,
    }
    if data.videos is not None:  # what any of the ranks could not read
        by_rank = dist().all_gather_object(source.unreadable)
        result["unreadable"] = sorted({reason for reasons in by_rank for reason in reasons})
    return result


def _judged(
    run: Run, probe: OnlineProbe, trained: Encoder, random_encoder: Encoder,
    settings: TrainPretraining, jepa: JepaSettings,
) -> tuple[dict[str, float | bool], dict[str, object]]:  # fmt: skip
    """(what the probe says of all features, `probe`, `velocity` and `patch_spectrum` beside a
    random encoder's) once training is over."""
    steps, label = settings.final_probe_steps, "probe" if dist().first else ""
    metrics, positions = probe(trained, steps=steps, label=label)
    velocities = probe.velocities(trained, steps=steps, label=label and "probe of velocities")
    judged = {"probe": positions, "velocity": velocities}
    untrained = not settings.steps and settings.start is None and jepa.patch_init == "normal"
    reference = {} if untrained else probe_once(run, probe, random_encoder, steps)
    scores: dict[str, object] = {}
    for kind, each in judged.items():
        scores[kind] = {
            name: {
                "error": score.error,
                "unit": probe.states.quantities.unit(name) if probe.states else "",
                "normalised_error": score.normalised,
                "random_encoder": score.error if untrained else reference[kind].get(name),
            }
            for name, score in each.items()
        }
    spectra = probe.patch_spectra(trained)
    scores["patch_spectrum"] = {name: each[:SHOWN].tolist() for name, each in spectra.items()}
    return metrics, scores


class Opened(NamedTuple):
    """What pretraining learns from, and what its encoder is probed on."""

    source: ClipSource
    action_size: int  # 0 of videos
    frames: np.ndarray  # [n, h, w, C] uint8
    states: ProbedStates | None = None


def _trajectories(
    run: Run, data: DataSettings, shape: BatchShape, seed: int, probe_frames: int
) -> Opened:
    """Those of a run, probed on frames from all over them."""
    train, heldout = (open_data(run.path, data.path, part) for part in PARTS)
    source = ClipSampler(
        train, frames=data.num_frames, gaps=data.frame_gaps, seed=seed,
        absolute=train.action_kind == "absolute", batch=shape,
    )  # fmt: skip
    columns, gap, states = train.quantities, min(data.frame_gaps), None
    seen = ProbedFrames.spread(train, probe_frames)
    if columns.groups:
        check_same_state(train, heldout)
        pairs = (
            ProbedFrames.spread(train, probe_frames, before=gap),
            ProbedFrames.spread(heldout, probe_frames // 4, before=gap),
        )
        judged = ProbedFrames.spread(heldout, probe_frames // 4)
        states = ProbedStates(columns, seen, judged, pairs, gap)
    # The frames whose states a probe is fitted to, in their order.
    return Opened(source, train.actions.shape[1], seen.pictures(), states)


def _videos(
    run: Run, data: DataSettings, shape: BatchShape, seed: int, probe_frames: int
) -> Opened:
    """The same of the run's videos, which have neither actions nor states."""
    # Rank 0 looks into every file and writes down what it finds, which the others then read.
    folder = run.stage_dir("pretrain")
    opened = open_sets(folder, data) if dist().first else []
    dist().broadcast(None)
    sets = opened or open_sets(folder, data)
    source = clip_sampler(sets, data, seed=seed, batch=shape)

    # The probe's frames are drawn as for training, but whole, in another order and one a clip; no
    # more than the metrics are taken of, as there is no state to read and decoding takes its time.
    whole = data.model_copy(update={"augment": None})
    probed = clip_sampler(sets, whole, seed=seed + 1)
    rows = probed.rows(0, min(probe_frames, SAMPLES))[:, :1]
    pictures = []
    with Progress("frames of the probe", len(rows)) if dist().first else nullcontext() as bar:
        for first in range(0, len(rows), AT_ONCE):
            pictures.append(probed.frames_at(rows[first : first + AT_ONCE]).flatten(0, 1).numpy())
            if bar is not None:
                bar.update(min(first + AT_ONCE, len(rows)))
    return Opened(source, 0, np.concatenate(pictures))


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
        # The watched clips are read by themselves: nothing is to be read ahead of them.
        batch = reader.read(step, rows) if step == WATCHED else batch_of(step, rows)
        with autocast(batch.clip.device, precision):
            return model(batch)

    def update_target(step: int) -> None:
        start, end = model.settings.ema
        model.update_target(linear(step, steps=settings.steps, start=start, end=end))

    def watch(trained: Callable[[int, slice], dict[str, Tensor]]) -> dict[str, float]:
        """The probe's figures, and which loss it is that trains the encoder, always told on the
        same clips."""
        assert probe is not None
        rows = dist().rows(settings.batch, 0, 1)
        few = slice(rows.start, min(rows.stop, rows.start + WATCHED_CLIPS))
        metrics = probe.metrics(model.target, steps=settings.probe_steps)
        compute = trained if is_sharded(model) else losses
        shares = gradient_shares(model, lambda: compute(WATCHED, few))
        return metrics | {f"gradient_share/{name}": share for name, share in shares.items()}

    watched = None if probe is None else watch
    return TrainingTask("pretrain", model, losses, update_target, watched)


def start_at(model: JEPA, path: str | Path) -> None:
    """Give a model the weights that `train.pretrain.start` names: a run folder, or a released
    V-JEPA 2 file.

    The frames may be larger and the clips longer than before, since positions are counted. Raises
    UserError for a path that holds neither, and for weights of another shape or key than the
    config's model has."""
    path = Path(path)
    if path.is_dir() and not any((path / name).is_file() for name in IN_FOLDERS):
        newest = newest_checkpoint(path / "pretrain" / "checkpoints")
        if newest is None:
            raise UserError(
                f"{path}: no run folder with a checkpoint of pretraining, and has no "
                f"{' or '.join(IN_FOLDERS)}; name another as start"
            )
        weights, source = load_checkpoint(newest)[0], str(newest)
    else:
        weights, source = _released(path, model), str(path)
    load_parts(model, weights, source=source)


def load_parts(model: JEPA, weights: Mapping[str, Tensor], *, source: str) -> None:
    """Give encoder, target and predictor their weights; `source` is what to call these in a
    message.

    Raises UserError for weights of another shape or key than the model has."""
    # What regularises begins anew, as does a part of the predictor that the other model has not.
    for part in ("encoder", "target", "predictor"):
        load_strict(getattr(model, part), part_of(weights, part), source=f"{source}: {part}")
    neighbors = part_of(weights, "neighbors")
    if neighbors and model.neighbors is None:
        width = len(neighbors["embed.bias"])
        raise UserError(f"{source}: its predictor has neighbors; set jepa.neighbor_width={width}")
    if neighbors and model.neighbors is not None:
        load_strict(model.neighbors, neighbors, source=f"{source}: neighbors")


def _released(path: Path, model: JEPA) -> dict[str, Tensor]:
    """The weights of a released pretraining file under our names, for frames in -1..1."""
    encoder, jepa = model.encoder.settings, model.settings
    image_size = model.encoder.grid * encoder.patch_size
    size = Size(image_size, encoder.num_heads, predictor_heads=jepa.num_heads)
    if jepa.target_levels != 1 or jepa.target_kinds != ("tokens",):
        raise UserError(
            f"{path}: its predictor predicts tokens of the last level; set jepa.target_levels=1 "
            "and jepa.target_kinds=[tokens]"
        )
    weights: dict[str, Tensor] = {}
    for part, released in (("encoder", "encoder"), ("target", "target_encoder")):
        # In a file without targets these begin where the encoder is.
        named = released if released in read_parts(path) else "encoder"
        loaded = take_plain_frames(load_encoder(path, size, part=named))
        # `locality` is only an initial value.
        differing = [
            f"{key} {value}"
            for key, value in loaded.settings.model_dump(exclude={"locality"}).items()
            if value != getattr(encoder, key)
        ]
        if differing:
            raise UserError(f"{path}: is a model with {', '.join(differing)}; set encoder so")
        weights |= {f"{part}.{name}": value for name, value in loaded.state_dict().items()}
    predictor = load_predictor(path, size).state_dict()
    count, held = len(jepa.masks), len(predictor["mask_tokens"])
    if held < count:
        raise UserError(f"{path}: has {held} mask tokens for {count} jepa.masks")
    # The released models have some that are never used.
    predictor["mask_tokens"] = predictor["mask_tokens"][:count]
    return weights | {f"predictor.{name}": value for name, value in predictor.items()}
