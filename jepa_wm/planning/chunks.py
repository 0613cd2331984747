"""Plans in pieces: a cost that never imagines more of them at once than the memory bound allows.

B episodes, b episodes of a piece, S plans, H horizon in model steps, A action numbers of a model
step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError

MB = 2**20


def plans_within(memory_mb: float, plan_bytes: int, fixed_bytes: int = 0) -> int:
    """How many plans fit into the bound when each takes `plan_bytes` beside what is fixed. Raises
    UserError when not a single one does."""
    fit = (int(memory_mb * MB) - fixed_bytes) // plan_bytes
    if fit < 1:
        raise UserError(
            f"planner.mpc.memory_mb {memory_mb:g} is below one plan, which takes about "
            f"{(plan_bytes + fixed_bytes) / MB:.1f} MB; raise planner.mpc.memory_mb, shorten "
            "planner.mpc.horizon, or take a model with fewer latent tokens or a smaller width"
        )
    return fit


def in_chunks(price: Callable[[Tensor, slice], Tensor], plans: Tensor, *, most: int) -> Tensor:
    """[B, S] what `price` says of plans [B, S, H, A], given at most `most` of them at a time, with
    the slice of the episodes that they are of.

    Whole episodes go together as long as they fit; else one episode's plans are cut into equal
    pieces. Gradients are then computed piece by piece as well: a piece's graph is gone before the
    next piece is imagined."""
    episodes, samples = plans.shape[:2]
    if episodes * samples <= most:
        return price(plans, slice(0, episodes))
    if wants_gradient(plans):
        price = partial(_with_slope, price)
    costs = []
    for rows in _pieces(episodes, max(1, most // samples)):
        each = most // (rows.stop - rows.start)
        parts = [price(plans[rows, part], rows) for part in _pieces(samples, each)]
        costs.append(torch.cat(parts, 1))
    return torch.cat(costs)


def _pieces(count: int, most: int) -> Iterator[slice]:
    """Slices of 0..count, as few as can be, of nearly equal size."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(count * i // pieces, count * (i + 1) // pieces)


def _with_slope(price: Callable[[Tensor, slice], Tensor], plans: Tensor, rows: slice) -> Tensor:
    """[b, S] costs whose gradient is known already and costs no graph: a straight line through
    each plan."""
    leaf = plans.detach().requires_grad_()
    costs = price(leaf, rows)
    if not costs.requires_grad:
        return costs
    (slope,) = torch.autograd.grad(costs.sum(), leaf)
    return costs.detach() + ((plans - leaf.detach()) * slope).sum((-2, -1))


def wants_gradient(plans: Tensor) -> bool:
    """Whether what is computed from plans is to lead back to them."""
    return plans.requires_grad and torch.is_grad_enabled()
