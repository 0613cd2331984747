"""Rotary positions over three axes (time, height, width): scores depend on offsets only.

B batch, N tokens, h heads, d head width (pairs of channels are d/2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_pairs(head_dim: int, axes: int = 3) -> list[int]:
    """How many of the d/2 channel pairs each axis gets; the first axes take what does not divide evenly."""
    pairs = head_dim // 2
    return [pairs // axes + (i < pairs % axes) for i in range(axes)]


def rope_tables(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin [..., N, d/2] for integer or real positions [..., N, axes]; axis i turns its own pairs."""
    angles = []
    for axis, count in enumerate(axis_pairs(head_dim, positions.shape[-1])):
        frequency = base ** (-torch.arange(count, device=positions.device, dtype=torch.float32) / max(count, 1))
        angles.append(positions[..., axis, None].float() * frequency)
    angle = torch.cat(angles, -1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (2i, 2i + 1) of x [B, h, N, d] by angles [B or 1, 1, N, d/2]; norms are kept."""
    pairs = x.unflatten(-1, (-1, 2))
    if x.device.type == "cpu":  # one complex product: attention as a whole takes about half the time
        turned = torch.view_as_complex(pairs.float()) * torch.complex(cos, sin)
        return torch.view_as_real(turned).flatten(-2).to(x.dtype)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)  # elsewhere compilers fuse real numbers only
    a, b = pairs.unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2)


def grid_positions(time: int, height: int, width: int) -> Tensor:
    """[time * height * width, 3] integer positions in token order (time, then rows, then columns)."""
    axes = torch.meshgrid(torch.arange(time), torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack(axes, -1).view(-1, 3)
