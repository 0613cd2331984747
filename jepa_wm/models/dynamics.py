"""Action-conditioned dynamics: a frame-causal transformer over latents and actions, z(t+1) ~
p(z(t+1) | z(t), a(t)).

B batch, T frames, N tokens a frame, D latent width, A action numbers between two frames, P model
width, W window."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, KeyValueCache, init_transformer
from jepa_wm.models.mixture import MixtureHead, MixturePrediction, StepNoise
from jepa_wm.models.rope import rope_tables


class Dynamics(nn.Module):
    """Predicts the change of every token from the last W frames and the actions taken in them; the
    last `static_dim` of its D numbers stay as they are.

    A token sees all tokens of its own frame and of the W - 1 frames before, at relative positions
    only, in training exactly as in planning: a frame's keys and values stay valid while the window
    slides, so a cache is exact."""

    def __init__(
        self, *, tokens: int, latent_width: int, action_size: int, width: int, depth: int, num_heads: int,
        context_frames: int, rope_base: float = 100.0, mixture_components: int = 0, static_dim: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens, self.latent_width, self.action_size = tokens, latent_width, action_size
        self.context_frames, self.head_dim, self.rope_base = (
            context_frames,
            width // num_heads,
            rope_base,
        )
        self.grid = round(tokens**0.5) if round(tokens**0.5) ** 2 == tokens else 0
        self.embed = nn.Linear(latent_width, width)
        first, second = nn.Linear(action_size, width), nn.Linear(width, width)
        self.act = nn.Sequential(first, nn.GELU(), second)
        self.slot = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.static_dim = static_dim
        self.head: nn.Module = nn.Linear(width, latent_width - static_dim)
        if mixture_components:
            self.head = MixtureHead(width, latent_width - static_dim, mixture_components)
        init_transformer(self, self.blocks)
        nn.init.trunc_normal_(self.slot, std=0.02)
        nn.init.normal_(first.weight, std=action_size**-0.5)
        nn.init.normal_(second.weight, std=width**-0.5)

    def forward(
        self, latents: Tensor, actions: Tensor, *, cache: list[KeyValueCache] | None = None, start: int = 0,
        noise: StepNoise | None = None,
    ) -> Tensor:  # fmt: skip
        """The latents one frame later, [B, T, N, D], for latents [B, T, N, D] and actions [B, T,
        A] taken there.

        With a cache (one per block) the frames continue those seen before; `start` is the number
        of the first one. Of a mixture it is the mean of the likeliest component, or with noise a sample."""
        return self.arrive(latents, self.hidden(latents, actions, cache=cache, start=start), noise)

    def prediction(self, latents: Tensor, actions: Tensor) -> MixturePrediction:
        """The distribution over the dynamic numbers of the latents one frame later, as `forward`;
        for dynamics with a mixture head."""
        return self.prediction_of(latents, self.hidden(latents, actions))

    def prediction_of(self, latents: Tensor, hidden: Tensor) -> MixturePrediction:
        """The distribution over the dynamic numbers [..., N, D - L] one frame after latents
        [..., N, D] with the transformer's output [..., N, P]; the static ones are certain."""
        assert isinstance(self.head, MixtureHead)
        return self.head(self.dynamic_of(latents), hidden)

    def dynamic_of(self, latents: Tensor) -> Tensor:
        """[..., N, D - L] the numbers of latents [..., N, D] that actions move."""
        return latents[..., : self.latent_width - self.static_dim]

    def moved(self, latents: Tensor, dynamic: Tensor) -> Tensor:
        """[..., N, D] the latents with these dynamic numbers [..., N, D - L] in place of
        their own."""
        return (
            torch.cat([dynamic, latents[..., self.latent_width - self.static_dim :]], -1)
            if self.static_dim
            else dynamic
        )

    def arrive(self, latents: Tensor, hidden: Tensor, noise: StepNoise | None) -> Tensor:
        """[..., N, D] the latents one frame after latents [..., N, D] with the transformer's
        output [..., N, P]."""
        if not isinstance(self.head, MixtureHead):
            return latents + self.whole(self.head(hidden))
        prediction = self.prediction_of(latents, hidden)
        return self.moved(
            latents, prediction.likeliest() if noise is None else prediction.sample(noise)
        )

    def whole(self, change: Tensor) -> Tensor:
        """[..., N, D] the change of all numbers, for that of those that do not last."""
        return nn.functional.pad(change, (0, self.static_dim)) if self.static_dim else change

    def hidden(
        self,
        latents: Tensor,
        actions: Tensor,
        *,
        cache: list[KeyValueCache] | None = None,
        start: int = 0,
    ) -> Tensor:
        """[B, T, N, P] the transformer's output for latents [B, T, N, D] and actions [B, T, A]."""
        b, t = latents.shape[:2]
        x = self.embed(latents) + self.slot + self.act(actions)[:, :, None]
        x = x.flatten(1, 2)  # [B, T*N, P]
        positions = self.positions(start, t, latents.device)
        cos, sin = rope_tables(positions, self.head_dim, self.rope_base)
        rope = (cos[None, None], sin[None, None])
        remembered = 0
        if cache is not None and cache[0].keys is not None:
            remembered = cache[0].keys.shape[2] // self.tokens
        bias = self._band(t, remembered, x.device)
        for i, block in enumerate(self.blocks):
            x = block(x, rope, bias, None if cache is None else cache[i])
        return self.norm(x).unflatten(1, (t, self.tokens))

    def new_cache(self) -> list[KeyValueCache]:
        """An empty memory of the last W - 1 frames, one per block."""
        return [KeyValueCache((self.context_frames - 1) * self.tokens) for _ in self.blocks]

    def cache_of(self, latents: Tensor, actions: Tensor) -> list[KeyValueCache]:
        """The memory left by frames latents [B, T, N, D] and the actions [B, T, A] taken there; T
        may be 0."""
        cache = self.new_cache()
        if latents.shape[1]:
            self(latents, actions, cache=cache)
        return cache

    def positions(self, start: int, frames: int, device: torch.device) -> Tensor:
        """[T*N, 3] time, row, column; tokens that form no square grid lie in one row."""
        token = torch.arange(self.tokens, device=device)
        side = self.grid or self.tokens
        place = torch.stack([token // side, token % side], -1)
        time = torch.arange(start, start + frames, device=device)
        return torch.cat(
            [time.repeat_interleave(self.tokens)[:, None], place.repeat(frames, 1)], -1
        )

    def _band(self, frames: int, remembered: int, device: torch.device) -> Tensor | None:
        """[T*N, (remembered + T)*N] additive mask: a frame sees itself and the W - 1 before; None
        if all is seen."""
        if frames == 1 and remembered < self.context_frames:
            return None
        query = torch.arange(remembered, remembered + frames, device=device)[:, None]
        key = torch.arange(remembered + frames, device=device)[None]
        hidden = (key > query) | (key <= query - self.context_frames)
        hidden = hidden.repeat_interleave(self.tokens, 0).repeat_interleave(self.tokens, 1)
        return torch.zeros(hidden.shape, device=device).masked_fill_(hidden, -1e4)
