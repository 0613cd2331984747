"""Which loss it is that trains the encoder: what each has of the norms of its gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from jepa_wm.core.distributed import all_mean
from jepa_wm.models.jepa import JEPA


def is_sharded(module: nn.Module) -> bool:
    """Whether every rank holds a share of each weight only (FSDP2)."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def gradient_shares(model: JEPA, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
    """What each weighted loss has of the sum of their gradients' norms, in the context encoder's
    parameters and over all ranks: {name: share}, which add up to 1.

    `losses()` computes them for this rank's samples, by the sharded training's own forward pass
    where weights are sharded, past DDP where they are not. All ranks have to call it together,
    between two steps: shards forget the last step's gradient."""
    sharded, parameters, norms = is_sharded(model), list(model.encoder.parameters()), {}
    if sharded:  # of the last step, and before a forward pass puts whole weights in their place
        model.zero_grad()
    values = losses()
    names = [name for name, weight in model.weights.items() if weight and name in values]
    for name in names:
        # A forward pass for each: compiled and sharded blocks keep nothing for a second backward.
        values = values or losses()
        weighted, values = model.weights[name] * values[name], {}
        norms[name] = _sharded_norm(model, weighted) if sharded else _norm(parameters, weighted)
    total = max(sum(norms.values()), 1e-30)
    return {name: norm / total for name, norm in norms.items()}


def _norm(parameters: list[nn.Parameter], loss: Tensor) -> float:
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    with torch.no_grad():
        return float(all_mean(torch.cat([g.flatten() for g in gradients])).norm())


def _sharded_norm(model: JEPA, loss: Tensor) -> float:
    """The same where only a whole backward pass gathers weights and averages gradients."""
    loss.backward()
    gradients = [p.grad for p in model.encoder.parameters() if p.grad is not None]
    with torch.no_grad():
        norm = nn.utils.get_total_norm(gradients)
    model.zero_grad()
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
