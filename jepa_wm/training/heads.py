"""Heads on frozen latents (stage heads): trained on the columns a trajectory file has, judged on
held-out ones.

F flattened latent width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.stage import stage
from jepa_wm.data.quantities import Quantities
from jepa_wm.features.cache import PARTS, Features
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import HeadSettings
from jepa_wm.training.loop import Losses, TrainingTask, fit
from jepa_wm.training.samples import Samples
from jepa_wm.training.settings import HeadsTraining, TrainHeads

JUDGED = 4000  # held-out samples, and training samples whose mean is the constant predictor


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
            Features.of_run(run.path, data_path, part), model,
            policy_steps=settings.sizes.policy_steps, seed=seed, precision=precision,
        )
        for part in PARTS
    )  # fmt: skip

    # The latents are frozen, so that all heads are one task over the same batches.
    fresh = make_heads(settings.sizes, model, taught).to(dist().device)
    seconds = fit(run, heads_task(fresh, taught, settings, precision), settings, train)

    # Scored on every rank, before they are moved for saving: judging asks the device.
    fresh.eval()
    scores = judge(fresh, heldout, taught, precision)
    if dist().first:
        fresh.cpu().save(run.stage_dir("heads"))
    return {"heads": scores, "training_seconds": seconds}


def make_heads(settings: HeadSettings, model: LatentModel, train: Samples) -> Heads:
    """Fresh heads for the columns there are, their ranges and units taken from the data; warns
    where the latent shows them nothing of what is constant."""
    latent = model.latent
    # They read the same numbers as a distance without a map does.
    if 0 < latent.map_dim == latent.static_dim and dist().first:
        warnings.warn(
            "heads do not read the map of latent.map_channels, and latent.static_points is 0: "
            "they know nothing of what is constant in an episode, such as walls; set "
            "latent.static_points=8 where they need to",
            stacklevel=2,
        )

    # A head for each column that is there; the policy needs none.
    columns, names = train.columns, []
    if "state" in columns:
        names = train.data.text("state_names").split()
        names = names or [f"state_{i}" for i in range(columns["state"].shape[1])]
    present = Present("reward" in columns, "terminated" in columns, tuple(names))
    heads = Heads(model.flat_width, model.block, present, settings)
    if heads.reward is not None:
        sums = train.step_rewards()
        heads.reward.span(float(sums.min()), float(sums.max()))
    if heads.state is not None:
        heads.state.mean.copy_(torch.from_numpy(columns["state"].mean(0, dtype=np.float64)))
        heads.state.scale.copy_(own_scale(torch.from_numpy(columns["state"])))
    return heads


def heads_task(heads: Heads, train: Samples, settings: TrainHeads, precision: str) -> TrainingTask:
    """Trains all heads side by side; they share nothing but the batch."""

    def losses(step: int, part: slice) -> Losses:
        with autocast(dist().device, precision):
            parts = {"policy": heads.policy.loss(*train.goals(step, settings.batch, part))}
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

    return TrainingTask("heads", heads, losses)


@torch.no_grad()
def judge(
    heads: Heads, heldout: Samples, train: Samples, precision: str
) -> dict[str, dict[str, object]]:
    """{head: {"error", "constant", "measure"}} on held-out samples; `constant` is the same measure
    of the best constant that the training samples give."""
    scores: dict[str, dict[str, object]] = {}
    with autocast(dist().device, precision):
        # Both are read off the same imagined latents, as a search reads them.
        if heads.reward is not None or heads.termination is not None:
            before, after, actions, truth = heldout.steps(0, JUDGED)
            taught = train.steps(0, JUDGED)[3]
        if heads.reward is not None:
            scores["reward"] = _score(
                _rms, truth["reward"], heads.reward(before, after, actions),
                taught["reward"].mean(), "root mean squared error of a model step",
            )  # fmt: skip
        if heads.termination is not None:
            scores["termination"] = _score(
                _log_loss, truth["terminated"], heads.termination(before, after, actions),
                taught["terminated"].mean(), "log loss in nats",
            )  # fmt: skip

        # A number of the state has a unit of its own: each group is scored apart.
        if heads.state is not None:
            latents, state = heldout.states(0, JUDGED)
            mean = train.states(0, JUDGED)[1].mean(0)
            groups = heldout.data.quantities
            scores |= _state_scores(groups, heads, state, heads.state(latents), mean)

        # A plan goes on past its goal; blocks from there on answer no question.
        start, goal, blocks, counts = heldout.goals(0, JUDGED)
        _, _, train_blocks, train_counts = train.goals(0, JUDGED)
        scores["policy"] = _score(
            _rms, blocks[counts > 0], heads.policy(start, goal)[counts > 0],
            train_blocks[train_counts > 0].mean(0), "root mean squared error, scaled actions",
        )  # fmt: skip
    return scores


def _state_scores(
    groups: Quantities, heads: Heads, truth: Tensor, guess: Tensor, mean: Tensor
) -> dict[str, dict[str, object]]:
    """The score of each group of state numbers [B, Y]; of angles by the shorter way round."""
    if not groups.groups:
        groups = Quantities({name: [i] for i, name in enumerate(heads.present.state)})
    state = truth.float().cpu().numpy()
    errors = groups.errors(guess.float().cpu().numpy(), state)
    constants = groups.errors(mean.expand_as(truth).float().cpu().numpy(), state)
    return {
        f"state/{name}": {
            "error": float(errors[name].mean()),
            "constant": float(constants[name].mean()),
            "measure": f"mean Euclidean error, {groups.unit(name) or 'unit unknown'}",
        }
        for name in groups.groups
    }


def _score(
    measure: Callable[[Tensor, Tensor], Tensor], truth: Tensor, guess: Tensor, constant: Tensor,
    label: str,
) -> dict[str, object]:  # fmt: skip
    """How far the guess and the constant are from the truth, by one measure of that label."""
    error, of_constant = measure(guess, truth), measure(constant.expand_as(truth), truth)
    return {"error": error.item(), "constant": of_constant.item(), "measure": label}


def _rms(guess: Tensor, truth: Tensor) -> Tensor:
    return (guess - truth).square().mean().sqrt()


def _log_loss(guess: Tensor, truth: Tensor) -> Tensor:
    with torch.autocast(guess.device.type, enabled=False):  # on a GPU mixed precision refuses it
        return torch.nn.functional.binary_cross_entropy(guess.float().clamp(1e-6, 1 - 1e-6), truth)
