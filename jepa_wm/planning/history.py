"""Frames and actions that a harness hands over, as the context that the dynamics were trained
with.

B episodes, S candidates, T frames of the harness, C frames of the context, h x w px, a numbers of
one environment action, A of the block of actions between two frames of the context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def newest_frames(name: str, info: Mapping[str, Any]) -> Tensor:
    """[B, h, w, 3] of info[name] [B, S, T, h, w, 3] or [B, S, h, w, 3], the same for all
    candidates."""
    return _in_time(name, info)[:, -1]


def history(
    info: Mapping[str, Any], *, window: int, size: int, frameskip: int
) -> tuple[Tensor, Tensor]:
    """(frames [B, C, h, w, 3], action blocks between them [B, C-1, A]) of info["pixels"] [B, S, T,
    h, w, 3], the newest last, and info["action"] [B, S, T, a] or [B, S, T, A], which hold with
    each frame what led to it.

    With single actions frames follow each other by environment steps, and every `frameskip`-th is
    of the context; with blocks by model steps. C is `window`, or less: as far back as frames go
    and actions are known (finite) in all episodes; 1 where info has no actions. Raises ValueError
    for actions of another width or number."""
    pictures = _in_time("pixels", info)
    nothing = torch.zeros(len(pictures), 0, size * frameskip)
    if pictures.shape[1] == 1 or info.get("action") is None:
        return pictures[:, -1:], nothing
    actions = torch.as_tensor(info["action"])[:, 0].float().cpu()  # [B, T, a or A]
    widths = {size * frameskip: 1, size: frameskip}
    if (
        actions.dim() != 3
        or actions.shape[1] != pictures.shape[1]
        or actions.shape[2] not in widths
    ):
        raise ValueError(
            f"info['action'] has shape {tuple(actions.shape)} beside {pictures.shape[1]} frames; give with each the "
            f"{size} numbers of the action that led to it, or the {size * frameskip} of the block that did, or leave "
            "it out"
        )
    gap = widths[actions.shape[2]]
    led = actions.isfinite().all(2).all(0).flip(0)  # [T], newest first
    known = int(led.int().cumprod(0).sum())
    count = 1 + min(window - 1, (pictures.shape[1] - 1) // gap, known // gap)
    blocks = actions[:, actions.shape[1] - (count - 1) * gap :].reshape(
        len(actions), count - 1, -1
    )
    return pictures[:, -1 - (count - 1) * gap :: gap], blocks if count > 1 else nothing


def refuse_other_pictures(name: str, frames: Tensor) -> None:
    """Raises ValueError for anything but uint8 frames [B, h, w, 3]."""
    if frames.dtype != torch.uint8 or frames.dim() != 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"'{name}' is {frames.dtype} {tuple(frames.shape)}; uint8 pictures [B, h, w, 3] are wanted: leave them out "
            "of the harness' transforms"
        )


def _in_time(name: str, info: Mapping[str, Any]) -> Tensor:
    """[B, T, h, w, 3], of the first candidate."""
    pictures = torch.as_tensor(info[name])[:, 0]
    return pictures if pictures.dim() == 5 else pictures[:, None]
