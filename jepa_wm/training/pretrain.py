"""Pretraining: masked latent prediction on clips, watched by collapse meters and an online
state probe."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from jepa_wm.config import Config
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import finite, write_atomic
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.schedule import linear
from jepa_wm.core.stage import stage
from jepa_wm.data.augment import augment, draw_augmentation
from jepa_wm.data.clips import BatchShape, ClipSampler, ClipSource
from jepa_wm.data.datasets import check_same_state, open_data, quantities
from jepa_wm.data.images import to_input
from jepa_wm.data.quantities import Quantities
from jepa_wm.data.sampling import Prefetcher
from jepa_wm.data.settings import DataSettings
from jepa_wm.data.trajectories import Trajectories
from jepa_wm.data.video_clips import VideoClipSampler, clip_sampler, open_sets
from jepa_wm.data.video_set import VideoSet
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import fit_attentive, state_errors
from jepa_wm.models.collapse import collapse_metrics
from jepa_wm.models.jepa import JEPA, Origin
from jepa_wm.models.masks import Masked
from jepa_wm.models.settings import EncoderSettings, JepaSettings
from jepa_wm.models.vit import Encoder
from jepa_wm.training.loop import Task, fit
from jepa_wm.training.parallel import full_weights
from jepa_wm.training.settings import TrainPretraining
from jepa_wm.training.start import start_at

Judgement = tuple[dict[str, float | bool], dict[str, float]]  # meters, and the probe's errors


@stage(
    after="collect",
    ranks=True,
    reads=("data.path", "train.pretrain.start"),
    unrecorded=("features_backbone",),
    headline=("collapsed", "feature_std", "effective_rank", "probe"),
)
def pretrain(
    run: Run,
    seed: int,
    data: DataSettings,
    encoder: EncoderSettings,
    jepa: JepaSettings,
    train_pretrain: TrainPretraining,
    train_precision: str,
    features_backbone: str | None,
) -> dict[str, object]:
    """Train the encoder, then write collapse metrics and the probe of the final one beside a
    random encoder's; interrupted, it goes on from the newest checkpoint."""
    if features_backbone is not None:
        raise UserError(
            f"features.backbone {features_backbone} is the encoder of this run, so there is "
            "nothing to pretrain; after `collect` go on with `jepa-wm features`"
        )
    config = run.config
    settings = config.train.pretrain
    shape = BatchShape(settings.batch, config.jepa.num_distant_frames, config.jepa.min_gap)
    source: ClipSource
    if config.data.videos is None:
        train = open_data(run.path, config, "train")
        observe = config.data
        absolute = train.action_kind == "absolute"
        source = ClipSampler(
            train,
            frames=observe.num_frames,
            gaps=observe.frame_gaps,
            seed=config.seed,
            absolute=absolute,
            batch=shape,
        )
        judge = OnlineProbe.of_trajectories(config, train, open_data(run.path, config, "heldout"))
        action_size = train.actions.shape[1]
    else:
        folder, action_size = run.stage_dir("pretrain"), 0
        mine = open_sets(folder, config) if dist().first else []
        dist().broadcast(None)  # rank 0 has looked into every file and written down what it found
        sets = mine or open_sets(folder, config)
        source = clip_sampler(sets, config, seed=config.seed, batch=shape)
        judge = OnlineProbe.of_videos(config, sets)
    model = JEPA(config.data.image_size, config.encoder, config.jepa, action_size=action_size)
    random_encoder = Encoder.from_settings(config.data.image_size, config.encoder)
    random_encoder.load_state_dict(model.encoder.state_dict())
    if settings.start is not None:
        start_at(model, settings.start, config)
    task = make_task(model.to(dist().device), source, config, judge)
    seconds = fit(run, task, settings)
    meters, errors = judge(
        model.target, steps=settings.final_probe_steps, label="probe" if dist().first else ""
    )
    reference = probe_once(run, judge, random_encoder) if settings.steps else errors
    return {
        **meters,
        "probe": {
            k: {"error": e, "unit": judge.unit(k), "random_encoder": reference[k]} for k, e in errors.items()
        },
        "training_seconds": seconds, "steps": settings.steps, "clips": settings.steps * settings.batch,
        **({"unreadable": _unreadable(source)} if isinstance(source, VideoClipSampler) else {}),
    }  # fmt: skip


def _unreadable(source: VideoClipSampler) -> list[str]:
    """What any of the ranks could not read."""
    return sorted(
        {why for of_rank in dist().all_gather_object(source.unreadable) for why in of_rank}
    )


def probe_once(run: Run, judge: OnlineProbe, random_encoder: Encoder) -> dict[str, float | None]:
    """The probe's errors on the encoder before training, measured once for a run folder; null
    where not finite."""
    file = run.stage_dir("pretrain") / "random_encoder.json"
    if dist().first and not file.exists():
        steps = run.config.train.pretrain.final_probe_steps
        errors = judge(random_encoder, steps=steps, label="probe of a random encoder")[1]
        write_atomic(file, json.dumps(finite(errors)))
    return dist().broadcast(json.loads(file.read_text(encoding="utf-8")) if dist().first else {})


def make_task(
    model: JEPA, source: ClipSource, config: Config, judge: OnlineProbe | None = None
) -> Task:
    """One pretraining step as a function of its number: clips, crops, masks and momentum come from
    (seed, step)."""
    settings, observe, predict = config.train.pretrain, config.data, config.jepa

    def read(step: int, some: slice) -> tuple[Tensor, Tensor, list[Masked], Origin]:
        sample, device = source.sample(step, some), dist().device
        frames, path = sample.frames, sample.displacement.to(device)
        origin = Origin(sample.episode.to(device), sample.rows.to(device))
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        drawn = model.draw_masks(settings.batch, observe.num_frames, generator)
        masks = [mask.of(some).to(device) for mask in drawn]
        if observe.augment is None:
            return to_input(frames.to(device), observe.image_size), path, masks, origin
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step + 2**40)
        shown = []
        for view in frames.split(
            [observe.num_frames, *[1] * predict.num_distant_frames]
            if observe.augment.independent_views
            else frames.shape[1],
            1,
        ):
            u = draw_augmentation(settings.batch, generator)[:, some]
            shown.append(augment(view, observe.augment, observe.image_size, u))
        return torch.cat(shown, 1).to(device), path, masks, origin

    # Decoding takes its time; trajectories are read in none, and would only take it from the
    # training.
    batches = Prefetcher(read).batch if source.decodes else read

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        frames, path, masks, origin = batches(step, some)
        clip, far = frames[:, : observe.num_frames], frames[:, observe.num_frames :]
        with autocast(clip.device, config.train.precision):
            return model(clip, far, masks, path, origin)

    def follow(step: int) -> None:
        start, end = config.jepa.ema
        model.update_target(linear(step, steps=settings.steps, start=start, end=end))

    evaluate = None if judge is None else lambda: judge.figures(model.target)
    return Task("pretrain", model, losses, follow, evaluate)


@dataclass
class Known:
    """Frames whose state is known: those of the training part that the judge looks at, and others
    to test on."""

    quantities: Quantities
    state: np.ndarray  # [n, Y] of the judge's frames
    test: np.ndarray  # [m, h, w, c] uint8
    truth: np.ndarray  # [m, Y]


@dataclass
class OnlineProbe:
    """Looks at an encoder from outside: collapse meters, and an attentive probe of the state on
    held-out frames."""

    config: Config
    frames: np.ndarray  # [n, h, w, c] uint8
    known: Known | None = None

    @classmethod
    def of_trajectories(
        cls, config: Config, train: Trajectories, heldout: Trajectories
    ) -> OnlineProbe:
        """A judge of frames spread over the training part, and of the state where there is one."""
        count, known_as = config.train.pretrain.probe_frames, quantities(train)
        rows, test = _spread(len(train.actions), count), _spread(len(heldout.actions), count // 4)
        known = None
        if known_as.groups:
            check_same_state(train, heldout)
            known = Known(
                known_as, train.states()[rows], heldout.frames[test], heldout.states()[test]
            )
        return cls(config, train.frames[rows], known)

    @classmethod
    def of_videos(cls, config: Config, sets: list[VideoSet]) -> OnlineProbe:
        """A judge of frames of clips that are drawn as for training, but whole and in another
        order."""
        whole = config.model_copy(
            update={"data": config.data.model_copy(update={"augment": None})}
        )
        sampler = clip_sampler(sets, whole, seed=config.seed + 1)
        clips = -(-config.train.pretrain.probe_frames // config.data.num_frames)
        return cls(config, sampler.frames_at(sampler.rows(0, clips)).flatten(0, 1).numpy())

    def __call__(self, encoder: Encoder, *, steps: int, label: str = "") -> Judgement:
        """`collapsed`, `feature_std`, `effective_rank`; and the error for each state group, none
        without, of a probe fitted in so many steps, under a progress bar if it is given a
        label."""
        config, known = self.config, self.known
        frozen = FrozenEncoder(
            _copy(encoder, config), config.data.image_size, precision=config.train.precision
        ).to(dist().device)
        seen = frozen.standardise_on(self.frames)
        meters = collapse_metrics(seen * frozen.scale, self.frames)
        if known is None:
            return meters, {}
        state = torch.from_numpy(known.quantities.unrolled(known.state))
        probe = fit_attentive(seen.bfloat16(), state, steps=steps, seed=config.seed, label=label)
        guess = known.quantities.rolled(
            probe.predict(frozen(torch.from_numpy(known.test)).bfloat16()).numpy()
        )
        return meters, state_errors(
            guess, known.truth, known.quantities.groups, known.quantities.units
        )

    def unit(self, group: str) -> str:
        """The unit of a state group's error; "" where none is known."""
        return self.known.quantities.unit(group) if self.known else ""

    def figures(self, encoder: Encoder) -> dict[str, float]:
        """The same as flat numbers for the metrics file."""
        meters, errors = self(encoder, steps=self.config.train.pretrain.probe_steps)
        return {k: float(v) for k, v in meters.items()} | {
            f"probe/{name}": error for name, error in errors.items()
        }


def _copy(encoder: Encoder, config: Config) -> Encoder:
    copy = Encoder.from_settings(config.data.image_size, config.encoder)
    copy.load_state_dict(full_weights(encoder))
    return copy


def _spread(rows: int, count: int) -> np.ndarray:
    """`count` row numbers spread evenly over the file (never more than there are)."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))
