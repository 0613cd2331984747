"""Many ranks, less memory, compiled blocks: applied to a task from outside, so that models know
nothing of it.

Outermost FSDP2 (or DDP), within it activation checkpointing, within that compile: a block that is
gathered once is computed twice, and what is computed twice is compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from jepa_wm.core.distributed import DistContext
from jepa_wm.core.precision import KINDS
from jepa_wm.models.blocks import Block
from jepa_wm.training.settings import ParallelSettings
from jepa_wm.training.task import Losses, Task


class Step(nn.Module):
    """A task's losses as the forward pass of a module, which is what DDP and FSDP2 wrap."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = task.model
        self._losses = task.losses

    def forward(self, step: int, rows: slice) -> Losses:
        return self._losses(step, rows)


@contextmanager
def applied(
    task: Task, settings: ParallelSettings, ctx: DistContext, precision: str
) -> Iterator[Task]:
    """The task as these ranks train it together; its model is handed back as it came, trained."""
    task = replace(task, parts=settings.accumulate)
    plain = (
        copy.deepcopy(task.model)
        if settings.fsdp or settings.compile or settings.recompute
        else None
    )
    blocks = [module for module in task.model.modules() if isinstance(module, Block)]
    for block in blocks:
        _wrap_forward(block, settings)
    if settings.fsdp:
        yield _sharded(task, blocks, ctx, precision)
    elif ctx.size > 1:
        yield _replicated(task, ctx)
    else:
        yield task
    if plain is not None:  # not after an error, when the other ranks may be gone
        _become(task.model, plain)


def full_weights(module: nn.Module) -> dict[str, Tensor]:
    """The module's state without shards, which all ranks have to ask for together."""
    return {name: full_state_dict(value) for name, value in module.state_dict().items()}


def full_state_dict(state: Any) -> Any:
    """Nested training state with every sharded tensor put together."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, Mapping):
        return {key: full_state_dict(value) for key, value in state.items()}
    return [full_state_dict(value) for value in state] if isinstance(state, list) else state


def load_moments(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give an optimiser the state that `whole` made of another's, sharded like its own
    parameters."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for number, kept in state["state"].items():
        like = parameters[number]
        moments[number] = {
            name: distribute_tensor(value, like.device_mesh, like.placements)
            if isinstance(like, DTensor)
            and isinstance(value, Tensor)
            and value.shape == like.shape
            else value
            for name, value in kept.items()
        }
    optimiser.load_state_dict({**state, "state": moments})


def _replicated(task: Task, ctx: DistContext) -> Task:
    """DDP: every rank has all weights, gradients are averaged."""
    on = [ctx.device.index] if ctx.device.type == "cuda" else None
    # Which mask leaves whole frames in view differs from step to step, and with it which parts of
    # a model are used.
    step = nn.parallel.DistributedDataParallel(
        Step(task), device_ids=on, gradient_as_bucket_view=True, find_unused_parameters=True
    )
    return replace(task, losses=step.__call__, unsynced=step.no_sync)


def _sharded(task: Task, blocks: list[Block], ctx: DistContext, precision: str) -> Task:
    """FSDP2: every rank has a share of each weight; blocks are gathered one at a time, all else at
    once."""
    mesh = init_device_mesh(ctx.device.type, (ctx.size,))
    mixed = MixedPrecisionPolicy(
        param_dtype=KINDS[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    policy = MixedPrecisionPolicy() if precision == "fp32" else mixed
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    wrapped = Step(task)
    step = fully_shard(wrapped, mesh=mesh, mp_policy=policy)
    assert isinstance(step, FSDPModule)

    @contextmanager
    def unsynced() -> Iterator[None]:
        step.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            step.set_requires_gradient_sync(True)

    return replace(task, losses=wrapped.__call__, unsynced=unsynced)


def _wrap_forward(block: Block, settings: ParallelSettings) -> None:
    forward: Any = torch.compile(block.forward) if settings.compile else block.forward
    if settings.recompute:
        inner = forward

        def forward(x: Tensor, rope: Any, bias: Any = None, cache: Any = None) -> Tensor:
            if (
                cache is not None or not torch.is_grad_enabled()
            ):  # a second pass would write a cache twice
                out: Tensor = inner(x, rope, bias, cache)
                return out
            again: Tensor = checkpoint(inner, x, rope, bias, use_reentrant=False)
            return again

    if settings.compile or settings.recompute:
        block.forward = forward  # type: ignore[method-assign]


def _become(model: nn.Module, plain: nn.Module) -> None:
    """Turn every module of `model` into the one of `plain`, a copy made before anything was
    applied, with the weights that `model` has now."""
    plain.load_state_dict(full_weights(model))
    for mine, other in zip(list(model.modules()), list(plain.modules()), strict=True):
        mine.__class__, mine.__dict__ = type(other), other.__dict__
