"""Terms of an objective that price actions alone: effort, jerks, linear limits.

B episodes, S candidates, H horizon, A action numbers of a model step, a of one environment action,
C limits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def effort(latents: Tensor, actions: Tensor) -> Tensor:
    """[B, S] the mean squared action: a term against needless motion."""
    return actions.square().mean((-2, -1))


@dataclass(frozen=True, kw_only=True)
class Effort:
    """The same where doing nothing is another action than 0: the mean squared difference from
    that.

    `size` is the length a of one environment action, `idle` [a] or [B, a] the one that does
    nothing. Without it that is each plan's own first action: a place to go to, where nobody knows
    yet which place would be to stay."""

    size: int
    idle: Tensor | None = None

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        each = actions.unflatten(-1, (-1, self.size))  # [B, S, H, block, a]
        idle = each[:, :, :1, :1]
        if self.idle is not None:
            idle = self.idle.to(actions).expand(len(actions), -1)[:, None, None, None]
        return (each - idle).square().mean((-3, -2, -1))


@dataclass(frozen=True, kw_only=True)
class Smoothness:
    """The mean squared change from one environment action to the next: a term against jerks.

    `size` is the length a of one environment action, `before` the last one taken, [B, a], which
    the plan's first is compared with too. Without it a plan of a single action costs nothing."""

    size: int
    before: Tensor | None = None

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        each = actions.unflatten(-1, (-1, self.size)).flatten(-3, -2)  # [B, S, H*block, a]
        if self.before is not None:
            each = torch.cat(
                [self.before[:, None, None].expand(-1, each.shape[1], 1, -1), each], 2
            )
        change = each.diff(dim=2).square()
        return change.mean((-2, -1)) if change.shape[2] else each.new_zeros(each.shape[:2])


@dataclass(frozen=True, kw_only=True)
class LinearLimits:
    """Limits A x <= b on the action block x of every model step: as a term, how far they are
    exceeded.

    The excess over each limit, summed over limits and averaged over steps: zero inside, so that a
    large enough weight leaves the best allowed plan best. Raises ValueError for limits that are
    not one number of b per row of A."""

    matrix: Tensor  # A [C, A], a row a limit
    bound: Tensor  # b [C]

    def __post_init__(self) -> None:
        if self.matrix.dim() != 2 or self.bound.shape != self.matrix.shape[:1]:
            raise ValueError(
                f"matrix has shape {tuple(self.matrix.shape)} and bound {tuple(self.bound.shape)}; give a row of the "
                "matrix and a number of the bound for each limit"
            )

    def __call__(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, S]."""
        return self.excess(actions).sum(-1).mean(-1)

    def allowed(self, actions: Tensor, *, tolerance: float = 1e-5) -> Tensor:
        """[...] bool: whether plans [..., H, A] keep all limits at all steps, to within
        `tolerance`."""
        return (self.excess(actions) <= tolerance).all(-1).all(-1)

    def excess(self, actions: Tensor) -> Tensor:
        """[..., H, C] by how much actions [..., H, A] exceed each limit. Raises ValueError for
        another width."""
        if actions.shape[-1] != self.matrix.shape[1]:
            raise ValueError(
                f"matrix has {self.matrix.shape[1]} columns for {actions.shape[-1]} action numbers a step"
            )
        return (actions @ self.matrix.to(actions).T - self.bound.to(actions)).clamp(min=0)
