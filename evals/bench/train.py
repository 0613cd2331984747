"""`jepa-wm bench train`: a pretraining step, ours against a reference shaped like the peers' code,
and many ranks against one process; on a GPU also ViT-L/16 against the card's own matrix product.

Same weights, clips and masks, in one process; the reference (peer_step.py) in fp32 or bf16,
whichever is the faster."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist, joined
from jepa_wm.core.precision import KINDS, autocast, matmul_rate, now, set_threads
from jepa_wm.core.rendezvous import STORE
from jepa_wm.core.saver import Saver
from jepa_wm.core.schedule import OptimiserSettings
from jepa_wm.data.images import to_input
from jepa_wm.evals.bench import large
from jepa_wm.evals.bench.peer_step import peer_losses
from jepa_wm.evals.bench.train_case import LARGE, QUICK, Case, flops, fresh
from jepa_wm.models.jepa import JEPA
from jepa_wm.models.masks import Masked
from jepa_wm.training import loop
from jepa_wm.training.parallel import applied
from jepa_wm.training.settings import ParallelSettings
from jepa_wm.training.task import Task


def run(*, threads: int, quick: bool = False) -> dict[str, object]:
    """`ratio` of the reference's seconds a step to ours, `share_of_matmul`, clips and tokens a
    second, the `split` of a step into seconds, and `ranks`: samples a second of two processes as a
    share of one's with two threads, on CPUs. On a GPU, and with `quick` in tiny sizes anywhere,
    `large`: see `bench_large.training`."""
    set_threads(threads)
    case, threads, on_gpu = (
        QUICK if quick else Case(),
        torch.get_num_threads(),
        dist().device.type == "cuda",
    )
    widest = {"rows": 64 if quick else 2048, "inner": 192, "columns": 768}
    if on_gpu and not quick:
        widest = {"rows": 8192, "inner": 8192, "columns": 8192}
    rates = {name: matmul_rate(kind, **widest) for name, kind in KINDS.items()}
    precision = max(rates, key=lambda name: rates[name])
    mine = _ours(case, precision)
    peers = {name: _reference(case, name) for name in KINDS}
    step = sum(mine[name] for name in ("data", "forward", "backward", "optimiser", "ema"))
    model, _, masks = fresh(case)
    tokens = case.batch * model.encoder.tokens_per_frame * case.frames // case.tubelet_size
    working = mine["forward"] + mine["backward"]
    return {
        "ratio": min(peers.values()) / step,
        "clips_per_second": case.batch / step,
        "tokens_per_second": tokens / step,
        "share_of_matmul": 1e-9 * flops(case, masks) / working / max(rates.values()),
        "split": mine,
        "ours_s": step,
        "reference_s": peers,
        "precision": precision,
        "matmul_gflops": rates,
        "threads": threads,
        "ranks": None if on_gpu else _ranks(case, precision, threads),
        "large": _large(quick, precision, rates) if on_gpu or quick else None,
        "case": asdict(case),
    }


def _large(quick: bool, precision: str, rates: dict[str, float]) -> dict[str, object]:
    return large.training(
        QUICK if quick else LARGE, precision=precision, rate=rates[precision], compile=not quick
    )


def _ours(case: Case, precision: str) -> dict[str, float]:
    """Median seconds of each part of a step; `checkpoint` is what training waits for one,
    `written` what it takes."""
    model, frames, masks = _there(case)
    optimiser = loop.make_optimiser(model, OptimiserSettings())
    took: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began = now(frames.device)
        result = work()
        took.setdefault(name, []).append(now(frames.device) - began)
        return result

    def losses() -> Tensor:
        with autocast(clip.device, precision):
            found: Tensor = model(clip, clip[:, :0], masks)["loss"]
        return found

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), keep=1) as saver:
        for number in range(case.repeats + 1):
            clip = timed("data", lambda: to_input(frames, case.side))
            optimiser.zero_grad()
            loss = timed("forward", losses)
            timed("backward", loss.backward)
            timed("optimiser", update)
            timed("ema", lambda: model.update_target(0.999))
            state = {"optimiser": optimiser.state_dict()}
            timed("checkpoint", partial(saver.save, number, dict(model.state_dict()), state))
            timed("written", saver.settle)
    return {name: median(seconds[1:]) for name, seconds in took.items()}


def _reference(case: Case, precision: str) -> float:
    """Median seconds of a whole step."""
    model, frames, masks = _there(case)
    optimiser = loop.make_optimiser(model, OptimiserSettings())
    seconds = []
    for _ in range(case.repeats + 1):
        began = now(frames.device)
        optimiser.zero_grad()
        with autocast(frames.device, precision):
            loss = peer_losses(model, to_input(frames, case.side), masks)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.update_target(0.999)
        seconds.append(now(frames.device) - began)
    return median(seconds[1:])


def _there(case: Case) -> tuple[JEPA, Tensor, list[Masked]]:
    """`fresh` where this process computes."""
    (model, frames, masks), device = fresh(case), dist().device
    return model.to(device), frames.to(device), [mask.to(device) for mask in masks]


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
    spawned = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        told = spawned.SimpleQueue()
        shared = (ranks, threads, fsdp, precision, case, str(Path(folder) / "meet"), told)
        processes = [spawned.Process(target=_rank, args=(rank, *shared)) for rank in range(ranks)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise RuntimeError(f"ranks ended with {[process.exitcode for process in processes]}")
        return float(told.get())


def _rank(
    rank: int,
    ranks: int,
    threads: int,
    fsdp: bool,
    precision: str,
    case: Case,
    meeting: str,
    told: Any,
) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        STORE: meeting,
    }
    torch.set_num_threads(threads)
    with joined():
        model, frames, masks = fresh(case)

        def losses(step: int, rows: slice) -> dict[str, Tensor]:
            clip = to_input(frames[rows], case.side)
            with autocast("cpu", precision):
                return model(clip, clip[:, :0], [mask.of(rows) for mask in masks])

        settings = OptimiserSettings(batch=case.batch, steps=1000)
        task = Task("pretrain", model, losses, after_step=lambda step: model.update_target(0.999))
        with applied(task, ParallelSettings(fsdp=fsdp), dist(), precision) as task:
            optimiser, seconds = loop.make_optimiser(task.model, settings), []
            for step in range(case.repeats + 2):
                began = time.perf_counter()
                loop._one_step(task, optimiser, settings, step)
                task.after_step(step)
                seconds.append(time.perf_counter() - began)
        if rank == 0:
            told.put(case.batch / median(seconds[2:]))
