"""Latents: what of a frame's frozen tokens the dynamics, the distance and the planner work on.

B episodes, T frames, n frozen tokens of width E, N latent tokens of D = M + L numbers, of which M
are dynamic and L static."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_wm.core.scaling import ROUNDING


class Belief(NamedTuple):
    """What is believed of the static numbers: the mean of the readings so far."""

    static: Tensor  # [B, N, L]
    readings: int


class LatentBatch(NamedTuple):
    """What a latent is trained on, of windows of frames as `Latent.compress` gives them."""

    frames: Tensor  # [B, T, ...]
    distant: Tensor  # [B, ...] other frames of the windows' episodes
    displacement: Tensor  # [B, T, A] of each frame, by the actions


class LatentTraining(nn.Module):
    """What trains a latent before there are dynamics; none of it is kept afterwards."""

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """`loss` and its parts."""
        raise NotImplementedError


class Latent(nn.Module):
    """A latent, and the part that most share: it is `dynamic` numbers of a frame, which actions
    change, then `static` ones, which are constant in an episode and believed to be the mean of
    their readings. Without static numbers nothing is believed, and a frame's latent is its own.

    A latent of one's own defines `dynamic`, and `static` and `compress` where it has them."""

    static_frames = 1  # frames that a training window's static numbers are read from
    fitted = False  # whether `fit` has to be called
    held = False  # whether a training holds the compressed frames of a whole file in memory
    proprio_size = 0  # numbers of proprioception that `encode` asks for beside the tokens
    lossless = False  # whether `compared` is all that the frozen tokens say
    reads_raw = False  # whether it undoes the standardising of frozen tokens

    def __init__(self, tokens: int, dynamic_dim: int, static_dim: int = 0) -> None:
        """`tokens` is N, the others M and L."""
        super().__init__()
        self.tokens, self.dynamic_dim, self.static_dim = tokens, dynamic_dim, static_dim
        # Of compressed frames to their static numbers [..., N, L]; trained with the dynamics.
        self.static: nn.Module | None = None

    @property
    def shape(self) -> LatentShape:
        return LatentShape(self.tokens, self.dynamic_dim, self.static_dim)

    # ------------------------------------------------------------------ frames to latents

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., *] all that is read of frozen tokens [..., n, E]: as they are."""
        return tokens.float()

    def dynamic(self, compressed: Tensor) -> Tensor:
        """[..., N, M] fp32 dynamic numbers of compressed frames."""
        raise NotImplementedError

    def encode(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., N, D] fp32 latents of frozen tokens [..., n, E], and of proprioception [..., P]
        where the latent asks for it."""
        compressed = self.compress(tokens, proprio)
        dynamic = self.dynamic(compressed).float()
        if self.static is None:
            return dynamic
        return torch.cat([dynamic, self.static(compressed).float()], -1)

    def compared(self, latents: Tensor) -> Tensor:
        """[..., N', D] what of latents [..., N, D] is compared with that of other frames: all."""
        return latents

    def perturbations(self, latents: Tensor, radius: float) -> list[Tensor]:
        """Latents [..., N, D] with one dynamic number of every token more or less by the radius:
        two for each number."""
        shifts = radius * torch.eye(latents.shape[-1], device=latents.device)[: self.dynamic_dim]
        return [latents + sign * shift for shift in shifts for sign in (1, -1)]

    # ------------------------------------------------------------------ belief

    def update_belief(self, latents: Tensor, belief: Belief | None) -> tuple[Tensor, Belief]:
        """(latents [B, N, D] of one more frame as they are believed now, the new belief)."""
        static = self.static_of(latents)
        if belief is None:
            belief = Belief(static, 1)
        else:
            readings = belief.readings + 1
            belief = Belief(belief.static.lerp(static, 1 / readings), readings)
        return self.believed(latents, belief), belief

    def believed(self, latents: Tensor, belief: Belief) -> Tensor:
        """Latents [B, N, D] or [B, T, N, D] with the static numbers that are believed."""
        static = belief.static
        return self.with_static(
            latents, static if latents.dim() == static.dim() else static[:, None]
        )

    def believed_together(self, latents: Tensor) -> Tensor:
        """Latents [B, T, N, D] as they are believed once all T frames of an episode, a goal image
        perhaps among them, have been seen."""
        return self.with_static(latents, self.static_of(latents).mean(1, keepdim=True))

    def believed_in_turn(self, latents: Tensor, *, every: int = 1) -> Tensor:
        """All frames' latents [F, N, D] of one episode, in the order of time, each as it is
        believed when it has just been seen, by an agent that sees one frame in `every`."""
        return self.with_static(latents, running_mean(self.static_of(latents), every=every))

    def believed_with_goal(self, start: Tensor, seen: Tensor, goal: Tensor) -> Tensor:
        """[2, B, N, D] of latents start [B, N, D] as believed after `seen` [B] frames, and of a
        goal image's own [B, N, D]: both as believed with the goal's reading too."""
        static = self.static_of(start)
        share = seen[:, None].expand(static.shape[:-1])[..., None] + 1
        static = static + (self.static_of(goal) - static) / share
        return self.with_static(torch.stack([start, goal]), static)

    def static_of(self, latents: Tensor) -> Tensor:
        """[..., N, L] the static numbers of latents [..., N, D]; L may be 0."""
        return latents[..., self.dynamic_dim :]

    def with_static(self, latents: Tensor, static: Tensor) -> Tensor:
        """[..., N, D] the latents with these static numbers [..., N, L] (they broadcast) in place
        of their own."""
        dynamic = latents[..., : self.dynamic_dim]
        return torch.cat([dynamic, static.expand(*dynamic.shape[:-1], -1)], -1)

    # ------------------------------------------------------------------ training

    def fit(self, tokens: Tensor) -> None:
        """Set what no gradient trains, from frozen tokens [S, n, E] of sample frames. Nothing
        here."""

    def undo_standardising(self, mean: Tensor, scale: Tensor) -> None:
        """Take the mean [n, E] and scale [E] that frozen tokens are standardised by; for a latent
        that says `reads_raw`."""
        raise NotImplementedError

    def training_of(self, action_size: int) -> LatentTraining | None:
        """What trains it before there are dynamics; None: nothing has to."""
        return None

    def standardise(self, compressed: Tensor) -> None:
        """Set the units of the dynamic numbers, once they are trained, from compressed sample
        frames [S, ...]. Nothing here."""


class LatentShape(NamedTuple):
    """How many numbers a latent has."""

    tokens: int  # N
    dynamic_dim: int  # M, of a token
    static_dim: int  # L, of a token

    @property
    def width(self) -> int:
        """D."""
        return self.dynamic_dim + self.static_dim


class TokenLatent(Latent):
    """All frozen tokens of a frame, all of them dynamic."""

    lossless = True

    def __init__(self, tokens: int, token_width: int) -> None:
        super().__init__(tokens, token_width)

    def dynamic(self, compressed: Tensor) -> Tensor:
        return compressed


def running_mean(readings: Tensor, *, every: int = 1) -> Tensor:
    """[F, ...] the mean of readings [F, ...] up to and including each frame, never of a later one.

    With `every` above 1 only frames a multiple of so many before it count: those that an agent saw
    which stands there."""
    count = len(readings)
    rounds = -(-count // every)
    padded = torch.cat([readings, readings.new_zeros(rounds * every - count, *readings.shape[1:])])
    total = padded.double().unflatten(0, (rounds, every)).cumsum(0)  # [rounds, every, ...]
    seen = torch.arange(1, rounds + 1, device=readings.device).view(-1, *[1] * (total.dim() - 1))
    return (total / seen).flatten(0, 1)[:count].to(readings.dtype)


class Components(nn.Module):
    """The principal components of all tokens of a frame together, each divided by the root of its
    spread."""

    mean: Tensor
    basis: Tensor

    def __init__(self, size: int, count: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.zeros(size, count))

    def forward(self, tokens: Tensor) -> Tensor:
        """[..., K] fp32 components of tokens [..., n, E]."""
        with torch.autocast(tokens.device.type, enabled=False):
            return (tokens.flatten(-2).float() - self.mean) @ self.basis

    @torch.no_grad()
    def fit(self, tokens: Tensor) -> None:
        """Find them in sample frames [S, n, E]. The root is halfway between components as they
        are, of which the first few are all, and whitened ones, of which the last are noise."""
        x = tokens.flatten(1).float()
        self.mean.copy_(x.mean(0))
        x = x - self.mean
        # Of the products of frames with frames: there are fewer frames in the sample than numbers
        # in a frame.
        value, vector = torch.linalg.eigh((x @ x.T).double())
        count = min(self.basis.shape[1], len(x) - 1)
        value, vector = value.flip(0)[:count].float(), vector.flip(1)[:, :count].float()
        # Below the first is the rounding of products in fp32, below the second that of a mean no
        # frame differs from.
        rounding = len(x) * ROUNDING**2 * float(self.mean.double().square().sum())
        kept = value > max(1e-7 * float(value[0]), rounding)
        value, vector = value[kept], vector[:, kept]
        count = len(value)
        self.basis.zero_()
        if not count:
            return
        # The root of the spread of each, in units of their mean.
        spread = (value / len(x)).sqrt()
        basis = (x.T @ vector) / value.sqrt() / spread.sqrt()
        self.basis[:, :count] = basis / spread.mean().sqrt()
