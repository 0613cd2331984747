"""Imagining with V-JEPA 2's action-conditioned predictor: frames' tokens and poses in, futures of many plans out.

B episodes, S plans, H horizon, N tokens a frame, D width; actions and poses have 7 numbers, see `dynamics.poses`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.dynamics.action_predictor import ActionPredictor
from jepa_wm.dynamics.poses import integrate


def normalised(tokens: Tensor) -> Tensor:
    """Tokens [..., D] as the predictor is trained on them: LayerNorm without parameters."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def imagine_poses(
    model: ActionPredictor, tokens: Tensor, pose: Tensor, actions: Tensor, *, at_once: int = 64
) -> tuple[Tensor, Tensor]:
    """(futures [B, S, H, N, D], poses [B, S, H, 7]) of plans [B, S, H, 7] from a frame's tokens [B, N, D] and its pose
    [B, 7].

    Each step sees all that was imagined before it. Where the gripper is then follows from the actions alone.
    Up to `at_once` plans are computed together.
    """
    b, s, horizon, _ = actions.shape
    start = normalised(tokens).repeat_interleave(s, 0)
    poses, plans = pose.repeat_interleave(s, 0), actions.flatten(0, 1)
    futures, ways = [], []
    for first, now, plan in zip(start.split(at_once), poses.split(at_once), plans.split(at_once), strict=True):
        frames, states = first[:, None], now[:, None]  # [n, t, N, D], [n, t, 7]
        for h in range(horizon):
            ahead = normalised(model(frames, plan[:, : h + 1], states)[:, -1:])
            frames = torch.cat([frames, ahead], 1)
            states = torch.cat([states, integrate(states[:, -1:], plan[:, h : h + 1])], 1)
        futures.append(frames[:, 1:])
        ways.append(states[:, 1:])
    return torch.cat(futures).unflatten(0, (b, s)), torch.cat(ways).unflatten(0, (b, s))
