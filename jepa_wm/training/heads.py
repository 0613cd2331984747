"""Heads on frozen latents (stage heads): trained on the columns a trajectory file has, judged on
held-out ones.

F flattened latent width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import autocast
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.stage import stage
from jepa_wm.data.datasets import quantities
from jepa_wm.data.quantities import Quantities
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import HeadSettings
from jepa_wm.training.loop import Execution, Losses, TrainingTask, fit
from jepa_wm.training.samples import Samples
from jepa_wm.training.settings import ParallelSettings, TrainHeads
from jepa_wm.world_model.saved import load_latent_model, save_heads

PARTS: tuple[Literal["train", "heldout"], ...] = ("train", "heldout")
JUDGED = 4000  # held-out samples, and training samples whose mean is the constant predictor

Score = dict[str, float | str]


@stage(
    after="dynamics",
    ranks=True,
    reads=("data.path",),
    unrecorded=("train_keep", "train_parallel"),
    when=lambda planner: planner.needs_heads,
    seed_offset=2,
)
def heads(
    run: Run,
    seed: int,
    data_path: str | None,
    train_heads: TrainHeads,
    train_precision: str,
    train_keep: int,
    train_parallel: ParallelSettings,
) -> dict[str, object]:
    """Train the heads, save them, and score each beside a constant predictor on held-out
    trajectories; interrupted, it goes on from the newest checkpoint."""
    with torch.random.fork_rng():  # what is drawn here is overwritten by what is loaded
        model = load_latent_model(run.path / "dynamics").eval().to(dist().device)
    refuse_without_heads(model)
    seen, heldout = (
        Samples.of_run(
            run.path, data_path, model, part,
            policy_steps=train_heads.sizes.policy_steps, seed=seed, precision=train_precision,
        )
        for part in PARTS
    )  # fmt: skip
    made = make_heads(train_heads.sizes, model, seen).to(dist().device)
    how = Execution(train_precision, train_keep, train_parallel)
    seconds = fit(run, heads_task(made, seen, train_heads, train_precision), train_heads, how)
    made.eval()
    scores = judge(made, heldout, seen, train_precision)
    if dist().first:
        save_heads(run.stage_dir("heads"), made.cpu())
    return {"heads": scores, "training_seconds": seconds}


def refuse_without_heads(model: LatentModel) -> None:
    """UserError for dynamics that no heads can be trained beside."""
    settings = model.settings.dynamics
    if not settings.has_heads:
        raise UserError(
            f"dynamics.name {settings.name} has no heads; train with dynamics.name=deterministic "
            "and latent.name=factored in another --run"
        )


def make_heads(settings: HeadSettings, model: LatentModel, seen: Samples) -> Heads:
    """Fresh heads for the columns there are, their ranges and units taken from the data."""
    columns = seen.columns
    names = str(seen.data.attributes.get("state_names", "")).split() if "state" in columns else []
    if "state" in columns and not names:
        names = [f"state_{i}" for i in range(columns["state"].shape[1])]
    present = Present("reward" in columns, "terminated" in columns, tuple(names))
    heads = Heads(model.flat_width, model.block, present, settings)
    if heads.reward is not None:
        sums = seen.step_rewards()
        heads.reward.span(float(sums.min()), float(sums.max()))
    if heads.state is not None:
        heads.state.mean.copy_(torch.from_numpy(columns["state"].mean(0, dtype=np.float64)))
        heads.state.scale.copy_(own_scale(torch.from_numpy(columns["state"])))
    return heads


def heads_task(heads: Heads, seen: Samples, settings: TrainHeads, precision: str) -> TrainingTask:
    """Trains all heads side by side; they share nothing but the batch."""

    def losses(step: int, part: slice) -> Losses:
        with autocast(dist().device, precision):
            parts = {"policy": heads.policy.loss(*seen.ways(step, settings.batch, part))}
            if heads.reward is not None or heads.termination is not None:
                before, after, actions, truth = seen.steps(step, settings.batch, part)
            if heads.reward is not None:
                parts["reward"] = heads.reward.loss(before, after, actions, truth["reward"])
            if heads.termination is not None:
                parts["termination"] = heads.termination.loss(
                    before, after, actions, truth["terminated"]
                )
            if heads.state is not None:
                parts["state"] = heads.state.loss(*seen.states(step, settings.batch, part))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    return TrainingTask("heads", heads, losses)


@torch.no_grad()
def judge(
    heads: Heads, heldout: Samples, seen: Samples, precision: str
) -> dict[str, dict[str, object]]:
    """{head: {"error", "constant", "measure"}} on held-out samples; `constant` is the same measure
    of the best constant that the training samples give."""
    scores: dict[str, dict[str, object]] = {}
    with autocast(dist().device, precision):
        if heads.reward is not None or heads.termination is not None:
            known, (before, after, actions, truth) = (
                seen.steps(0, JUDGED)[3],
                heldout.steps(0, JUDGED),
            )
        if heads.reward is not None:
            guess, mean = heads.reward(before, after, actions), known["reward"].mean()
            scores["reward"] = _score(
                _rms, truth["reward"], guess, mean, "root mean squared error of a model step"
            )
        if heads.termination is not None:
            guess, mean = heads.termination(before, after, actions), known["terminated"].mean()
            scores["termination"] = _score(
                _log_loss, truth["terminated"], guess, mean, "log loss in nats"
            )
        if heads.state is not None:
            (latents, state), mean = heldout.states(0, JUDGED), seen.states(0, JUDGED)[1].mean(0)
            scores |= _state_scores(
                quantities(heldout.data), heads, state, heads.state(latents), mean
            )
        start, goal, blocks, counts = heldout.ways(0, JUDGED)
        label = "root mean squared error, scaled actions"
        _, _, usual, used = seen.ways(0, JUDGED)
        taken, guessed = blocks[counts > 0], heads.policy(start, goal)[counts > 0]
        scores["policy"] = _score(_rms, taken, guessed, usual[used > 0].mean(0), label)
    return scores


def _state_scores(
    known: Quantities, heads: Heads, truth: Tensor, guess: Tensor, mean: Tensor
) -> dict[str, dict[str, object]]:
    """The score of each group of state numbers [B, Y]; of angles by the shorter way round."""
    if not known.groups:
        known = Quantities({name: [i] for i, name in enumerate(heads.present.state)})
    read, constant, state = (
        x.float().cpu().numpy() for x in (guess, mean.expand_as(truth), truth)
    )
    errors, usual = known.errors(read, state), known.errors(constant, state)
    return {
        f"state/{name}": {
            "error": float(errors[name].mean()), "constant": float(usual[name].mean()),
            "measure": f"mean Euclidean error, {known.unit(name) or 'unit unknown'}",
        }
        for name in known.groups
    }  # fmt: skip


def _score(
    measure: Callable[[Tensor, Tensor], Tensor],
    truth: Tensor,
    guess: Tensor,
    constant: Tensor,
    label: str,
) -> dict[str, object]:
    error, floor = measure(guess, truth).item(), measure(constant.expand_as(truth), truth).item()
    return {"error": error, "constant": floor, "measure": label}


def _rms(guess: Tensor, truth: Tensor) -> Tensor:
    return (guess - truth).square().mean().sqrt()


def _log_loss(guess: Tensor, truth: Tensor) -> Tensor:
    with torch.autocast(guess.device.type, enabled=False):  # on a GPU mixed precision refuses it
        return torch.nn.functional.binary_cross_entropy(guess.float().clamp(1e-6, 1 - 1e-6), truth)
