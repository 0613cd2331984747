"""Dynamics as an MLP on all numbers of a latent: for compact ones, which one network sees whole.

B batch, T frames, C context frames, N tokens a frame, D latent width of which L numbers are static
and M dynamic, A action numbers between two frames, W frames that a prediction sees, F numbers of a
remembered frame."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.core.precision import exact
from jepa_wm.models.blocks import mlp
from jepa_wm.models.dynamics import Cache, Dynamics, StepNoise
from jepa_wm.models.latent import Latent
from jepa_wm.models.world_model_settings import MLPSettings


class Memory(Cache):
    """The W - 1 frames before the latest one, [B, W-1, F], the latest last; where there were fewer
    the first are 0."""

    def __init__(self, frames: Tensor) -> None:
        self.frames = frames

    def repeat(self, times: int) -> Memory:
        return Memory(self.frames.repeat_interleave(times, 0))

    def detach(self) -> None:
        self.frames = self.frames.detach()


class MLPDynamics(Dynamics):
    """Predicts the next frame from the last W frames and the actions taken in them, their numbers
    end to end, of a map what lies around the latest; the L static ones stay as they are.

    Nothing is normalised inside: where a wall ends or a gate opens a step is a steep function of
    few numbers, and normalised layers round its edges off. The error is absolute for the same
    reason: near an edge the next frame is one of two, and the median is one of them."""

    def __init__(self, latent: Latent, action_size: int, settings: MLPSettings) -> None:
        super().__init__(action_size)
        shape, self.context_frames = latent.shape, settings.context_frames
        self.shape = shape
        # Methods of the latent, whose weights and units stay its own.
        self.without_map, self.near = latent.without_map, latent.near
        numbers = shape.tokens * (shape.width - latent.map_dim)
        self.remembered = numbers + action_size + 1  # F: the last says that there was a frame
        inputs = numbers + latent.near_dim(latent.map_channels) + action_size
        inputs += (settings.context_frames - 1) * self.remembered
        outputs = shape.tokens * shape.dynamic_dim
        self.net = mlp(inputs, outputs, settings.width, depth=settings.depth)
        self.widest = max(inputs, settings.width)

    def begin(self, context: Tensor, past: Tensor) -> Memory:
        frames = context.new_zeros(len(context), self.context_frames - 1, self.remembered)
        return Memory(self._with(frames, self._remember(context[:, :-1], past)))

    def step(
        self, latents: Tensor, actions: Tensor, cache: Memory, noise: StepNoise | None = None
    ) -> Tensor:
        after = self._next(latents, actions, cache.frames)
        cache.frames = self._with(cache.frames, self._remember(latents[:, None], actions[:, None]))
        return after

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, T, N, D] the latents one frame after each of latents [B, T, N, D], under actions
        [B, T, A], where none was seen before the first."""
        kept = self.context_frames - 1
        seen = nn.functional.pad(self._remember(latents, actions)[:, :-1], (0, 0, kept, 0))
        memory = [seen[:, t : t + kept] for t in range(latents.shape[1])]
        return self._next(latents, actions, torch.stack(memory, 1))

    def loss(self, latents: Tensor, actions: Tensor, *, rollout: float) -> dict[str, Tensor]:
        """`forced`: each next latent from the true ones before it; `rollout`: windows imagined
        from their first W frames. Both are mean absolute errors of the dynamic numbers."""
        losses = {"forced": self._error(self(latents[:, :-1], actions), latents[:, 1:])}
        losses["loss"] = losses["forced"]
        if rollout and self.context_frames < latents.shape[1]:
            c = self.context_frames
            imagined = self.rollout_one(latents[:, :c], actions[:, : c - 1], actions[:, c - 1 :])
            losses["rollout"] = self._error(imagined, latents[:, c:])
            losses["loss"] = losses["forced"] + rollout * losses["rollout"]
        return losses

    def bytes_per_plan(
        self, horizon: int, *, gradients: bool = False, precision: str = "fp32"
    ) -> tuple[int, int]:
        """As every dynamics', latents and three more of their size for a cost included."""
        latents = 4 * horizon * self.shape.tokens * self.shape.width
        depth = sum(isinstance(layer, nn.Linear) for layer in self.net)
        kept = (horizon if gradients else 1) * 2 * (depth + 1) * self.widest
        return 4 * (2 * latents + kept), 0

    def _next(self, latents: Tensor, actions: Tensor, memory: Tensor) -> Tensor:
        """[..., N, D] after latents [..., N, D] under actions [..., A], with memory [..., W-1,
        F]."""
        with exact(latents.device):
            numbers = self.without_map(latents).flatten(-2)
            parts = [numbers, self.near(latents), actions, memory.flatten(-2)]
            change = self.net(torch.cat(parts, -1).float())
        change = change.unflatten(-1, (self.shape.tokens, self.shape.dynamic_dim))
        return latents + nn.functional.pad(change, (0, self.shape.static_dim))

    def _error(self, latents: Tensor, truth: Tensor) -> Tensor:
        return (latents - truth)[..., : self.shape.dynamic_dim].abs().mean()

    def _remember(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, T, F] of latents [B, T, N, D] and the actions taken in them [B, T, A]."""
        there = latents.new_ones(*latents.shape[:2], 1)
        numbers = self.without_map(latents).flatten(-2)
        return torch.cat([numbers, actions.to(latents.dtype), there], -1)

    def _with(self, frames: Tensor, more: Tensor) -> Tensor:
        """The last W - 1 of frames [B, W-1, F] and more [B, T, F]."""
        together = torch.cat([frames, more], 1)
        return together[:, together.shape[1] - (self.context_frames - 1) :]
