"""Candidates in pieces: a cost that never looks at more plans at once than the memory bound
allows.

B episodes, S candidates, H horizon in model steps, E expanded numbers a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.search import Cost

MB = 2**20

CostOf = Callable[
    [slice], Cost
]  # the cost of plans [b, S, H, E] for the episodes of a slice of the batch


def plans_within(memory_mb: float, plan_bytes: int, fixed_bytes: int = 0) -> int:
    """How many plans, candidates x episodes, fit into the bound when each takes `plan_bytes`
    beside what is fixed.

    Raises UserError when not a single one does.
    """
    fit = (int(memory_mb * MB) - fixed_bytes) // plan_bytes
    if fit < 1:
        raise UserError(
            f"planner.mpc.memory_mb {memory_mb:g} is below one candidate, which takes about "
            f"{(plan_bytes + fixed_bytes) / MB:.1f} MB; raise planner.mpc.memory_mb, shorten planner.mpc.horizon, or take a model "
            "with fewer latent tokens or a smaller width"
        )
    return fit


def in_chunks(cost_of: CostOf, *, most: int, most_with_gradient: int) -> Cost:
    """The cost of plans [B, S, H, E], computed for at most `most` plans at a time, fewer where
    gradients are wanted.

    Whole episodes go together as long as they fit; else one episode's candidates are cut into
    equal pieces. A plan's cost may depend on no other plan. Gradients are then computed piece by
    piece as well: a piece's graph is gone before the next piece is imagined."""

    def cost(plans: Tensor) -> Tensor:
        wanted = plans.requires_grad and torch.is_grad_enabled()
        limit = most_with_gradient if wanted else most
        episodes, candidates = plans.shape[:2]
        if episodes * candidates <= limit:
            return cost_of(slice(0, episodes))(plans)
        look = _with_slope if wanted else _plain
        rows = []
        for some in _pieces(episodes, max(1, limit // candidates)):
            piece_cost = cost_of(some)
            parts = _pieces(candidates, limit // (some.stop - some.start))
            rows.append(torch.cat([look(piece_cost, plans[some, part]) for part in parts], 1))
        return torch.cat(rows)

    return cost


def _pieces(count: int, most: int) -> Iterator[slice]:
    """Slices of 0..count, as few as can be, of nearly equal size."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(count * i // pieces, count * (i + 1) // pieces)


def _plain(cost: Cost, plans: Tensor) -> Tensor:
    return cost(plans)


def _with_slope(cost: Cost, plans: Tensor) -> Tensor:
    """[b, s] costs whose gradient is known already and costs no graph: a straight line through
    each plan."""
    here = plans.detach().requires_grad_()
    costs = cost(here)
    if not costs.requires_grad:
        return costs
    (slope,) = torch.autograd.grad(costs.sum(), here)
    return costs.detach() + ((plans - here.detach()) * slope).sum((-2, -1))
