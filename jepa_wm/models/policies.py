"""Policies toward goals on frozen latents, trained from recordings alone: behaviour cloning,
inverse dynamics that is told how many steps remain, and implicit values.

B samples, F numbers that policies read of a latent, S of a start with what it moved before, A
action numbers of a model step, H model steps."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_mean
from jepa_wm.core.errors import UserError
from jepa_wm.core.precision import exact
from jepa_wm.models.blocks import mlp
from jepa_wm.models.head_settings import POLICIES, HeadSettings

EXPECTILE = 0.9  # of values: above one half it leans to the best that followed
DISCOUNT = 0.99  # of values, a model step
MOMENTUM = 0.95  # share of itself that the target of the values keeps a training step
VALUE_UNIT = 10.0  # model steps that a value network's output of 1 stands for
INVERSE_TEMPERATURE = 3.0  # of advantages, which are in model steps, in the weight exp(3 A)
MAX_WEIGHT = 100.0  # the most that such a weight may be


@dataclass(frozen=True)
class Legs:
    """Parts of episodes from a start to a later goal, goals in hindsight."""

    start: Tensor  # [B, S]
    after: Tensor  # [B, S] a model step after the start
    goal: Tensor  # [B, F]
    value_goal: Tensor  # [B, F] the start itself, the goal, or any frame of the data
    at_value_goal: Tensor  # [B] bool: it is the start itself
    after_at_value_goal: Tensor  # [B] bool: it is the frame a model step after the start
    blocks: Tensor  # [B, H, A] scaled action blocks, taken from the start on
    counts: Tensor  # [B, H] 1 for blocks that were taken before the goal was reached
    steps: Tensor  # [B] model steps from start to goal
    remaining: Tensor  # [B] what passed until then, in the unit of the distance
    efficient: Tensor  # [B] 1 where little more passed than the distance between the two
    fast: Tensor  # [B] 1 where so few model steps did; of distances in steps the same

    @property
    def efficient_counts(self) -> Tensor:
        """[B, H] the counts of efficient legs, 0 of others."""
        return self.counts * self.efficient[:, None]


@dataclass(frozen=True)
class PolicySizes:
    """How many numbers a policy reads and answers with."""

    start: int  # S
    goal: int  # F
    action: int  # A


class Policy(nn.Module):
    """Answers a start and a goal with a plan of H scaled action blocks at once. A policy of one's
    own says its `losses`; the rest has defaults."""

    extra_inputs = 0  # numbers that are read beside start and goal
    seeks_efficient = True  # whether efficient legs show how good it is; else all legs do

    def __init__(self, sizes: PolicySizes, settings: HeadSettings) -> None:
        super().__init__()
        self.horizon = settings.policy_steps
        inputs = sizes.start + sizes.goal + self.extra_inputs
        self.net = mlp(inputs, self.horizon * sizes.action, settings.width, depth=3, norm=True)

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., H, A] scaled action blocks from starts [..., S] toward goals [..., F]."""
        return self.net(torch.cat(inputs, -1)).float().unflatten(-1, (self.horizon, -1))

    def along(self, legs: Legs) -> Tensor:
        """[B, H, A] what it answers at the start of legs."""
        return self(legs.start, legs.goal)

    def losses(self, legs: Legs) -> dict[str, Tensor]:
        """What is summed to train it, by the ending of its name in the metrics."""
        raise NotImplementedError

    def fit(self, legs: Legs, *, fast_step: float) -> None:
        """Set what no gradient trains, from legs of the training data, whose paths are measured in
        `fast_step` of the latent."""

    def update_target(self) -> None:
        """Move what follows the weights after a step of the training."""


@POLICIES.register("gcbc")
class GCBC(Policy):
    """Goal-conditioned behaviour cloning: the actions that were taken from a latent toward a later
    one of its episode (goals in hindsight).

    Source: goal-conditioned supervised learning (Ghosh et al., 2021), with inverse dynamics
    (Agrawal et al., 2016) as its one-step case."""

    seeks_efficient = False

    def losses(self, legs: Legs) -> dict[str, Tensor]:
        """Mean squared error of the blocks that led to the goal."""
        return {"": weighted_error(self.along(legs), legs.blocks, legs.counts)}


@POLICIES.register("gc_idm")
class GCIDM(Policy):
    """Goal-conditioned inverse dynamics: the actions that lead to a goal in so many model steps,
    learned from efficient legs alone.

    Of the many ways to a goal that a recording has, what remains tells the direct one from the
    others, which behaviour cloning averages. It is in the unit of the temporal distance: steps,
    or where that was fitted to paths the length of the path in steps of a fast mover. When it
    acts, the distance says it, cut to what training met; without a learned one, the straight line
    in the latent does. Source: inverse dynamics (Agrawal et al., 2016), conditioned on a goal and
    on the steps to it."""

    extra_inputs = 2
    most: Tensor
    fast_step: Tensor

    def __init__(self, sizes: PolicySizes, settings: HeadSettings) -> None:
        super().__init__(sizes, settings)
        self.register_buffer("most", torch.ones(()))  # that remain of an efficient leg
        self.register_buffer("fast_step", torch.ones(()))  # of the latent, where none is learned

    def forward(self, *inputs: Tensor) -> Tensor:
        """[..., H, A] scaled action blocks from starts [..., S] toward goals [..., F] of which so
        much remains [...]: of these three inputs."""
        start, goal, remaining = inputs
        steps = remaining.float().clamp(min=1).minimum(self.most)[..., None]
        return super().forward(start, goal, steps.log(), 1 / steps)

    def along(self, legs: Legs) -> Tensor:
        return self(legs.start, legs.goal, legs.remaining)

    def straight(self, start: Tensor, goal: Tensor) -> Tensor:
        """[...] the straight line between latents [..., F], in steps of a fast mover: how many
        remain where no distance was learned."""
        return (goal - start).float().norm(dim=-1) / self.fast_step

    def fit(self, legs: Legs, *, fast_step: float) -> None:
        """Take how long efficient legs are, but for the longest of a hundred, and the unit of
        straight lines; UserError where no leg is efficient."""
        if not bool(legs.efficient.any()):
            raise UserError(
                "gc_idm of train.heads.sizes.policies learns from legs that are about as short as "
                "the distance says (without one, as the straight line in the latent), and of the "
                "recorded ones none is: leave it out there, or train the distance longer "
                "(train.distance.steps)"
            )
        self.most.fill_(legs.remaining[legs.efficient > 0].quantile(0.99).clamp(min=1))
        self.fast_step.fill_(fast_step)

    def losses(self, legs: Legs) -> dict[str, Tensor]:
        """Mean squared error of the blocks of efficient legs."""
        return {"": weighted_error(self.along(legs), legs.blocks, legs.efficient_counts)}


@POLICIES.register("gcivl")
class GCIVL(Policy):
    """Goal-conditioned implicit value learning: V(s, g), minus the discounted number of model
    steps to a goal at best, and a policy that clones the actions which brought the goal nearer.

    Values are fitted by expectile regression to -1 + DISCOUNT * V(next, g), 0 at the goal, against
    a moving average of themselves; of two networks the target is each one's own, and which side of
    the expectile counts is judged by the smaller. Actions are weighted by exp(INVERSE_TEMPERATURE
    * A) of the first model step's advantage A (advantage-weighted regression). Source: implicit
    Q-learning (Kostrikov et al., 2022), its goal-conditioned form in HIQL (Park et al., 2023) and
    OGBench (Park et al., 2025)."""

    def __init__(self, sizes: PolicySizes, settings: HeadSettings) -> None:
        super().__init__(sizes, settings)
        inputs, width = sizes.start + sizes.goal, settings.width
        self.values = nn.ModuleList(mlp(inputs, 1, width, depth=3, norm=True) for _ in range(2))
        self.targets = copy.deepcopy(self.values).requires_grad_(False)

    def value(self, start: Tensor, goal: Tensor, *, target: bool = False) -> Tensor:
        """[2, ...] what each network says of starts [..., S] and goals [..., F]."""
        both = torch.cat([start, goal], -1).float()
        with exact(both.device):  # an advantage is the difference of two large numbers
            each = [net(both)[..., 0] for net in (self.targets if target else self.values)]
        return VALUE_UNIT * torch.stack(each)

    def steps(self, start: Tensor, goal: Tensor) -> Tensor:
        """[...] model steps to the goal that the mean value stands for."""
        left = 1 + (1 - DISCOUNT) * self.value(start, goal).mean(0)
        return left.clamp(min=DISCOUNT**1000, max=1).log() / math.log(DISCOUNT)

    def losses(self, legs: Legs) -> dict[str, Tensor]:
        """The error of the values, in units of VALUE_UNIT, and of the actions by their weights."""
        weights = legs.counts * self.weights(legs)[:, None]
        cloned = weighted_error(self.along(legs), legs.blocks, weights)
        return {"": cloned, "/value": self.value_loss(legs)}

    def value_loss(self, legs: Legs) -> Tensor:
        """Mean expectile error of the values."""
        with torch.no_grad():
            after = self.value(legs.after, legs.value_goal, target=True)
            after = after.masked_fill(legs.after_at_value_goal, 0)
            targets = (-1 + DISCOUNT * after).masked_fill(legs.at_value_goal, 0)  # [2, B]
            before = self.value(legs.start, legs.value_goal, target=True).mean(0)
            better = targets.amin(0) >= before
        error = (targets - self.value(legs.start, legs.value_goal)) / VALUE_UNIT
        return (torch.where(better, EXPECTILE, 1 - EXPECTILE) * error.square()).mean()

    @torch.no_grad()
    def weights(self, legs: Legs) -> Tensor:
        """[B] of legs by the advantage of their first model step."""
        after = self.value(legs.after, legs.goal).mean(0).masked_fill(legs.steps == 1, 0)
        advantage = -1 + DISCOUNT * after - self.value(legs.start, legs.goal).mean(0)
        return (INVERSE_TEMPERATURE * advantage).exp().clamp(max=MAX_WEIGHT)

    @torch.no_grad()
    def update_target(self) -> None:
        """Move the target networks toward the values."""
        torch._foreach_lerp_(
            list(self.targets.parameters()), list(self.values.parameters()), 1 - MOMENTUM
        )


def weighted_error(answered: Tensor, blocks: Tensor, weights: Tensor) -> Tensor:
    """Mean squared error of answered blocks [B, H, A] for those that were taken, by the weights
    [B, H]; 0 where all of these are."""
    error = (answered - blocks).square().mean(-1)
    # Over the ranks' weights, not this rank's: the mean must be the same however many share it.
    total = all_mean(weights.mean())
    return (error * weights).mean() / torch.where(total > 0, total, 1)
