"""Pre-norm transformer blocks with rotary positions over three axes (time, height, width), shared
by encoder, predictors, dynamics and probes.

B batch, N tokens, D width, h heads, Q queries, K keys, d head width (pairs of channels are d/2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

Rope = Literal["rotation", "vjepa2"]


class Block(nn.Module):
    """x + attention, then x + MLP, each on a LayerNorm'd input."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        # rounded, as a ratio of 48/11 must not lose a unit
        self.mlp = Mlp(width, round(width * mlp_ratio), act_layer=nn.GELU)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        # Weights sharded in bf16 take no fp32; never the other way, which would widen all else.
        if self.norm1.weight.dtype.itemsize < x.dtype.itemsize:
            x = x.to(self.norm1.weight.dtype)
        x = x + self.attn(self.norm1(x), rope, bias, cache)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    """Multi-head self-attention with rotary positions."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        bias: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        # each [B, h, N, d]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, *rope), rotate(k, *rope)
        if cache is not None:
            k, v = cache.extend(k, v)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q [B, h, Q, d], k and v [B, h, K, d]; bias broadcasts
    to [B, h, Q, K]. The one place that chooses how attention is computed.

    In bf16 on a CPU three plain operations beat torch's fused kernel two to four times, forward
    and backward, at head width 64 and 80 to 256 tokens; everywhere else the fused kernel wins."""
    if q.device.type == "cpu":
        q, k = q.to(v.dtype), k.to(v.dtype)
        if q.dtype.itemsize == 2:
            scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
            if bias is not None:
                scores = scores + bias.to(scores.dtype)
            return scores.softmax(-1) @ v
    bias = None if bias is None else bias.to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class KeyValueCache:
    """Keys and values [B, h, n, d] of the latest `limit` tokens that one attention layer has seen.

    Keys are kept as rotated: with relative positions they never change when the window slides.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def extend(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values the new tokens may see: those remembered, then the new ones, which
        are kept too."""
        if self.keys is not None and self.values is not None:
            k, v = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        # not -limit, which keeps everything at a limit of 0
        first = max(0, k.shape[2] - self.limit)
        self.keys, self.values = k[:, :, first:], v[:, :, first:]
        return k, v

    def repeat(self, times: int) -> KeyValueCache:
        """The same memory for `times` plans of each sample, in the order sample-major."""
        copy = KeyValueCache(self.limit)
        if self.keys is not None and self.values is not None:
            copy.keys = self.keys.repeat_interleave(times, 0)
            copy.values = self.values.repeat_interleave(times, 0)
        return copy


def mlp(inputs: int, outputs: int, width: int, *, depth: int, norm: bool = False) -> nn.Sequential:
    """`depth` hidden layers of `width` with GELU between linear ones; `norm` puts a LayerNorm
    behind the first."""
    layers: list[nn.Module] = [nn.Linear(inputs, width)]
    if norm:
        layers.append(nn.LayerNorm(width))
    for _ in range(depth - 1):
        layers += [nn.GELU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(width, outputs))


def attention_bias(hidden: Tensor) -> Tensor:
    """What is added to scores so that those of bool hidden [...] have no weight."""
    return torch.zeros(hidden.shape, device=hidden.device).masked_fill_(hidden, -1e4)


def init_transformer(
    module: nn.Module, blocks: Iterable[nn.Module], *, locality: float = 0.0
) -> None:
    """Truncated normal .02, zero bias, output projections of block l divided by sqrt(2 l) (V-JEPA
    2).

    `locality` > 0 is the first value of every query and key bias: rotated by position, equal
    biases score highest at offset zero, so attention starts out looking at its neighbours instead
    of everywhere."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
    for depth, block in enumerate(blocks, 1):
        assert isinstance(block, Block)
        with torch.no_grad():
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2 * depth))
            width = block.attn.proj.weight.shape[0]
            block.attn.qkv.bias[: 2 * width] = locality


# ---------------------------------------------------------------- rotary positions


def grid_positions(
    time: int, height: int, width: int, *, device: torch.device | None = None
) -> Tensor:
    """[time * height * width, 3] integer positions in token order (time, then rows, then
    columns)."""
    extents = (torch.arange(extent, device=device) for extent in (time, height, width))
    return torch.cartesian_prod(*extents)


def rope_tables(
    positions: Tensor, head_dim: int, base: float, rope: Rope = "rotation"
) -> tuple[Tensor, Tensor]:
    """cos and sin for `rotate`, from integer or real positions [..., N, axes]; axis i turns its
    own pairs.

    They are [..., N, d/2], one angle a pair, or for 'vjepa2' [..., N, d], one angle a channel: the
    tables of the released V-JEPA 2 models (Assran et al., 2025; their public code). There every
    axis has the same whole number of pairs, and channels left over stay as they are. An axis'
    frequencies are laid out twice, one after the other, while its pairs are adjacent channels: the
    two of a pair get different angles, so this is no rotation. The weights were trained with it
    and need it."""
    axes = positions.shape[-1]
    same = [head_dim // axes // 2] * axes
    angles = []
    for axis, count in enumerate(same if rope == "vjepa2" else axis_pairs(head_dim, axes)):
        channel = torch.arange(count, device=positions.device, dtype=torch.float32)
        angle = positions[..., axis, None].float() * base ** (-channel / max(count, 1))
        angles += [angle, angle] if rope == "vjepa2" else [angle]
    angle = torch.cat(angles, -1)
    if rope == "vjepa2":
        angle = F.pad(angle, (0, head_dim - angle.shape[-1]))
    return angle.cos(), angle.sin()


def axis_pairs(head_dim: int, axes: int = 3) -> list[int]:
    """How many of the d/2 channel pairs each axis gets; the first axes take what does not divide
    evenly."""
    pairs = head_dim // 2
    return [pairs // axes + (i < pairs % axes) for i in range(axes)]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn channel pairs (2i, 2i + 1) of x [B, h, N, d] by angles [B or 1, 1, N, d/2]; norms are
    kept. Tables as wide as x are those of 'vjepa2'."""
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
