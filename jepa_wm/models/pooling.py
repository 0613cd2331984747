"""Reading a frame's tokens: learned queries over tokens at known places, and the contrast that
makes them look.

B frames or clips, T frames a clip, N tokens a frame, D width, Q queries, F pooled width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import all_gather, all_mean, own_rows


class AttentivePool(nn.Module):
    """Q learned queries attend to the tokens; an MLP turns what they found into F numbers.

    Positions start as sines and cosines of unit spread, not small and random: where something is
    can then be read off from the first step, which shortens the search for a small object from
    thousands of steps to a hundred."""

    def __init__(
        self, tokens: int, width: int, outputs: int, *, queries: int = 8, heads: int = 2
    ) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(fourier_positions(tokens, width))
        self.norm = nn.LayerNorm(width)
        self.query = nn.Parameter(torch.randn(queries, width))
        self.key_value = nn.Linear(width, 2 * width)
        hidden = 2 * max(outputs, width)
        self.out = nn.Sequential(
            nn.Linear(queries * width, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        x = self.norm(tokens) + self.position
        return self.out(query_attention(x, self.query, self.key_value, self.heads).flatten(1))


def query_attention(tokens: Tensor, query: Tensor, key_value: nn.Linear, heads: int) -> Tensor:
    """[B, Q, D] what learned queries [Q, D] find in tokens [B, N, D] by multi-head attention, with
    the keys and values of a linear map D -> 2 D.

    The few queries are carried to the tokens through the key map, and the value map comes after
    the weighted sum: the same numbers as with a key and a value for every token, at a fraction of
    the products."""
    key, value = key_value.weight.unflatten(0, (2, heads, -1))  # [heads, d, D] each
    q = query.unflatten(-1, (heads, -1)).transpose(0, 1)  # [heads, Q, d]
    asked = (q @ key).flatten(0, 1) * q.shape[
        -1
    ] ** -0.5  # [heads*Q, D]; a bias of the keys would cancel
    found = (tokens @ asked.T).softmax(1).transpose(1, 2) @ tokens  # [B, heads*Q, D]
    told = found.unflatten(1, (heads, -1)) @ value.transpose(1, 2)  # [B, heads, Q, d]
    return told.transpose(1, 2).flatten(2) + key_value.bias.chunk(2)[1]


class GridPool(nn.Module):
    """Every token is squeezed to a few numbers that keep their place; an MLP reads the whole map
    into F numbers.

    Where a rare thing is acts on the output from the first step, without a query having to find it
    first: in noise this learns where a small object is sooner than an attentive pool
    (docs/results.md)."""

    def __init__(
        self, tokens: int, width: int, outputs: int, *, channels: int = 16, hidden: int = 256
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.squeeze = nn.Linear(width, channels)
        self.out = nn.Sequential(
            nn.Linear(tokens * channels, hidden), nn.GELU(), nn.Linear(hidden, outputs)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        return self.out(nn.functional.gelu(self.squeeze(self.norm(tokens))).flatten(1))


class MeanPool(nn.Module):
    """The mean of a frame's tokens, told beside those of the batch; an MLP reads it into F
    numbers.

    What the picture shows counts, wherever it is. Means of tokens are nearly the same for all
    frames at first, so they and the hidden numbers are standardised over the batch, as in the
    projectors of SimCLR and VICReg: without that, telling frames apart stays on a plateau
    (docs/results.md). Used in training only."""

    def __init__(self, width: int, outputs: int, *, hidden: int = 256) -> None:
        super().__init__()
        self.squeeze = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, tokens: Tensor) -> Tensor:
        """[B, F] from tokens [B, N, D]."""
        x = nn.functional.gelu(self.squeeze(_standardised(tokens.float().mean(1))))
        return self.out(_standardised(x.float()))


def _standardised(x: Tensor) -> Tensor:
    """x [B, F] with mean 0 and spread 1 over the samples of all ranks."""
    everywhere = all_gather(x)
    return (x - everywhere.mean(0)) / (everywhere.var(0, correction=0) + 1e-5).sqrt()


def fourier_positions(tokens: int, width: int) -> Tensor:
    """[N, width] sines and cosines of each token's row and column (of its place in a line, if N is
    no square) at rising frequencies, of unit spread."""
    side = round(tokens**0.5) if round(tokens**0.5) ** 2 == tokens else tokens
    index = torch.arange(tokens)
    place = torch.stack([index // side, index % side], -1).float() / max(side - 1, 1)  # 0..1
    frequency = torch.pi * 0.5 * 2 ** torch.linspace(0, 3, -(-width // 4))
    angle = place[:, :, None] * frequency  # [N, 2, width/4]
    return 2**0.5 * torch.cat([angle.sin(), angle.cos()], -1).flatten(1)[:, :width]


class TemporalContrast(nn.Module):
    """Tells a frame's successor from other frames of the same episode (InfoNCE); used in training
    only.

    They share their layout, so that only what moves can help.
    """

    def __init__(self, width: int, *, projected: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)
        self.temperature = temperature

    def forward(
        self, summaries: Tensor, far: Tensor | None = None, when: When | None = None
    ) -> Tensor:
        """The mean loss for summaries [B, T, F] of clips.

        The others are the clip's other frames or, where they are given, frames far [B, R, F] away
        in the same episode, which near neighbours cannot be confused with. With `when`, frames of
        the clip that do not follow one another are no pair and have no loss, and a far frame that
        is as near to a frame as its successor is not told from it."""
        x = nn.functional.normalize(self.project(summaries).float(), dim=-1)
        batch, frames = x.shape[:2]
        counts = torch.ones(batch, frames - 1, dtype=torch.bool, device=x.device)
        if when is not None:
            counts = when.step.diff(dim=1) == 1
        if far is None:
            scores = x[:, :-1] @ x.transpose(1, 2) / self.temperature  # [B, T-1, T]
            itself = torch.eye(frames - 1, frames, dtype=torch.bool, device=x.device)
            scores = scores.masked_fill(itself, float("-inf"))
            successor = torch.arange(1, frames, device=x.device).expand(batch, -1)
        else:
            others = nn.functional.normalize(self.project(far).float(), dim=-1)
            right = (x[:, :-1] * x[:, 1:]).sum(-1, keepdim=True)  # [B, T-1, 1]
            wrong = x[:, :-1] @ others.transpose(1, 2)  # [B, T-1, R]
            if when is not None:
                near = (when.far[:, None] - when.time[:, :-1, None]).abs() <= when.time.diff(
                    dim=1
                )[..., None]
                wrong, counts = wrong.masked_fill(near, float("-inf")), counts & ~near.all(-1)
            scores = torch.cat([right, wrong], -1) / self.temperature
            successor = torch.zeros_like(scores[..., 0], dtype=torch.long)
        losses = nn.functional.cross_entropy(
            scores.flatten(0, -2), successor.flatten(), reduction="none"
        )
        share = (
            counts.flatten().float()
        )  # of the whole batch's pairs, so that ranks with more of them weigh more
        return (losses * share).mean() / all_mean(share.mean()).clamp(min=1e-6)


class When(NamedTuple):
    """When the frames of clips were seen, in any one unit; T frames that are summarised, R far
    ones."""

    step: Tensor  # [B, T] which time step of the clip each is
    time: Tensor  # [B, T]
    far: Tensor  # [B, R]


class EpisodeContrast(nn.Module):
    """Tells a far frame of the same episode from frames of other episodes (InfoNCE); used in
    training only.

    What moves has moved on by then, so that only what lasts can help. Were the positive a near
    frame, where the agent is would tell the episodes of a batch apart well enough, and what is
    hard to see of the layout would be lost."""

    def __init__(self, width: int, *, projected: int = 64, temperature: float = 0.1) -> None:
        super().__init__()
        self.project = nn.Linear(width, projected)
        self.temperature = temperature

    def forward(self, summaries: Tensor, far: Tensor, episode: Tensor | None = None) -> Tensor:
        """The mean loss for summaries [B, T, F] of B clips and far [B, R, F], other frames of the
        same episodes.

        `episode` [B] int64 numbers them: other clips of a clip's own episode are not among what it
        is told from; without, each clip is an episode of its own."""
        x, y = (
            nn.functional.normalize(self.project(frames).float(), dim=-1)
            for frames in (summaries, far)
        )
        # Against the far frames of the whole batch, also of the clips that other ranks have.
        scores = torch.einsum("btf,crf->trbc", x, all_gather(y)) / self.temperature
        own = own_rows(len(x)).to(x.device)
        if episode is not None:
            alike = episode[:, None] == all_gather(episode)  # [B, clips of all ranks]
            alike[torch.arange(len(x), device=x.device), own] = False
            scores = scores.masked_fill(alike, float("-inf"))
        return _cross_entropy(scores, own.expand(scores.shape[:3]))


class LinearInverseDynamics(nn.Module):
    """Reads the way an agent went from the summaries of its frames; used in training only.

    A linear map of the summary, in which the difference of two frames of an episode shall be the
    sum of the actions between them (dead reckoning), or the difference of the places they name.
    Being linear it gives a direction from the first step, where an inverse-dynamics network
    (Agrawal et al. 2016; PLDM) has to find a position in both frames first. Where actions are
    neither (torques, say) their sum tells less; the weight should then be small."""

    def __init__(self, width: int, action_size: int) -> None:
        super().__init__()
        self.read = nn.Linear(width, action_size)

    def forward(self, summaries: Tensor, path: Tensor) -> Tensor:
        """The mean error for summaries [B, T, F] and path [B, T, a], the way to each frame by the
        actions, as a share of what a reader that knows nothing would have: 1 is nothing learned, 0
        is all.

        Where an agent went in front of a wall its actions and its way differ: large errors count
        linearly. Frames whose way is NaN, as no action tells it, do not count."""
        known = path.isfinite().all(-1, keepdim=True)  # [B, T, 1]
        guess, way = (_centred(x.float(), known) for x in (self.read(summaries), path))
        share = all_mean(known.float().mean()).clamp(min=1e-6)
        way = way / (all_mean(way.square().mean((0, 1))) / share).sqrt().clamp(min=1e-12)
        error = nn.functional.smooth_l1_loss(guess, way, beta=0.2)
        return error / all_mean(
            nn.functional.smooth_l1_loss(torch.zeros_like(way), way, beta=0.2)
        ).clamp(min=1e-6)


def _centred(x: Tensor, known: Tensor) -> Tensor:
    """x [B, T, a] less the mean over the known [B, T, 1] frames of its clip; 0 in the others."""
    x = torch.where(known, x, torch.zeros_like(x))
    mean = x.sum(1, keepdim=True) / known.sum(1, keepdim=True).clamp(min=1)
    return torch.where(known, x - mean, torch.zeros_like(x))


def _cross_entropy(scores: Tensor, right: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores.flatten(0, -2), right.flatten())
