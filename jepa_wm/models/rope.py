"""Rotary positions over three axes (time, height, width): scores depend on offsets only, but for
V-JEPA 2's variant.

B batch, N tokens, h heads, d head width (pairs of channels are d/2).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Rope = Literal["rotation", "vjepa2"]


def axis_pairs(head_dim: int, axes: int = 3) -> list[int]:
    """How many of the d/2 channel pairs each axis gets; the first axes take what does not divide
    evenly."""
    pairs = head_dim // 2
    return [pairs // axes + (i < pairs % axes) for i in range(axes)]


def rope_tables(
    positions: Tensor, head_dim: int, base: float, rope: Rope = "rotation"
) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`, from integer or real positions [..., N, axes]; axis i turns its
    own pairs.

    They are [..., N, d/2], one angle a pair, or for 'vjepa2' [..., N, d], one angle a channel.
    """
    if rope == "vjepa2":
        return _vjepa2_tables(positions, head_dim, base)
    angles = []
    for axis, count in enumerate(axis_pairs(head_dim, positions.shape[-1])):
        frequency = base ** (
            -torch.arange(count, device=positions.device, dtype=torch.float32) / max(count, 1)
        )
        angles.append(positions[..., axis, None].float() * frequency)
    angle = torch.cat(angles, -1)
    return angle.cos(), angle.sin()


def _vjepa2_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """The tables of the released V-JEPA 2 models (Assran et al., 2025; their public code).

    Every axis has the same whole number of pairs, and channels left over stay as they are. An
    axis' frequencies are laid out twice, one after the other, while its pairs are adjacent
    channels: the two of a pair get different angles, so this is no rotation. The weights were
    trained with it and need it."""
    axes = positions.shape[-1]
    pairs = head_dim // axes // 2
    frequency = base ** (
        -torch.arange(pairs, device=positions.device, dtype=torch.float32) / max(pairs, 1)
    )
    angle = positions[..., None].float() * frequency  # [..., N, axes, pairs]
    angle = torch.cat([angle, angle], -1).flatten(-2)
    angle = F.pad(angle, (0, head_dim - 2 * axes * pairs))
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (2i, 2i + 1) of x [B, h, N, d] by angles [B or 1, 1, N, d/2]; norms are
    kept.

    Tables as wide as x, [B or 1, 1, N, d], are those of 'vjepa2', in which the two of a pair have
    different angles."""
    if cos.shape[-1] == x.shape[-1]:
        partner = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        return x * cos.to(x.dtype) + partner * sin.to(x.dtype)
    pairs = x.unflatten(-1, (-1, 2))
    if x.device.type == "cpu":  # one complex product: attention takes about half the time
        turned = torch.view_as_complex(pairs.float()) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # elsewhere compilers fuse real numbers only
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def grid_positions(
    time: int, height: int, width: int, *, device: torch.device | None = None
) -> Tensor:
    """[time * height * width, 3] integer positions in token order (time, then rows, then
    columns)."""
    axes = torch.meshgrid(
        *(torch.arange(extent, device=device) for extent in (time, height, width)), indexing="ij"
    )
    return torch.stack(axes, -1).view(-1, 3)
