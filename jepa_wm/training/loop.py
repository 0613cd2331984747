"""The one training loop: step, evaluate, show, save, stop; every stage passes in what differs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_checkpoint, load_strict, newest_checkpoint
from jepa_wm.core.distributed import dist
from jepa_wm.core.errors import Interrupted, TrainingDiverged, catching_signals
from jepa_wm.core.progress import Metrics, Progress
from jepa_wm.core.run import Run
from jepa_wm.core.saver import Saver
from jepa_wm.core.settings import OptimiserSettings, learning_rate
from jepa_wm.training.parallel import applied, full_state_dict, full_weights, load_moments
from jepa_wm.training.settings import Execution

SHOW_EVERY = 10  # steps between two lines of the metrics
PLAIN = Execution(precision="fp32")
Losses = dict[str, Tensor]


@dataclass
class TrainingTask:
    """What one stage trains. `losses(step, rows)` returns `loss` and its parts for some samples of
    the batch of a step, each a mean over them; everything random is drawn from the step, for the
    whole batch."""

    stage: str  # names the checkpoint folder, the metrics, and the settings if there is no `part`
    model: nn.Module  # all that is saved
    losses: Callable[[int, slice], Losses]
    after_step: Callable[[int], None] = lambda step: None
    # Metrics beside the losses, from `losses` as these ranks compute them.
    evaluate: Callable[[Callable[[int, slice], Losses]], Mapping[str, float]] | None = None
    part: str = ""  # names one of several trainings of a stage, and its settings
    # What many ranks and little memory ask for; `parallel.applied` sets them.
    accumulate: int = 1  # parts that a batch is computed in, their gradients summed
    # without an exchange of gradients
    unsynced: Callable[[], AbstractContextManager[object]] = nullcontext


def fit(
    run: Run, task: TrainingTask, settings: OptimiserSettings, how: Execution = PLAIN
) -> float:
    """Train to `settings.steps`, from the newest whole checkpoint if there is one; returns seconds
    spent in all.

    A resumed run takes the same steps as one that was never stopped, to the same bits on one CPU;
    ranks that train together take them to rounding, however many there are. Raises
    TrainingDiverged at a loss that is not finite, and Interrupted, after saving, when a signal
    asked to stop. The last checkpoint has to succeed."""
    ctx, label = dist(), f"{task.stage}/{task.part}" if task.part else task.stage
    folder = run.stage_dir(task.stage) / "checkpoints" / task.part
    state = _resume(folder, task.model)
    start, before = int(state.get("step", 0)), float(state.get("seconds", 0))
    began = time.monotonic()
    with ExitStack() as stack:
        # Rank 0 shows and saves; the model is trained as these ranks share it.
        stop = stack.enter_context(catching_signals())
        if ctx.first:
            metrics_file = Metrics(run.path, label.replace("/", "_"), start=start)
            stack.callback(metrics_file.close)
            state_file = run.stage_dir(task.stage) / "progress.json"
            bar = Progress(label, settings.steps, start=start, file=state_file)
            stack.enter_context(bar)
        saver = stack.enter_context(Saver(folder, keep=how.keep))
        task = stack.enter_context(applied(task, how.parallel, ctx, how.precision))
        optimiser = make_optimiser(task.model, settings)
        if state:
            load_moments(optimiser, state["optimiser"])

        # A training of no steps keeps what it begins with.
        if not settings.steps and not state:
            _save(saver, task, optimiser, 0, before)
            saver.settle()
        for step in range(start, settings.steps):
            metrics = _one_step(task, optimiser, settings, step)
            _refuse_divergence(task, settings, step, metrics, saver)
            task.after_step(step)
            done, last = step + 1, step + 1 == settings.steps

            # Evaluate and show.
            evaluated = task.evaluate is not None and (last or done % settings.eval_every == 0)
            if task.evaluate and evaluated:
                metrics |= task.evaluate(task.losses)
            if ctx.first and (evaluated or last or done % SHOW_EVERY == 0):
                metrics_file.log(done, metrics)
                hidden = ("lr", "gradient_norm")
                bar.update(done, **{k: v for k, v in metrics.items() if k not in hidden})

            # Save and stop: at the signal of any rank all leave after the same step.
            signum = ctx.all_max(stop.signum or 0)
            if signum or last or done % settings.save_every == 0:
                _save(saver, task, optimiser, done, before + time.monotonic() - began)
            if signum or last:
                saver.settle()
            if signum:
                raise Interrupted(signum)
    return before + time.monotonic() - began


def begun(run: Run, stage: str, part: str = "") -> bool:
    """Whether there is a checkpoint that a training goes on from, which brings all weights."""
    folder = run.stage_dir(stage) / "checkpoints" / part
    return dist().broadcast(dist().first and newest_checkpoint(folder) is not None)


def make_optimiser(model: nn.Module, settings: OptimiserSettings) -> torch.optim.AdamW:
    """AdamW over all trainable parameters: matrices decay, biases, norms and single vectors do
    not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    assert len(matrices) + len(vectors) == len(trained)
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, fused=True)


def _one_step(
    task: TrainingTask, optimiser: torch.optim.AdamW, settings: OptimiserSettings, step: int
) -> dict[str, float]:
    """One step of the optimiser; its losses, averaged over parts and ranks, learning rate and
    gradient norm."""
    ctx, rate = dist(), learning_rate(step, settings)
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad()

    # The batch in parts, whose gradients ranks exchange with the last one.
    by_part: list[Losses] = []
    for part in range(task.accumulate):
        with nullcontext() if part == task.accumulate - 1 else task.unsynced():
            losses = task.losses(step, ctx.rows(settings.batch, part, task.accumulate))
            (losses["loss"] / task.accumulate).backward()
        by_part.append({name: value.detach() for name, value in losses.items()})
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    norm = full_state_dict(nn.utils.clip_grad_norm_(parameters, settings.clip))
    means = [torch.stack([losses[name] for losses in by_part]).mean() for name in by_part[0]]
    mean = ctx.average(torch.stack(means))
    optimiser.step()

    # Read last: on a GPU that waits for all that was asked of it.
    metrics = dict(zip(by_part[0], mean.tolist(), strict=True))
    return metrics | {"lr": rate, "gradient_norm": float(norm)}


def _save(
    saver: Saver, task: TrainingTask, optimiser: torch.optim.AdamW, step: int, seconds: float
) -> None:
    """A checkpoint of all that resuming needs, which all ranks have to gather together."""
    weights, moments = full_weights(task.model), full_state_dict(optimiser.state_dict())
    if dist().first:
        saver.save(step, weights, {"optimiser": moments, "step": step, "seconds": seconds})


def _refuse_divergence(
    task: TrainingTask, settings: OptimiserSettings, step: int, metrics: Mapping[str, float],
    saver: Saver,
) -> None:  # fmt: skip
    """Raise TrainingDiverged if the step just taken was not finite; the model it spoiled is never
    saved."""
    if math.isfinite(metrics["loss"]) and math.isfinite(metrics["gradient_norm"]):
        return
    saver.join()
    newest, kept = newest_checkpoint(saver.folder), f"there is no checkpoint yet in {saver.folder}"
    if newest:
        kept = f"the newest whole checkpoint is {newest}"
    raise TrainingDiverged(
        f"{task.stage}: the loss or its gradient is not finite at step {step} ({dict(metrics)}); "
        f"{kept}. Lower train.{task.part or task.stage}.lr ({settings.lr}) in a new --run, or "
        "look for NaN in the data"
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
