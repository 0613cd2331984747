"""Pre-norm transformer blocks with rotary attention, shared by encoder, predictor and dynamics.

B batch, N tokens, D width, h heads, Q queries, K keys, d head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from jepa_wm.models.rope import rotate


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for q [B, h, Q, d], k and v [B, h, K, d]; bias broadcasts
    to [B, h, Q, K]. The one place that chooses how attention is computed.

    In bf16 on a CPU three plain operations beat torch's fused kernel two to four times, forward
    and backward, at head width 64 and 80 to 256 tokens; everywhere else the fused kernel wins."""
    if q.device.type == "cpu" and q.dtype != v.dtype:
        q, k = q.to(v.dtype), k.to(v.dtype)
    if q.device.type == "cpu" and q.dtype.itemsize == 2:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        return scores.softmax(-1) @ v
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=None if bias is None else bias.to(q.dtype)
    )


class KeyValueCache:
    """Keys and values [B, h, n, d] of the tokens already seen by one attention layer, the latest
    `limit` of them.

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
        x = x + self.attn(self.norm1(x), rope, bias, cache)
        return x + self.mlp(self.norm2(x))


def init_transformer(
    module: nn.Module, blocks: Iterable[nn.Module], *, locality: float = 0.0
) -> None:
    """Truncated normal .02, zero bias, output projections of block l divided by sqrt(2 l) (V-JEPA
    2).

    `locality` > 0 sets every query and key bias to it: rotated by position, equal biases score
    highest at offset zero, so attention starts out looking at its neighbours instead of
    everywhere. It is only an initial value."""
    for m in module.modules():
        if isinstance(m, nn.Linear):
            trunc_normal_(m.weight, std=0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
        elif isinstance(m, nn.LayerNorm):
            nn.init.ones_(m.weight)
            nn.init.zeros_(m.bias)
    for depth, block in enumerate(blocks, 1):
        assert isinstance(block, Block)
        with torch.no_grad():
            block.attn.proj.weight.div_(math.sqrt(2 * depth))
            block.mlp.fc2.weight.div_(math.sqrt(2 * depth))
            width = block.attn.proj.weight.shape[0]
            block.attn.qkv.bias[: 2 * width] = locality
