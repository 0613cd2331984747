"""Heads on frozen latents (stage heads): trained on the columns a trajectory file has.

F flattened latent width, P numbers that policies read of a latent, H model steps.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import states_read
from jepa_wm.features.cache import Features
from jepa_wm.models.head_settings import HeadSettings
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.training.head_scores import JUDGED, judge, judge_policies
from jepa_wm.training.legs import LegSampler
from jepa_wm.training.loop import Losses, TrainingTask, fit
from jepa_wm.training.samples import Samples
from jepa_wm.training.settings import HeadsTraining, TrainHeads


@stage(
    after="dynamics",
    ranks=True,
    reads=("data.path",),
    unrecorded=("train.keep", "train.parallel"),
    seed_offset=2,
)
def heads(run: Run, seed: int, data_path: str | None, train: HeadsTraining) -> dict[str, object]:
    """Train the heads, save them, and score each beside a constant predictor on held-out
    trajectories; interrupted, it goes on from the newest checkpoint."""
    settings, precision = train.heads, train.precision
    # The values drawn for a model that is about to be loaded must not shift the heads' own.
    with torch.random.fork_rng():
        model = LatentModel.load(run.path / "dynamics").eval().to(dist().device)
    if not model.settings.dynamics.has_heads:
        raise UserError(
            f"dynamics.name {model.settings.dynamics.name} has no heads; train with "
            "dynamics.name=deterministic and latent.name=factored in another --run"
        )
    taught, heldout = (
        Samples.of(
            features, model,
            policy_steps=settings.sizes.policy_steps, seed=seed, precision=precision,
        )
        for features in Features.both_of_run(run.path, data_path)
    )  # fmt: skip

    # The latents are frozen, so that all heads are one task over the same batches.
    sizes = settings.sizes
    if sizes.policy_frames is None:
        sizes = sizes.model_copy(update={"policy_frames": model.context_frames})
    legs = LegSampler(taught, frames=sizes.policy_frames or 1)
    fresh = make_heads(sizes, model, taught, legs).to(dist().device)
    seconds = fit(run, heads_task(fresh, taught, legs, settings, precision), settings, train)

    # Scored on every rank, before they are moved for saving: judging asks the device.
    fresh.eval()
    scores = judge(fresh, heldout, taught, precision)
    unseen = LegSampler(heldout, frames=legs.frames, fast_step=legs.fast_step)
    scores |= judge_policies(fresh, unseen, legs, precision)
    if dist().first:
        fresh.cpu().save(run.stage_dir("heads"))
    reads = states_read(model.settings.latent.read_states)
    return {"heads": scores, **reads, "training_seconds": seconds}


def make_heads(
    settings: HeadSettings, model: LatentModel, train: Samples, legs: LegSampler
) -> Heads:
    """Fresh heads for the columns there are, and policies, their ranges and units taken from the
    data; warns where the latent shows heads nothing of what is constant.

    UserError where there is nothing to be trained."""
    latent, columns, names = model.latent, train.columns, []
    if not columns and not settings.policies:
        raise UserError(
            f"{train.data.path}: has no column 'reward', 'terminated' or 'state', and "
            "train.heads.sizes.policies is empty: there is no head to train; name a policy there"
        )
    # They read the same numbers as a distance without a map does; policies read the map too.
    if 0 < latent.map_dim == latent.static_dim and columns and dist().first:
        warnings.warn(
            "heads of rewards, ends and states do not read the map of latent.map_channels, and "
            "latent.static_points is 0: they know nothing of what is constant in an episode, such "
            "as walls; set latent.static_points=8 where they need to",
            stacklevel=2,
        )

    # A head for each column that is there; policies need none.
    if "state" in columns:
        names = train.data.text("state_names").split()
        names = names or [f"state_{i}" for i in range(columns["state"].shape[1])]
    present = Present("reward" in columns, "terminated" in columns, tuple(names))
    heads = Heads(
        model.flat_width, model.block, present, settings, policy_inputs=model.policy_inputs
    )
    if heads.reward is not None:
        sums = train.step_rewards()
        heads.reward.span(float(sums.min()), float(sums.max()))
    if heads.state is not None:
        heads.state.mean.copy_(torch.from_numpy(columns["state"].mean(0, dtype=np.float64)))
        heads.state.scale.copy_(own_scale(torch.from_numpy(columns["state"])))
    if settings.policies:
        drawn = legs.batch(0, JUDGED)
        for _, policy in heads.all_policies():
            policy.fit(drawn, fast_step=legs.fast_step)
    return heads


def heads_task(
    heads: Heads, train: Samples, legs: LegSampler, settings: TrainHeads, precision: str
) -> TrainingTask:
    """Trains all heads side by side; they share nothing but the batch."""

    def losses(step: int, part: slice) -> Losses:
        parts: Losses = {}
        with autocast(dist().device, precision):
            if heads.settings.policies:
                drawn = legs.batch(step, settings.batch, part)
                for name, policy in heads.all_policies():
                    for ending, loss in policy.losses(drawn).items():
                        parts[f"policy/{name}{ending}"] = loss
            # Both are read off an imagined latent, which costs more than the heads: it is imagined
            # once, and only where one of the two is there.
            if heads.reward is not None or heads.termination is not None:
                before, after, actions, truth = train.steps(step, settings.batch, part)
            if heads.reward is not None:
                parts["reward"] = heads.reward.loss(before, after, actions, truth["reward"])
            if heads.termination is not None:
                parts["termination"] = heads.termination.loss(
                    before, after, actions, truth["terminated"]
                )
            if heads.state is not None:
                parts["state"] = heads.state.loss(*train.states(step, settings.batch, part))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    return TrainingTask("heads", heads, losses, lambda step: heads.update_target())
