"""The large cases of `jepa-wm bench`, for a GPU: a search through a model of 24 layers, and a step
of ViT-L/16.

Neither has a rival here: what they are measured against is the card's own matrix product.
S candidates, R rounds, H horizon, N tokens a frame, D latent width, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from statistics import median

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast, now
from jepa_wm.core.schedule import OptimiserSettings
from jepa_wm.data.images import to_input
from jepa_wm.evals.bench import train_case
from jepa_wm.models.blocks import Block
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.rollout import TOKENS_ON_GPU, imagine_candidates, unroll_candidates
from jepa_wm.planning.terms import latent_distance
from jepa_wm.training import loop
from jepa_wm.training.parallel import applied
from jepa_wm.training.settings import ParallelSettings
from jepa_wm.training.task import Task

NOMINAL = {
    "H100": 989e3,
    "H200": 989e3,
    "A100": 312e3,
}  # GFLOP/s of dense bf16 products, as the maker says
WARM_UP = 3  # steps that compile, allocate, and are not counted

Imagine = Callable[[Tensor], Tensor]  # plans [1, S, H, A] to futures [1, S, H, N, D]


@torch.no_grad()
def search(
    model: Dynamics, context: Tensor, past: Tensor, rounds: Tensor, goal: Tensor, *, operations: float, rate: float,
    backend: str,
) -> dict[str, object]:  # fmt: skip
    """Seconds that imagining and judging plans rounds [R, 1, S, H, A] takes in bf16, by each way
    of imagining that there is, and `floor_s`, what `operations` take at `rate` GFLOP/s, below
    which no exact way can come."""

    def stepped(plans: Tensor) -> Tensor:
        return imagine_candidates(model, context, past, plans, precision="bf16")

    def compiled(plans: Tensor) -> Tensor:
        with autocast(plans.device, "bf16"):
            # Of one size: each other one would be compiled anew.
            pieces = plans.chunk(-(-plans.shape[1] * model.tokens // TOKENS_ON_GPU), 1)
            return torch.cat(
                [unroll_candidates(model, context, past, some).float() for some in pieces], 1
            )

    def seconds(imagine: Imagine) -> float:
        costs = latent_distance("l2")(
            imagine(rounds[0]), goal
        )  # the first compiles, and is not counted
        began = now(rounds.device)
        for plans in rounds:
            costs = latent_distance("l2")(imagine(plans), goal)
        assert costs.shape == rounds.shape[1:3] + rounds.shape[3:4]
        return now(rounds.device) - began

    took = {"stepper": seconds(stepped)}
    first = stepped(rounds[0, :, :2])
    for block in model.blocks:
        assert isinstance(block, Block)
        block.compile(backend=backend)
    took["compiled"] = seconds(compiled)
    apart = float((compiled(rounds[0])[:, :2] - first).abs().max() / first.std())
    best = min(took.values())
    return {
        "seconds": took, "best_s": best, "floor_s": 1e-9 * operations / rate, "petaflop": 1e-15 * operations,
        "share_of_matmul": 1e-9 * operations / best / rate, "ways_differ": apart,
    }  # fmt: skip


def training(
    case: train_case.Case, *, precision: str, rate: float, compile: bool
) -> dict[str, object]:
    """Median seconds of whole steps, as pretraining takes them, from frames that are there
    already; the operations of the model a second as a share of the measured `rate` GFLOP/s and of
    the maker's; memory on a GPU."""
    device = dist().device
    model, frames, masks = train_case.fresh(case)
    operations = train_case.flops(case, masks)
    model, frames, masks = model.to(device), frames.to(device), [mask.to(device) for mask in masks]

    def losses(step: int, rows: slice) -> dict[str, Tensor]:
        clip = to_input(frames[rows], case.side)
        with autocast(device, precision):
            return model(clip, clip[:, :0], [mask.of(rows) for mask in masks])

    settings = OptimiserSettings(batch=case.batch, steps=1000)
    task = Task("pretrain", model, losses, after_step=lambda step: model.update_target(0.999))
    seconds = []
    with applied(task, ParallelSettings(compile=compile), dist(), precision) as task:
        optimiser = loop.make_optimiser(task.model, settings)
        for step in range(WARM_UP + case.repeats):
            if step == WARM_UP and device.type == "cuda":
                held = torch.cuda.memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
            began = now(device)
            loop._one_step(task, optimiser, settings, step)
            task.after_step(step)
            seconds.append(now(device) - began)
    took = median(seconds[WARM_UP:])
    told: dict[str, object] = {
        "seconds": took, "clips_per_second": case.batch / took, "teraflop_per_clip": 1e-12 * operations / case.batch,
        "gflops": 1e-9 * operations / took, "utilisation": 1e-9 * operations / took / rate,
        "tokens": {"context": [m.context_ids.shape[1] for m in masks], "targets": [m.target_ids.shape[1] for m in masks]},
        "case": asdict(case),
    }  # fmt: skip
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
        nominal = next((rate for card, rate in NOMINAL.items() if card in name), None)
        told |= {
            "card": name, "utilisation_nominal": nominal and 1e-9 * operations / took / nominal,
            "memory_gib": peak / 2**30, "memory_per_clip_mib": (peak - held) / case.batch / 2**20,
        }  # fmt: skip
    return told
