"""The large case of `jepa-wm bench plan`, for a GPU: a search through a model of 24 layers,
measured against the card's own matrix product.

S candidates, R rounds, H horizon, N tokens a frame, D latent width, A action numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from jepa_wm.core.precision import autocast, now
from jepa_wm.models.blocks import Block
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.rollout import TOKENS_ON_GPU, imagine_candidates, unroll_candidates
from jepa_wm.planning.terms import latent_distance

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
