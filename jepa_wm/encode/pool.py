"""Reading a frame's tokens: learned queries over tokens at known places, and the contrast that makes them look.

B frames or clips, T frames a clip, N tokens a frame, D width, Q queries, F pooled width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.attention import attend


class AttentivePool(nn.Module):
    """Q learned queries attend to the tokens; an MLP turns what they found into F numbers.

    Positions start as sines and cosines of unit spread, not small and random: where something is can then be read off
    from the first step, which shortens the search for a small object from thousands of steps to a hundred.
    """

    def __init__(self, tokens: int, width: int, outputs: int, *, queries: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(fourier_positions(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(queries, width))
        self.key_value = nn.Linear(width, 2 * width)
        hidden = 2 * max(outputs, width)
        self.out = nn.Sequential(nn.Linear(queries * width, hidden), nn.GELU(), nn.Linear(hidden, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        x = self.norm(tokens) + self.position
        k, v = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.query.unflatten(-1, (self.heads, -1)).transpose(0, 1).expand(len(x), -1, -1, -1)
        return self.out(attend(q.to(k.dtype), k, v).transpose(1, 2).flatten(1))


def fourier_positions(tokens: int, width: int) -> Tensor:
    """[N, width] sines and cosines of each token's row and column (of its place in a line, if N is no square) at
    rising frequencies, of unit spread."""
    side = round(tokens**0.5) if round(tokens**0.5) ** 2 == tokens else tokens
    index = torch.arange(tokens)
    place = torch.stack([index // side, index % side], -1).float() / max(side - 1, 1)  # 0..1
    frequency = torch.pi * 0.5 * 2 ** torch.linspace(0, 3, -(-width // 4))
    angle = place[:, :, None] * frequency  # [N, 2, width/4]
    return 2**0.5 * torch.cat([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


class TemporalContrast(nn.Module):
    """Tells a frame's successor from other frames (InfoNCE); used in training only.

    Frames of the same clip share their layout, so against them only what moves can help; against frames of other
    clips, the layout does. Both have to be in the summary.
    """

    def __init__(self, width: int, *, projected: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)
        self.temperature = temperature

    def forward(self, summaries: Tensor, far: Tensor | None = None) -> Tensor:
        """The mean loss for summaries [B, T, F]: within its clip, plus across clips.

        Within a clip a frame's successor is told from the clip's other frames or, where they are given, from frames
        far [B, R, F] away in the same episode, which near neighbours cannot be confused with.
        """
        x = nn.functional.normalize(self.project(summaries).float(), dim=-1)
        batch, frames = x.shape[:2]
        if far is None:
            within = x[:, :-1] @ x.transpose(1, 2) / self.temperature  # [B, T-1, T]
            itself = torch.eye(frames - 1, frames, dtype=torch.bool, device=x.device)
            successor = torch.arange(1, frames, device=x.device).expand(batch, -1)
            moving = _cross_entropy(within.masked_fill(itself, float("-inf")), successor)
        else:
            others = nn.functional.normalize(self.project(far).float(), dim=-1)
            right = (x[:, :-1] * x[:, 1:]).sum(-1, keepdim=True)  # [B, T-1, 1]
            scores = torch.cat([right, x[:, :-1] @ others.transpose(1, 2)], -1) / self.temperature
            moving = _cross_entropy(scores, torch.zeros_like(scores[..., 0], dtype=torch.long))
        across = x[:, :-1].transpose(0, 1) @ x[:, 1:].permute(1, 2, 0) / self.temperature  # [T-1, B, B]
        own = torch.arange(batch, device=x.device).expand(frames - 1, -1)
        return moving + _cross_entropy(across, own)


class InverseDynamics(nn.Module):
    """Which action led from one summary to the next; used in training only (Agrawal et al. 2016; PLDM, EB-JEPA)."""

    def __init__(self, latent: int, action_size: int, *, width: int = 256) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(2 * latent, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, action_size)
        )

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        """[..., A] from latents [..., F] before and after."""
        return self.net(torch.cat([before, after], -1))


def _cross_entropy(scores: Tensor, right: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, -2), right.flatten())
