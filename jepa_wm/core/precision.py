"""Mixed precision: where bf16 is used, which precision is the faster one here, and how many CPU
threads work."""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from jepa_wm.core.distributed import dist
from jepa_wm.core.files import write_atomic

KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}
# seconds that measuring a rate takes; a machine slow in bf16 would else wait ten for its answer
MEASURED = 0.3
GAIN = 1.3  # bf16 rounds more: it has to be faster than fp32 by this factor to be taken


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bf16 for `precision` "bf16", nothing for "fp32"."""
    if precision == "fp32":
        return nullcontext()
    assert precision == "bf16", f"{precision}: resolve it first"
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def exact(device: torch.device) -> AbstractContextManager[object]:
    """fp32 within, also where an autocast is on: for latents of a few numbers, whose third digit
    is whether a way is open, and for what moves and compares them."""
    return torch.autocast(device.type, enabled=False)


def resolve_precision(precision: str, folder: Path) -> str:
    """ "fp32" or "bf16": for "auto" whichever was the faster where the run in `folder` began.

    The choice is written down in the run folder, so that a resumed run computes as it did before.
    """
    if precision != "auto":
        return precision
    file = folder / "precision.json"
    if dist().first and not file.exists():
        rates = {name: matmul_rate(dtype) for name, dtype in KINDS.items()}
        faster = "bf16" if rates["bf16"] > GAIN * rates["fp32"] else "fp32"
        write_atomic(file, json.dumps({"precision": faster, "gflops": rates}))
    known = json.loads(file.read_text(encoding="utf-8"))["precision"] if dist().first else ""
    return dist().broadcast(known)


def matmul_rate(
    dtype: torch.dtype, *, rows: int = 4096, inner: int = 256, columns: int = 512
) -> float:
    """GFLOP/s of a product [rows, inner] x [inner, columns] where this process computes, the best
    of what fits into `MEASURED` seconds, three at least; on a CPU with the threads that are set
    now.

    Machines differ: with AMX or on Zen 4 bf16 is more than twice as fast as fp32, on others it is
    half as fast."""
    device = dist().device
    # Numbers at random: a GPU multiplies constants faster than those.
    g = torch.Generator(device).manual_seed(0)
    x, weight = (
        torch.randn(n, inner, generator=g, device=device).to(dtype) for n in (rows, columns)
    )
    # A launch is answered before its work is done: queue enough of it.
    repeats = 1 if device.type == "cpu" else 10
    torch.nn.functional.linear(x, weight)  # the first call sets things up
    seconds: list[float] = []
    while len(seconds) < 3 or sum(seconds) * repeats < MEASURED:
        began = now(device)
        for _ in range(repeats):
            torch.nn.functional.linear(x, weight)
        seconds.append((now(device) - began) / repeats)
    return 2e-9 * rows * inner * columns / min(seconds)


def now(device: torch.device) -> float:
    """Seconds on a clock that is read once all that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def set_threads(threads: int) -> None:
    """Let PyTorch use `threads` CPU threads; 0 leaves its own choice."""
    if threads:
        torch.set_num_threads(threads)
