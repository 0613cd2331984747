"""JEPA: the target sees all, the context sees part, the predictor guesses the rest, all in latent
space.

B clips, T time steps, n tokens a step, N = T*n tokens, D width, L levels, K context tokens, M
target tokens."""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import all_mean
from jepa_wm.models.losses import variance_covariance
from jepa_wm.models.masks import Masked, draw_mask, split
from jepa_wm.models.pooling import (
    EpisodeContrast,
    GridPool,
    LinearInverseDynamics,
    MeanPool,
    TemporalContrast,
    When,
)
from jepa_wm.models.predictor import Predictor
from jepa_wm.models.rope import grid_positions
from jepa_wm.models.settings import EncoderSettings, JepaSettings
from jepa_wm.models.vit import Encoder

# losses beside prediction, and the settings with their weights
REGULARISERS = ("vicreg", "temporal_contrast", "episode_contrast", "inverse_dynamics")
COVARIANCE = 0.04  # weight of its covariance beside the variance in the term `vicreg`, as in VICReg (1 to 25)


class JEPA(nn.Module):
    """Context encoder, target encoder (an exponential moving average of it) and predictor."""

    def __init__(
        self,
        image_size: int,
        encode: EncoderSettings,
        predict: JepaSettings,
        *,
        action_size: int = 0,
    ) -> None:
        super().__init__()
        self.settings = predict
        self.encoder = Encoder.from_settings(image_size, encode)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = Predictor(
            width=predict.width, depth=predict.depth, num_heads=predict.num_heads, encoder_width=encode.width,
            output_width=predict.target_levels * encode.width,
            mask_types=len(predict.masks), rope=encode.rope,
            rope_base=encode.rope_base, locality=predict.locality,
        )  # fmt: skip
        self.summary = (
            MeanPool(encode.width, encode.width) if predict.pooling == "mean"
            else GridPool(self.encoder.tokens_per_frame, encode.width, encode.width)
        )  # fmt: skip
        self.temporal_contrast = TemporalContrast(encode.width)
        self.episode_contrast = EpisodeContrast(encode.width)
        self.inverse_dynamics = (
            LinearInverseDynamics(encode.width, action_size)
            if action_size and predict.inverse_dynamics
            else None
        )
        self.regularised = (
            bool(predict.temporal_contrast or predict.episode_contrast)
            or self.inverse_dynamics is not None
        )

    def draw_masks(self, batch: int, frames: int, generator: torch.Generator) -> list[Masked]:
        """One for each mask type, for `batch` clips of `frames` frames."""
        grid, steps = self.encoder.grid, frames // self.encoder.tubelet_size
        drawn = []
        for mask in self.settings.masks:
            hidden = draw_mask(mask, batch, steps, grid, generator)
            seen, wanted = split(hidden, generator)
            drawn.append(Masked(seen, self._thin(wanted, generator), whole_frames(hidden, steps)))
        return drawn

    def forward(
        self,
        clip: Tensor,
        far: Tensor,
        masks: list[Masked],
        path: Tensor | None = None,
        origin: Origin | None = None,
    ) -> dict[str, Tensor]:
        """Losses of clips [B, T, C, S, S], with far frames [B, R, C, S, S] of the same episodes:
        `loss` and its parts, averaged over mask types. `path` [B, T + R, a] is the way by the
        actions from the clip's first frame to each of its frames and to the far ones, where known;
        `origin` keeps contrasts from telling apart what belongs together."""
        grid, steps = self.encoder.grid, clip.shape[1] // self.encoder.tubelet_size
        positions = grid_positions(steps, grid, grid, device=clip.device)
        masks = [
            mask.to(clip.device) for mask in masks
        ]  # first of all: a copy waits for what is under way on a GPU
        target = self.compute_targets(clip)
        parts: dict[str, list[Tensor]] = {
            name: [] for name in ("masked_prediction", "context_prediction", *REGULARISERS)
        }
        episode = None if origin is None else origin.episode
        others, whole = None, any(mask.full_frames is not None for mask in masks)
        if far.shape[1] and (self.regularised if whole else self.settings.episode_contrast):
            others = self._summarise(self.encoder(self._stills(far)), far.shape[1])
            if (
                not whole
            ):  # no frame of the clip is wholly in view, so the far ones are told by one another
                parts["episode_contrast"].append(
                    self.episode_contrast(others[:, :1], others[:, 1:], episode)
                )
        for kind, mask in enumerate(masks):
            seen, wanted, shown = mask.context_ids, mask.target_ids, mask.full_frames
            context = self.encode_context(clip, seen, shown)  # [B, K, D]
            visible = bool(self.settings.context_weight)
            guess = self.predictor(
                context, positions[seen], positions[wanted], kind, visible=visible
            ).float()
            again, guess = (
                guess[:, : -wanted.shape[1]],
                guess[:, -wanted.shape[1] :],
            )  # [B, K or 0, L*D], [B, M, L*D]
            if self.regularised and shown is not None:
                for name, value in self.regularise(context, shown, others, path, origin).items():
                    parts[name].append(value)
            if self.settings.vicreg:
                variance, covariance = variance_covariance(context.float().mean(1))
                parts["vicreg"].append(variance + COVARIANCE * covariance)
            parts["masked_prediction"].append((guess - _take(target, wanted)).abs().mean())
            if self.settings.context_weight:
                parts["context_prediction"].append((again - _take(target, seen)).abs().mean())
        losses = {name: torch.stack(values).mean() for name, values in parts.items() if values}
        targets = self.settings
        losses["loss"] = targets.masked_weight * losses["masked_prediction"]
        if targets.context_weight:
            losses["loss"] = losses["loss"] + targets.context_weight * losses["context_prediction"]
        for name in REGULARISERS:
            if name in losses:
                losses["loss"] = losses["loss"] + getattr(self.settings, name) * losses[name]
        return losses

    def regularise(
        self,
        context: Tensor,
        shown: Tensor,
        others: Tensor | None,
        path: Tensor | None,
        origin: Origin | None = None,
    ) -> dict[str, Tensor]:
        """What keeps the latent from losing what is small and moves, which the static layout,
        predicted with ease, crowds out: losses on the summaries of whole context frames [B, V*n,
        D] at time steps shown [B, V] and those of far frames, others [B, R, D].

        `temporal_contrast`: a frame's successor, where the mask leaves it in view, is told from far frames
        of its episode. `episode_contrast`: far frames are told from those of other episodes. `inverse_dynamics`:
        the displacement between any two frames, by the actions, is read from their summaries."""
        summaries = self._summarise(context, shown.shape[1])
        losses = {}
        if self.settings.temporal_contrast:
            far = 0 if others is None else others.shape[1]
            when = None if origin is None else origin.when(shown, self.encoder.tubelet_size, far)
            losses["temporal_contrast"] = self.temporal_contrast(summaries, others, when)
        if self.settings.episode_contrast and others is not None:
            episode = None if origin is None else origin.episode
            losses["episode_contrast"] = self.episode_contrast(summaries, others, episode)
        if self.inverse_dynamics is not None and path is not None:
            clip_steps = path.shape[1] - (0 if others is None else others.shape[1])
            way = torch.cat(
                [
                    _take(path[:, : clip_steps : self.encoder.tubelet_size], shown),
                    path[:, clip_steps:],
                ],
                1,
            )
            losses["inverse_dynamics"] = self.inverse_dynamics(
                summaries if others is None else torch.cat([summaries, others], 1), way
            )
        return losses

    def encode_context(self, clip: Tensor, seen: Tensor, shown: Tensor | None) -> Tensor:
        """The context [B, K, D]. Where whole frames are in view and no token looks beyond its own,
        the same numbers come cheaper from those frames alone."""
        if shown is None or self.encoder.attention != "frame":
            return self.encoder(clip, seen)
        stretch = clip.unflatten(1, (-1, self.encoder.tubelet_size))
        frames = stretch[torch.arange(len(clip), device=clip.device)[:, None], shown]
        return self.encoder(frames.flatten(1, 2))

    def _summarise(self, tokens: Tensor, frames: int) -> Tensor:
        """[B, frames, F] from whole frames' tokens [B, frames*n, D] or [B*frames, n, D]."""
        per_frame = tokens.reshape(-1, self.encoder.tokens_per_frame, tokens.shape[-1])
        return self.summary(per_frame).unflatten(0, (-1, frames))

    @torch.no_grad()
    def compute_targets(self, clip: Tensor) -> Tensor:
        """The targets [B, N, L*D] in fp32, of L levels of the target encoder, for clips [B, T, C,
        S, S]."""
        tokens = self.target(clip, levels=self.settings.target_levels).float()
        return latent_targets(
            tokens.unflatten(1, (-1, self.target.tokens_per_frame)), self.settings
        )

    @torch.no_grad()
    def update_target(self, momentum: float) -> None:
        """Move the target encoder toward the context encoder: target = momentum * target + (1 -
        momentum) * context."""
        torch._foreach_lerp_(
            list(self.target.parameters()), list(self.encoder.parameters()), 1 - momentum
        )

    def _stills(self, frames: Tensor) -> Tensor:
        """[B*R, tubelet, C, S, S]: each of frames [B, R, C, S, S] as a clip of its own, repeated
        to fill a tubelet."""
        return frames.flatten(0, 1)[:, None].expand(-1, self.encoder.tubelet_size, -1, -1, -1)

    def _thin(self, wanted: Tensor, generator: torch.Generator) -> Tensor:
        most = self.settings.max_targets
        if not most or wanted.shape[1] <= most:
            return wanted
        chosen = (
            torch.rand(wanted.shape, generator=generator).argsort(1)[:, :most].to(wanted.device)
        )
        return wanted.gather(1, chosen)


class Origin(NamedTuple):
    """Where the frames of a batch come from."""

    episode: Tensor  # [B] int64, a number for each episode or file
    time: Tensor  # [B, T + R] int64, of the clips' frames and the far ones, in any one unit

    def when(self, shown: Tensor, tubelet: int, far: int) -> When:
        """Of the time steps shown [B, V] and of `far` far frames."""
        clip = self.time.shape[1] - far
        return When(shown, self.time[:, :clip:tubelet].gather(1, shown), self.time[:, clip:])


def whole_frames(hidden: Tensor, steps: int) -> Tensor | None:
    """[B, V] time steps that hidden [B, T*n] leaves wholly in view, if nothing else is in view and
    V is the same for all samples and at least two; else None."""
    per_frame = hidden.unflatten(1, (steps, -1))
    seen = ~per_frame.any(-1)
    count = seen.sum(1)
    if (per_frame.all(-1) != ~seen).any() or count[0] < 2 or (count != count[0]).any():
        return None
    return seen.nonzero()[:, 1].view(len(hidden), -1)


def latent_targets(tokens: Tensor, settings: JepaSettings) -> Tensor:
    """[B, T*n, L*D] from tokens [B, T, n, L*D] of clips: LayerNorm of each level without
    parameters (V-JEPA); centred over the batch and scaled to unit mean square if asked."""
    each = tokens.unflatten(-1, (settings.target_levels, -1))
    y = F.layer_norm(each, each.shape[-1:]).flatten(-2)
    if settings.center_targets:
        y = y - all_mean(y.mean((0, 1), keepdim=True))
        # Features that are exactly constant differ by rounding noise, about 1e-7: without a floor
        # it would be a target.
        y = y / all_mean(y.square().mean()).sqrt().clamp(min=1e-3)
    return y.flatten(1, 2)


def _take(tokens: Tensor, ids: Tensor) -> Tensor:
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))
