"""Imagining: one step, teacher-forced steps, and a free unroll with a key/value cache.

B batch, S candidates, T frames, C context frames, H horizon, N tokens a frame, D latent width, A action numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa_wm.dynamics.model import Dynamics


def one_step(model: Dynamics, latent: Tensor, action: Tensor) -> Tensor:
    """[B, N, D] one frame after latent [B, N, D] under action [B, A]."""
    return model(latent[:, None], action[:, None])[:, 0]


def teacher_forced(model: Dynamics, latents: Tensor, actions: Tensor) -> Tensor:
    """[B, T, N, D]: entry t is the guess of frame t + 1 from the true frames up to t and actions [B, T, A]."""
    return model(latents, actions)


def unroll(model: Dynamics, context: Tensor, past: Tensor, actions: Tensor) -> Tensor:
    """[B, H, N, D] imagined frames after context [B, C, N, D], with past actions [B, C-1, A] and actions [B, H, A]."""
    return unroll_candidates(model, context, past, actions[:, None])[:, 0]


def unroll_candidates(model: Dynamics, context: Tensor, past: Tensor, actions: Tensor) -> Tensor:
    """[B, S, H, N, D] futures of S candidate plans [B, S, H, A]; the context is computed once and shared by all.

    Raises ValueError for a horizon of 0 or an action width that the model was not trained with.
    """
    b, s, horizon, width = actions.shape
    if horizon == 0 or width != model.action_size:
        raise ValueError(
            f"actions of shape {tuple(actions.shape)}: the horizon must be at least 1 and the model takes "
            f"{model.action_size} numbers a step (action size x frameskip)"
        )
    seen = context.shape[1] - 1
    cache = model.new_cache()
    if seen:
        model(context[:, :-1], past, cache=cache)
    cache = [layer.repeat(s) for layer in cache]
    latent = context[:, -1:].repeat_interleave(s, 0)  # [B*S, 1, N, D]
    steps = actions.flatten(0, 1)  # [B*S, H, A]
    frames = []
    for h in range(horizon):
        latent = model(latent, steps[:, h : h + 1], cache=cache, start=seen + h)
        frames.append(latent)
    return torch.cat(frames, 1).unflatten(0, (b, s))
