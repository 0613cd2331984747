"""Imagining with V-JEPA 2's action-conditioned predictor: frames' tokens and poses in, futures of
many plans out.

B episodes, S plans, H horizon, N tokens a frame, D width; actions and poses have 7 numbers, see
`dynamics.poses`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.models.action_predictor import ActionPredictor
from jepa_wm.models.poses import difference, integrate, to_angles, to_matrix


def normalised(tokens: Tensor) -> Tensor:
    """Tokens [..., D] as the predictor is trained on them: LayerNorm without parameters."""
    return F.layer_norm(tokens, tokens.shape[-1:])


def pose_blocks(poses: Tensor, rows: Tensor, *, frameskip: int) -> Tensor:
    """[n, T-1, frameskip * 7] the changes of pose at every environment step between rows [n, T] of
    poses [R, 7], which lie `frameskip` rows apart: what a recording did, as a model step's block
    of actions."""
    steps = rows[:, :-1, None] + torch.arange(frameskip)  # [n, T-1, frameskip]
    return difference(poses[steps], poses[steps + 1]).flatten(-2)


def change_of(blocks: Tensor) -> Tensor:
    """[..., 7] the one change of pose that a block [..., frameskip * 7] of changes adds up to."""
    parts = blocks.unflatten(-1, (-1, 7))
    turn = to_matrix(parts[..., 0, 3:6])
    for step in range(1, parts.shape[-2]):
        turn = to_matrix(parts[..., step, 3:6]) @ turn
    return torch.cat([parts[..., :3].sum(-2), to_angles(turn), parts[..., 6:].sum(-2)], -1)


def imagine_poses(
    model: ActionPredictor, tokens: Tensor, pose: Tensor, actions: Tensor, *, at_once: int = 64
) -> tuple[Tensor, Tensor]:
    """(futures [B, S, H, N, D], poses [B, S, H, 7]) of plans [B, S, H, 7] from a frame's tokens
    [B, N, D] and its pose [B, 7], as `imagine_after`."""
    return imagine_after(
        model, normalised(tokens)[:, None], pose[:, None], actions, at_once=at_once
    )


def imagine_after(
    model: ActionPredictor,
    context: Tensor,
    poses: Tensor,
    actions: Tensor,
    *,
    at_once: int = 64,
    truncate: int = 0,
) -> tuple[Tensor, Tensor]:
    """(futures [B, S, H, N, D], poses [B, S, H, 7]) of plans [B, S, H, 7] after normalised frames
    [B, C, N, D] with their poses [B, C, 7].

    Each step sees the context and all that was imagined before it. What was done in between is how
    the poses differ; where the gripper is then follows from the actions alone. Up to `at_once`
    plans are computed together; gradients are cut every `truncate` steps (0: nowhere)."""
    b, s, horizon, _ = actions.shape
    seen, plans = context.shape[1], actions.flatten(0, 1)
    samples = torch.arange(b * s, device=context.device) // s
    before = difference(poses[:, :-1], poses[:, 1:])  # [B, C-1, 7]
    futures, ways = [], []
    for some, plan in zip(samples.split(at_once), plans.split(at_once), strict=True):
        frames, states = context[some], poses[some]  # [n, t, N, D], [n, t, 7]
        acts = torch.cat([before[some], plan], 1)
        for h in range(horizon):
            if truncate and h and h % truncate == 0:
                frames, states = frames.detach(), states.detach()
            ahead = normalised(model(frames, acts[:, : seen + h], states)[:, -1:]).to(frames)
            frames = torch.cat([frames, ahead], 1)
            states = torch.cat([states, integrate(states[:, -1:], plan[:, h : h + 1])], 1)
        futures.append(frames[:, seen:])
        ways.append(states[:, seen:])
    return torch.cat(futures).unflatten(0, (b, s)), torch.cat(ways).unflatten(0, (b, s))
