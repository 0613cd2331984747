"""Poses of a robot's hand, and the changes that actions make to them.

A pose [..., 7] is a place (m), extrinsic xyz Euler angles (rad) and the gripper's opening (0..1);
an action [..., 7] is what is added to the place and the opening, and the turn that is applied
after the pose's own. A model step's block of actions holds `frameskip` of them."""

from __future__ import annotations

import torch
from torch import Tensor

POSE = 7  # numbers: place, Euler angles, opening of the gripper


def change_of(blocks: Tensor) -> Tensor:
    """[..., 7] the one change of pose that a block [..., frameskip * 7] of changes adds up to."""
    parts = blocks.unflatten(-1, (-1, POSE))
    turn = to_matrix(parts[..., 0, 3:6])
    for step in range(1, parts.shape[-2]):
        turn = to_matrix(parts[..., step, 3:6]) @ turn
    return torch.cat([parts[..., :3].sum(-2), to_angles(turn), parts[..., 6:].sum(-2)], -1)


def integrate(pose: Tensor, action: Tensor) -> Tensor:
    """The pose after an action, [..., 7]; the opening stays within 0..1."""
    place = pose[..., :3] + action[..., :3]
    turn = to_angles(to_matrix(action[..., 3:6]) @ to_matrix(pose[..., 3:6]))
    return torch.cat([place, turn, (pose[..., 6:] + action[..., 6:]).clamp(0, 1)], -1)


def difference(before: Tensor, after: Tensor) -> Tensor:
    """The action that leads from one pose to another, [..., 7]: `integrate(before,
    difference(before, after))` is `after`."""
    turn = to_angles(to_matrix(after[..., 3:6]) @ to_matrix(before[..., 3:6]).transpose(-1, -2))
    return torch.cat(
        [after[..., :3] - before[..., :3], turn, after[..., 6:] - before[..., 6:]], -1
    )


def to_matrix(angles: Tensor) -> Tensor:
    """Rotation matrices [..., 3, 3] of extrinsic xyz Euler angles [..., 3]: first about x, then y,
    then z."""
    (cx, cy, cz), (sx, sy, sz) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = (
        (cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx),
        (sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx),
        (-sy, cy * sx, cy * cx),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def to_angles(matrix: Tensor) -> Tensor:
    """Extrinsic xyz Euler angles [..., 3] of rotation matrices [..., 3, 3], y within a quarter
    turn.

    Where y is a quarter turn, x and z turn about the same axis: their sum goes to x.
    """
    sy = -matrix[..., 2, 0]
    level = torch.hypot(matrix[..., 2, 1], matrix[..., 2, 2])  # cos y
    flat = level < 1e-6
    x = torch.atan2(matrix[..., 2, 1], matrix[..., 2, 2])
    z = torch.atan2(matrix[..., 1, 0], matrix[..., 0, 0])
    x = torch.where(flat, torch.atan2(-matrix[..., 1, 2], matrix[..., 1, 1]), x)
    return torch.stack([x, torch.atan2(sy, level), torch.where(flat, torch.zeros_like(z), z)], -1)
