"""Mixed precision: where bf16 is used, and how many CPU threads work."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device | str, precision: str) -> AbstractContextManager[object]:
    """Matrix products in bf16 for `precision` "bf16", nothing for "fp32"."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16)


def set_threads(threads: int) -> None:
    """Let PyTorch use `threads` CPU threads; 0 leaves its own choice."""
    if threads:
        torch.set_num_threads(threads)
