"""The one training loop: evaluate, save, stop, step, log, advance; every stage passes in what differs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint, save_checkpoint
from jepa_wm.core.errors import TrainingDiverged
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Metrics, Progress
from jepa_wm.core.run import RunFolder
from jepa_wm.core.schedule import learning_rate
from jepa_wm.core.schema import Optimiser

Losses = dict[str, Tensor]


@dataclass
class Task:
    """What one stage trains: `losses(step)` returns `loss` and its parts; everything random is drawn from the step."""

    stage: str  # names the checkpoint folder and the metrics, and its settings if there is no `part`
    model: nn.Module  # all that is saved
    losses: Callable[[int], Losses]
    after_step: Callable[[int], None] = lambda step: None
    evaluate: Callable[[], Mapping[str, float]] | None = None
    part: str = ""  # names one of several trainings of a stage, and its settings


def fit(run: RunFolder, task: Task, settings: Optimiser) -> float:
    """Train to `settings.steps`, from the newest whole checkpoint if there is one; returns seconds spent in all.

    A resumed run takes the same steps as one that was never stopped, to the same bits on one CPU. Raises
    TrainingDiverged at a loss that is not finite, and Interrupted, after saving, when a signal asked to stop.
    """
    folder = run.stage_dir(task.stage) / "checkpoints" / task.part
    optimiser = make_optimiser(task.model, settings)
    start, before = _resume(folder, task.model, optimiser)
    began = time.monotonic()
    label = f"{task.stage}/{task.part}" if task.part else task.stage
    with (
        catching_signals() as stop,
        Metrics(run.path, label.replace("/", "_"), start=start) as metrics,
        Progress(label, settings.steps, start=start) as bar,
    ):

        def spent() -> float:
            return before + time.monotonic() - began

        def save(step: int) -> None:
            state = {"optimiser": optimiser.state_dict(), "step": step, "seconds": spent()}
            save_checkpoint(folder, step, dict(task.model.state_dict()), state)

        for step in range(start, settings.steps):
            figures = _one_step(task, optimiser, settings, step)
            _refuse_divergence(task, settings, step, figures, folder)
            task.after_step(step)
            done = step + 1
            judged = task.evaluate is not None and (done % settings.eval_every == 0 or done == settings.steps)
            if task.evaluate and judged:
                figures |= task.evaluate()
            if judged or done % 10 == 0 or done == settings.steps:
                metrics.log(done, figures)
                bar.update(done, **{k: v for k, v in figures.items() if k not in ("lr", "gradient_norm")})
            if stop.requested or done % settings.save_every == 0 or done == settings.steps:
                save(done)
            stop.raise_if_requested()
        return spent()


def make_optimiser(model: nn.Module, settings: Optimiser) -> torch.optim.AdamW:
    """AdamW over all trainable parameters: matrices decay, biases, norms and single vectors do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    assert len(matrices) + len(others) == len(trained)
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr,
    )


def _one_step(task: Task, optimiser: torch.optim.AdamW, settings: Optimiser, step: int) -> dict[str, float]:
    rate = learning_rate(step, settings)
    for group in optimiser.param_groups:
        group["lr"] = rate
    losses = task.losses(step)
    optimiser.zero_grad()
    losses["loss"].backward()
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(parameters, settings.clip))
    figures = {name: float(value.detach()) for name, value in losses.items()}
    optimiser.step()
    return figures | {"lr": rate, "gradient_norm": norm}


def _refuse_divergence(task: Task, settings: Optimiser, step: int, figures: Mapping[str, float], folder: Path) -> None:
    """Raise TrainingDiverged if the step just taken was not finite; the model it spoiled is never saved."""
    if math.isfinite(figures["loss"]) and math.isfinite(figures["gradient_norm"]):
        return
    newest = newest_checkpoint(folder)
    kept = f"the newest whole checkpoint is {newest}" if newest else f"there is no checkpoint yet in {folder}"
    raise TrainingDiverged(
        f"{task.stage}: the loss or its gradient is not finite at step {step} ({dict(figures)}); {kept}. "
        f"Lower train.{task.part or task.stage}.lr ({settings.lr}) in a new --run, or look for NaN in the data"
    )


def _resume(folder: Path, model: nn.Module, optimiser: torch.optim.AdamW) -> tuple[int, float]:
    newest = newest_checkpoint(folder)
    if newest is None:
        return 0, 0.0
    weights, state = load_checkpoint(newest)
    load_strict(model, weights, source=str(newest))
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"]), float(state["seconds"])
