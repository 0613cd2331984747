"""Schedules as pure functions of the step: nothing to save, nothing to replay."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Share of the peak value at `step`: linear rise over `warmup` steps, then cosine decay to `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def linear(step: int, *, steps: int, start: float, end: float) -> float:
    """`start` at step 0, `end` at the last step."""
    return start + (end - start) * min(1.0, step / max(1, steps - 1))
