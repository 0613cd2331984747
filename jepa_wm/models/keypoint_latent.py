"""The keypoint latent: where in the picture lies what changes and what is constant in an episode.

B windows, T frames, R distant frames, n frozen tokens of width E."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import mlp
from jepa_wm.models.latent import CompactLatent, LatentBatch, LatentTraining
from jepa_wm.models.losses import PROJECTED, EpisodeContrast, PredictiveContrast
from jepa_wm.models.pooling import Keypoints
from jepa_wm.models.world_model_settings import KeypointLatentSettings

WIDTH = 256  # of the networks that are kept in training only
NEAR = 1.0  # model steps within which a distant frame is no negative of the true one


class KeypointLatent(CompactLatent):
    """Rows and columns of keypoints of what changes, then of what is constant."""

    static_learned_late = False

    def __init__(self, tokens: int, token_width: int, settings: KeypointLatentSettings) -> None:
        dynamic, static = settings.dynamic_points, settings.static_points
        super().__init__(2 * dynamic, 2 * static)
        self.static_frames = settings.static_frames
        self.places = Keypoints(tokens, token_width, dynamic)
        if static:
            points = Keypoints(tokens, token_width, static)
            self.static = nn.Sequential(points, nn.Unflatten(-1, (1, -1)))

    def training_of(self, action_size: int, block: int) -> KeypointLatentTraining:
        return KeypointLatentTraining(self, block)


class KeypointLatentTraining(LatentTraining):
    """What trains the keypoints, without labels. What changes: those of a frame and the actions
    after it foretell the next frame's, which are told from distant frames of the same episode.
    What is constant: those of a frame are told from other episodes', by a distant frame.

    Both are compared in a wide projection, so that a few numbers suffice to say it."""

    num_distant = 4

    def __init__(self, latent: KeypointLatent, block: int) -> None:
        super().__init__()
        self.places, self.static = latent.places, latent.static
        moved = latent.dynamic_dim
        self.predict = mlp(moved + block, moved, WIDTH, depth=2)
        self.widen = mlp(moved, WIDTH, WIDTH, depth=1)
        self.temporal_contrast = PredictiveContrast(WIDTH, projected=PROJECTED)
        if self.static is not None:
            self.widen_static = mlp(latent.static_dim, WIDTH, WIDTH, depth=1)
            self.episode_contrast = EpisodeContrast(WIDTH, projected=PROJECTED)

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
        if self.static is not None:
            # What is constant: one frame each is enough, all of a window show the same.
            here, there = (
                self.widen_static(self.static(frames[:, :1])[:, :, 0])
                for frames in (batch.frames, batch.distant)
            )
            losses["episode_contrast"] = self.episode_contrast(here, there, batch.episode)
        return losses | {"loss": torch.stack(list(losses.values())).sum()}
