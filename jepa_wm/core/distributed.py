"""Where this process stands among those that work on one job, and what they have to work out
together.

Models know nothing of ranks: they ask `all_gather` and `all_mean` for what depends on all
samples of a batch, and get it from one process or from many. Alone, everything here is the
identity."""

from __future__ import annotations

import atexit
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as torch_dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from jepa_wm.core.errors import EXIT_FAILED, EXIT_USER, Interrupted, UserError
from jepa_wm.core.rendezvous import (
    INTERFACE,
    START,
    STORE,
    gather,
    loopback_interface,
    meet,
    number,
    ranks,
    reachable,
    resolve,
    said_if_long,
    variable,
)

Value = TypeVar("Value")
JOIN = timedelta(seconds=120)  # for all ranks to come
WAIT = timedelta(minutes=30)  # for the slowest in between


@dataclass(frozen=True)
class DistContext:
    """This process's place: `rank` of `size`, the device it computes on, and the group that
    batches are shared in."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")
    # a process group apart from that of the gradients, whose order it must not mix with
    batches: Any = None

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def rows(self, batch: int, part: int = 0, parts: int = 1) -> slice:
        """The samples that this rank computes of part `part` of a batch that all ranks together
        cut into `parts`.

        Raises UserError if the batch does not divide evenly, as its statistics are means of means.
        """
        share, rest = divmod(batch, self.size * parts)
        if rest:
            raise UserError(
                f"a batch of {batch} does not divide over {self.size} ranks with "
                f"train.parallel.accumulate {parts}; "
                f"choose a batch that is a multiple of {self.size * parts}, or other numbers"
            )
        start = part * (batch // parts) + self.rank * share
        return slice(start, start + share)

    def average(self, values: Tensor) -> Tensor:
        """The mean over ranks, without a gradient."""
        if self.size == 1:
            return values.detach()
        values = values.detach().clone()
        torch_dist.all_reduce(values, group=self.batches)
        return values / self.size

    def all_max(self, value: int) -> int:
        """The largest of the numbers that the ranks call this with."""
        if self.size == 1:
            return value
        box = torch.tensor(value)
        torch_dist.all_reduce(box, torch_dist.ReduceOp.MAX)
        return int(box)

    def broadcast(self, value: Value) -> Value:
        """What rank 0 calls this with; it is also where all wait for each other."""
        if self.size == 1:
            return value
        box = [value]
        torch_dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_gather_object(self, value: Value) -> list[Value]:
        """What each rank calls this with, in their order."""
        if self.size == 1:
            return [value]
        box = [value] * self.size
        torch_dist.all_gather_object(box, value)
        return box


_dist = DistContext(
    device=torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
)


def dist() -> DistContext:
    """The world this process is in; a world of one outside `joined`."""
    return _dist


@contextmanager
def joined() -> Iterator[DistContext]:
    """Within the block this process is one of the ranks that a launcher told of: RANK, WORLD_SIZE
    and LOCAL_RANK, and either a file to meet by or torchrun's MASTER_ADDR and MASTER_PORT. Without
    them it stays alone.

    Raises UserError if these do not fit together, or if the others cannot be reached.
    """
    global _dist
    alone = _dist
    if ranks() == 1:
        yield alone
        return
    interface = variable(INTERFACE)
    _dist = _join(alone.device.type)
    try:
        yield _dist
    except Interrupted:  # all leave together
        torch_dist.destroy_process_group()
        raise
    # After any other exception the others lose this process only when it ends, once it has
    # said what went wrong.
    except BaseException as error:
        atexit.register(_leave, EXIT_USER if isinstance(error, UserError) else EXIT_FAILED)
        raise
    else:
        torch_dist.destroy_process_group()
    finally:
        _dist = alone
        if INTERFACE in os.environ and interface is None:
            del os.environ[INTERFACE]


def _leave(code: int) -> None:
    """End at once with `code` where the group is still open: an interpreter that takes itself
    apart under the group's threads may be aborted, with another code than what went wrong has."""
    if torch_dist.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def all_gather(rows: Tensor) -> Tensor:
    """[all samples, ...] of the batch of which this process has `rows` [samples, ...]; gradients
    flow back to all."""
    if _dist.size == 1:
        return rows
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def own_rows(count: int) -> Tensor:
    """[count] the places that this process's samples have in `all_gather`."""
    return _dist.rank * count + torch.arange(count)


def all_mean(values: Tensor) -> Tensor:
    """A mean over this process's samples as the mean over the batch's, without a gradient."""
    return values if _dist.size == 1 else _dist.average(values)


class _Gather(torch.autograd.Function):
    """Rows of all ranks in their order. A row's gradient is the sum of what it got on every rank,
    so that gradients averaged over ranks are those of the averaged loss."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        parts = [
            torch.empty_like(rows, memory_format=torch.contiguous_format)
            for _ in range(_dist.size)
        ]
        torch_dist.all_gather(parts, rows.contiguous(), group=_dist.batches)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch_dist.all_reduce(total, group=_dist.batches)
        return total[_dist.rank * ctx.count : (_dist.rank + 1) * ctx.count]


def _join(kind: str) -> DistContext:
    rank, size, local = number("RANK"), ranks(), number("LOCAL_RANK")
    if rank >= size:
        raise UserError(
            f"RANK={rank}: there are WORLD_SIZE={size} ranks, numbered from 0; {START}"
        )
    # The device comes before the group: NCCL binds a rank to the one that is current.
    device = torch.device("cpu")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(
                f"rank {rank} would be process {local} of its node, which has "
                f"{torch.cuda.device_count()} GPUs: "
                "lower launch.tasks_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    # Ranks meet by the store first, which tells whether they share a machine, and with it the
    # network that gloo is to take.
    try:
        store = _store(rank, size)
        _choose_interface(rank, one_machine=gather(store, rank, size, JOIN))
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        by = variable(INTERFACE) or f"the network of its host name {socket.gethostname()}"
        with said_if_long(
            f"rank {rank} of {size} is connecting to the others by {by}; if that does not end, "
            f"set {INTERFACE} to the "
            "network interface by which they see each other"
        ):
            torch_dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=WAIT
            )
            torch_dist.barrier()
    except (torch_dist.DistError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"rank {rank} of {size} could not join the others: {error}") from error
    return DistContext(rank, size, device, torch_dist.new_group())


def _store(rank: int, size: int) -> torch_dist.Store:
    """Where ranks tell each other what they need to join: by a file, or at torchrun's address."""
    file = variable(STORE)
    if file is not None:
        return meet(Path(file), rank, size, JOIN)
    address = variable("MASTER_ADDR")
    if address is None:
        raise UserError(f"WORLD_SIZE is set but 'MASTER_ADDR' is not: {START}")
    number("MASTER_PORT", least=1)
    resolve(address, "MASTER_ADDR")
    store, _, _ = next(rendezvous("env://", rank, size, timeout=JOIN))
    return store


def _choose_interface(rank: int, *, one_machine: bool) -> None:
    """Have gloo take the loopback on one machine, where no host name is needed; what the user has
    set stays.

    Raises UserError where the ranks of other machines could not reach this one by its host name.
    """
    if variable(INTERFACE) is not None:
        return
    if not one_machine:
        reachable(socket.gethostname(), f"the host name of rank {rank}")
    elif (name := loopback_interface()) is not None:
        os.environ[INTERFACE] = name
