"""Heads on frozen tokens: many at once on the same batches, each with its own learning rate and
weight decay.

B samples, N tokens, D width, Y outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.interrupt import catching_signals
from jepa_wm.core.progress import Progress
from jepa_wm.core.schedule import warmup_cosine
from jepa_wm.evals.representations import pooled
from jepa_wm.evals.settings import ProbeSettings
from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.pooling import fourier_positions, query_attention


class Linear(nn.Module):
    """A linear map of the pooled tokens."""

    def __init__(self, tokens: int, width: int, outputs: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.map = nn.Linear(width if pool == "mean" else tokens * width, outputs)
        nn.init.zeros_(self.map.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.map(pooled(tokens, self.pool))


class Attentive(nn.Module):
    """V-JEPA's attentive probe: `depth` - 1 blocks in which the tokens meet, then one in which a
    learned query reads them, then a linear map (Bardes et al., 2024). Tokens are told their places
    by sines and cosines."""

    position: Tensor

    def __init__(self, tokens: int, width: int, outputs: int, depth: int, head_dim: int) -> None:
        super().__init__()
        inner = max(head_dim, width // head_dim * head_dim)
        self.heads = inner // head_dim
        self.embed = nn.Linear(width, inner)
        self.register_buffer("position", fourier_positions(tokens, inner))
        self.blocks = nn.ModuleList(Block(inner, self.heads) for _ in range(depth - 1))
        self.norm = nn.LayerNorm(inner, eps=1e-6)
        self.query = nn.Parameter(torch.randn(1, inner) * 0.02)
        self.key_value = nn.Linear(inner, 2 * inner)
        self.read = nn.Linear(inner, inner)
        self.mlp = nn.Sequential(
            nn.LayerNorm(inner, eps=1e-6),
            nn.Linear(inner, 4 * inner),
            nn.GELU(),
            nn.Linear(4 * inner, inner),
        )
        self.map = nn.Linear(inner, outputs)
        init_transformer(self, self.blocks)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.position
        half = x.shape[-1] // self.heads // 2
        unturned = (
            self.position.new_ones(1, 1, x.shape[1], half),
            self.position.new_zeros(1, 1, x.shape[1], half),
        )
        for block in self.blocks:
            x = block(x, unturned)
        y = self.query + self.read(
            query_attention(self.norm(x), self.query, self.key_value, self.heads)
        )  # [B, 1, inner]
        return self.map((y + self.mlp(y))[:, 0])


@dataclass(frozen=True)
class Choice:
    """One head of many: how it was made, and what it was trained with."""

    name: str  # of what was built: a way of pooling, or a depth
    lr: float
    weight_decay: float


@dataclass
class Trained:
    choice: Choice
    head: nn.Module

    @torch.no_grad()
    def outputs(self, tokens: Tensor) -> Tensor:
        """[n, Y] of tokens [n, N, D], both on the CPU."""
        return torch.cat(
            [self.head(part.to(dist().device).float()).cpu() for part in tokens.split(256)]
        )


def train_heads(
    build: Mapping[str, Callable[[], nn.Module]],
    tokens: Tensor,
    target: Tensor,
    settings: ProbeSettings,
    *,
    seed: int,
    name: str,
) -> list[Trained]:
    """Every kind of head with every learning rate and weight decay, trained on tokens [n, N, D].

    target: numbers of classes [n], or standardised numbers [n, Y]. All heads of a kind begin
    alike, see the same batches, and do not touch each other."""
    heads = []
    for kind, lr, decay in product(build, settings.learning_rates, settings.weight_decays):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            heads.append(Trained(Choice(kind, lr, decay), build[kind]().to(dist().device)))
    groups = [
        {
            "params": list(one.head.parameters()),
            "weight_decay": one.choice.weight_decay,
            "peak": one.choice.lr,
        }
        for one in heads
    ]
    optimiser = torch.optim.AdamW(groups, lr=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    with catching_signals() as stop, Progress(name, settings.steps) as bar:
        for step in range(settings.steps):
            share = warmup_cosine(
                step, steps=settings.steps, warmup=settings.steps // 10, final=0.0
            )
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * share
            rows = torch.randint(len(tokens), (settings.batch_size,), generator=generator)
            batch, wanted = tokens[rows].to(dist().device).float(), target[rows].to(dist().device)
            optimiser.zero_grad()
            torch.stack([loss(one.head(batch), wanted) for one in heads]).sum().backward()
            optimiser.step()
            bar.update(step + 1)
            stop.raise_if_requested()
    return heads


def loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for numbers of classes, mean squared error for numbers."""
    return F.cross_entropy(outputs, target) if target.dim() == 1 else F.mse_loss(outputs, target)


def best(heads: Sequence[Trained], tokens: Tensor, target: Tensor) -> Trained:
    """The head with the lowest loss on tokens that none was trained on; of equal ones the
    first."""
    return min(heads, key=lambda one: float(loss(one.outputs(tokens), target)))
