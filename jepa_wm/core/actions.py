"""The space a solver searches: a box, a longest norm, and how a searched action becomes a model step's action block.

H horizon in model steps, A searched numbers a step, a numbers of one environment action, block = frameskip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActionSpace:
    """Bounds of one searched action, and how often it is repeated inside a model step's block.

    `max_norm` bounds the Euclidean norm of each consecutive `group` numbers, one environment action; a longer one is
    scaled back. Make it with `ActionSpace.of_block` when the environment's own bounds are at hand.
    Raises ValueError for a box that is empty, not finite or does not fit `group`, and for a norm whose ball is not
    centred in the box.
    """

    low: tuple[float, ...]  # [A]
    high: tuple[float, ...]  # [A]
    max_norm: float | None = None
    group: int | None = None  # a; None: the searched action is one environment action
    repeat: int = 1

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(f"low has {len(self.low)} numbers and high {len(self.high)}; give one each per action")
        object.__setattr__(self, "group", self.group or len(self.low))
        if not all(math.isfinite(x) for x in (*self.low, *self.high)):
            raise ValueError(f"low {self.low}, high {self.high}: a box to search in must be finite; bound the actions")
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low {self.low} exceeds high {self.high}; swap them")
        if len(self.low) % self.size:
            raise ValueError(f"group {self.group} does not divide the {len(self.low)} searched numbers")
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {self.repeat}")
        if self.max_norm is not None:
            if not self.max_norm > 0:
                raise ValueError(f"max_norm must be positive, got {self.max_norm}; None means no bound")
            if any(low > 0 or high < 0 for low, high in zip(self.low, self.high, strict=True)):
                raise ValueError(f"max_norm needs a box around zero, got low {self.low}, high {self.high}")

    @classmethod
    def of_block(
        cls, low: Sequence[float], high: Sequence[float], *, max_norm: float | None = None, block: int, hold: bool
    ) -> ActionSpace:
        """The space for `block` environment actions bounded by low, high [a] and `max_norm` per model step.

        With `hold`, one environment action is searched and held for the block (A = a); else all are (A = block * a).
        """
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        if hold:
            return cls(tuple(low), tuple(high), max_norm, len(low), block)
        return cls(tuple(low) * block, tuple(high) * block, max_norm, len(low))

    @property
    def size(self) -> int:
        """a: numbers of one environment action."""
        return self.group or len(self.low)

    @property
    def searched(self) -> int:
        """A: numbers a solver searches per model step."""
        return len(self.low)

    @property
    def expanded(self) -> int:
        """Numbers the model takes per step: block * a."""
        return len(self.low) * self.repeat

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] the actions clipped to the box, then scaled back where a group is longer than `max_norm`."""
        clipped = actions.clamp(actions.new_tensor(self.low), actions.new_tensor(self.high))
        if self.max_norm is None:
            return clipped
        groups = clipped.unflatten(-1, (-1, self.size))
        norm = groups.norm(dim=-1, keepdim=True)
        return (groups * (self.max_norm / norm.clamp_min(1e-12)).clamp_max(1.0)).flatten(-2)

    def expand(self, actions: Tensor) -> Tensor:
        """[..., H, A] searched actions as [..., H, block * a], what the model takes; time runs first within a block."""
        return actions.repeat(*[1] * (actions.dim() - 1), self.repeat)

    def steps(self, expanded: Tensor) -> Tensor:
        """[..., H, block * a] as single environment actions [..., H * block, a] in the order they are taken."""
        return expanded.unflatten(-1, (-1, self.size)).flatten(-3, -2)

    def half_width(self, like: Tensor) -> Tensor:
        """[A] half the box's width, on the device and in the type of `like`."""
        return (like.new_tensor(self.high) - like.new_tensor(self.low)) / 2

    def uniform(self, unit: Tensor) -> Tensor:
        """[..., A] numbers in 0..1 spread over the box, then projected."""
        return self.project(unit.new_tensor(self.low) + 2 * unit * self.half_width(unit))


def zero_plan(space: ActionSpace, episodes: int, horizon: int, *, device: torch.device) -> Tensor:
    """[B, H, A] the plan of doing nothing, or the nearest the box allows."""
    return space.project(torch.zeros(episodes, horizon, space.searched, device=device))
