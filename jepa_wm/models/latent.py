"""Latents: what of a frame's frozen tokens the dynamics, the distance and the planner work on;
here what all have in common.

B episodes or samples, T frames, n frozen tokens of width E, N latent tokens of D = M + L numbers,
of which M are dynamic, M' of these read off the picture, and L static, P numbers of
proprioception, K principal components, R distant frames, a numbers of an
action, A of a block of them between two frames."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from jepa_wm.core.precision import exact
from jepa_wm.core.scaling import shared_scale
from jepa_wm.models.proprioception import Proprioception


class Belief(NamedTuple):
    """What is believed of the static numbers: the mean of the readings so far."""

    static: Tensor  # [B, N, L]
    readings: int


class LatentBatch(NamedTuple):
    """What a latent is trained on, of windows of frames as `Latent.compress` gives them."""

    frames: Tensor  # [B, T, ...]
    distant: Tensor  # [B, R, ...] other frames of the windows' episodes
    displacement: Tensor  # [B, T, a] of each frame, by the actions
    actions: Tensor  # [B, T-1, A] scaled blocks between frames
    gap: Tensor  # [B, T, R] model steps between frames and distant ones
    episode: Tensor  # [B] int64, a number for each episode


class LatentTraining(nn.Module):
    """What trains a latent before there are dynamics; none of it is kept afterwards."""

    num_distant = 1  # frames from elsewhere in its episode that it asks for beside each window

    def begin(self, batches: Iterable[LatentBatch], judges: Iterable[LatentBatch]) -> None:
        """Set, before the first step, what batches tell without any; others may judge it."""

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """`loss` and its parts."""
        raise NotImplementedError


class LatentShape(NamedTuple):
    """How many numbers a latent has."""

    tokens: int  # N
    dynamic_dim: int  # M, of a token
    static_dim: int  # L, of a token

    @property
    def width(self) -> int:
        """D."""
        return self.dynamic_dim + self.static_dim


class Latent(nn.Module):
    """A latent, and the part that most share: it is `dynamic` numbers of a frame, which actions
    change, then `static` ones, which are constant in an episode and believed to be the mean of
    their readings. Without static numbers nothing is believed, and a frame's latent is its own.

    A latent of one's own defines `dynamic`, and `static` and `compress` where it has them."""

    static_frames = 1  # frames that a training window's static numbers are read from
    fitted = False  # whether `fit` has to be called
    held = False  # whether a training holds the compressed frames of a whole file in memory
    joint = False  # whether its dynamic numbers are trained with the dynamics
    # Whether a training holds in memory, of all frames of a file, what the dynamics do not train.
    early_held = False
    # The last static numbers, if they are a map of so many numbers for each frozen token, which
    # only `near` and the distance's `map_field` read.
    map_dim = 0
    map_channels = 0
    proprio_size = 0  # P: numbers of proprioception that `encode` asks for beside the tokens
    lossless = False  # whether `decoded` is all that the frozen tokens say
    decodes = False  # whether `decoded` gives frozen tokens, so that no map to them is fitted
    reads_raw = False  # whether it undoes the standardising of frozen tokens

    def __init__(self, tokens: int, dynamic_dim: int, static_dim: int = 0) -> None:
        """`tokens` is N, the others M and L."""
        super().__init__()
        self.tokens, self.dynamic_dim, self.static_dim = tokens, dynamic_dim, static_dim
        self.shape = LatentShape(tokens, dynamic_dim, static_dim)
        # Of compressed frames to their static numbers [..., N, *], which come after those of
        # `early`; trained with the dynamics.
        self.static: nn.Module | None = None
        # Named numbers of the state, joined to the dynamic ones of every token.
        self.proprio: Proprioception | None = None

    # ------------------------------------------------------------------ frames to latents

    def compress(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., *] all that is read of frozen tokens [..., n, E]: as they are."""
        return tokens.float()

    def dynamic(self, compressed: Tensor) -> Tensor:
        """[..., N, M'] fp32 dynamic numbers of compressed frames."""
        raise NotImplementedError

    def encode(self, tokens: Tensor, proprio: Tensor | None = None) -> Tensor:
        """[..., N, D] fp32 latents of frozen tokens [..., n, E], and of proprioception [..., P]
        where the latent asks for it."""
        return self.with_proprio(self.own(self.compress(tokens, proprio)), proprio)

    def own(self, compressed: Tensor) -> Tensor:
        """[..., N, D] fp32 latents of compressed frames, each by itself, without named
        proprioception."""
        with exact(compressed.device):
            early = self.early(compressed).float()
            if self.static is None:
                return early
            return torch.cat([early, self.static(compressed).float()], -1)

    def early(self, compressed: Tensor) -> Tensor:
        """[..., N, *] all numbers of compressed frames but those of `static`: the dynamic ones,
        then static ones that the dynamics do not train, if there are any."""
        return self.dynamic(compressed)

    def take_proprio(self, units: Sequence[str]) -> None:
        """Join a number in each of these units to the dynamic ones."""
        self.proprio = Proprioception(units, self.dynamic_dim)
        self.proprio_size = len(units)
        self.dynamic_dim += self.proprio.count
        self.shape = self.shape._replace(dynamic_dim=self.dynamic_dim)

    @property
    def visual_dim(self) -> int:
        """M': the dynamic numbers that are read off the picture, the first ones of a token."""
        return self.dynamic_dim if self.proprio is None else self.proprio.first

    def with_proprio(self, latents: Tensor, proprio: Tensor | None) -> Tensor:
        """[..., N, D] of what pictures show, M' dynamic and any static numbers, and proprioception
        [..., P]: NaN without it, where the latent asks for it by names."""
        return latents if self.proprio is None else self.proprio.joined(latents, proprio)

    def visual(self, latents: Tensor) -> Tensor:
        """[..., N, *] what latents [..., N, D] say that a picture alone says too."""
        return latents if self.proprio is None else self.proprio.left_out(latents)

    def without_map(self, latents: Tensor) -> Tensor:
        """[..., N, D - map_dim] latents [..., N, D] as dynamics read them, and heads and, where
        there is no map, the distance but for proprioception."""
        return latents[..., : latents.shape[-1] - self.map_dim]

    def map_of(self, latents: Tensor) -> Tensor:
        """[..., map_dim] the map of latents [..., N, D]."""
        return latents[..., 0, latents.shape[-1] - self.map_dim :]

    def near(self, latents: Tensor, numbers: Tensor | None = None) -> Tensor:
        """[..., near_dim] what of the map lies around the dynamic numbers of latents [..., N, D];
        nothing, where there is no map. `numbers` [..., *] are read in its stead: as many for each
        place of the map, such as a `map_field` gives."""
        return latents[..., 0, :0]

    def near_dim(self, channels: int) -> int:
        """How many numbers `near` gives of a map with so many at a place."""
        return 0

    def compared(self, latents: Tensor) -> Tensor:
        """[..., N', *] what of latents [..., N, D] is compared with that of other frames: all that
        a goal image shows."""
        return self.visual(latents)

    def decoded(self, latents: Tensor) -> Tensor:
        """[..., n, E] the frozen tokens that latents [..., N, D] stand for, of a latent that
        `decodes`."""
        return self.compared(latents)

    def perturbations(self, latents: Tensor, radius: float) -> list[Tensor]:
        """Latents [..., N, D] with one dynamic number of every token, of those that the picture
        shows, more or less by the radius: two for each number."""
        shifts = radius * torch.eye(latents.shape[-1], device=latents.device)[: self.visual_dim]
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
        windows = latents.dim() > belief.static.dim()
        return self.with_static(latents, belief.static[:, None] if windows else belief.static)

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
        """Set what no gradient trains, from frozen tokens [S, n, E] of sample frames."""

    def undo_standardising(self, mean: Tensor, scale: Tensor) -> None:
        """Take the mean [n, E] and scale [E] that frozen tokens are standardised by; for a latent
        that says `reads_raw`."""
        raise NotImplementedError

    def training_of(self, action_size: int, block: int) -> LatentTraining | None:
        """What trains it before there are dynamics, for actions of a numbers and blocks of A;
        None: nothing has to."""
        return None

    def joint_losses(
        self, latents: Tensor, distant: Tensor, apart: Tensor, step: int
    ) -> dict[str, Tensor]:
        """What keeps a `joint` latent from collapsing, each part with its weight, for latents of
        windows [B, T, N, D], the dynamic numbers of two distant frames of their episodes [B, 2, N,
        M], and whether these are other frames than the window's first and last [B, 2]; what is
        random is drawn from the step."""
        return {}

    def select(self, batches: Iterable[LatentBatch]) -> dict[str, object]:
        """Leave out, once it is trained, what batches show to be of no use; returns what is to be
        said of it."""
        return {}

    def standardise(self, compressed: Tensor) -> None:
        """Set the units of the dynamic numbers, once they are trained, from compressed sample
        frames [S, ...]."""


class CompactLatent(Latent):
    """One token [dynamic | static]; the dynamic numbers have mean 0 and spread 1 over the data. A
    kind sets `places`, which reads them off compressed frames."""

    places: nn.Module
    shift: Tensor
    scale: Tensor

    def __init__(self, dynamic_dim: int, static_dim: int) -> None:
        super().__init__(1, dynamic_dim, static_dim)
        self.register_buffer("shift", torch.zeros(dynamic_dim))
        self.register_buffer("scale", torch.ones(dynamic_dim))

    def dynamic(self, compressed: Tensor) -> Tensor:
        return ((self.places(compressed).float() - self.shift) / self.scale)[..., None, :]

    @torch.no_grad()
    def standardise(self, compressed: Tensor) -> None:
        dynamic = self.dynamic(compressed)[:, 0]
        self.shift.add_(dynamic.mean(0) * self.scale)
        self.scale.mul_(shared_scale(dynamic.std(0)))


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
