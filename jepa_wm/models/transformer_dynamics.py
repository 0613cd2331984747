"""Dynamics as a frame-causal transformer over latents and actions, and its kind that foresees one
future.

B batch, S plan samples, H horizon, T frames, C context frames, N tokens a frame, D latent width of
which L numbers are static and M dynamic, A action numbers between two frames, P model width, W
frames that a prediction sees."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import (
    Block,
    KeyValueCache,
    attention_bias,
    grid_positions,
    init_transformer,
    rope_tables,
)
from jepa_wm.models.dynamics import Cache, Dynamics, StepNoise
from jepa_wm.models.fast_rollout import in_place_rollout
from jepa_wm.models.latent import LatentShape
from jepa_wm.models.world_model_settings import TransformerSettings


@dataclass
class TransformerCache(Cache):
    """Keys and values of the last W - 1 frames, a layer each, and how many frames there were."""

    layers: list[KeyValueCache]
    frames: int = 0

    def repeat(self, times: int) -> TransformerCache:
        return TransformerCache([layer.repeat(times) for layer in self.layers], self.frames)

    def detach(self) -> None:
        for layer in self.layers:
            if layer.keys is not None and layer.values is not None:
                layer.keys, layer.values = layer.keys.detach(), layer.values.detach()


class TransformerDynamics(Dynamics):
    """Predicts the next frame from the last W frames and the actions taken in them; the last L of
    a token's D numbers stay as they are. The kinds differ in their heads.

    A token sees all tokens of its own frame and of the W - 1 frames before, at relative positions
    only, in training exactly as in planning: a frame's keys and values stay valid while the window
    slides, so a cache is exact."""

    rope_base = 100.0

    def __init__(
        self, shape: LatentShape, action_size: int, settings: TransformerSettings
    ) -> None:
        super().__init__(action_size)
        self.settings = settings
        width, self.num_heads = settings.size_for(shape.width)
        self.width, self.head_dim = width, width // self.num_heads
        self.tokens, self.latent_width = shape.tokens, shape.width
        self.static_dim = shape.static_dim
        self.context_frames = settings.context_frames
        # Attention knows relative positions only: where in its frame a token lies, a learned slot
        # says.
        self.embed = nn.Linear(shape.width, width)
        first, second = nn.Linear(action_size, width), nn.Linear(width, width)
        self.act = nn.Sequential(first, nn.GELU(), second)
        self.slot = nn.Parameter(torch.zeros(shape.tokens, width))
        self.blocks = nn.ModuleList(Block(width, self.num_heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = self.make_head(width, shape.dynamic_dim)
        # Actions come in with as much variance as they have: with a transformer's small initial
        # weights they would be too faint beside the latents to be learned from.
        init_transformer(self, self.blocks)
        nn.init.trunc_normal_(self.slot, std=0.02)
        nn.init.normal_(first.weight, std=action_size**-0.5)
        nn.init.normal_(second.weight, std=width**-0.5)

    # ------------------------------------------------------------------ the head's own

    def make_head(self, width: int, dynamic_dim: int) -> nn.Module:
        """What reads a frame's dynamic numbers off the transformer's output."""
        raise NotImplementedError

    def predict(self, latents: Tensor, hidden: Tensor, noise: StepNoise | None = None) -> Tensor:
        """[..., N, D] the latents one frame after latents [..., N, D] with the transformer's
        output [..., N, P]."""
        raise NotImplementedError

    def head_loss(self, latents: Tensor, hidden: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        """(loss of `predict` for the true next latents [..., N, D], the latents that a rollout in
        training goes on with)."""
        raise NotImplementedError

    def changed(self, latents: Tensor, change: Tensor) -> Tensor:
        """[..., N, D] the latents with the change [..., N, M] of their dynamic numbers."""
        if self.static_dim:
            change = nn.functional.pad(change, (0, self.static_dim))
        return latents + change

    # ------------------------------------------------------------------ steps and losses

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """[B, T, N, D] the latents one frame after each of latents [B, T, N, D], under actions
        [B, T, A]."""
        return self.predict(latents, self.hidden(latents, actions))

    def begin(self, context: Tensor, past: Tensor) -> TransformerCache:
        cache = self.new_cache()
        if context.shape[1] > 1:
            self.hidden(context[:, :-1], past, cache)
        return cache

    def step(
        self, latents: Tensor, actions: Tensor, cache: TransformerCache,
        noise: StepNoise | None = None,
    ) -> Tensor:  # fmt: skip
        latents = latents[:, None]
        return self.predict(latents, self.hidden(latents, actions[:, None], cache), noise)[:, 0]

    def loss(self, latents: Tensor, actions: Tensor, *, rollout: float) -> dict[str, Tensor]:
        """`forced`: each next latent from the true ones before it; `rollout`: windows imagined
        from their first `rollout_context` frames. Both are squared errors, or negative log
        likelihoods a number for a mixture."""
        losses = {"forced": self.forced_loss(latents, actions)}
        losses["loss"] = losses["forced"]
        if rollout and actions.shape[1] > self.settings.rollout_context:
            losses["rollout"] = self.rollout_loss(latents, actions)
            losses["loss"] = losses["forced"] + rollout * losses["rollout"]
        return losses

    def forced_loss(self, latents: Tensor, actions: Tensor) -> Tensor:
        """The loss of each next latent from the true ones [B, T, N, D] before it."""
        before = latents[:, :-1]
        return self.head_loss(before, self.hidden(before, actions), latents[:, 1:])[0]

    def rollout_loss(self, latents: Tensor, actions: Tensor) -> Tensor:
        """The same where only the first `rollout_context` frames are true and every later one is
        imagined from those before."""
        context = self.settings.rollout_context
        cache = self.begin(latents[:, :context], actions[:, : context - 1])
        latent, losses = latents[:, context - 1 : context], []
        for t in range(context - 1, actions.shape[1]):
            hidden = self.hidden(latent, actions[:, t : t + 1], cache)
            loss, latent = self.head_loss(latent, hidden, latents[:, t + 1 : t + 2])
            losses.append(loss)
        return torch.stack(losses).mean()

    fast_rollout = in_place_rollout

    @property
    def layers(self) -> Iterable[nn.Module]:
        return self.blocks

    def bytes_per_plan(
        self, horizon: int, *, gradients: bool = False, precision: str = "fp32"
    ) -> tuple[int, int]:
        """As every dynamics', latents and three more of their size for a cost included.

        It counts the memory of the context and all working memory for every plan, though plans of
        one episode share the former and a CPU has the latter for a few plans only. What is fixed
        are weights in bf16, twice, while they change hands."""
        n, width = self.tokens, self.width
        window, depth = self.context_frames, len(self.blocks)
        latents = 4 * horizon * n * self.latent_width  # futures, then differences and products
        scores = self.num_heads * n * window * n  # attention of one layer
        fixed = 0 if precision == "fp32" else 2 * 2 * sum(p.numel() for p in self.parameters())
        if gradients:
            kept = (24 + 4 * window) * width * n + 3 * scores  # of one layer of one step
            return 4 * (2 * latents + horizon * depth * kept), fixed
        memory = 2 * depth * (2 * window - 1) * width * n  # the ring, and what it is filled from
        # Of one layer, for a frame and for the context.
        working = (16 + 14 * (window - 1)) * width * n + 3 * scores + self.head_numbers()
        return 4 * (latents + memory + working), fixed

    def head_numbers(self) -> int:
        """Numbers of a frame that the head needs room for."""
        return 0

    # ------------------------------------------------------------------ the transformer

    def hidden(
        self, latents: Tensor, actions: Tensor, cache: TransformerCache | None = None
    ) -> Tensor:
        """[B, T, N, P] the transformer's output for latents [B, T, N, D] and actions [B, T, A];
        with a cache the frames continue those it remembers, and are remembered too."""
        t, start, remembered = latents.shape[1], 0, 0
        if cache is not None:
            start, keys = cache.frames, cache.layers[0].keys
            remembered = 0 if keys is None else keys.shape[2] // self.tokens
        # The action is added to every token rather than put beside them as one more: a frame stays
        # of N tokens, and attention costs no more.
        x = self.embed(latents) + self.slot + self.act(actions)[:, :, None]
        x = x.flatten(1, 2)  # [B, T*N, P]
        # Time goes on from all frames the cache has had, those that slid out included: the keys it
        # holds were turned by their own times and stay valid.
        positions = self.positions(start, t, latents.device)
        rope = rope_tables(positions, self.head_dim, self.rope_base)
        bias = self._band(t, remembered, x.device)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, bias, None if cache is None else cache.layers[i])
        if cache is not None:
            cache.frames += t
        return self.norm(x).unflatten(1, (t, self.tokens))

    def new_cache(self) -> TransformerCache:
        """An empty memory."""
        limit = (self.context_frames - 1) * self.tokens
        return TransformerCache([KeyValueCache(limit) for _ in self.blocks])

    def positions(self, start: int, frames: int, device: torch.device) -> Tensor:
        """[T*N, 3] time, row, column. A latent does not say how its tokens lie in the picture: a
        square number of them is taken for a grid, any other for a row."""
        side = math.isqrt(self.tokens)
        rows, columns = (side, side) if side**2 == self.tokens else (1, self.tokens)
        positions = grid_positions(frames, rows, columns, device=device)
        positions[:, 0] += start
        return positions

    def _band(self, frames: int, remembered: int, device: torch.device) -> Tensor | None:
        """[T*N, (remembered + T)*N] additive mask: a frame sees itself and the W - 1 before; None
        if all is seen."""
        if frames == 1 and remembered < self.context_frames:
            return None
        query = torch.arange(remembered, remembered + frames, device=device)[:, None]
        key = torch.arange(remembered + frames, device=device)[None]
        hidden = (key > query) | (key <= query - self.context_frames)
        hidden = hidden.repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)
        return attention_bias(hidden)


class DeterministicDynamics(TransformerDynamics):
    """One future: the change of every dynamic number, trained by squared error."""

    head: nn.Linear

    def make_head(self, width: int, dynamic_dim: int) -> nn.Linear:
        return nn.Linear(width, dynamic_dim)

    def predict(self, latents: Tensor, hidden: Tensor, noise: StepNoise | None = None) -> Tensor:
        return self.changed(latents, self.head(hidden))

    def head_loss(self, latents: Tensor, hidden: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.predict(latents, hidden)
        return (latents - truth).square().mean(), latents
