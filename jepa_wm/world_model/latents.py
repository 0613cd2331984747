"""The latents of a features file as an agent would have them, frame by frame.

R rows of the store, B samples, T frames, N latent tokens of width D, F flattened latent width,
n frozen tokens of width E, L static numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import autocast
from jepa_wm.features.cache import Features
from jepa_wm.models.belief import running_belief, with_goal
from jepa_wm.models.latent_model import LatentModel

SLAB = 1024  # frames read in one go


class Latents:
    """The latents of a features file: all summaries held in memory, or the frozen tokens
    themselves where the model has no latent_settings, and in memory, once they are asked for, what the
    metric and heads read of them where they are many.

    The static numbers of a frame's latent are the running belief: the mean of the readings of the
    episode's frames up to it, as an agent that began with the episode has it there. No frame after
    it is looked at, but for the goal's own."""

    def __init__(self, model: LatentModel, features: Features, precision: str) -> None:
        self.features, self._model = features, model
        self._every = max(1, model.settings.frameskip // features.stride)
        self._held: Tensor | None = None
        self._components: Tensor | None = None
        if model.summary is not None:
            with torch.no_grad(), autocast(dist().device, precision):
                held = of_all_frames(features, model.summarise)
            self._own = model.static(held)  # [R, N, L] what each frame tells by itself
            each = self._own.split(features.counts.tolist())
            self._held = model.with_static(
                held, torch.cat([running_belief(one, every=self._every) for one in each])
            )

    def at(
        self, episode: np.ndarray, frame: np.ndarray, *, belief_at: np.ndarray | None = None
    ) -> Tensor:
        """[..., N, D] fp32 latents of frames (multiples of the stride) of episodes, arrays of one
        shape; with the static numbers believed at frame `belief_at` (it broadcasts), or at each
        frame itself."""
        if self._held is None:
            return self.features.tokens(episode, frame).float()
        latents = self._held[torch.from_numpy(self.features.index(episode, frame))]
        if belief_at is None:
            return latents
        believed = self.at(episode, np.broadcast_to(belief_at, frame.shape))
        return self._model.with_static(latents, self._model.static(believed))

    def flat(self, episode: np.ndarray, frame: np.ndarray) -> Tensor:
        """[..., F] what the metric and heads read (`LatentModel.flat`) of such frames."""
        model = self._model
        if model.components is None:
            return self.at(episode, frame).flatten(-2)
        if self._components is None:
            with torch.no_grad():
                self._components = of_all_frames(
                    self.features, lambda tokens: model.flat(model.summarise(tokens))
                )
        return self._components[torch.from_numpy(self.features.index(episode, frame))]

    def toward(self, episode: np.ndarray, frames: np.ndarray) -> Tensor:
        """[2, B, F] what the metric and heads read of frames [2, B] of episodes [B]: of one, and
        of a later one that is the goal. Both have the static numbers of an agent that stands at
        the first and was given the second as its goal."""
        both = np.broadcast_to(episode, frames.shape)
        if self._held is None:
            return self.flat(both, frames)
        pair = self.at(both, frames)
        goal = self._own[torch.from_numpy(self.features.index(episode, frames[1]))]  # [B, N, L]
        looks = torch.from_numpy(frames[0] // self.features.stride // self._every + 1)
        belief = with_goal(
            self._model.static(pair[0]), looks[:, None].expand(goal.shape[:-1]), goal
        )
        return self._model.with_static(pair, belief).flatten(-2)


def of_all_frames(features: Features, read: Callable[[Tensor], Tensor]) -> Tensor:
    """[R, ...] what `read` makes of the tokens [r, n, E] of all frames, on the CPU."""
    slabs = (features.slab(k, k + SLAB).to(dist().device) for k in range(0, len(features), SLAB))
    return torch.cat([read(slab).cpu() for slab in slabs])
