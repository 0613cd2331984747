"""The evaluations of a run: probes of its frozen features on labelled data (linear and attentive
heads, ridge regression, nearest neighbours), collapse of the encoder, error of the rollouts.

Settings of a probe are chosen on a part of the training samples, for each group of numbers by
itself; the test samples are predicted once.

n samples, N tokens, D width, F numbers of a feature, Y numbers of a target, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.stage import stage
from jepa_wm.core.supervision import states_read
from jepa_wm.data.sampling import spread
from jepa_wm.data.trajectories import open_data
from jepa_wm.evals.evaluation import Evaluation, Features, Rows, evaluation
from jepa_wm.evals.scores import Losses, better_by
from jepa_wm.features.cache import Features as CachedFeatures
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import (
    MAX_NORM,
    AttentiveHead,
    Head,
    LinearHead,
    Loss,
    NearestNeighbors,
    TargetScale,
    attentive_loss,
    head_loss,
    pooled,
    seeded,
    train_heads,
)
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.losses import collapse_metrics
from jepa_wm.world_model.rollout_error import rollout_errors

PENALTIES = tuple(
    10**power for power in np.arange(-4, 3.01, 0.5).tolist()
)  # a sample, unit spread
Build = Callable[..., nn.Module]  # of the numbers of tokens, of their width and of outputs
Reference = dict[str, Losses]  # of the encoder, by group; what baselines are compared with
Key = TypeVar("Key")  # what tells one setting that is tried from another


@evaluation("linear")
def linear(asked: Evaluation) -> Rows:
    """Linear heads on pooled tokens with every learning rate and weight decay; figures of the best
    and what was `chosen`."""
    rows: Rows = {}
    first: Reference = {}
    for name in asked.representations:
        train, test = asked.features(name)
        kinds = {pool: partial(LinearHead, pool=pool) for pool in pools(name)}
        rows[name] = _best_head(asked, kinds, train, test, name, first)
    return rows


@evaluation("attentive")
def attentive(asked: Evaluation) -> Rows:
    """Attentive heads of several depths, chosen as linear ones; for each depth (`depth_1`, ...)
    its figures by representation."""
    settings = asked.settings
    rows: Rows = {f"depth_{depth}": {} for depth in settings.depths}
    first: dict[int, Reference] = {depth: {} for depth in settings.depths}
    for name in asked.representations:
        # Raw pixels too in full size: the head sees patches.
        train, test = asked.features(name, size=asked.image_size)
        for depth in settings.depths:
            build = partial(
                AttentiveHead, depth=depth, head_dim=settings.head_dim, frames=train.steps
            )
            # Both ways are tried for each representation: norms help to find small things in
            # features, and take their brightness from pixels.
            kinds = {"normed": build, "as they are": partial(build, normed=False)}
            figures = _best_head(
                asked, kinds, train, test, f"{name}_{depth}", first[depth],
                loss=attentive_loss, max_norm=MAX_NORM,
            )  # fmt: skip
            rows[f"depth_{depth}"][name] = figures
    return rows


@evaluation("knn")
def knn(asked: Evaluation) -> Rows:
    """The votes of the nearest training samples by cosine; figures of the better way of pooling
    and which was `chosen`."""
    k, rows = asked.settings.num_neighbors, {}
    first: Reference = {}
    for name in asked.representations:
        train, test = asked.features(name)
        fit, choose = asked.split(train)
        if k > len(fit):
            raise UserError(
                f"probes.num_neighbors {k} are more than the {len(fit)} samples to choose them "
                "from"
            )
        values = asked.values(train)
        errors: dict[str, np.ndarray] = {}
        for pool in pools(name):
            features = pooled(train.tokens, pool).numpy()
            votes = NearestNeighbors(features[fit], values[fit]).predict(features[choose], k)
            errors[pool] = _errors(votes, train.part.target[choose], train, asked)

        # All training samples vote on the test.
        best = _best(asked, errors)
        predictions: dict[str, np.ndarray] = {}
        for pool in set(best.values()):
            neighbors = NearestNeighbors(pooled(train.tokens, pool).numpy(), values)
            predictions[pool] = neighbors.predict(pooled(test.tokens, pool).numpy(), k)
        chosen = {group: {"pool": pool} for group, pool in best.items()}
        rows[name] = _figures(asked, best, predictions, chosen, test, name, first)
    return rows


@evaluation("state")
def state(asked: Evaluation) -> Rows:
    """Ridge regression to a column of trajectories; R2 and error of each group of numbers, and the
    penalty and way of pooling that were `chosen`."""
    if asked.data.classes is not None:
        raise UserError(
            "the data has classes, and eval state reads numbers; use linear, attentive or knn"
        )
    rows: Rows = {}
    first: Reference = {}
    for name in asked.representations:
        train, test = asked.features(name)
        fit, choose = asked.split(train)

        # Penalty and pooling are chosen on training samples that the fit has not met.
        target = train.part.target
        errors: dict[tuple[str, float], np.ndarray] = {}
        for pool in pools(name):
            features = pooled(train.tokens, pool).numpy()
            ridges = fit_ridge(features[fit], target[fit], PENALTIES)
            for penalty, ridge in zip(PENALTIES, ridges, strict=True):
                prediction = ridge.predict(features[choose])
                errors[pool, penalty] = _errors(prediction, target[choose], train, asked)

        # What is tested is fitted to all training samples, with what was chosen.
        best = _best(asked, errors)
        predictions: dict[tuple[str, float], np.ndarray] = {}
        for pool, penalty in set(best.values()):
            ridge = fit_ridge(pooled(train.tokens, pool).numpy(), target, (penalty,))[0]
            predictions[pool, penalty] = ridge.predict(pooled(test.tokens, pool).numpy())
        chosen = {
            group: {"pool": pool, "penalty": penalty} for group, (pool, penalty) in best.items()
        }
        rows[name] = _figures(asked, best, predictions, chosen, test, name, first)
    return rows


@stage("eval_collapse", after="features", keep="newest", reads=("data.path",))
def collapse(
    run: Run, data_path: str | None, train_pretrain_probe_frames: int
) -> dict[str, object]:
    """`collapsed`, `feature_std`, `effective_rank` of the frozen encoder on the training frames
    that pretraining tells them of; the few held-out episodes show less, so that of these they
    would be smaller."""
    train = open_data(run.path, data_path, "train")
    encoder = FrozenEncoder.load(run.path / "features").to(dist().device)
    frames = train.frames[spread(len(train.actions), train_pretrain_probe_frames)]
    return dict(collapse_metrics(encoder.raw(torch.from_numpy(frames)), frames))


@stage("eval_rollout", after="dynamics", keep="newest", reads=("data.path",))
def rollout(run: Run, data_path: str | None) -> dict[str, object]:
    """`rollout`: a row per horizon 1..32."""
    model = LatentModel.load(run.path / "dynamics").to(dist().device)
    train, heldout = CachedFeatures.both_of_run(run.path, data_path)
    reads = states_read(model.settings.latent.read_states)
    return {"rollout": rollout_errors(model, heldout, train), **reads}


def pools(name: str) -> tuple[str, ...]:
    """The ways of pooling to choose from; the mean of raw pixels says too little to be tried."""
    return ("all",) if name == "pixels" else ("mean", "all")


def _best_head(
    asked: Evaluation, kinds: Mapping[str, Build], train: Features, test: Features, name: str,
    first: Reference, *, loss: Loss = head_loss, max_norm: float | None = None,
) -> dict[str, object]:  # fmt: skip
    """Figures of the best of all heads: trained on one share of the training samples by a loss,
    with gradients of at most `max_norm`, chosen on the rest."""
    classes, settings = asked.data.classes, asked.settings
    target, scale = torch.from_numpy(train.part.target), None
    if classes is None:
        scale = TargetScale.of(target)
        target = scale.standardise(target)
    outputs = len(classes) if classes is not None else target.shape[1]

    # Every kind with every learning rate and weight decay, all of one kind from the same start.
    heads = []
    for kind, rate, decay in product(kinds, settings.learning_rates, settings.weight_decays):
        build = partial(kinds[kind], *train.tokens.shape[1:], outputs)
        heads.append(Head(kind, rate, decay, seeded(build, asked.seed).to(dist().device)))
    fit, choose = (torch.from_numpy(rows) for rows in asked.split(train))
    train_heads(
        heads, train.tokens[fit], target[fit], steps=settings.steps,
        batch_size=settings.batch_size, seed=asked.seed, loss=loss, max_norm=max_norm,
        label=f"{name}: heads",
    )  # fmt: skip

    losses = {
        i: _head_losses(head, train.tokens[choose], target[choose]) for i, head in enumerate(heads)
    }
    best = _best(asked, losses)
    predictions: dict[int, np.ndarray] = {}
    for i in set(best.values()):
        raw = heads[i].outputs(test.tokens)
        predictions[i] = (raw.softmax(-1) if scale is None else scale.restore(raw)).numpy()
    chosen = {group: heads[i].settings for group, i in best.items()}
    return _figures(asked, best, predictions, chosen, test, name, first)


# ---------------------------------------------------------------- what is chosen


def _head_losses(head: Head, tokens: Tensor, target: Tensor) -> np.ndarray:
    """[Y] the mean squared error of each standardised number of a target [n, Y], or [1] the cross
    entropy of classes [n]."""
    outputs = head.outputs(tokens)
    if target.dim() == 1:
        return np.array([float(head_loss(outputs, target))])
    return (outputs - target).square().mean(0).numpy()


def _errors(
    prediction: np.ndarray, target: np.ndarray, train: Features, asked: Evaluation
) -> np.ndarray:
    """[1] the share of wrong classes, or [Y] the mean squared error of each number in units of its
    variance: less is better."""
    if asked.data.classes is not None:
        return np.array([(prediction.argmax(1) != target).mean()])
    spread = own_scale(torch.from_numpy(train.part.target)).numpy()
    return np.square((prediction - target) / spread).mean(0)


def _best(asked: Evaluation, errors: Mapping[Key, np.ndarray]) -> dict[str, Key]:
    """Of the settings that were tried with these errors the best for each group of numbers (for
    classes, one group without a name): what reads a large thing well needs another penalty than
    what reads a small one, and none of them is to pay for the other."""
    best = {}
    for group, columns in _columns(asked, len(next(iter(errors.values())))).items():
        of_group = {key: float(each[columns].mean()) for key, each in errors.items()}
        best[group] = min(of_group, key=lambda key: of_group[key])
    return best


def _columns(asked: Evaluation, count: int) -> dict[str, list[int]]:
    """The columns of a target of `count` numbers that each group has."""
    if asked.data.classes is not None:
        return {"": list(range(count))}
    return asked.data.quantities.unrolled_groups(count)


def _figures(
    asked: Evaluation,
    best: Mapping[str, Key],
    predictions: Mapping[Key, np.ndarray],
    chosen: Mapping[str, object],
    test: Features,
    name: str,
    first: Reference,
) -> dict[str, object]:
    """The figures of test predictions [n, Y or C], of every group those of what is the `best` for
    it, and what was `chosen`. The encoder's own, which comes `first`, is kept there; a baseline is
    told by how much the `encoder_is_better`, on the same videos or episodes."""
    figures: dict[str, object] = {}
    kept = {}
    for group, key in best.items():
        own = asked.figures(predictions[key], test, name)
        figures |= {what: own[what] for what in own if what == group or what not in best}
        kept[group] = asked.losses(predictions[key], test)[group]
    if first:
        better = {group: better_by(first[group], lost) for group, lost in kept.items()}
        figures["encoder_is_better"] = better.get("", better)
    else:
        first |= kept
    return {**figures, "chosen": chosen.get("", chosen)}
