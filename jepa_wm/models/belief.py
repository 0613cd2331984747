"""What is believed of the numbers that stay the same in an episode, from readings of the frames
seen so far.

F frames of an episode in the order of time, L static numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor


def running_belief(readings: Tensor, *, every: int = 1) -> Tensor:
    """[F, ...] the mean of readings [F, ...] up to and including each frame, never of a later one.

    With `every` above 1 only frames a multiple of so many before it count: those that an agent saw
    which stands there. Training and evaluation read what lasts by this, as an agent does who has
    seen the episode from its first frame."""
    count = len(readings)
    rounds = -(-count // every)
    padded = torch.cat([readings, readings.new_zeros(rounds * every - count, *readings.shape[1:])])
    total = padded.double().unflatten(0, (rounds, every)).cumsum(0)  # [rounds, every, ...]
    looks = torch.arange(1, rounds + 1, device=readings.device).view(-1, *[1] * (total.dim() - 1))
    return (total / looks).flatten(0, 1)[:count].to(readings.dtype)


def with_goal(belief: Tensor, looks: Tensor, goal: Tensor) -> Tensor:
    """[..., L] the belief of an agent that has a goal image too: of `looks` [...] readings whose
    mean is `belief` [..., L], and of the goal's [..., L]."""
    return belief + (goal - belief) / (looks[..., None] + 1)
