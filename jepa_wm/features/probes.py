"""Probes: small heads that are fitted on frozen features and predict a target. They judge a
representation and never train it.

n samples, B of them in a batch, N tokens of one, D width, F numbers of a feature, Y numbers of a
target, C classes, k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.progress import Progress
from jepa_wm.core.scaling import own_scale
from jepa_wm.core.settings import warmup_cosine
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.pooling import NUM_HEADS, AttentivePool, fourier_positions

PREDICTED = 512  # samples that heads predict in one go
TEMPERATURE = 0.07  # of the votes: a neighbour counts exp(cosine / temperature)
MAX_NORM = 1.0  # of an attentive head's gradient
Loss = Callable[[Tensor, Tensor], Tensor]


# ---------------------------------------------------------------- what is common to all


@dataclass(frozen=True)
class TargetScale:
    """Mean and spread of each number of a target: heads are fitted on standardised ones."""

    mean: Tensor  # [Y]
    spread: Tensor  # [Y]

    @classmethod
    def of(cls, values: Tensor) -> TargetScale:
        """Of values [n, Y]."""
        return cls(values.double().mean(0).to(values.dtype), own_scale(values))

    def standardise(self, values: Tensor) -> Tensor:
        """[n, Y] with mean 0 and spread 1."""
        return (values - self.mean) / self.spread

    def restore(self, outputs: Tensor) -> Tensor:
        """[n, Y] in the target's own units."""
        return outputs * self.spread + self.mean


def pooled(tokens: Tensor, pool: str) -> Tensor:
    """[n, F] from tokens [n, N, D]: their `mean`, or `all` of them end to end."""
    return tokens.float().mean(1) if pool == "mean" else tokens.float().flatten(1)


# ---------------------------------------------------------------- fitted in closed form


class RidgeProbe:
    """A linear map from a flattened latent to the state."""

    def __init__(self, latents: Tensor, state: Tensor, *, penalty: float = 1e-2) -> None:
        """Fit on latents [n, F] and states [n, Y]; `penalty` is per sample, on standardised
        inputs."""
        features = latents.float().numpy()
        self.ridge = fit_ridge(features, state.numpy(), (penalty,), standardise=True)[0]

    def predict(self, latents: Tensor) -> Tensor:
        """[n, Y] states in their own units from latents [n, F]."""
        return torch.from_numpy(self.ridge.predict(latents.float().numpy())).float()


class NearestNeighbors:
    """Votes of the training samples whose features have the highest cosine (faiss, exact)."""

    def __init__(self, features: np.ndarray, values: np.ndarray) -> None:
        """`features` [n, F]; `values` [n, Y]: numbers, or classes as rows of 0 and 1."""
        self.values = values
        self._index = faiss.IndexFlatIP(features.shape[1])
        self._index.add(_unit_length(features))

    def predict(self, features: np.ndarray, k: int) -> np.ndarray:
        """[n, Y] the weighted mean of the values of the k nearest to features [n, F]."""
        cosine, nearest = self._index.search(_unit_length(features), k)
        weight = np.exp((cosine - cosine[:, :1]) / TEMPERATURE)
        weight /= weight.sum(1, keepdims=True)
        return np.einsum("nk,nky->ny", weight, self.values[nearest])


def _unit_length(features: np.ndarray) -> np.ndarray:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


# ---------------------------------------------------------------- trained heads


class LinearHead(nn.Module):
    """A linear map of the pooled tokens."""

    def __init__(self, tokens: int, width: int, outputs: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.map = nn.Linear(width if pool == "mean" else tokens * width, outputs)
        nn.init.zeros_(self.map.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, Y] from tokens [B, N, D]."""
        return self.map(pooled(tokens, self.pool))


class AttentiveHead(nn.Module):
    """An attentive probe after V-JEPA's (Bardes et al., 2024): `depth` - 1 blocks in which the
    tokens meet, then the online probe's pool: V-JEPA's single query of small spread takes
    thousands of steps to find a small thing. Tokens are `normed` first, or as they are."""

    def __init__(
        self, tokens: int, width: int, outputs: int,
        *, depth: int, head_dim: int, frames: int = 1, normed: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if depth == 1:  # the pool's heads are of equal width
            even = width // NUM_HEADS * NUM_HEADS
            self.blocks: nn.Module = nn.Identity() if even == width else nn.Linear(width, even)
            width = even
        else:
            sizes = depth - 1, head_dim
            self.blocks = MeetingBlocks(tokens, width, *sizes, frames=frames, normed=normed)
            width = self.blocks.width
        # What comes out of blocks is as strong as they made it: it is normed in any case.
        after = normed or depth > 1
        self.pool = AttentivePool(tokens, width, outputs, frames=frames, normed=after)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, Y] from tokens [B, N, D]."""
        out: Tensor = self.pool(self.blocks(tokens))
        return out


class MeetingBlocks(nn.Module):
    """Transformer blocks over tokens with positions of unit spread, as wide as whole heads of
    `head_dim` channels fit the tokens."""

    position: Tensor

    def __init__(
        self, tokens: int, width: int, count: int, head_dim: int, *, frames: int, normed: bool
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if normed else nn.Identity()
        self.width = max(head_dim, width // head_dim * head_dim)
        self.embed = nn.Identity() if self.width == width else nn.Linear(width, self.width)
        self.register_buffer("position", fourier_positions(tokens, self.width, frames=frames))
        self.blocks = nn.ModuleList(
            Block(self.width, self.width // head_dim) for _ in range(count)
        )
        init_transformer(self.blocks, self.blocks)
        self.angles = head_dim // 2

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, N, width] from tokens [B, N, D]."""
        x: Tensor = self.embed(self.norm(tokens)) + self.position
        # Blocks rotate queries and keys by their positions; here by nothing.
        cosine = x.new_ones(1, 1, x.shape[1], self.angles)
        for block in self.blocks:
            x = block(x, (cosine, torch.zeros_like(cosine)))
        return x


@dataclass
class Head:
    """A head, and what it is trained with."""

    kind: str  # of what was built: a way of pooling, or a depth
    learning_rate: float
    weight_decay: float
    module: nn.Module

    @torch.no_grad()
    def outputs(self, tokens: Tensor) -> Tensor:
        """[n, Y] of tokens [n, N, D], on the CPU."""
        device = next(self.module.parameters()).device
        parts = tokens.split(PREDICTED)
        return torch.cat([self.module(part.to(device).float()).cpu() for part in parts])

    @property
    def settings(self) -> dict[str, object]:
        """What tells it from others that were tried."""
        return {
            "kind": self.kind,
            "learning_rate": self.learning_rate,
            "weight_decay": self.weight_decay,
        }


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """What `build` makes from this seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def head_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for numbers of classes [n], mean squared error for numbers [n, Y]."""
    return F.cross_entropy(outputs, target) if target.dim() == 1 else F.mse_loss(outputs, target)


def attentive_loss(outputs: Tensor, target: Tensor) -> Tensor:
    """Cross entropy for numbers of classes [n]; for numbers [n, Y] their squared error, beyond a
    fifth of their spread the absolute one: while a small thing is still sought, most are far."""
    if target.dim() == 1:
        return F.cross_entropy(outputs, target)
    return F.smooth_l1_loss(outputs, target, beta=0.2)


def train_heads(
    heads: Sequence[Head],
    tokens: Tensor,
    target: Tensor,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    loss: Loss = head_loss,
    max_norm: float | None = None,
    label: str = "",
) -> None:
    """Train heads in place on tokens [n, N, D] and their target: numbers of classes [n], or
    standardised numbers [n, Y].

    All see the same batches and do not touch each other: heads that are trained together are those
    trained alone. `max_norm` clips the gradient of each; a label shows a progress bar of that
    name."""
    device = next(heads[0].module.parameters()).device
    groups = [
        {"params": list(head.module.parameters()), "weight_decay": head.weight_decay}
        for head in heads
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.0, fused=True)
    generator = torch.Generator().manual_seed(seed)
    with Progress(label, steps) if label else nullcontext() as bar:
        for step in range(steps):
            share = warmup_cosine(step, steps=steps, warmup=steps // 10, final=0.0)
            for group, head in zip(optimizer.param_groups, heads, strict=True):
                group["lr"] = head.learning_rate * share

            # One batch for all; the sum of their losses gives each head its own gradient.
            rows = torch.randint(len(tokens), (batch_size,), generator=generator)
            batch = tokens[rows.to(tokens.device)].to(device).float()
            expected = target[rows.to(target.device)].to(device)
            optimizer.zero_grad()
            torch.stack([loss(head.module(batch), expected) for head in heads]).sum().backward()
            if max_norm is not None:
                for head in heads:
                    nn.utils.clip_grad_norm_(head.module.parameters(), max_norm)
            optimizer.step()
            if bar:
                bar.update(step + 1)
    for head in heads:
        head.module.eval()


@dataclass(frozen=True)
class AttentiveProbe:
    """An attentive pool whose outputs are a state in its own units."""

    head: Head
    scale: TargetScale

    def predict(self, tokens: Tensor) -> Tensor:
        """[n, Y] states in their own units from tokens [n, N, D], on the CPU."""
        return self.scale.restore(self.head.outputs(tokens))


def fit_attentive(
    tokens: Tensor,
    state: Tensor,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    seed: int = 0,
    label: str = "",
) -> AttentiveProbe:
    """A probe fitted on tokens [n, N, D], where they are, and states [n, Y]; the same seed gives
    the same probe. A label shows a progress bar of that name."""
    build = partial(AttentivePool, tokens.shape[1], tokens.shape[2], state.shape[1])
    module = seeded(build, seed).to(tokens.device)
    scale, head = TargetScale.of(state.cpu()), Head("attentive", learning_rate, 1e-2, module)
    train_heads(
        [head], tokens, scale.standardise(state.cpu()), steps=steps, batch_size=batch_size,
        seed=seed, loss=attentive_loss, max_norm=MAX_NORM, label=label,
    )  # fmt: skip
    return AttentiveProbe(head, scale)
