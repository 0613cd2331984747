"""Many ranks, less memory, compiled blocks: applied to a task from outside, so that models know
nothing of it.

Outermost FSDP2 (or DDP), within it activation checkpointing, within that compile: a block that is
gathered once is computed twice, and what is computed twice is compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from jepa_wm.training.loop import Losses, TrainingTask


class Step(nn.Module):
    """A task's losses as the forward pass of a module, which is what DDP and FSDP2 wrap."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__()
        self.model = task.model
        self._losses = task.losses

    def forward(self, step: int, rows: slice) -> Losses:
        return self._losses(step, rows)


@contextmanager
def applied(
    task: TrainingTask, settings: ParallelSettings, ctx: DistContext, precision: str
) -> Iterator[TrainingTask]:
    """The task as these ranks train it together; its model is handed back as it came, trained."""
    task = replace(task, accumulate=settings.accumulate)
    plain = None
    if settings.fsdp or settings.compile or settings.recompute:
        plain = copy.deepcopy(task.model)
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
    """Give an optimiser the state that `full_state_dict` made of another's, sharded like its own
    parameters."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    moments: dict[int, dict[str, Any]] = {}
    for number, of_parameter in state["state"].items():
        parameter, moments[number] = parameters[number], {}
        for name, value in of_parameter.items():
            # A moment is sharded as its parameter is; a count of steps stays whole.
            sharded = isinstance(parameter, DTensor) and isinstance(value, Tensor)
            if sharded and value.shape == parameter.shape:
                value = distribute_tensor(value, parameter.device_mesh, parameter.placements)
            moments[number][name] = value
    optimiser.load_state_dict({**state, "state": moments})


def _replicated(task: TrainingTask, ctx: DistContext) -> TrainingTask:
    """DDP: every rank has all weights, gradients are averaged."""
    on = [ctx.device.index] if ctx.device.type == "cuda" else None
    # Which mask leaves whole frames in view differs from step to step, and with it which parts of
    # a model are used.
    step = nn.parallel.DistributedDataParallel(
        Step(task), device_ids=on, gradient_as_bucket_view=True, find_unused_parameters=True
    )
    return replace(task, losses=step.__call__, unsynced=step.no_sync)


def _sharded(
    task: TrainingTask, blocks: list[Block], ctx: DistContext, precision: str
) -> TrainingTask:
    """FSDP2: every rank has a share of each weight; blocks are gathered one at a time, all else at
    once."""
    mesh = init_device_mesh(ctx.device.type, (ctx.size,))
    mixed = MixedPrecisionPolicy(
        param_dtype=KINDS[precision], reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    policy = MixedPrecisionPolicy() if precision == "fp32" else mixed
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=policy)
    # What is no block is small, and some of it is computed in fp32 whatever the precision is.
    wrapped = Step(task)
    step = fully_shard(wrapped, mesh=mesh)
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
            # A second pass would write a cache twice.
            if cache is not None or not torch.is_grad_enabled():
                out: Tensor = inner(x, rope, bias, cache)
            else:
                out = checkpoint(inner, x, rope, bias, use_reentrant=False)
            return out

    if settings.compile or settings.recompute:
        block.forward = forward  # type: ignore[method-assign]


def _become(model: nn.Module, plain: nn.Module) -> None:
    """Turn every module of `model` into the one of `plain`, a copy made before anything was
    applied, with the weights that `model` has now."""
    plain.load_state_dict(full_weights(model))
    pairs = zip(list(model.modules()), list(plain.modules()), strict=True)
    for module, copied in pairs:
        module.__class__, module.__dict__ = type(copied), copied.__dict__
