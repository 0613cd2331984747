"""Learning to see: masked latent prediction on clips, watched by collapse meters and an online state probe."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.core.files import finite, write_atomic
from jepa_wm.core.precision import autocast, set_threads, settled
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schedule import linear
from jepa_wm.core.schema import Config
from jepa_wm.core.world import here
from jepa_wm.encode.vit import Encoder
from jepa_wm.freeze.eye import Eye
from jepa_wm.freeze.probe import fit_attentive, state_errors
from jepa_wm.observe.clips import ClipSampler, to_input
from jepa_wm.observe.datasets import open_data, state_groups
from jepa_wm.observe.trajectories import Trajectories
from jepa_wm.predict.jepa import JEPA
from jepa_wm.predict.meters import collapse_meters
from jepa_wm.train.loop import Task, fit
from jepa_wm.train.parallel import whole_weights

Judgement = tuple[dict[str, float | bool], dict[str, float]]  # meters, and the probe's errors


def run(run: RunFolder) -> dict[str, object]:
    """The `pretrain` stage: trains, then writes meters and the probe of the final eye beside a random encoder's."""
    if run.config.freeze.backbone is not None:
        raise UserError(
            f"freeze.backbone {run.config.freeze.backbone} is the eye of this run, so there is nothing to pretrain; "
            "after `collect` go on with `jepa-wm encode`"
        )
    return run.once("pretrain", train)


def train(run: RunFolder) -> dict[str, object]:
    """The work of the stage; interrupted, it goes on from the newest checkpoint."""
    config = settled(run.config, run.path)
    set_threads(config.train.threads)
    data, heldout = open_data(run.path, config, "train"), open_data(run.path, config, "heldout")
    settings = config.train.pretrain
    torch.manual_seed(config.seed)
    model = JEPA(config.observe, config.encode, config.predict, action_size=data.actions.shape[1])
    judge = Judge(config, data, heldout)
    random_encoder = Encoder.from_settings(config.observe.image_size, config.encode)
    random_encoder.load_state_dict(model.encoder.state_dict())
    task = make_task(model.to(here().device), data, config, judge)
    seconds = fit(run, task, settings)
    meters, errors = judge.last or judge(model.target)  # the loop's last judgement is of the final eye
    reference = probe_once(run, judge, random_encoder) if settings.steps else errors
    return {
        **meters,
        "probe": {k: {"error": e, "unit": "px", "random_encoder": reference[k]} for k, e in errors.items()},
        "training_seconds": seconds, "steps": settings.steps, "clips": settings.steps * settings.batch,
    }  # fmt: skip


def probe_once(run: RunFolder, judge: Judge, random_encoder: Encoder) -> dict[str, float | None]:
    """The probe's errors on the encoder before training, measured once for a run folder; null where not finite."""
    file = run.stage_dir("pretrain") / "random_encoder.json"
    if here().first and not file.exists():
        write_atomic(file, json.dumps(finite(judge(random_encoder)[1])))
    return here().told_by_first(json.loads(file.read_text(encoding="utf-8")) if here().first else {})


def make_task(model: JEPA, data: Trajectories, config: Config, judge: Judge | None = None) -> Task:
    """One pretraining step as a function of its number: clips, masks and momentum are drawn from (seed, step)."""
    settings = config.train.pretrain
    sampler = ClipSampler(data, frames=config.observe.frames, gaps=config.observe.gaps, seed=config.seed)

    targets, size = config.predict.targets, config.observe.image_size

    def losses(step: int, some: slice) -> dict[str, Tensor]:
        # Drawn for the whole batch, then cut: so the union over ranks is what one process would have drawn.
        rows = sampler.rows(step, settings.batch)
        if targets.far:
            away = sampler.far_rows(step, settings.batch, count=targets.far, apart=targets.apart)
            rows = np.concatenate([rows, away], 1)
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        masks = [m.of(some) for m in model.draw_masks(settings.batch, sampler.frames, generator)]
        frames = to_input(sampler.frames_at(rows[some]).to(here().device), size)
        clip, far = frames[:, : sampler.frames], frames[:, sampler.frames :]
        with autocast(clip.device, config.train.precision):
            return model(clip, far, masks, sampler.path_at(rows[some]).to(clip.device))

    def follow(step: int) -> None:
        start, end = config.predict.ema
        model.follow(linear(step, steps=settings.steps, start=start, end=end))

    evaluate = None if judge is None else lambda: judge.figures(model.target)
    return Task("pretrain", model, losses, follow, evaluate)


@dataclass
class Judge:
    """Looks at an encoder from outside: collapse meters, and an attentive probe of the state on held-out frames."""

    config: Config
    train: Trajectories
    heldout: Trajectories
    last: Judgement | None = field(default=None, init=False)  # what `figures` saw last

    def __call__(self, encoder: Encoder) -> Judgement:
        """`collapsed`, `feature_std`, `effective_rank`; and the probe's error for each state group, none without."""
        settings, config = self.config.train.pretrain, self.config
        eye = Eye(_copy(encoder, config), config.observe.image_size, precision=config.train.precision)
        rows = _spread(len(self.train.actions), settings.probe_frames)
        seen = eye.standardise_on(self.train.frames[rows])
        meters = collapse_meters(seen * eye.scale)
        groups = state_groups(self.train)
        if not groups:
            return meters, {}
        test = _spread(len(self.heldout.actions), settings.probe_frames // 4)
        state = torch.from_numpy(self.train.column("state")[rows]).float()
        truth = torch.from_numpy(self.heldout.column("state")[test]).float()
        probe = fit_attentive(seen.bfloat16(), state, steps=settings.probe_steps, seed=config.seed)
        guess = probe.read(eye(torch.from_numpy(self.heldout.frames[test])).bfloat16())
        return meters, state_errors(guess, truth, groups)

    def figures(self, encoder: Encoder) -> dict[str, float]:
        """The same as flat numbers for the metrics file."""
        self.last = meters, errors = self(encoder)
        return {k: float(v) for k, v in meters.items()} | {f"probe/{name}": error for name, error in errors.items()}


def _copy(encoder: Encoder, config: Config) -> Encoder:
    copy = Encoder.from_settings(config.observe.image_size, config.encode)
    copy.load_state_dict(whole_weights(encoder))
    return copy


def _spread(rows: int, count: int) -> np.ndarray:
    """`count` row numbers spread evenly over the file (never more than there are)."""
    return np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(np.int64))
