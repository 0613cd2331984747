"""The reference of `jepa-wm bench train`: a pretraining step shaped like the peers' code, on our
weights.

Fused attention, all patches embedded before what is masked is dropped, the predictor's tokens
sorted sample by sample, angles computed anew in every block and queries and keys turned axis by
axis (as in V-JEPA 2's public code). B clips, N tokens a clip, K context tokens, M target tokens, D
width, h heads, d head width."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa_wm.models.blocks import Block
from jepa_wm.models.jepa import JEPA
from jepa_wm.models.masks import Masked
from jepa_wm.models.rope import axis_pairs, grid_positions
from jepa_wm.models.vit import Encoder


def peer_losses(model: JEPA, clip: Tensor, masks: list[Masked]) -> Tensor:
    """The same loss as the model's, computed the way the reference does."""
    with torch.no_grad():
        wanted_of_all = F.layer_norm(
            peer_encode(model.target, clip, None).float(), (model.encoder.width,)
        )
    parts = []
    for kind, mask in enumerate(masks):
        context = peer_encode(model.encoder, clip, mask.context_ids)
        guess = peer_predict(model, context, mask, kind, clip).float()
        truth = wanted_of_all.gather(
            1, mask.target_ids[..., None].expand(-1, -1, wanted_of_all.shape[-1])
        )
        parts.append((guess - truth).abs().mean())
    return torch.stack(parts).mean()


def peer_encode(encoder: Encoder, clip: Tensor, keep: Tensor | None) -> Tensor:
    """[B, K, D]: all patches embedded, then those kept."""
    x, positions = (
        encoder.embed(encoder._patches(clip)),
        encoder.positions(clip)[None].expand(len(clip), -1, -1),
    )
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        positions = positions.gather(1, keep[..., None].expand(-1, -1, 3))
    return encoder.norm(
        _peer_blocks(encoder.blocks, x, positions, encoder.head_dim, encoder.rope_base)
    )


def peer_predict(model: JEPA, context: Tensor, mask: Masked, kind: int, clip: Tensor) -> Tensor:
    """[B, M, D]: context and mask tokens sorted by place, one sample after another."""
    predictor, grid = model.predictor, model.encoder.grid
    steps = clip.shape[1] // model.encoder.tubelet_size
    place = grid_positions(steps, grid, grid, device=clip.device)
    x = predictor.embed(context)
    sorted_x, sorted_at, backs = [], [], []
    for b in range(len(context)):
        ids = torch.cat([mask.context_ids[b], mask.target_ids[b]])
        order = ids.argsort()
        queries = predictor.mask_tokens[kind].expand(mask.target_ids.shape[1], -1).to(x.dtype)
        sorted_x.append(torch.cat([x[b], queries])[order])
        sorted_at.append(place[ids[order]])
        backs.append(order.argsort()[mask.context_ids.shape[1] :])
    out = _peer_blocks(
        predictor.blocks,
        torch.stack(sorted_x),
        torch.stack(sorted_at),
        predictor.head_dim,
        predictor.rope_base,
    )
    guesses = torch.stack([out[b][back] for b, back in enumerate(backs)])
    guessed: Tensor = predictor.project(predictor.norm(guesses))
    return guessed


def _peer_blocks(blocks: Any, x: Tensor, positions: Tensor, head_dim: int, base: float) -> Tensor:
    for block in blocks:
        assert isinstance(block, Block)
        q, k, v = (
            block.attn.qkv(block.norm1(x))
            .unflatten(-1, (3, block.attn.num_heads, -1))
            .permute(2, 0, 3, 1, 4)
        )
        q, k = (_peer_turned(part, positions, head_dim, base).to(v.dtype) for part in (q, k))
        x = x + block.attn.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return x


def _peer_turned(x: Tensor, positions: Tensor, head_dim: int, base: float) -> Tensor:
    """x [B, h, N, d] turned by positions [B, N, 3], the channels of one axis after those of
    another."""
    turned, first = [], 0
    for axis, pairs in enumerate(axis_pairs(head_dim)):
        part = x[..., first : first + 2 * pairs]
        frequency = base ** (
            -torch.arange(pairs, device=x.device, dtype=torch.float32) / max(pairs, 1)
        )
        angle = (positions[:, None, :, axis, None].float() * frequency).repeat_interleave(2, -1)
        partner = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
        turned.append(part * angle.cos() + partner * angle.sin())
        first += 2 * pairs
    return torch.cat(turned, -1)
