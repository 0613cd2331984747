"""`jepa-wm bench train`: a pretraining step, ours against a reference shaped like the peers' code,
and many ranks against one process; on a GPU also ViT-L/16 against the card's own matrix product.

Same weights, clips and masks, in one process; the reference in fp32 or bf16,
whichever is the faster."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Generator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist, joined
from jepa_wm.core.precision import KINDS, autocast, now, set_threads
from jepa_wm.core.rendezvous import STORE
from jepa_wm.core.saver import Saver
from jepa_wm.core.settings import OptimiserSettings
from jepa_wm.evals.bench.reference import (
    LARGE,
    QUICK,
    Case,
    Pixels,
    flops,
    fresh,
    peer_losses,
    rates_and_precision,
)
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.training import loop
from jepa_wm.training.loop import TrainingTask
from jepa_wm.training.parallel import applied
from jepa_wm.training.settings import ParallelSettings

# GFLOP/s of dense bf16 products, as the maker says
NOMINAL = {"H100": 989e3, "H200": 989e3, "A100": 312e3}
WARM_UP = 3  # steps that compile, allocate, and are not counted


def run(*, threads: int, quick: bool = False) -> dict[str, object]:
    """`ratio` of the reference's seconds a step to ours, `share_of_matmul`, clips and tokens a
    second, the `split` of a step into seconds, and `ranks`: samples a second of two processes as a
    share of one's with two threads, on CPUs. On a GPU, and with `quick` in tiny sizes anywhere,
    `large`: see `_large`."""
    set_threads(threads)
    case, threads = QUICK if quick else Case(), torch.get_num_threads()
    on_gpu = dist().device.type == "cuda"

    rates, precision = rates_and_precision(inner=192, columns=768, quick=quick)

    # A step, part by part, beside the reference's.
    ours = _ours(case, precision)
    peers = {name: _reference(case, name) for name in KINDS}
    step = sum(ours[name] for name in ("data", "forward", "backward", "optimiser", "ema"))
    model, pixels = fresh(case)
    tokens = case.batch * model.encoder.tokens_per_frame * case.frames // case.tubelet_size
    working = ours["forward"] + ours["backward"]

    # What only a GPU is large enough for, or only CPUs are asked for.
    large = None
    if on_gpu or quick:
        large = _large(QUICK if quick else LARGE, precision, rates[precision], compile=not quick)
    return {
        "ratio": min(peers.values()) / step,
        "clips_per_second": case.batch / step,
        "tokens_per_second": tokens / step,
        "share_of_matmul": 1e-9 * flops(case, pixels.masks) / working / max(rates.values()),
        "split": ours,
        "ours_s": step,
        "reference_s": peers,
        "precision": precision,
        "matmul_gflops": rates,
        "threads": threads,
        "ranks": None if on_gpu else _ranks(case, precision, threads),
        "large": large,
        "case": asdict(case),
    }


def _ours(case: Case, precision: str) -> dict[str, float]:
    """Median seconds of each part of a step; `checkpoint` is what training waits for one,
    `written` what it takes."""
    model, pixels = _on_device(case)
    optimiser, device = loop.make_optimiser(model, OptimiserSettings()), pixels.frames.device
    took: dict[str, list[float]] = {}

    # `now` waits for the GPU, so each part is charged for its own work.
    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = now(device)
        result = work()
        took.setdefault(name, []).append(now(device) - began)
        return result

    def loss_of(batch: Batch) -> Tensor:
        with autocast(device, precision):
            loss: Tensor = model(batch)["loss"]
        return loss

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    # A checkpoint every step, each waited for: training itself goes on while one is written.
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), keep=1) as saver:
        for number in range(case.repeats + 1):
            batch = timed("data", partial(pixels.batch, case.side))
            optimiser.zero_grad()
            loss = timed("forward", partial(loss_of, batch))
            timed("backward", loss.backward)
            timed("optimiser", update)
            timed("ema", partial(model.update_target, 0.999))
            state = {"optimiser": optimiser.state_dict()}
            timed("checkpoint", partial(saver.save, number, dict(model.state_dict()), state))
            timed("written", saver.settle)
    # The first step also allocates and chooses kernels.
    return {name: median(seconds[1:]) for name, seconds in took.items()}


def _reference(case: Case, precision: str) -> float:
    """Median seconds of a whole step."""
    model, pixels = _on_device(case)
    optimiser, device = loop.make_optimiser(model, OptimiserSettings()), pixels.frames.device
    seconds = []
    for _ in range(case.repeats + 1):
        began = now(device)
        optimiser.zero_grad()
        with autocast(device, precision):
            loss = peer_losses(model, pixels.batch(case.side))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.update_target(0.999)
        seconds.append(now(device) - began)
    return median(seconds[1:])


def _on_device(case: Case) -> tuple[JEPA, Pixels]:
    """`fresh` where this process computes."""
    (model, pixels), device = fresh(case), dist().device
    return model.to(device), pixels.to(device)


def _whole_steps(
    case: Case, model: JEPA, pixels: Pixels, precision: str, parallel: ParallelSettings
) -> Generator[float, None, None]:
    """Seconds of one step after another, as pretraining takes them, from frames that are there
    already."""
    device = pixels.frames.device

    def losses(step: int, rows: slice) -> dict[str, Tensor]:
        with autocast(device, precision):
            return model(pixels.batch(case.side, rows))

    settings = OptimiserSettings(batch=case.batch, steps=1000)
    task = TrainingTask(
        "pretrain", model, losses, after_step=lambda step: model.update_target(0.999)
    )
    with applied(task, parallel, dist(), precision) as task:
        optimiser = loop.make_optimiser(task.model, settings)
        for step in range(settings.steps):
            began = now(device)
            loop._one_step(task, optimiser, settings, step)
            task.after_step(step)
            yield now(device) - began


def _large(case: Case, precision: str, rate: float, *, compile: bool) -> dict[str, object]:
    """Median seconds of whole steps; the operations of the model a second as a share of the
    measured `rate` GFLOP/s and of the maker's; memory on a GPU."""
    model, pixels = _on_device(case)
    device, operations = pixels.frames.device, flops(case, pixels.masks)
    steps = _whole_steps(case, model, pixels, precision, ParallelSettings(compile=compile))
    # What the first steps compile and allocate is no part of a step's time.
    for _ in range(WARM_UP):
        next(steps)
    # Model and optimiser are there already: the peak less this is what the clips need.
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    took = median(next(steps) for _ in range(case.repeats))

    # Counted operations, not measured ones: recomputation would look like speed.
    result: dict[str, object] = {
        "seconds": took,
        "clips_per_second": case.batch / took,
        "teraflop_per_clip": 1e-12 * operations / case.batch,
        "gflops": 1e-9 * operations / took,
        "utilisation": 1e-9 * operations / took / rate,
        "tokens": {
            "context": [mask.context_ids.shape[1] for mask in pixels.masks],
            "targets": [mask.target_ids.shape[1] for mask in pixels.masks],
        },
        "case": asdict(case),
    }
    # The maker's figure is known of some cards alone; elsewhere the share is null.
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
        nominal = next((of_card for card, of_card in NOMINAL.items() if card in name), None)
        result |= {
            "card": name,
            "utilisation_nominal": nominal and 1e-9 * operations / took / nominal,
            "memory_gib": peak / 2**30,
            "memory_per_clip_mib": (peak - before) / case.batch / 2**20,
        }
    steps.close()
    return result


def _ranks(case: Case, precision: str, threads: int) -> dict[str, float]:
    """Clips a second of two ranks with a thread each, replicated and sharded, over those of one
    process with two."""
    one = _together(case, precision, ranks=1, threads=2, fsdp=False)
    many = {
        name: _together(case, precision, ranks=2, threads=1, fsdp=name == "fsdp")
        for name in ("ddp", "fsdp")
    }
    return {
        "one_process_clips_per_second": one,
        **{name: rate / one for name, rate in many.items()},
    }


def _together(case: Case, precision: str, *, ranks: int, threads: int, fsdp: bool) -> float:
    """Clips a second of so many ranks, each a process of its own."""
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        rates = spawned.SimpleQueue()
        environment = {"WORLD_SIZE": str(ranks), STORE: str(Path(folder) / "meet")}
        shared = (environment, threads, fsdp, precision, case, rates)
        processes = [spawned.Process(target=_rank, args=(rank, *shared)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        return float(rates.get())


def _rank(
    rank: int,
    environment: dict[str, str],
    threads: int,
    fsdp: bool,
    precision: str,
    case: Case,
    rates: Any,
) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), **environment}
    torch.set_num_threads(threads)
    with joined():
        model, pixels = fresh(case)
        steps = _whole_steps(case, model, pixels, precision, ParallelSettings(fsdp=fsdp))
        seconds = [next(steps) for _ in range(case.repeats + 2)]
        steps.close()
        if rank == 0:
            rates.put(case.batch / median(seconds[2:]))
