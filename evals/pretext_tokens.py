"""What is measured of each token that a mask hides and a predictor predicts, and what it comes to:
errors relative to a constant's, retrieval of the true target, and maps over a frame.

B clips, T time steps (tubelets, where they are longer than a frame), N = g * g tokens a time step,
M target tokens, G kinds of target, D numbers of a target of one kind, C candidates, n predicted
tokens in all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from jepa_wm.models.jepa import JEPA, take_tokens
from jepa_wm.models.masks import TokenMask
from jepa_wm.models.predictor import nearest_in_view

TIE = 1e-5  # of the mean squared distance: what differs by less cannot be told apart
DIGITS = 3  # of the figures of a map

Columns = Mapping[str, Tensor]  # of predicted tokens: [n], or [n, G] by kind of target


def measure(
    model: JEPA, mask: TokenMask, targets: Tensor, predicted: Tensor, by_other: Tensor
) -> Columns:
    """Columns of the B*M tokens that a mask hides, from targets [B, T*N, G, D] and what is
    predicted of them [B, M, G, D] from the clip's own context and from another clip's."""
    places = model.encoder.tokens_per_frame
    true = _at(targets, mask.target_ids)  # [B, M, G, D]

    # The constant that does best at a place: what a predictor without any context could know.
    of_place = targets.unflatten(1, (-1, places)).flatten(0, 1)  # [B*T, N, G, D]
    squared = model.settings.error == "squared"
    best = of_place.mean(0) if squared else of_place.median(0).values
    constant = best[mask.target_ids % places]

    # The nearest token in view at the same place; where there is none, that constant again.
    ids, distance = nearest_context(mask, targets.shape[1] // places, places)
    copied = _at(targets, ids).where((distance > 0)[..., None, None], constant)

    columns = {"place": mask.target_ids % places, "distance": distance}
    for name, guess in (
        ("error", predicted),
        ("constant", constant),
        ("copying", copied),
        ("shuffled", by_other),
    ):
        columns[name] = model.errors(guess - true).mean(-1)
    columns |= _retrieval(mask, targets, true, predicted)
    return {name: column.flatten(0, 1).cpu() for name, column in columns.items()}


def nearest_context(mask: TokenMask, steps: int, places: int) -> tuple[Tensor, Tensor]:
    """(number [B, M] of the context token at a target's place that is nearest in time, the time
    steps [B, M] between them; 0 where there is none)."""
    before, after = nearest_in_view(mask.context_ids, steps, places)  # [B, T, N]
    time = torch.arange(steps, device=before.device)[:, None]
    back = (time - before).where(before >= 0, steps)  # none is farther than any
    ahead = (after - time).where(after < steps, steps)
    nearest = before.where(back <= ahead, after).clamp(0, steps - 1)
    ids = nearest * places + torch.arange(places, device=before.device)
    distance = back.minimum(ahead)
    distance = distance.where(distance < steps, 0)
    at = mask.target_ids
    return ids.flatten(1).gather(1, at), distance.flatten(1).gather(1, at)


def _retrieval(
    mask: TokenMask, targets: Tensor, true: Tensor, predicted: Tensor
) -> dict[str, Tensor]:
    """Columns [B, M, G] on the true target among the hidden tokens of its clip, and among all
    clips' tokens at its time and place; their chances are [B, M]."""
    clips, count, kinds = predicted.shape[:3]
    columns: dict[str, list[Tensor]] = {}
    for b in range(clips):
        here = targets[:, mask.target_ids[b]]  # [B, M, G, D]
        in_clip = torch.arange(count, device=targets.device)
        for g in range(kinds):
            guess, own = predicted[b, :, g], true[b, :, g]
            for name, candidates, right in (
                ("clip", squared_distances(guess.double(), own.double()), in_clip),
                ("batch", (guess - here[:, :, g]).square().sum(-1).T, torch.full_like(in_clip, b)),
            ):
                rank, top1 = retrieved(candidates, right)
                columns.setdefault(f"{name}_rank", []).append(rank)
                columns.setdefault(f"{name}_top1", []).append(top1)
    stacked = {
        name: torch.stack(parts).view(clips, kinds, count).transpose(1, 2)
        for name, parts in columns.items()
    }
    chances = {"clip_chance": 1 / count, "batch_chance": 1 / clips}
    alike = torch.ones(clips, count, device=targets.device)
    return stacked | {name: alike * chance for name, chance in chances.items()}


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[M, C] between a [M, D] and b [C, D]."""
    return a.square().sum(-1, keepdim=True) - 2 * a @ b.T + b.square().sum(-1)


def retrieved(distance: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """(rank [M] of the right candidate in 0..1, .5 by chance; whether it is the nearest [M]) by
    squared distances [M, C] of guesses to candidates, of which number right [M] is the true one.
    Candidates that cannot be told apart share rank and hit."""
    own = distance.gather(1, right[:, None])
    tie = TIE * distance.mean(1, keepdim=True)
    nearer = (distance < own - tie).sum(1)
    tied = ((distance - own).abs() <= tie).sum(1) - 1
    rank = (nearer + tied / 2) / max(1, distance.shape[1] - 1)
    return rank, (nearer == 0) / (1 + tied)


def figures(columns: Sequence[Columns], kinds: Sequence[str]) -> dict[str, object]:
    """What columns say, one set a mask type; all over mask types as the loss is, a mean of their
    means, but by distance in time, where every token counts."""
    result: dict[str, object] = {"relative_error": _relative(columns, "error", slice(None))}
    result["kinds"] = {
        kind: {
            "relative_error": _relative(columns, "error", g),
            "copying": _relative(columns, "copying", g),
            "shuffled": _relative(columns, "shuffled", g),
            "retrieval_clip": _retrieved(columns, "clip", g),
            "retrieval_batch": _retrieved(columns, "batch", g),
        }
        for g, kind in enumerate(kinds)
    }
    result["masks"] = [
        {"mask": number, **_by_kind([each], kinds)} for number, each in enumerate(columns, 1)
    ]

    # Tokens without any in view at their place have no distance.
    whole = {name: torch.cat([each[name] for each in columns]) for name in columns[0]}
    result["by_distance"] = rows = []
    for distance in whole["distance"].unique().tolist():
        at = {name: column[whole["distance"] == distance] for name, column in whole.items()}
        share = len(at["distance"]) / len(whole["distance"])
        if distance:
            rows.append({"distance": distance, "share": share, **_by_kind([at], kinds)})
    return result


def _by_kind(columns: Sequence[Columns], kinds: Sequence[str]) -> dict[str, float]:
    """The relative error of each kind of target."""
    return {kind: _relative(columns, "error", g) for g, kind in enumerate(kinds)}


def error_maps(
    columns: Sequence[Columns], kinds: Sequence[str], grid: int
) -> dict[str, list[list[float]]]:
    """[g, g] by kind of target: the error at each place of a frame over that of its own constant;
    NaN where nothing was hidden."""
    maps = {}
    for g, kind in enumerate(kinds):
        error, constant = torch.zeros(2, grid * grid, dtype=torch.float64)
        for each in columns:
            error.index_add_(0, each["place"], each["error"][:, g].double())
            constant.index_add_(0, each["place"], each["constant"][:, g].double())
        shares = [_ratio(*pair) for pair in zip(error.tolist(), constant.tolist(), strict=True)]
        rounded = [round(share, DIGITS) if math.isfinite(share) else share for share in shares]
        maps[kind] = [rounded[row : row + grid] for row in range(0, grid * grid, grid)]
    return maps


def _relative(columns: Sequence[Columns], name: str, kind: int | slice) -> float:
    """The mean error of a column over that of the constant."""
    mean, constant = (
        sum(float(each[which][:, kind].double().mean()) for each in columns)
        for which in (name, "constant")
    )
    return _ratio(mean, constant)


def _retrieved(columns: Sequence[Columns], among: str, kind: int) -> dict[str, float]:
    """`top1` beside its `chance`, the same where a token counts by the constant's error in it, so
    that what hardly differs hardly counts, and the mean `rank`."""
    means = dict.fromkeys(("top1", "chance", "weighted_top1", "rank"), 0.0)
    for each in columns:
        top1, rank = (each[f"{among}_{name}"][:, kind].double() for name in ("top1", "rank"))
        weight = each["constant"][:, kind].double()
        weighted = _ratio(float((top1 * weight).sum()), float(weight.sum()))
        chance = float(each[f"{among}_chance"].mean())
        for name, value in zip(
            means, (float(top1.mean()), chance, weighted, float(rank.mean())), strict=True
        ):
            means[name] += value / len(columns)
    return means


def _ratio(a: float, b: float) -> float:
    """Of what has no error at all there is none to share."""
    return a / b if b > 0 else math.nan


def _at(tokens: Tensor, ids: Tensor) -> Tensor:
    """[B, M, G, D] tokens [B, T*N, G, D] at the numbers ids [B, M]."""
    return take_tokens(tokens.flatten(2), ids).unflatten(-1, tokens.shape[2:])
