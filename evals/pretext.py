"""The pretext task on held-out clips: how well a pretraining run predicts the tokens that its own
masks hide, whether a prediction finds its target among others, and a picture of both.

<run>/eval_pretext/result.json     figures of the newest checkpoint
<run>/eval_pretext/pretext.png     what is in view, what is predicted, and the error of each token

B clips, T time steps (tubelets, where they are longer than a frame), N = g * g tokens a time step,
M target tokens, G kinds of target, D numbers of a target of one kind, n predicted tokens in all.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from jepa_wm.core.checkpoint import load_checkpoint, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError, catching_signals
from jepa_wm.core.files import written_whole
from jepa_wm.core.precision import autocast
from jepa_wm.core.progress import Progress
from jepa_wm.core.run import Run
from jepa_wm.core.stage import stage
from jepa_wm.data.clips import BatchShape, ClipSampler, ClipSource
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import open_data
from jepa_wm.data.video_clips import clip_sampler, open_sets
from jepa_wm.evals.pretext_picture import ShownClips
from jepa_wm.evals.pretext_tokens import Columns, error_maps, figures, measure
from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.targets import kinds_of
from jepa_wm.report.pretext import pretext_png
from jepa_wm.training.pretrain import load_parts
from jepa_wm.training.samples import BatchReader

CLIPS, MAX_BATCH = 240, 64  # clips that are measured, about; of them at a time, at most
FIRST = 2**39  # the number of the first batch: no training comes so far


@stage("eval_pretext", after="pretrain", keep="newest", reads=("data.path",))
def pretext(
    run: Run,
    seed: int,
    data: DataSettings,
    encoder: EncoderSettings,
    jepa: JepaSettings,
    train_pretrain_batch: int,
    train_precision: str,
) -> dict[str, object]:
    """`relative_error` of predicting hidden tokens (1: as bad as a constant) and `retrieval` of
    the true target, by kind of target, mask type, time and place; and a `picture`.

    Of videos no part is held out: `held_out` is false, and clips are of those trained on."""
    model, step = _loaded(run, data, encoder, jepa)
    # Targets are centred and whitened over a batch: one as large as in training, if memory allows.
    clips = min(max(train_pretrain_batch, 2), MAX_BATCH)
    source = _source(run, data, seed, BatchShape(clips, jepa.num_distant_frames, jepa.min_gap))
    reader, count = BatchReader(source, data, encoder, jepa, seed), math.ceil(CLIPS / clips)
    folder = run.stage_dir("eval_pretext")

    by_mask: list[list[Columns]] = [[] for _ in jepa.masks]
    shown: ShownClips | None = None
    with catching_signals() as stop, Progress("pretext", count) as bar, torch.no_grad():
        for number in range(count):
            batch = reader.read(FIRST + number, slice(0, clips))
            with autocast(batch.clip.device, train_precision):
                targets, predicted = predictions(model, batch)
                by_other = predictions(model, replace(batch, clip=batch.clip.roll(1, 0)))[1]
            measured = [
                measure(model, mask, targets, *guesses)
                for mask, *guesses in zip(batch.masks, predicted, by_other, strict=True)
            ]
            for parts, columns in zip(by_mask, measured, strict=True):
                parts.append(columns)
            if shown is None:
                shown = ShownClips(model, batch, predicted, measured)
            shown.compare(batch, targets)
            bar.update(number + 1)
            stop.raise_if_requested()
    whole = [
        {name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in by_mask
    ]
    assert shown is not None
    kinds, picture = kinds_of(jepa), folder / "pretext.png"
    maps = error_maps(whole, kinds, model.encoder.grid)
    with written_whole(picture) as temporary:
        temporary.write_bytes(pretext_png(shown.clips(), maps))
    return {
        "checkpoint_step": step,
        "clips": count * clips,
        "held_out": data.videos is None,
        **figures(whole, kinds),
        "map": maps,
        "picture": str(picture),
    }


def _loaded(
    run: Run, data: DataSettings, encoder: EncoderSettings, jepa: JepaSettings
) -> tuple[JEPA, int]:
    """The model of the run's newest checkpoint, and the step that it was saved at."""
    newest = newest_checkpoint(run.path / "pretrain" / "checkpoints")
    if newest is None:
        raise UserError(
            f"{run.path / 'pretrain'}: no whole checkpoint, and the predictor is nowhere else; "
            "run `jepa-wm pretrain` first, without features.backbone: an encoder from elsewhere "
            "has no predictor to evaluate"
        )
    model = JEPA(data.image_size, encoder, jepa)
    weights, state = load_checkpoint(newest)
    load_parts(model, weights, source=str(newest))
    return model.eval().requires_grad_(False).to(dist().device), int(state["step"])


def _source(run: Run, data: DataSettings, seed: int, shape: BatchShape) -> ClipSource:
    """Clips of held-out episodes, drawn as those of training are; of videos, which have no
    held-out part, clips that no step of the training drew."""
    if data.videos is not None:
        sets = open_sets(run.path / "pretrain", data)
        return clip_sampler(sets, data, seed=seed, batch=shape)
    return ClipSampler(
        open_data(run.path, data.path, "heldout"),
        frames=data.num_frames,
        gaps=data.frame_gaps,
        seed=seed,
        batch=shape,
    )


def predictions(model: JEPA, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """(targets [B, T*N, G, D], predicted ones [B, M, G, D] for each mask), in fp32."""
    kinds = (len(kinds_of(model.settings)), -1)
    targets = model.compute_targets(batch.clip, batch.distant).unflatten(-1, kinds)
    predicted = []
    for each, mask in zip(
        model.predict(model.encode_context(batch), batch), batch.masks, strict=True
    ):
        hidden = each[:, -mask.target_ids.shape[1] :]  # behind those in view, if there are any
        predicted.append(hidden.float().unflatten(-1, kinds))
    return targets, predicted
