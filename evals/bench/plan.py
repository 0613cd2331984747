"""`jepa-wm bench plan`: imagining and judging plans, ours against a reference shaped like the
peers' planners.

Same weights, samples, iterations and horizon, in one process. The reference computes the whole
window of frames again at every imagined step, in fp32 with the fused attention kernel, one
episode's plans at a time. On a GPU also a search through a large model, against the card's
own matrix product. B episodes, S plans, R rounds of a search, C context frames, H horizon, N
tokens a frame, D latent width, A action numbers, P model width, W window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast, now, set_threads
from jepa_wm.evals.bench.reference import block_flops, peer_rollout, rates_and_precision
from jepa_wm.models.blocks import Block
from jepa_wm.models.distance import latent_distance
from jepa_wm.models.fast_rollout import TOKENS_ON_GPU
from jepa_wm.models.latent import LatentShape
from jepa_wm.models.transformer_dynamics import DeterministicDynamics
from jepa_wm.models.world_model_settings import DeterministicSettings

ACTION = 10


@dataclass(frozen=True)
class Case:
    """One size to measure."""

    tokens: int
    episodes: int = 1
    num_samples: int = 64
    iterations: int = 1
    horizon: int = 6
    depth: int = 6
    width: int = 384
    num_heads: int = 6
    context_frames: int = 3
    repeats: int = 3


CASES = (Case(tokens=64, episodes=2), Case(tokens=256))
# V-JEPA 2-AC's search: one frame is known, and one step is looked ahead.
LARGE = Case(
    tokens=256, num_samples=800, iterations=10, horizon=1, depth=24, width=1024, num_heads=16,
    context_frames=1,
)  # fmt: skip
QUICK = {"num_samples": 3, "horizon": 4, "depth": 1, "width": 32, "num_heads": 2, "repeats": 1}


def run(*, threads: int, quick: bool = False) -> dict[str, object]:
    """`ratio` and `share_of_matmul` of the worst case, the figures of all `cases`, and this
    machine's matmul rates.

    The precision of ours is that of the faster matrix product, measured here. On a GPU, and with
    `quick` in tiny sizes anywhere, `large`: see `_large`."""
    set_threads(threads)
    on_gpu = dist().device.type == "cuda"
    rates, precision = rates_and_precision(inner=384, columns=1536, quick=quick)
    # Every case in the faster precision, against that rate.
    sizes = [
        replace(case, tokens=min(case.tokens, 9), **QUICK) if quick else case for case in CASES
    ]
    cases = [measure(case, precision=precision, best_rate=max(rates.values())) for case in sizes]
    return {
        "ratio": min(case["ratio"] for case in cases),
        "share_of_matmul": min(case["share_of_matmul"] for case in cases),
        "precision": precision,
        "matmul_gflops": rates,
        "threads": torch.get_num_threads(),
        "cases": [{**asdict(size), **case} for size, case in zip(sizes, cases, strict=True)],
        "large": _large(quick, rates["bf16"]) if on_gpu or quick else None,
    }


@torch.no_grad()
def _large(quick: bool, rate: float) -> dict[str, object]:
    """Seconds that imagining and judging the plans of a search through a model of 24 layers takes
    in bf16, by each method of imagining that there is, and `floor_s`, what its operations take at
    `rate` GFLOP/s, below which no exact method can come."""
    case = replace(LARGE, tokens=9, iterations=2, **{**QUICK, "horizon": 1}) if quick else LARGE
    model, context, past, goal, rounds = fresh(case)
    distance = partial(latent_distance, kind="l2")

    def fast(plans: Tensor) -> Tensor:
        return model.fast_rollout(context, past, plans, precision="bf16")

    def compiled(plans: Tensor) -> Tensor:
        with autocast(plans.device, "bf16"):
            # Of one size: each other one would be compiled anew.
            pieces = plans.chunk(-(-plans.shape[1] * model.tokens // TOKENS_ON_GPU), 1)
            futures = [model.rollout(context, past, piece) for piece in pieces]
            return torch.cat([future.float() for future in futures], 1)

    def seconds(imagine: Callable[[Tensor], Tensor]) -> float:
        costs = distance(imagine(rounds[0]), goal)  # the first compiles, and is not counted
        began = now(rounds.device)
        for plans in rounds:
            costs = distance(imagine(plans), goal)
        assert costs.shape == rounds.shape[1:3] + rounds.shape[3:4]
        return now(rounds.device) - began

    took = {"fast_rollout": seconds(fast)}
    first = fast(rounds[0, :, :2])
    for block in model.blocks:
        assert isinstance(block, Block)
        block.compile(backend="eager" if quick else "inductor")
    took["compiled"] = seconds(compiled)
    difference = float((compiled(rounds[0])[:, :2] - first).abs().max() / first.std())
    best, operations = min(took.values()), flops(case)
    return {
        **asdict(case),
        "seconds": took,
        "best_s": best,
        "floor_s": 1e-9 * operations / rate,
        "petaflop": 1e-15 * operations,
        "share_of_matmul": 1e-9 * operations / best / rate,
        "methods_differ": difference,
    }


def fresh(case: Case) -> tuple[DeterministicDynamics, Tensor, Tensor, Tensor, Tensor]:
    """(model, context [B, C, N, D], past [B, C-1, A], goal [B, N, D], plans [R, B, S, H, A]) where
    this process computes."""
    torch.manual_seed(0)
    settings = DeterministicSettings(
        width=case.width, depth=case.depth, num_heads=case.num_heads,
        context_frames=case.context_frames,
    )  # fmt: skip
    shape = LatentShape(case.tokens, case.width, 0)
    model = DeterministicDynamics(shape, ACTION, settings).eval()
    context = torch.randn(case.episodes, case.context_frames, case.tokens, case.width)
    past = torch.randn(case.episodes, case.context_frames - 1, ACTION)
    goal = torch.randn(case.episodes, case.tokens, case.width)
    rounds = torch.randn(case.iterations, case.episodes, case.num_samples, case.horizon, ACTION)
    context, past, goal, rounds = (x.to(dist().device) for x in (context, past, goal, rounds))
    return model.to(dist().device), context, past, goal, rounds


@torch.no_grad()
def measure(case: Case, *, precision: str, best_rate: float) -> dict[str, float]:
    """Medians of both in seconds, their `ratio`, and our GFLOP/s as a share of `best_rate`.

    Both take turns, so that a neighbour on the machine disturbs both alike. `first_frame` is the
    largest difference of their first imagined frames relative to the spread; later ones differ
    since the reference forgets what lies before its window. On a GPU the reference is timed in our
    precision too (`ratio_same_precision`)."""
    model, context, past, goal, rounds = fresh(case)
    device = context.device

    def ours(plans: Tensor) -> Tensor:
        return model.fast_rollout(context, past, plans, precision=precision)

    def reference(plans: Tensor) -> Tensor:
        return torch.cat(
            [peer_rollout(model, context[b], past[b], plans[b])[None] for b in range(len(plans))]
        )

    def alike(plans: Tensor) -> Tensor:
        with autocast(device, precision):
            return reference(plans).float()

    def seconds(imagine: Callable[[Tensor], Tensor]) -> float:
        began = now(device)
        for plans in rounds:
            latent_distance(imagine(plans), goal, kind="l2")
        return now(device) - began

    # Both agree on the first imagined frame.
    few = rounds[0, :, :2, :1]
    theirs = reference(few)
    first_frame = float((ours(few) - theirs).abs().max() / theirs.std())
    # In turns, and the median of each.
    forms = [ours, reference, *([alike] if device.type == "cuda" else [])]
    if device.type == "cuda":  # kernels are loaded, and memory is taken, by the first use
        for form in forms:
            seconds(form)
    times = [[seconds(form) for form in forms] for _ in range(case.repeats)]
    mine, peer, *alike_s = (median(column) for column in zip(*times, strict=True))
    share = 1e-9 * flops(case) / mine / best_rate
    result = {"ratio": peer / mine, "share_of_matmul": share, "ours_s": mine, "reference_s": peer,
            "first_frame": first_frame}  # fmt: skip
    return result | ({"ratio_same_precision": alike_s[0] / mine} if alike_s else {})


def flops(case: Case) -> float:
    """Multiplications and additions of the matrix products that ours needs."""
    # The context before its last frame is computed once an episode.
    count = case.tokens * (case.num_samples * case.horizon + case.context_frames - 1)
    blocks = case.depth * block_flops(count, case.context_frames * case.tokens, case.width)
    return float(case.iterations * case.episodes * (blocks + 4 * count * case.width**2))
