"""What every section of the config is, and the section of an optimiser with its schedules: pure
functions of the step, nothing to save, nothing to replay."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Unknown keys are refused; a section never changes once it is made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)


def none_twice(names: tuple[str, ...]) -> tuple[str, ...]:
    """The names; raises ValueError where one of them stands twice."""
    if len(set(names)) < len(names):
        raise ValueError(f"[{', '.join(names)}] names one twice; leave it out")
    return names


def check_heads(width: int, num_heads: int) -> None:
    """Raises ValueError unless every head gets an equal and even number of channels, which RoPE
    turns in pairs."""
    if width < 1 or width % (2 * num_heads):
        raise ValueError(f"width {width} must be an even multiple of num_heads {num_heads}")


class OptimiserSettings(Section):
    """AdamW with warm-up and decay, as functions of the step."""

    steps: int = Field(1000, ge=0)
    batch: int = Field(64, ge=1)
    lr: float = 1e-3
    warmup: int = Field(100, ge=0)
    first_lr: float = Field(0.0, ge=0, le=1)  # share of lr that the warm-up starts from
    schedule: Literal["cosine", "linear", "constant"] = "cosine"  # after the warm-up
    cooldown: int = Field(
        0, ge=0
    )  # last steps of a constant schedule, in which it decays linearly
    final_lr: float = 0.1  # share of lr left at the last step, unless it is constant to the end
    weight_decay: float = 0.04  # on matrices; never on biases, norms and single vectors
    clip: float = 1.0  # largest gradient norm
    save_every: int = Field(250, ge=1)
    eval_every: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _scheduled(self) -> OptimiserSettings:
        if self.cooldown and self.schedule != "constant":
            raise ValueError(
                f"cooldown {self.cooldown} belongs to schedule constant, not to {self.schedule}"
            )
        return self


def warmup_cosine(step: int, *, steps: int, warmup: int, final: float) -> float:
    """Share of the peak value at `step`: linear rise over `warmup` steps, then cosine decay to
    `final`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def learning_rate(step: int, settings: OptimiserSettings) -> float:
    """The learning rate at `step`: a linear rise from `first_lr` to all of `lr` over `warmup`
    steps, then as `schedule` says: cosine or linear decay to `final_lr`, or constant, with a
    linear decay over the last `cooldown` steps."""
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
