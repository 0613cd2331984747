"""What the benches share: this machine's rates, and references shaped like the peers' code on the
same weights, for planning and for a pretraining step; and what such a step is measured on.

B clips, S plans, T frames, C context frames, H horizon, N tokens, K context tokens, M target
tokens, D width, P model width, A action numbers, h heads, d head width, px side of a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.distributed import dist
from jepa_wm.core.precision import KINDS, matmul_rate
from jepa_wm.data.images import to_input
from jepa_wm.models.blocks import Block, Rope, axis_pairs, grid_positions, rope_tables, rotate
from jepa_wm.models.encoder_settings import BlockMask, EncoderSettings, JepaSettings
from jepa_wm.models.jepa import JEPA, Batch
from jepa_wm.models.masks import TokenMask, draw_masks
from jepa_wm.models.transformer_dynamics import DeterministicDynamics
from jepa_wm.models.vit import Encoder

# V-JEPA's two masks
LONG, SHORT = BlockMask(num_blocks=2, spatial_scale=(0.7, 0.7)), BlockMask()


def rates_and_precision(*, inner: int, columns: int, quick: bool) -> tuple[dict[str, float], str]:
    """GFLOP/s of this machine's matrix products, as large as the widest of a layer, by precision;
    and the precision in which they are the fastest."""
    widest = {"rows": 64 if quick else 2048, "inner": inner, "columns": columns}
    if dist().device.type == "cuda" and not quick:
        widest = {"rows": 8192, "inner": 8192, "columns": 8192}
    rates = {name: matmul_rate(kind, **widest) for name, kind in KINDS.items()}
    return rates, max(rates, key=lambda name: rates[name])


def block_flops(count: int, visible: int, width: int) -> float:
    """Multiplications and additions of a block for `count` tokens that attend to `visible`
    ones."""
    return count * (24 * width**2 + 4 * visible * width)


@dataclass(frozen=True)
class Case:
    """What a pretraining step is measured on."""

    width: int = 192
    depth: int = 12
    num_heads: int = 3
    predictor_width: int = 96
    predictor_depth: int = 6
    predictor_heads: int = 3
    frames: int = 16
    tubelet_size: int = 2
    side: int = 64  # px
    patch_size: int = 8
    batch: int = 8
    repeats: int = 5
    rope: Rope = "rotation"

    @property
    def encoder(self) -> EncoderSettings:
        return EncoderSettings(
            patch_size=self.patch_size, tubelet_size=self.tubelet_size, width=self.width,
            depth=self.depth, num_heads=self.num_heads, attention="clip", locality=0.0,
            rope=self.rope,
        )  # fmt: skip

    @property
    def jepa(self) -> JepaSettings:
        """Targets as V-JEPA has them, and no regulariser."""
        return JepaSettings(
            width=self.predictor_width, depth=self.predictor_depth, num_heads=self.predictor_heads,
            masks=(SHORT, LONG), neighbor_width=0, patch_init="normal",
            target_kinds=("tokens",), num_distant_frames=0,
            center_targets=False, whiten_targets=False, error="absolute",
        )  # fmt: skip


QUICK = Case(
    width=32, depth=1, num_heads=1, predictor_width=32, predictor_depth=1, predictor_heads=1,
    frames=4, side=32, batch=4, repeats=1,
)  # fmt: skip
LARGE = Case(  # V-JEPA 2's ViT-L/16
    width=1024, depth=24, num_heads=16,
    predictor_width=384, predictor_depth=12, predictor_heads=12,
    side=256, patch_size=16, batch=32, repeats=8, rope="vjepa2",
)  # fmt: skip


@dataclass(frozen=True)
class Pixels:
    """A batch before its frames are floats: uint8 [B, T, px, px, C] and masks."""

    frames: Tensor
    masks: list[TokenMask]

    def to(self, device: torch.device) -> Pixels:
        return Pixels(self.frames.to(device), [mask.to(device) for mask in self.masks])

    def batch(self, side: int, rows: slice = slice(None)) -> Batch:
        """What a step learns from, of some of the samples."""
        clip = to_input(self.frames[rows], side)
        return Batch(clip, clip[:, :0], [mask.of(rows) for mask in self.masks])


def fresh(case: Case) -> tuple[JEPA, Pixels]:
    """A model and a batch for it, on the CPU."""
    torch.manual_seed(0)
    model = JEPA(case.side, case.encoder, case.jepa)
    shape = (case.batch, case.frames, case.side, case.side, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8)
    tokens = (case.batch, case.frames // case.tubelet_size, case.side // case.patch_size)
    masks = draw_masks(case.jepa, tokens, torch.Generator().manual_seed(0))
    return model, Pixels(frames, masks)


def flops(case: Case, masks: list[TokenMask]) -> float:
    """Multiplications and additions of the matrix products of a step: a backward pass costs twice
    a forward one."""
    # The target sees all and learns nothing.
    n = case.frames // case.tubelet_size * (case.side // case.patch_size) ** 2
    pixels = 2 * case.tubelet_size * 3 * case.patch_size**2 * case.width
    total = n * pixels + case.depth * block_flops(n, n, case.width)
    # Context encoder and predictor, forward and backward, with the maps in and out of the latter.
    for mask in masks:
        k, m = mask.context_ids.shape[1], mask.target_ids.shape[1]
        total += 3 * (k * pixels + case.depth * block_flops(k, k, case.width))
        total += 3 * case.predictor_depth * block_flops(k + m, k + m, case.predictor_width)
        total += 3 * 2 * case.width * case.predictor_width * (k + m)
    return case.batch * total


# The reference in planning computes the whole window of frames again at every imagined step, with
# the fused attention kernel, one episode's plans at a time.


def peer_rollout(
    model: DeterministicDynamics, context: Tensor, past: Tensor, plans: Tensor
) -> Tensor:
    """[S, H, N, D] of one episode's plans [S, H, A] after context [C, N, D], the window anew
    each step."""
    latents = context.expand(len(plans), -1, -1, -1)
    actions = torch.cat([past.expand(len(plans), -1, -1), plans], 1)
    for _ in range(plans.shape[1]):
        known = latents.shape[1]
        window = slice(max(0, known - model.context_frames), known)
        latents = torch.cat(
            [latents, peer_forward(model, latents[:, window], actions[:, window])[:, -1:]], 1
        )
    return latents[:, len(context) :]


def peer_forward(model: DeterministicDynamics, latents: Tensor, actions: Tensor) -> Tensor:
    """[S, T, N, D] the model as a plain frame-causal transformer over all its frames, without a
    cache."""
    frames, tokens = latents.shape[1:3]
    x = model.embed(latents) + model.slot + model.act(actions)[:, :, None]
    frame = torch.arange(frames, device=latents.device).repeat_interleave(tokens)
    cos, sin = rope_tables(model.positions(0, frames, x.device), model.head_dim, model.rope_base)
    x = _peer_blocks(
        model.blocks, x.flatten(1, 2), partial(rotate, cos=cos, sin=sin),
        visible=frame[:, None] >= frame,
    )  # [S, T*N, P]  # fmt: skip
    return latents + model.head(model.norm(x)).unflatten(1, (frames, tokens))


# The reference in training: fused attention, all patches embedded before what is masked is
# dropped, the predictor's tokens sorted sample by sample, angles computed anew in every block and
# queries and keys turned axis by axis (as in V-JEPA 2's public code).


def peer_losses(model: JEPA, batch: Batch) -> Tensor:
    """The same loss as the model's, computed the way the reference does."""
    with torch.no_grad():
        tokens = peer_encode(model.target, batch.clip, None).float()
        targets = F.layer_norm(tokens, (model.encoder.width,))
    errors = []
    for kind, mask in enumerate(batch.masks):
        context = peer_encode(model.encoder, batch.clip, mask.context_ids)
        predicted = peer_predict(model, context, mask, kind, batch.clip).float()
        ids = mask.target_ids[..., None].expand(-1, -1, targets.shape[-1])
        errors.append((predicted - targets.gather(1, ids)).abs().mean())
    return torch.stack(errors).mean()


def peer_encode(encoder: Encoder, clip: Tensor, keep: Tensor | None) -> Tensor:
    """[B, K, D]: all patches embedded, then those kept."""
    x = encoder.embed(encoder.patches(clip))
    positions = encoder.positions(clip)[None].expand(len(clip), -1, -1)
    if keep is not None:
        x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
        positions = positions.gather(1, keep[..., None].expand(-1, -1, 3))
    turn = partial(_peer_turned, positions=positions, base=encoder.settings.rope_base)
    return encoder.norm(_peer_blocks(encoder.blocks, x, turn))


def peer_predict(model: JEPA, context: Tensor, mask: TokenMask, kind: int, clip: Tensor) -> Tensor:
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
    tokens, positions = torch.stack(sorted_x), torch.stack(sorted_at)
    turn = partial(_peer_turned, positions=positions, base=predictor.rope_base)
    out = _peer_blocks(predictor.blocks, tokens, turn)
    # Back into the order of the targets.
    of_targets = torch.stack([out[b][back] for b, back in enumerate(backs)])
    predicted: Tensor = predictor.project(predictor.norm(of_targets))
    return predicted


def _peer_blocks(
    blocks: Iterable[nn.Module],
    x: Tensor,
    turn: Callable[[Tensor], Tensor],
    visible: Tensor | None = None,
) -> Tensor:
    """x [B, N, D] through transformer blocks, whose queries and keys [B, h, N, d] `turn` turns."""
    for block in blocks:
        assert isinstance(block, Block)
        qkv = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, block.attn.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(turn(q), turn(k), v, attn_mask=visible)
        x = x + block.attn.proj(out.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return x


def _peer_turned(x: Tensor, positions: Tensor, base: float) -> Tensor:
    """x [B, h, N, d] turned by positions [B, N, 3], the channels of one axis after those of
    another."""
    turned, first = [], 0
    for axis, pairs in enumerate(axis_pairs(x.shape[-1])):
        part = x[..., first : first + 2 * pairs]
        exponent = torch.arange(pairs, device=x.device, dtype=torch.float32) / max(pairs, 1)
        angle = positions[:, None, :, axis, None].float() * base**-exponent
        angle = angle.repeat_interleave(2, -1)
        partner = torch.stack([-part[..., 1::2], part[..., ::2]], -1).flatten(-2)
        turned.append(part * angle.cos() + partner * angle.sin())
        first += 2 * pairs
    return torch.cat(turned, -1).to(x.dtype)
