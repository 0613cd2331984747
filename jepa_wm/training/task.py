"""What one stage trains, as the loop sees it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor, nn

Losses = dict[str, Tensor]


@dataclass
class Task:
    """`losses(step, rows)` returns `loss` and its parts for some samples of the batch of a step,
    each a mean over them; everything random is drawn from the step, for the whole batch."""

    stage: (
        str  # names the checkpoint folder and the metrics, and its settings if there is no `part`
    )
    model: nn.Module  # all that is saved
    losses: Callable[[int, slice], Losses]
    after_step: Callable[[int], None] = lambda step: None
    evaluate: Callable[[], Mapping[str, float]] | None = None
    part: str = ""  # names one of several trainings of a stage, and its settings
    parts: int = 1  # a batch is computed in, their gradients summed
    unsynced: Callable[[], AbstractContextManager[object]] = (
        nullcontext  # gradients stay on their rank for now
    )
