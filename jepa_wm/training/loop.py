"""The one training loop: evaluate, save, stop, step, log, advance; every stage passes in what
differs."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import Interrupted, TrainingDiverged
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Metrics, Progress
from jepa_wm.core.run import Run
from jepa_wm.core.saver import Saver
from jepa_wm.core.schedule import OptimiserSettings, learning_rate
from jepa_wm.training.parallel import applied, full_state_dict, full_weights, load_moments
from jepa_wm.training.task import Losses, Task

__all__ = ["Losses", "Task", "fit", "make_optimiser"]


def fit(run: Run, task: Task, settings: OptimiserSettings) -> float:
    """Train to `settings.steps`, from the newest whole checkpoint if there is one; returns seconds
    spent in all.

    A resumed run takes the same steps as one that was never stopped, to the same bits on one CPU;
    ranks that train together take them to rounding, however many there are. Raises
    TrainingDiverged at a loss that is not finite, and Interrupted, after saving, when a signal
    asked to stop. The last checkpoint has to succeed."""
    ctx, label = dist(), f"{task.stage}/{task.part}" if task.part else task.stage
    folder = run.stage_dir(task.stage) / "checkpoints" / task.part
    train = run.config.train
    state = _resume(folder, task.model)
    start, before, began = (
        int(state.get("step", 0)),
        float(state.get("seconds", 0)),
        time.monotonic(),
    )
    with ExitStack() as stack:
        stop = stack.enter_context(catching_signals())
        show = (
            stack.enter_context(_Shown(run, label, settings.steps, start)) if ctx.first else None
        )
        saver = stack.enter_context(Saver(folder, keep=train.keep))
        task = stack.enter_context(applied(task, train.parallel, ctx, train.precision))
        optimiser = make_optimiser(task.model, settings)
        if state:
            load_moments(optimiser, state["optimiser"])

        def save(step: int) -> None:
            weights, moments = full_weights(task.model), full_state_dict(optimiser.state_dict())
            if ctx.first:
                spent = before + time.monotonic() - began
                saver.save(step, weights, {"optimiser": moments, "step": step, "seconds": spent})

        for step in range(start, settings.steps):
            figures = _one_step(task, optimiser, settings, step)
            _refuse_divergence(task, settings, step, figures, saver)
            task.after_step(step)
            done = step + 1
            judged = task.evaluate is not None and (
                done % settings.eval_every == 0 or done == settings.steps
            )
            if task.evaluate and judged:
                figures |= task.evaluate()
            if show and (judged or done % 10 == 0 or done == settings.steps):
                show.tell(done, figures)
            leaving = ctx.all_max(
                stop.signum or 0
            )  # the signal of any rank: all stop after the same step
            if leaving or done % settings.save_every == 0 or done == settings.steps:
                save(done)
            if leaving or done == settings.steps:
                saver.settle()
            if leaving:
                raise Interrupted(leaving)
    return before + time.monotonic() - began


def make_optimiser(model: nn.Module, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over all trainable parameters: matrices decay, biases, norms and single vectors do
    not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    assert len(matrices) + len(others) == len(trained)
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.lr, fused=True,
    )  # fmt: skip


class _Shown:
    """The metrics file and the bar of one training."""

    def __init__(self, run: Run, label: str, total: int, start: int) -> None:
        self.metrics = Metrics(run.path, label.replace("/", "_"), start=start)
        self.bar = Progress(
            label, total, start=start, file=run.stage_dir(label.split("/")[0]) / "progress.json"
        )

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        self.metrics.log(step, figures)
        self.bar.update(
            step, **{k: v for k, v in figures.items() if k not in ("lr", "gradient_norm")}
        )

    def __enter__(self) -> _Shown:
        self.bar.__enter__()
        return self

    def __exit__(self, *how: Any) -> None:
        self.bar.__exit__(*how)
        self.metrics.close()


def _one_step(
    task: Task, optimiser: torch.optim.AdamW, settings: OptimiserSettings, step: int
) -> dict[str, float]:
    ctx, rate = dist(), learning_rate(step, settings)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()
    told: list[Losses] = []
    for part in range(task.parts):
        with nullcontext() if part == task.parts - 1 else task.unsynced():
            losses = task.losses(step, ctx.rows(settings.batch, part, task.parts))
            (losses["loss"] / task.parts).backward()
        told.append({name: value.detach() for name, value in losses.items()})
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = full_state_dict(nn.utils.clip_grad_norm_(parameters, settings.clip))
    mean = ctx.average(
        torch.stack([torch.stack([part[name] for part in told]).mean() for name in told[0]])
    )
    optimiser.step()
    # Looked at last: on a GPU that waits for all that was asked of it.
    figures = dict(zip(told[0], mean.tolist(), strict=True))
    return figures | {"lr": rate, "gradient_norm": float(norm)}


def _refuse_divergence(
    task: Task, settings: OptimiserSettings, step: int, figures: Mapping[str, float], saver: Saver
) -> None:
    """Raise TrainingDiverged if the step just taken was not finite; the model it spoiled is never
    saved."""
    if math.isfinite(figures["loss"]) and math.isfinite(figures["gradient_norm"]):
        return
    saver.join()
    newest = newest_checkpoint(saver.folder)
    kept = (
        f"the newest whole checkpoint is {newest}"
        if newest
        else f"there is no checkpoint yet in {saver.folder}"
    )
    raise TrainingDiverged(
        f"{task.stage}: the loss or its gradient is not finite at step {step} ({dict(figures)}); {kept}. "
        f"Lower train.{task.part or task.stage}.lr ({settings.lr}) in a new --run, or look for NaN in the data"
    )


def _resume(folder: Path, model: nn.Module) -> dict[str, Any]:
    """Load the newest checkpoint's weights into the model; its training state, nothing if there is
    none."""
    newest = dist().broadcast(newest_checkpoint(folder) if dist().first else None)
    if newest is None:
        return {}
    weights, state = load_checkpoint(newest)
    load_strict(model, weights, source=str(newest))
    return state
