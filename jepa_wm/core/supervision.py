"""What an encoder was trained by, in the words of its file, its model card and the report."""

from __future__ import annotations


def supervision_of(
    *, backbone: str | None, weights: str | None, steps: int, inverse_dynamics: float
) -> str:
    """What the frozen encoder of a run was trained by, in words, for `features.backbone`,
    `features.weights`, `train.pretrain.steps` and `jepa.inverse_dynamics`."""
    if backbone is not None and weights is not None:
        return f"others: the {weights} weights of {backbone}"
    if backbone is not None or not steps:
        return "nothing: its weights are random"
    if inverse_dynamics:
        return "latent prediction and inverse dynamics, which reads actions (action supervision)"
    return "latent prediction, without actions or labels"
