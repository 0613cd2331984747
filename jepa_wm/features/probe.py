"""Probes that read a state from frozen, standardised tokens; they judge a representation and never
train it.

B samples, N tokens, D width, Q queries, Y state dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from jepa_wm.core.progress import Progress
from jepa_wm.core.schedule import warmup_cosine
from jepa_wm.core.standardise import own_scale
from jepa_wm.data.quantities import Quantities
from jepa_wm.features.ridge import fit_ridge
from jepa_wm.models.pooling import AttentivePool


class AttentiveProbe(nn.Module):
    """An attentive pool whose outputs are a state in its own units."""

    mean: Tensor
    scale: Tensor

    def __init__(self, tokens: int, width: int, outputs: int) -> None:
        super().__init__()
        self.pool = AttentivePool(tokens, width, outputs)
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("scale", torch.ones(outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, Y] standardised state guesses from tokens [B, N, D]."""
        return self.pool(tokens)

    @torch.no_grad()
    def read(self, tokens: Tensor, *, batch: int = 512) -> Tensor:
        """[B, Y] states in their own units."""
        parts = []
        for part in tokens.split(batch):
            parts.append(self(part.float()))
        return torch.cat(parts) * self.scale + self.mean


def fit_attentive(
    tokens: Tensor,
    state: Tensor,
    *,
    steps: int,
    batch: int = 128,
    lr: float = 2e-3,
    seed: int = 0,
    label: str = "",
) -> AttentiveProbe:
    """A probe fitted on tokens [n, N, D], where they are, and states [n, Y]; the same seed gives
    the same probe.

    A label shows a progress bar of that name.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[1], tokens.shape[2], state.shape[1])
    probe, state = probe.to(tokens.device), state.to(tokens.device)
    probe.mean.copy_(state.double().mean(0))
    probe.scale.copy_(own_scale(state))
    target = (state - probe.mean) / probe.scale
    optimiser = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=1e-2, fused=True)
    with Progress(label, steps) if label else nullcontext() as bar:
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = lr * warmup_cosine(step, steps=steps, warmup=steps // 10, final=0.0)
            rows = torch.randint(len(tokens), (batch,), generator=generator).to(tokens.device)
            loss = nn.functional.smooth_l1_loss(
                probe(tokens[rows].float()), target[rows], beta=0.2
            )
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimiser.step()
            if bar:
                bar.update(step + 1)
    return probe.eval()


class RidgeProbe:
    """A linear map from a flattened latent to the state, fitted in closed form."""

    def __init__(self, latents: Tensor, state: Tensor, *, penalty: float = 1e-2) -> None:
        """Fit on latents [n, F] and states [n, Y]; `penalty` is per sample, on standardised
        inputs."""
        self.ridge = fit_ridge(
            latents.float().numpy(), state.numpy(), (penalty,), standardise=True
        )[0]

    def read(self, latents: Tensor) -> Tensor:
        """[B, Y] states in their own units from latents [B, F]."""
        return torch.from_numpy(self.ridge.read(latents.float().numpy())).float()


def state_errors(
    guess: Tensor | np.ndarray, state: Tensor | np.ndarray, groups: Mapping[str, Sequence[int]],
    units: Mapping[str, str] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Mean Euclidean error of each named group of state numbers [n, Y]; of angles the shorter way
    round."""
    errors = Quantities(groups, units or {}).errors(np.asarray(guess), np.asarray(state))
    return {name: float(values.mean()) for name, values in errors.items()}
