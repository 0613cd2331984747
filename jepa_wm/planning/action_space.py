"""The space a solver searches, a box or a list of choices, and how a plan becomes the action
blocks of model steps.

H horizon in model steps, A searched numbers a step, a numbers of one environment action, block =
frameskip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from jepa_wm.core.errors import UserError
from jepa_wm.planning.discrete import DiscreteSpace as DiscreteSpace
from jepa_wm.planning.settings import CEM
from jepa_wm.worlds.world import World

if TYPE_CHECKING:
    from jepa_wm.planning.solvers import CEMSolver


@dataclass(frozen=True)
class ActionSpace:
    """Bounds of one searched action, and how often it is repeated inside a model step's block.

    `max_norm` bounds the Euclidean norm of each consecutive `group` numbers, one environment
    action; a longer one is scaled back. `idle` is the action that does nothing; of an `absolute`
    one, a place to go to, doing nothing is to take the last one again. Make it with
    `ActionSpace.of_block` when the environment's own bounds are at hand. Raises ValueError for a
    box that is empty, not finite or does not fit `group`, for a norm whose ball lies outside the
    box, and for an `idle` outside it."""

    low: tuple[float, ...]  # [A]
    high: tuple[float, ...]  # [A]
    max_norm: float | None = None
    group: int | None = None  # a; None: the searched action is one environment action
    repeat: int = 1
    # [a]; None: 0 where that lies strictly inside the box, else its centre
    idle: tuple[float, ...] | None = None
    absolute: bool = False

    def __post_init__(self) -> None:
        # A box, each number of it finite.
        for name in ("low", "high"):
            object.__setattr__(self, name, tuple(float(x) for x in getattr(self, name)))
        if len(self.low) != len(self.high) or not self.low:
            raise ValueError(
                f"low has {len(self.low)} numbers and high {len(self.high)}; give one each per "
                "action"
            )
        object.__setattr__(self, "group", self.group or len(self.low))
        if not all(math.isfinite(x) for x in (*self.low, *self.high)):
            raise ValueError(
                f"low {self.low}, high {self.high}: a box to search in must be finite; bound the "
                "actions"
            )
        if any(low > high for low, high in zip(self.low, self.high, strict=True)):
            raise ValueError(f"low {self.low} exceeds high {self.high}; swap them")
        # Whole environment actions, of which some fit into the ball.
        if len(self.low) % self.size:
            raise ValueError(
                f"group {self.group} does not divide the {len(self.low)} searched numbers"
            )
        if self.repeat < 1:
            raise ValueError(f"repeat must be at least 1, got {self.repeat}")
        if self.max_norm is not None and not self.max_norm > 0:
            raise ValueError(
                f"max_norm must be positive, got {self.max_norm}; None means no bound"
            )
        if not self._meets_ball(self.max_norm):
            raise ValueError(
                f"max_norm {self.max_norm} needs a box around zero, or one that reaches that "
                f"near to it, got low {self.low}, high {self.high}"
            )
        # Doing nothing is one of them.
        if self.idle is not None:
            object.__setattr__(self, "idle", tuple(float(x) for x in self.idle))
            inside = [a <= x <= b for a, x, b in zip(self.low, self.idle, self.high, strict=False)]
            if len(self.idle) != self.size or not all(inside):
                raise ValueError(
                    f"idle {self.idle} is no action of the box low {self.low}, high {self.high}"
                )

    @classmethod
    def of_block(
        cls,
        low: Sequence[float],
        high: Sequence[float],
        *,
        block: int,
        action_repeat: bool,
        max_norm: float | None = None,
        idle: Sequence[float] | None = None,
        absolute: bool = False,
    ) -> ActionSpace:
        """The space for `block` environment actions bounded by low, high [a] and `max_norm` per
        model step.

        With `action_repeat`, one environment action is searched and held for the block (A = a);
        else all are (A = block * a)."""
        times, repeat = (1, block) if action_repeat else (block, 1)
        lows, highs = tuple(low) * times, tuple(high) * times
        still = None if idle is None else tuple(idle)
        return cls(lows, highs, max_norm, len(low), repeat, still, absolute)

    def within(self, low: Sequence[float], high: Sequence[float]) -> ActionSpace:
        """The space without what lies outside low..high [a], such as the data of a model
        have no action; where both are the same, the number is pinned. UserError where nothing is
        left of a number."""
        # Number by number of a block.
        times = self.plan_dim // self.size
        ranges = zip(self.low, self.high, tuple(low) * times, tuple(high) * times, strict=True)
        cut = []
        for i, (a, b, least, most) in enumerate(ranges):
            slack = 1e-5 * max(abs(a), abs(b))  # rounding of numbers that were stored in fp32
            if least > b + slack or most < a - slack:
                raise UserError(
                    f"action number {i % self.size} lies in {least:g}..{most:g} in the data that "
                    f"the model was trained on, and in {a:g}..{b:g} in this world: plan in the "
                    "world of the data, or convert the data to its units"
                )
            cut.append((min(max(a, least), b), max(min(b, most), a)))
        # The ball still has to reach into what is left, and doing nothing moves into it.
        lows, highs = (tuple(bounds) for bounds in zip(*cut, strict=True))
        idle = self.idle and tuple(
            min(max(x, a), b) for x, (a, b) in zip(self.idle, cut, strict=False)
        )
        rest = replace(self, low=lows, high=highs, idle=idle, max_norm=None)
        if not rest._meets_ball(self.max_norm):
            raise UserError(
                "the actions in the data that the model was trained on are longer than "
                f"{self.max_norm}, the longest of this world: plan in the world of the data, or "
                "convert the data to its units"
            )
        return replace(rest, max_norm=self.max_norm)

    @property
    def size(self) -> int:
        """a: numbers of one environment action."""
        return self.group or len(self.low)

    @property
    def plan_dim(self) -> int:
        """A: numbers a solver searches per model step."""
        return len(self.low)

    @property
    def model_action_dim(self) -> int:
        """Numbers the model takes per step: block * a."""
        return len(self.low) * self.repeat

    def box(self, solver: str) -> ActionSpace:
        """Itself, for a `solver` that searches boxes alone."""
        return self

    def cem(self, settings: CEM, horizon: int) -> CEMSolver[CEM]:
        """The cross-entropy method here."""
        from jepa_wm.planning.solvers import CEMSolver

        return CEMSolver(settings, self, horizon)

    def project(self, actions: Tensor) -> Tensor:
        """[..., A] the actions clipped to the box, then scaled back where a group is longer than
        `max_norm`."""
        clipped = actions.clamp(actions.new_tensor(self.low), actions.new_tensor(self.high))
        return clipped if self.max_norm is None else self._into_ball(clipped, self.max_norm)

    def _into_ball(self, actions: Tensor, radius: float | Tensor) -> Tensor:
        """[..., A] each group of actions in the box that is longer than `radius` pulled toward the
        box's shortest."""
        groups = actions.unflatten(-1, (-1, self.size))
        near = actions.new_tensor(self._nearest).unflatten(-1, (-1, self.size))
        norm = groups.norm(dim=-1, keepdim=True)
        if not near.any():  # the box holds zero
            return (groups * (radius / norm.clamp_min(1e-12)).clamp_max(1.0)).flatten(-2)
        outward = groups - near  # how far along it the norm is `radius`: a quadratic equation
        square = outward.square().sum(-1, keepdim=True)
        along = (near * outward).sum(-1, keepdim=True)
        room = (radius**2 - near.square().sum(-1, keepdim=True)).clamp_min(0)
        share = ((along.square() + square * room).sqrt() - along) / square.clamp_min(1e-12)
        return torch.where(norm > radius, near + share * outward, groups).flatten(-2)

    def to_model(self, actions: Tensor) -> Tensor:
        """[..., H, A] searched actions as [..., H, block * a], what the model takes; time runs
        first within a block."""
        return actions.repeat(*[1] * (actions.dim() - 1), self.repeat)

    def to_plan(self, blocks: Tensor) -> Tensor:
        """[..., H, A] the plan of the space nearest to model steps [..., H, block * a]: where one
        action is held, the mean of the block's."""
        return self.project(blocks.unflatten(-1, (self.repeat, -1)).mean(-2))

    def to_env(self, blocks: Tensor) -> Tensor:
        """[..., H, block * a] as single environment actions [..., H * block, a] in the order they
        are taken."""
        return blocks.unflatten(-1, (-1, self.size)).flatten(-3, -2)

    def half_width(self, like: Tensor) -> Tensor:
        """[A] half the width of where actions can lie, on the device and in the type of `like`."""
        low, high = self._reach(like)
        return (high - low) / 2

    def uniform(self, unit: Tensor) -> Tensor:
        """[..., A] numbers in 0..1 spread over the box, then projected."""
        return self.project(self._reach(unit)[0] + 2 * unit * self.half_width(unit))

    def staying(self, last: Tensor | None) -> Tensor | None:
        """[a] or [B, a] the action that does nothing after the `last` [B, a]; None: not known."""
        if self.absolute:
            return last
        return None if self.idle is None else torch.tensor(self.idle)

    def idle_step(self) -> tuple[float, ...]:
        """[A] doing nothing, as far as the space alone can tell."""
        if self.idle is not None:
            return self.idle * (self.plan_dim // self.size)
        middle = [
            0.0 if a < 0 < b else (a + b) / 2 for a, b in zip(self.low, self.high, strict=True)
        ]
        return tuple(self.project(torch.tensor(middle, dtype=torch.float64)).tolist())

    def first_step(self) -> tuple[float, ...]:
        """[A] what a search without a warm start draws around: the middle, from which all is as
        near as can be. Around doing nothing, where that lies at a side, half of what is drawn
        would be cut off."""
        nearest = torch.tensor(self._nearest, dtype=torch.float64)
        low, high = self._reach(nearest)
        step = (low + high) / 2
        if self.max_norm is not None:  # no farther out than halfway to the ball's side
            step = self._into_ball(step, (_norms(nearest, self.size)[:, None] + self.max_norm) / 2)
        return tuple(step.tolist())

    def _meets_ball(self, radius: float | None) -> bool:
        """Whether the box has actions shorter than `radius`, or pinned numbers that are just that
        long."""
        if radius is None:
            return True
        near, free = torch.tensor(self._nearest), torch.tensor(self.low) < torch.tensor(self.high)
        rounding = torch.where(_norms(near * free, self.size) > 0, 0, 2e-6 * radius)
        return bool((_norms(near, self.size) < radius + rounding).all())

    @property
    def _nearest(self) -> tuple[float, ...]:
        """[A] the box's shortest action."""
        return tuple(min(max(0.0, a), b) for a, b in zip(self.low, self.high, strict=True))

    def _reach(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds [A] of the box, cut to those of the ball where there is one."""
        low, high = like.new_tensor(self.low), like.new_tensor(self.high)
        if self.max_norm is None:
            return low, high
        return low.clamp(min=-self.max_norm), high.clamp(max=self.max_norm)


Space: TypeAlias = ActionSpace | DiscreteSpace  # what solvers, costs and the agent search


def space_of(world: World, *, frameskip: int, action_repeat: bool) -> Space:
    """Blocks of `frameskip` actions of the world; with `action_repeat` one is searched a block. A
    discrete action's numbers are one-hot, as the data hold them."""
    actions = world.action_space
    if actions.choices is not None:
        still = None if actions.idle is None else int(actions.idle[0])
        return DiscreteSpace.of_block(
            actions.choices, block=frameskip, action_repeat=action_repeat, idle=still
        )
    return ActionSpace.of_block(
        actions.low.tolist(),
        actions.high.tolist(),
        block=frameskip,
        action_repeat=action_repeat,
        max_norm=actions.longest,
        idle=None if actions.idle is None else actions.idle.tolist(),
        absolute=actions.kind == "absolute",
    )


def _norms(actions: Tensor, size: int) -> Tensor:
    """[G] of actions [G * size]."""
    return actions.view(-1, size).norm(dim=-1)
