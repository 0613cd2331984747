"""Schedules as pure functions of the step: nothing to save, nothing to replay."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jepa_wm.core.schema import Optimiser


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Share of the peak value at `step`: linear rise over `warmup` steps, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def learning_rate(step: int, settings: Optimiser) -> float:
    """The learning rate at `step`: a linear rise from `first_lr` to all of `lr` over `warmup` steps, then as `schedule`
    says: cosine or linear decay to `final_lr`, or constant, with a linear decay over the last `cooldown` steps."""
    s = settings
    if step < s.warmup:
        return s.lr * (s.first_lr + (1 - s.first_lr) * (step + 1) / s.warmup)
    if s.schedule == "cosine":
        return s.lr * warmup_cosine(step, steps=s.steps, warmup=s.warmup, final=s.final_lr)
    decay = s.steps - s.warmup if s.schedule == "linear" else s.cooldown
    left = min(1.0, (s.steps - step) / decay) if decay else 1.0
    return s.lr * (s.final_lr + (1 - s.final_lr) * left)


def linear(step: int, *, steps: int, start: float, end: float) -> float:
    """`start` at step 0, `end` at the last step."""
    return start + (end - start) * min(1.0, step / max(1, steps - 1))
