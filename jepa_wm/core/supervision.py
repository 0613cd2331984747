"""What an encoder was trained by, in the words of its file, its model card and the report; and
which figures are of models that read more than pictures and actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def supervision_of(
    *, backbone: str | None, weights: str | None, start: str | None, steps: int,
    inverse_dynamics: float,
) -> str:  # fmt: skip
    """What the frozen encoder of a run was trained by, in words, for `features.backbone`,
    `features.weights`, `train.pretrain.start` and `steps`, and `jepa.inverse_dynamics`. What
    others trained it by before is not known here, and no path is named."""
    if backbone is not None and weights is not None:
        return f"others, who made the weights of {backbone}"
    if backbone is not None:
        return "nothing: its weights are random"
    if not steps and start is not None:
        return "whatever trained the other weights that it took over"
    if not steps:
        return "nothing: its weights are random, its patches those of jepa.patch_init"
    before = "" if start is None else ", going on from other weights, by whatever trained these"
    if inverse_dynamics:
        by = "latent prediction and inverse dynamics, which reads actions (action supervision)"
    else:
        by = "latent prediction, without actions or labels"
    return by + before


def states_read(proprio: Sequence[str]) -> dict[str, object]:
    """`states_read`, which a result has whose model reads these numbers of the state as
    proprioception (latent.proprio): state supervision. Nothing where there are none."""
    return {"states_read": list(proprio)} if proprio else {}


def reading_states(result: Mapping[str, Any]) -> str:
    """The same of a stored result, in words that follow what the model is."""
    names = result.get("states_read")
    return f", whose latent reads states as proprioception ({', '.join(names)})" if names else ""
