"""Imagining recorded as CUDA graphs: the many small kernels of a search are launched by one
call."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

KEPT = 32  # recordings; each holds what it was given and what it made

Work = Callable[..., Tensor]


class Recordings:
    """Work on tensors of the GPU, recorded once for every name and set of shapes and replayed
    afterwards.

    Work must depend on nothing but the tensors it is given and weights that stay where they are,
    and must not wait for the GPU. All recordings share their working memory."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, _Recording] = OrderedDict()
        self._pool: Any = None

    def __call__(self, name: Hashable, work: Work, *given: Tensor) -> Tensor:
        """What `work(*given)` makes, in memory of its own."""
        key = (name, *((x.shape, x.dtype) for x in given))
        if key not in self._kept:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._kept[key] = _Recording(work, given, self._pool)
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key](*given)


class _Recording:
    def __init__(self, work: Work, given: tuple[Tensor, ...], pool: Any) -> None:
        self.given = tuple(x.clone() for x in given)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(
            aside
        ):  # kernels are loaded and chosen when they are first asked for
            work(*self.given)
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.made = work(*self.given)

    def __call__(self, *given: Tensor) -> Tensor:
        for held, new in zip(self.given, given, strict=True):
            held.copy_(new)
        self.graph.replay()
        return self.made.clone()
