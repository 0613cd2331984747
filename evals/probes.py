"""The evaluations of a run: probes of its frozen features on labelled data (linear and attentive
heads, ridge regression, nearest neighbours), collapse of the encoder, error of the rollouts.

Settings of a probe are chosen on a part of the training samples; the test samples are predicted
once. n samples, N tokens, D width, F numbers of a feature, Y numbers of a target, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import UserError
from jepa_wm.core.run import Run
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.stage import stage
from jepa_wm.data.sampling import spread
from jepa_wm.data.trajectories import open_data
from jepa_wm.evals.evaluation import Evaluation, Features, Rows, evaluation
from jepa_wm.features.cache import PARTS
from jepa_wm.features.cache import Features as CachedFeatures
from jepa_wm.features.encoder import FrozenEncoder
from jepa_wm.features.probes import (
    AttentiveHead,
    Head,
    LinearHead,
    NearestNeighbors,
    TargetScale,
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


@evaluation("linear")
def linear(asked: Evaluation) -> Rows:
    """Linear heads on pooled tokens with every learning rate and weight decay; figures of the best
    and what was `chosen`."""
    rows: Rows = {}
    for name in asked.representations:
        train, test = asked.features(name)
        kinds = {pool: partial(LinearHead, pool=pool) for pool in pools(name)}
        rows[name] = _best_head(asked, kinds, train, test, name)
    return rows


@evaluation("attentive")
def attentive(asked: Evaluation) -> Rows:
    """Attentive heads of several depths, chosen as linear ones; for each depth (`depth_1`, ...)
    its figures by representation."""
    depths, head_dim = asked.settings.depths, asked.settings.head_dim
    rows: Rows = {f"depth_{depth}": {} for depth in depths}
    for name in asked.representations:
        # Raw pixels too in full size: the head sees patches.
        train, test = asked.features(name, size=asked.image_size)
        for depth in depths:
            kinds = {str(depth): partial(AttentiveHead, depth=depth, head_dim=head_dim)}
            figures = _best_head(asked, kinds, train, test, f"{name}_{depth}")
            rows[f"depth_{depth}"][name] = figures
    return rows


@evaluation("knn")
def knn(asked: Evaluation) -> Rows:
    """The votes of the nearest training samples by cosine; figures of the better way of pooling
    and which was `chosen`."""
    k, rows = asked.settings.num_neighbors, {}
    for name in asked.representations:
        train, test = asked.features(name)
        fit, choose = asked.split(train)
        if k > len(fit):
            raise UserError(
                f"probes.num_neighbors {k} are more than the {len(fit)} samples to choose them "
                "from"
            )
        values, errors = asked.values(train), {}
        for pool in pools(name):
            features = pooled(train.tokens, pool).numpy()
            votes = NearestNeighbors(features[fit], values[fit]).predict(features[choose], k)
            errors[pool] = _error(votes, train.part.target[choose], train, asked)
        pool = min(errors, key=lambda kind: errors[kind])
        neighbors = NearestNeighbors(pooled(train.tokens, pool).numpy(), values)
        votes = neighbors.predict(pooled(test.tokens, pool).numpy(), k)
        rows[name] = {**asked.figures(votes, test, name), "chosen": {"pool": pool}}
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
    for name in asked.representations:
        train, test = asked.features(name)
        fit, choose = asked.split(train)

        # Penalty and pooling are chosen on training samples that the fit has not met.
        target, errors = train.part.target, {}
        for pool in pools(name):
            features = pooled(train.tokens, pool).numpy()
            ridges = fit_ridge(features[fit], target[fit], PENALTIES)
            for penalty, ridge in zip(PENALTIES, ridges, strict=True):
                prediction = ridge.predict(features[choose])
                errors[pool, penalty] = _error(prediction, target[choose], train, asked)

        # What is tested is fitted to all training samples, with what was chosen.
        pool, penalty = min(errors, key=lambda pair: errors[pair])
        ridge = fit_ridge(pooled(train.tokens, pool).numpy(), target, (penalty,))[0]
        prediction = ridge.predict(pooled(test.tokens, pool).numpy())
        chosen = {"pool": pool, "penalty": penalty}
        rows[name] = {**asked.figures(prediction, test, name), "chosen": chosen}
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
    train, heldout = (CachedFeatures.of_run(run.path, data_path, part) for part in PARTS)
    return {"rollout": rollout_errors(model, heldout, train)}


def pools(name: str) -> tuple[str, ...]:
    """The ways of pooling to choose from; the mean of raw pixels says too little to be tried."""
    return ("all",) if name == "pixels" else ("mean", "all")


def _best_head(
    asked: Evaluation, kinds: Mapping[str, Build], train: Features, test: Features, name: str
) -> dict[str, object]:
    """Figures of the best of all heads: trained on one share of the training samples, chosen on
    the rest."""
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
        batch_size=settings.batch_size, seed=asked.seed, label=f"{name}: heads",
    )  # fmt: skip

    losses = [_loss(head, train.tokens[choose], target[choose]) for head in heads]
    best = heads[int(np.argmin(losses))]
    prediction = best.outputs(test.tokens)
    prediction = prediction.softmax(-1) if scale is None else scale.restore(prediction)
    return {**asked.figures(prediction.numpy(), test, name), "chosen": best.settings}


def _loss(head: Head, tokens: Tensor, target: Tensor) -> float:
    return float(head_loss(head.outputs(tokens), target))


def _error(
    prediction: np.ndarray, target: np.ndarray, train: Features, asked: Evaluation
) -> float:
    """What the choice of a probe goes by, less is better: the share of wrong classes, or the mean
    squared error in units of each number's variance."""
    if asked.data.classes is not None:
        return float((prediction.argmax(1) != target).mean())
    spread = own_scale(torch.from_numpy(train.part.target)).numpy()
    return float((((prediction - target) / spread) ** 2).mean())
