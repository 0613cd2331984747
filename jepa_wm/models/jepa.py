"""JEPA: the target encoder sees the whole clip, the context encoder a part of it, and the
predictor predicts the rest, all in latent space.

B clips, T frames (time steps, where a tubelet is longer than one), N tokens a frame, D width, L
levels, G kinds of target, K context tokens, M target tokens, V frames in full view, R distant
frames, C channels of px side, A action numbers."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.models.encoder_settings import EncoderSettings, JepaSettings
from jepa_wm.models.losses import (
    EpisodeContrast,
    FrameTimes,
    LinearInverseDynamics,
    TemporalContrast,
)
from jepa_wm.models.masks import TokenMask
from jepa_wm.models.pooling import GridPool
from jepa_wm.models.predictor import NeighborPredictor, Predictor, PredictorSizes, target_width
from jepa_wm.models.targets import latent_targets
from jepa_wm.models.vit import Encoder


@dataclass(frozen=True)
class Batch:
    """What one pretraining step learns from."""

    clip: Tensor  # [B, T, C, px, px] in -1..1
    distant: Tensor  # [B, R, C, px, px] frames from elsewhere in the clips' episodes
    masks: list[TokenMask]  # one for each mask type
    # [B, T + R, A] displacement by the actions from a clip's first frame to each of its frames and
    # of the distant ones; NaN where no action tells it, None where there are no actions
    actions: Tensor | None = None
    # Where frames come from, so that contrasts do not tell apart what belongs together:
    episode: Tensor | None = None  # [B] int64, a number for each episode or file
    time: Tensor | None = None  # [B, T + R] int64, in any one unit


@dataclass(frozen=True)
class Context:
    """What the context encoder makes of a batch."""

    tokens: list[Tensor]  # [B, K, D] for each mask
    distant: Tensor | None  # [B, R, D] pooled distant frames, where a regulariser reads them


class JEPA(nn.Module):
    """Context encoder, target encoder (an exponential moving average of it) and predictor."""

    def __init__(
        self,
        image_size: int,
        encoder: EncoderSettings,
        settings: JepaSettings,
        *,
        action_size: int = 0,
    ) -> None:
        super().__init__()
        self.settings, width = settings, encoder.width
        self.encoder = Encoder(image_size, encoder)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(PredictorSizes.of(encoder, settings))
        self.neighbors: NeighborPredictor | None = None
        if settings.neighbor_width:
            sizes = width, settings.neighbor_width, target_width(encoder, settings)
            self.neighbors = NeighborPredictor(*sizes)
        # What only the regularisers need.
        self.pooling = GridPool(self.encoder.tokens_per_frame, width, width)
        self.temporal_contrast = TemporalContrast(width)
        self.episode_contrast = EpisodeContrast(width)
        self.inverse_dynamics: LinearInverseDynamics | None = None
        if action_size and settings.inverse_dynamics:
            self.inverse_dynamics = LinearInverseDynamics(width, action_size)
        contrasts = settings.temporal_contrast or settings.episode_contrast
        self._reads_frames = bool(contrasts) or self.inverse_dynamics is not None
        # What each loss counts.
        self.weights = {
            "masked_prediction": settings.masked_weight,
            "context_prediction": settings.context_weight,
            "temporal_contrast": settings.temporal_contrast,
            "episode_contrast": settings.episode_contrast,
            "inverse_dynamics": settings.inverse_dynamics,
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`loss` and its parts, averaged over mask types."""
        targets = self.compute_targets(batch.clip, batch.distant)  # [B, T*N, G*L*D]
        context = self.encode_context(batch)
        predictions = self.predict(context, batch)
        return self.losses(targets, context, predictions, batch)

    @torch.no_grad()
    def compute_targets(self, clip: Tensor, distant: Tensor | None = None) -> Tensor:
        """The targets [B, T*N, G*L*D] in fp32, of L levels of the target encoder, for clips [B, T,
        C, px, px] with their distant frames [B, R, C, px, px], which motion is told from."""
        levels, tokens = self.settings.target_levels, self.target.tokens_per_frame
        of_clip = self.target(clip, levels=levels).float().unflatten(1, (-1, tokens))
        if distant is None or "motion" not in self.settings.target_kinds:
            return latent_targets(of_clip, self.settings)
        # Distant frames are seen alone, and what is compared with them too.
        alone = of_clip
        if self.target.settings.attention != "frame":
            alone = self._alone(clip[:, :: self.target.tubelet_size])
        return latent_targets(of_clip, self.settings, self._alone(distant), alone)

    def _alone(self, frames: Tensor) -> Tensor:
        """[B, R, N, L*D] the target encoder's tokens of frames [B, R, C, px, px], each an image of
        its own."""
        of_frames = self.target(self.images(frames), levels=self.settings.target_levels)
        return of_frames.float().unflatten(0, (len(frames), -1))

    def images(self, distant: Tensor) -> Tensor:
        """[B*R, tubelet, C, px, px]: each distant frame [B, R, C, px, px] an image of its own,
        repeated to fill a tubelet."""
        frames = distant.flatten(0, 1)[:, None]
        return frames.expand(-1, self.encoder.tubelet_size, -1, -1, -1)

    def encode_context(self, batch: Batch) -> Context:
        """The context encoder's tokens of what each mask leaves in view, and the distant frames
        where they are read."""
        distant = None
        reads_frames = self._reads_frames and _any_full_frames(batch.masks)
        if batch.distant.shape[1] and (reads_frames or self.settings.episode_contrast):
            images = self.images(batch.distant)
            distant = self._pool(self.encoder(images), batch.distant.shape[1])
        return Context([self._in_view(batch.clip, mask) for mask in batch.masks], distant)

    def predict(self, context: Context, batch: Batch) -> list[Tensor]:
        """The predictor's tokens in fp32 for each mask: [B, M, G*L*D] of its targets, [B, K + M,
        G*L*D] where those in view are predicted too."""
        positions = self.encoder.positions(batch.clip)  # [T*N, 3]
        with_context = bool(self.settings.context_weight)
        predictions = []
        for kind, (tokens, mask) in enumerate(zip(context.tokens, batch.masks, strict=True)):
            places = positions[mask.context_ids], positions[mask.target_ids]
            predicted = self.predictor(tokens, *places, kind, with_context=with_context).float()
            if self.neighbors is not None and mask.image is None:
                near = self.neighbors(tokens, mask, self.encoder.extent(batch.clip)).float()
                in_view = predicted.shape[1] - near.shape[1]
                predicted = predicted + F.pad(near, (0, 0, in_view, 0))
            predictions.append(predicted)
        return predictions

    def losses(
        self, targets: Tensor, context: Context, predictions: list[Tensor], batch: Batch
    ) -> dict[str, Tensor]:
        """Mean errors of the predictions, absolute or squared, the regularisers, and `loss`, their
        weighted sum."""
        parts: dict[str, list[Tensor]] = {name: [] for name in self.weights}
        # Where no mask leaves frames in full view, the distant ones are told by one another.
        if context.distant is not None and not _any_full_frames(batch.masks):
            first, rest = context.distant[:, :1], context.distant[:, 1:]
            parts["episode_contrast"].append(self.episode_contrast(first, rest, batch.episode))
        for tokens, mask, predicted in zip(context.tokens, batch.masks, predictions, strict=True):
            for name, value in self._regularise(tokens, mask, context.distant, batch).items():
                parts[name].append(value)
            count = mask.target_ids.shape[1]
            difference = predicted[:, -count:] - take_tokens(targets, mask.target_ids)
            parts["masked_prediction"].append(self.errors(difference).mean())
            if predicted.shape[1] > count:
                difference = predicted[:, :-count] - take_tokens(targets, mask.context_ids)
                parts["context_prediction"].append(self.errors(difference).mean())

        # The mean over masks of each part, and their sum by weight.
        losses = {name: torch.stack(values).mean() for name, values in parts.items() if values}
        loss = targets.new_zeros(())
        for name, value in losses.items():
            loss = loss + self.weights[name] * value
        return losses | {"loss": loss}

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder toward the context encoder: target = momentum * target + (1 -
        momentum) * context."""
        torch._foreach_lerp_(
            list(self.target.parameters()), list(self.encoder.parameters()), 1 - momentum
        )

    def _in_view(self, clip: Tensor, mask: TokenMask) -> Tensor:
        """The context [B, K, D]. Where whole frames are in view and no token looks beyond its own,
        the same numbers come cheaper from those frames alone."""
        tubelets = clip.unflatten(1, (-1, self.encoder.tubelet_size))
        rows = torch.arange(len(clip), device=clip.device)[:, None]
        if mask.image is not None:  # as the frozen encoder sees an image
            images = self.images(tubelets[rows, mask.image[:, None], 0])
            return self.encoder(images, mask.context_ids % self.encoder.tokens_per_frame)
        if mask.full_frames is None or self.encoder.settings.attention != "frame":
            return self.encoder(clip, mask.context_ids)
        return self.encoder(tubelets[rows, mask.full_frames].flatten(1, 2))

    def errors(self, difference: Tensor) -> Tensor:
        """What each number of a difference [...] counts in the loss: its square or its absolute
        value."""
        return difference.square() if self.settings.error == "squared" else difference.abs()

    # ------------------------------------------------------------------ regularisers

    def _regularise(
        self, tokens: Tensor, mask: TokenMask, distant: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """What keeps the latent from losing what is small and moves, which the static layout,
        predicted with ease, crowds out: losses on the context tokens [B, K, D] of a mask and the
        pooled distant frames [B, R, D]."""
        losses = {}
        if mask.full_frames is not None and self._reads_frames:
            frames = self._pool(tokens, mask.full_frames.shape[1])  # [B, V, D]
            if self.settings.temporal_contrast:
                times = self._times(mask.full_frames, batch)
                losses["temporal_contrast"] = self.temporal_contrast(frames, distant, times)
            if self.settings.episode_contrast and distant is not None:
                losses["episode_contrast"] = self.episode_contrast(frames, distant, batch.episode)
            if self.inverse_dynamics is not None and batch.actions is not None:
                frames = frames if distant is None else torch.cat([frames, distant], 1)
                of_clip, of_distant = self._by_frame(batch.actions, batch)
                displacement = torch.cat([take_tokens(of_clip, mask.full_frames), of_distant], 1)
                losses["inverse_dynamics"] = self.inverse_dynamics(frames, displacement)
        return losses

    def _times(self, full_frames: Tensor, batch: Batch) -> FrameTimes | None:
        """When the frames in full view [B, V] and the distant ones were taken."""
        if batch.time is None:
            return None
        of_clip, of_distant = self._by_frame(batch.time, batch)
        return FrameTimes(full_frames, of_clip.gather(1, full_frames), of_distant)

    def _by_frame(self, values: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """(of each time step of the clip, of the distant frames) from values [B, T + R, ...]."""
        frames = batch.clip.shape[1]
        return values[:, : frames : self.encoder.tubelet_size], values[:, frames:]

    def _pool(self, tokens: Tensor, frames: int) -> Tensor:
        """[B, frames, D] from whole frames' tokens [B, frames*N, D] or [B*frames, N, D]."""
        per_frame = tokens.reshape(-1, self.encoder.tokens_per_frame, tokens.shape[-1])
        pooled: Tensor = self.pooling(per_frame)
        return pooled.unflatten(0, (-1, frames))


def _any_full_frames(masks: list[TokenMask]) -> bool:
    return any(mask.full_frames is not None for mask in masks)


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """[B, M, D] tokens [B, T*N, D] at the numbers ids [B, M]."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
