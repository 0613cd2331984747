"""The keypoint latent: where in the picture lies what changes and what is constant in an episode,
and a map of what is constant, which is read next to what changes.

B windows, T frames, R distant frames, n frozen tokens of width E, P points of what changes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.models.blocks import mlp
from jepa_wm.models.latent import CompactLatent, LatentBatch, LatentTraining
from jepa_wm.models.latent_settings import KeypointLatentSettings
from jepa_wm.models.losses import PROJECTED, EpisodeContrast, PredictiveContrast
from jepa_wm.models.point_motion import STILL, share_told, start_points
from jepa_wm.models.pooling import Keypoints
from jepa_wm.models.token_map import TokenMap, width_near

WIDTH = 256  # of the networks that are kept in training only
FOLLOWS = 0.5  # share of a point's variance in an episode that is told, from which on it counts
NEAR = 1.0  # model steps within which a distant frame is no negative of the true one


class KeypointLatent(CompactLatent):
    """Rows and columns of keypoints of what changes, then of what is constant; then the map, which
    is trained with the dynamics."""

    early_held = True
    places: Keypoints
    static: TokenMap | None
    counts: Tensor  # [2 P] 1 for the numbers of the points that count, else 0

    def __init__(self, tokens: int, token_width: int, settings: KeypointLatentSettings) -> None:
        dynamic, static = settings.dynamic_points, settings.static_points
        self.map_dim, self.map_channels = tokens * settings.map_channels, settings.map_channels
        super().__init__(2 * dynamic, 2 * static + self.map_dim)
        self.static_frames = settings.static_frames
        self.places = Keypoints(tokens, token_width, dynamic)
        self.register_buffer("counts", torch.ones(2 * dynamic))
        self.points = StaticPoints(Keypoints(tokens, token_width, static)) if static else None
        if settings.map_channels:
            self.static = TokenMap(tokens, token_width, settings.map_channels)

    def early(self, compressed: Tensor) -> Tensor:
        parts = [self.dynamic(compressed)]
        if self.points is not None:
            parts.append(self.points(compressed))
        return torch.cat(parts, -1)

    def near(self, latents: Tensor, numbers: Tensor | None = None) -> Tensor:
        if self.static is None:
            return super().near(latents)
        places = latents[..., 0, : self.visual_dim] * self.scale + self.shift
        return self.static.near(self.map_of(latents) if numbers is None else numbers, places)

    def near_dim(self, channels: int) -> int:
        return width_near(self.visual_dim // 2, channels) if self.map_dim else 0

    def dynamic(self, compressed: Tensor) -> Tensor:
        return super().dynamic(compressed) * self.counts

    def perturbations(self, latents: Tensor, radius: float) -> list[Tensor]:
        both = self.counts.bool().repeat_interleave(2).tolist()
        every = super().perturbations(latents, radius)
        return [shifted for shifted, counts in zip(every, both, strict=True) if counts]

    @torch.no_grad()
    def select(self, batches: Iterable[LatentBatch]) -> dict[str, object]:
        """Leave out the points that follow nothing: those of which less than FOLLOWS of the
        variance within an episode is told by the frame before and the actions since.

        The contrast within an episode leaves free what it does not need. Such a point stands still
        where nothing moves, or looks for nothing in particular; what it reads off a goal image is
        noise, and no plan can reach it. `dynamic_points` says how much each follows."""
        shares = share_told(batches, self.places)
        best = float(shares.max())
        if best < FOLLOWS and dist().first:
            warnings.warn(
                f"latent.name keypoints: of no point is more than {best:.3g} of what it does told "
                f"by the frame before and the actions ({FOLLOWS} is asked): the latent has not "
                "found what moves, and plans will hardly succeed; look at `jepa-wm eval pretext`, "
                "raise train.latent.steps or latent.dynamic_points, or try another seed",
                stacklevel=2,
            )
        counts = shares >= FOLLOWS
        counts[shares.argmax()] = True
        self.counts.copy_(counts.repeat_interleave(2))
        return {"dynamic_points": [{"follows": share} for share in shares.tolist()]}

    @torch.no_grad()
    def standardise(self, compressed: Tensor) -> None:
        """Places keep their proportions, since they share a unit; those of what changes and of
        what is constant have unit spread each, or the dynamics would hardly see the latter, which
        differ less."""
        places = self.places(compressed)
        self.shift.copy_(places.mean(0))
        self.scale.fill_(common_spread(places[:, self.counts.bool()]))
        if self.points is not None:
            self.points.standardise(compressed)

    def training_of(self, action_size: int, block: int) -> KeypointLatentTraining:
        return KeypointLatentTraining(self, block)


class StaticPoints(nn.Module):
    """Places of what is constant, of mean 0 and a common spread of 1 once standardised."""

    shift: Tensor
    scale: Tensor

    def __init__(self, places: Keypoints) -> None:
        super().__init__()
        self.places = places
        self.register_buffer("shift", torch.zeros(2 * places.points))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, compressed: Tensor) -> Tensor:
        """[..., 1, 2 P] of compressed frames."""
        return ((self.places(compressed) - self.shift) / self.scale)[..., None, :]

    def standardise(self, compressed: Tensor) -> None:
        """Set the units from compressed sample frames [S, ...]."""
        places = self.places(compressed)
        self.shift.copy_(places.mean(0))
        self.scale.fill_(common_spread(places))


def common_spread(places: Tensor) -> float:
    """The root mean square spread of places [S, numbers]; 1 where none varies."""
    variance = places.var(0).mean().item()
    return variance**0.5 if variance > STILL else 1.0


class KeypointLatentTraining(LatentTraining):
    """What trains the keypoints, without labels. What changes: those of a frame and the actions
    after it foretell the next frame's, which are told from distant frames of the same episode.
    What is constant: those of a frame are told from other episodes', by a distant frame.

    Both are compared in a wide projection, so that a few numbers suffice to say it."""

    num_distant = 4
    places: Keypoints

    def __init__(self, latent: KeypointLatent, block: int) -> None:
        super().__init__()
        self.places, self.points = latent.places, latent.points
        moved = latent.visual_dim
        self.predict = mlp(moved + block, moved, WIDTH, depth=2)
        self.widen = mlp(moved, WIDTH, WIDTH, depth=1)
        self.temporal_contrast = PredictiveContrast(WIDTH, projected=PROJECTED)
        if self.points is not None:
            self.widen_static = mlp(2 * self.points.places.points, WIDTH, WIDTH, depth=1)
            self.episode_contrast = EpisodeContrast(WIDTH, projected=PROJECTED)

    @torch.no_grad()
    def begin(self, batches: Iterable[LatentBatch], judges: Iterable[LatentBatch]) -> None:
        start_points(self.places, batches, judges)

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """`loss` and its parts, for tokens of windows [B, T, n, E] and of distant frames [B, R, n,
        E]."""
        # What changes: told from where it was and what was done.
        moved, distant = self.places(batch.frames), self.places(batch.distant)
        before = moved[:, :-1]
        foretold = before + self.predict(torch.cat([before, batch.actions], -1))
        losses = {
            "temporal_contrast": self.temporal_contrast(
                self.widen(foretold), self.widen(moved[:, 1:]), self.widen(distant),
                batch.gap[:, 1:] < NEAR,
            )
        }  # fmt: skip
        if self.points is not None:
            # What is constant: one frame each is enough, all of a window show the same.
            here, there = (
                self.widen_static(self.points(frames[:, :1])[:, :, 0])
                for frames in (batch.frames, batch.distant)
            )
            losses["episode_contrast"] = self.episode_contrast(here, there, batch.episode)
        return losses | {"loss": torch.stack(list(losses.values())).sum()}
