"""How good heads are on held-out samples, each beside the best constant of the training samples.

B samples, H model steps, Y state numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast
from jepa_wm.data.quantities import Quantities
from jepa_wm.models.heads import Heads
from jepa_wm.models.policies import GCIVL, Legs
from jepa_wm.training.legs import LegSampler
from jepa_wm.training.samples import Samples

JUDGED = 4000  # held-out samples, and training samples whose mean is the constant predictor


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
    return scores


@torch.no_grad()
def judge_policies(
    heads: Heads, heldout: LegSampler, train: LegSampler, precision: str
) -> dict[str, dict[str, object]]:
    """{policy: as of `judge`} on held-out legs: of cloning on all, of inverse dynamics and of
    implicit values on efficient ones; and how well values tell how long fast ones are."""
    scores: dict[str, dict[str, object]] = {}
    if not heads.settings.policies:
        return scores
    with autocast(dist().device, precision):
        legs, taught = heldout.batch(0, JUDGED), train.batch(0, JUDGED)
        for name, policy in heads.all_policies():
            # A plan goes on past its goal; blocks from there on answer no question.
            which = "efficient legs" if policy.seeks_efficient else "all legs"
            counted, of_taught = (
                (one.efficient_counts if policy.seeks_efficient else one.counts) > 0
                for one in (legs, taught)
            )
            if not bool(counted.any()) or not bool(of_taught.any()):
                continue
            scores[f"policy/{name}"] = _score(
                _rms, legs.blocks[counted], policy.along(legs)[counted],
                taught.blocks[of_taught].mean(0),
                f"root mean squared error, scaled actions of {which}",
            )  # fmt: skip
            fast = all(bool((one.efficient * one.fast).any()) for one in (legs, taught))
            if isinstance(policy, GCIVL) and fast:
                scores[f"value/{name}"] = _value_score(policy, legs, taught)
    return scores


def _value_score(policy: GCIVL, legs: Legs, taught: Legs) -> dict[str, object]:
    """How far the steps that values stand for are from those of fast efficient legs: a value
    tells the fewest, and a leg that is efficient by its path may be a slow one."""
    chosen, of_taught = ((one.efficient * one.fast) > 0 for one in (legs, taught))
    known = taught.steps[of_taught].float()
    guess = policy.steps(legs.start[chosen], legs.goal[chosen])
    return _score(
        _rms, legs.steps[chosen].float(), guess, known.mean(),
        "root mean squared error, model steps of fast efficient legs",
    )  # fmt: skip


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
