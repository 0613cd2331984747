"""The dynamics for search: one frame after another for many plans, without gradients and without
fresh memory.

R plans, L layers, N tokens a frame, D latent width, A action numbers, P model width, h heads, d
head width, W window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa_wm.core.precision import autocast
from jepa_wm.models.blocks import Block, KeyValueCache, attend, rope_tables

if TYPE_CHECKING:
    from jepa_wm.models.dynamics import Noise, StepNoise
    from jepa_wm.models.transformer_dynamics import TransformerDynamics

# Tokens computed together on a CPU. Fewer read every weight too often from slow memory, more push
# the tokens out of the cache; between 512 and 4096 the time differs by a few per cent.
TOKENS_AT_ONCE = 1024
# On a GPU this many keep all of it busy; more would only take more memory.
TOKENS_ON_GPU = 2**16

Piece = TypeVar("Piece")


@torch.no_grad()
def in_place_rollout(
    model: TransformerDynamics, context: Tensor, past: Tensor, actions: Tensor, *,
    precision: str = "fp32", at_once: int = 0, noise: Noise | None = None,
) -> Tensor:  # fmt: skip
    """`Dynamics.fast_rollout` of transformers, [B, S, H, N, D] in fp32: no gradients and, step for
    step, no fresh memory.

    Up to `at_once` plans are computed together; 0: as many as suit the device. On a CPU such
    pieces run side by side, a thread each. The result depends on neither but for rounding."""
    model.check_plans(actions)
    b, s, horizon, _ = actions.shape
    seen = context.shape[1] - 1
    # The context is computed once, in the precision of the search.
    with autocast(context.device, precision):
        cache = model.begin(context, past).layers
    weights, steps = Weights.of(model, precision), actions.flatten(0, 1)  # [B*S, H, A]
    samples = torch.arange(b * s, device=context.device) // s
    frames = torch.empty(b * s, horizon, *context.shape[2:], device=context.device)

    def imagine(rows: slice) -> None:
        rollout = FastRollout(weights, rows.stop - rows.start, frames=seen + horizon)
        rollout.remember(cache, samples[rows], seen=seen)
        latent = context[samples[rows], -1]
        for h in range(horizon):
            step_noise = None if noise is None else noise.at(h)
            latent = rollout.step(latent, steps[rows, h], time=seen + h, noise=step_noise)
            frames[rows, h] = latent

    pieces = _pieces(b * s, model.tokens, context.device, at_once)
    if context.device.type == "cpu":
        side_by_side(imagine, pieces)
    else:  # one after another: each fills the device, and its memory is the next one's
        for rows in pieces:
            imagine(rows)
    return frames.unflatten(0, (b, s))


def _pieces(plans: int, tokens: int, device: torch.device, at_once: int) -> list[slice]:
    """Slices of the plans, of nearly equal size."""
    if not at_once:
        at_once = max(1, (TOKENS_AT_ONCE if device.type == "cpu" else TOKENS_ON_GPU) // tokens)
    count = -(-plans // at_once)
    # Shared among threads, unless the work is too little for that.
    if device.type == "cpu" and plans * tokens >= TOKENS_AT_ONCE // 2:
        threads = torch.get_num_threads()
        count = min(plans, -(-count // threads) * threads)
    return [slice(plans * i // count, plans * (i + 1) // count) for i in range(count)]


def side_by_side(work: Callable[[Piece], None], pieces: Sequence[Piece]) -> None:
    """Do `work` on all pieces, as many at a time as PyTorch may use threads, each piece on a
    single one.

    Threads that share every operation wait for each other after each, which is dear where the
    machine has other work too; threads with pieces of their own wait once. While it runs,
    PyTorch's thread count is 1 for the whole process. An error in a piece is raised here, after
    the running pieces have ended."""
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            work(piece)
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, pieces))
    finally:
        torch.set_num_threads(before)


class FastRollout:
    """Equal to `TransformerDynamics.step`, frame by frame, for up to R plans.

    A large tensor made anew for each operation can cost a CPU more than the operation itself,
    since the system hands out every page cleared; so all large ones are made once here and written
    in place. Keys and values lie in a ring of W frames, or of all `frames` there will be where
    these are fewer: the newest overwrites the oldest, and nothing moves when the window slides.
    """

    def __init__(self, weights: Weights, plans: int, *, frames: int) -> None:
        model, dtype = weights.model, weights.dtype
        width, tokens = model.width, model.tokens
        heads = width // model.head_dim
        self.model, self.dtype, self.weights = model, dtype, weights
        self.frames = min(frames, model.context_frames)

        def room(*shape: int, kind: torch.dtype = dtype) -> Tensor:
            return torch.empty(*shape, dtype=kind, device=model.slot.device)

        ring = (len(weights.layers), plans, heads, self.frames * tokens, model.head_dim)
        self.keys, self.values = room(*ring), room(*ring)
        self.query = room(plans, heads, tokens, model.head_dim)
        self.sum = room(plans * tokens, width, kind=torch.float32)
        self.qkv = room(plans * tokens, 3 * width)
        self.hidden = room(plans * tokens, len(weights.layers[0].fc1[1]))
        self.change = room(plans * tokens, width)

    def remember(self, cache: list[KeyValueCache], which: Tensor, *, seen: int) -> None:
        """Fill the ring for plans of samples `which` [R'] with the cached frames before number
        `seen`."""
        tokens = self.model.tokens
        for layer, memory in enumerate(cache):
            if memory.keys is None or memory.values is None:
                continue
            held = memory.keys.shape[2] // tokens
            for i, frame in enumerate(range(seen - held, seen)):
                source, target = _frame(i, tokens), _frame(frame % self.frames, tokens)
                keys = memory.keys[:, :, source].to(self.dtype)
                values = memory.values[:, :, source].to(self.dtype)
                self.keys[layer, : len(which), :, target] = keys[which]
                self.values[layer, : len(which), :, target] = values[which]

    @torch.no_grad()
    def step(
        self, latents: Tensor, actions: Tensor, *, time: int, noise: StepNoise | None = None
    ) -> Tensor:
        """[R', N, D] the frame after frame number `time`, latents [R', N, D], under actions [R',
        A]; R' <= R.

        Of a mixture the mean of the likeliest component, or with noise a sample.
        """
        model, (plans, tokens, _) = self.model, latents.shape
        # Where in the ring the frame goes, and what it sees there.
        place = _frame(time % self.frames, tokens)
        held = _frame(0, tokens, min(time + 1, self.frames))
        positions = model.positions(time, 1, latents.device)
        rope = rope_tables(positions, model.head_dim, model.rope_base)  # [N, d/2]
        # The layers, in place; their running sum stays in fp32.
        x = self.sum[: plans * tokens]
        embedded = F.linear(latents.to(self.dtype), *self.weights.embed)
        torch.add(
            embedded + model.slot, model.act(actions)[:, None], out=x.view(plans, tokens, -1)
        )
        for number, layer in enumerate(self.weights.layers):
            keys, values = self.keys[number, :plans], self.values[number, :plans]
            self._attend(x, layer, rope, keys, values, place, held)
            hidden = _multiply(layer.fc1, _norm(x, layer.norm2, self.dtype), out=self.hidden)
            x += _multiply(layer.fc2, torch.ops.aten.gelu_(hidden), out=self.change)
        hidden = _norm(x, model.norm, self.dtype)
        if self.weights.head is None:
            return model.predict(latents, hidden.view(plans, tokens, -1), noise)
        change = F.linear(hidden, *self.weights.head).view(plans, tokens, -1)
        return model.changed(latents, change)

    def _attend(
        self, x: Tensor, layer: _Layer, rope: tuple[Tensor, Tensor], keys: Tensor, values: Tensor,
        place: slice, held: slice,
    ) -> None:  # fmt: skip
        """Add a layer's attention to x [R' * N, P]; the frame's own keys and values go to `place`
        of the ring."""
        plans, heads = keys.shape[:2]
        qkv = _multiply(layer.qkv, _norm(x, layer.norm1, self.dtype), out=self.qkv)
        # each [R', h, N, d]
        q, k, v = qkv.view(plans, -1, 3, heads, keys.shape[-1]).permute(2, 0, 3, 1, 4)
        query = self.query[:plans]
        _rotate_into(query, q, *rope)
        _rotate_into(keys[:, :, place], k, *rope)
        values[:, :, place] = v
        mixed = attend(query, keys[:, :, held], values[:, :, held])  # [R', h, N, d]
        mixed = mixed.transpose(1, 2).reshape(len(x), -1)
        x += _multiply(layer.proj, mixed, out=self.change)


_Matrix = tuple[Tensor, Tensor]  # weight [outputs, inputs] and bias [outputs]


class _Layer(NamedTuple):
    """The parts of a block."""

    norm1: nn.LayerNorm
    qkv: _Matrix
    proj: _Matrix
    norm2: nn.LayerNorm
    fc1: _Matrix
    fc2: _Matrix


class Weights(NamedTuple):
    """The matrices of a model in the precision they are multiplied in; the running sum of layers
    stays in fp32."""

    model: TransformerDynamics
    dtype: torch.dtype
    embed: _Matrix
    layers: list[_Layer]
    head: _Matrix | None  # None: a mixture, computed by the model itself in fp32

    @classmethod
    def of(cls, model: TransformerDynamics, precision: str) -> Weights:
        """`precision` "fp32" copies nothing, "bf16" every matrix once."""
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32

        def matrix(linear: nn.Module) -> _Matrix:
            assert isinstance(linear, nn.Linear)
            return linear.weight.detach().to(dtype), linear.bias.detach().to(dtype)

        layers = []
        for block in model.blocks:
            assert isinstance(block, Block) and isinstance(block.mlp.act, nn.GELU)
            attention = block.norm1, matrix(block.attn.qkv), matrix(block.attn.proj)
            layers.append(
                _Layer(*attention, block.norm2, matrix(block.mlp.fc1), matrix(block.mlp.fc2))
            )
        head = matrix(model.head) if isinstance(model.head, nn.Linear) else None
        return cls(model, dtype, matrix(model.embed), layers, head)


def _frame(number: int, tokens: int, count: int = 1) -> slice:
    """Where `count` frames from `number` on lie among the tokens."""
    return slice(number * tokens, (number + count) * tokens)


def _multiply(matrix: _Matrix, x: Tensor, *, out: Tensor) -> Tensor:
    """[rows, outputs] for x [rows, inputs], in the first rows of `out`."""
    weight, bias = matrix
    return torch.addmm(bias, x, weight.t(), out=out[: len(x)])


def _norm(x: Tensor, norm: nn.LayerNorm, dtype: torch.dtype) -> Tensor:
    return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps).to(dtype)


def _rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """`rope.rotate` of x [R', h, N, d] by angles [N, d/2], written to `out`."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    torch.mul(x, cos.repeat_interleave(2, -1), out=out)
    out[..., 0::2].addcmul_(x[..., 1::2], sin, value=-1)
    out[..., 1::2].addcmul_(x[..., 0::2], sin)
