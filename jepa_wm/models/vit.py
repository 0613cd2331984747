"""A vision transformer over tubelet patches of a clip; tokens that are masked out are never
computed.

B clips, T frames, C channels, h and w height and width in px, N tokens a frame (a tubelet of
frames, where they are longer than one), K kept tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import (
    Block,
    attention_bias,
    grid_positions,
    init_transformer,
    rope_tables,
)
from jepa_wm.models.encoder_settings import EncoderSettings


class Encoder(nn.Module):
    """Clip or frames to tokens. With `attention: frame` a token sees only its own frame, so that a
    single frame is encoded in exactly the way in which it was in pretraining; with `clip` it sees
    the whole clip."""

    def __init__(self, image_size: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.settings = settings
        self.sizes = {"encoder": settings.model_dump()}  # builds an equal one, but for image_size
        self.grid = image_size // settings.patch_size
        self.tokens_per_frame = self.grid**2
        self.patch_size, self.tubelet_size = settings.patch_size, settings.tubelet_size
        self.width, self.head_dim = settings.width, settings.width // settings.num_heads
        inputs = settings.tubelet_size * settings.channels * settings.patch_size**2
        self.embed = nn.Linear(inputs, settings.width)
        self.blocks = nn.ModuleList(
            Block(settings.width, settings.num_heads, settings.mlp_ratio)
            for _ in range(settings.depth)
        )
        self.norm = nn.LayerNorm(settings.width, eps=1e-6)
        init_transformer(self, self.blocks, locality=settings.locality)

    def forward(self, clip: Tensor, keep: Tensor | None = None, *, levels: int = 1) -> Tensor:
        """Tokens [B, K, D] of a clip [B, T, C, h, w] in -1..1; keep [B, K] are token numbers, None
        keeps all.

        With several `levels` [B, K, levels * D]: what comes out of as many blocks at equal
        distances, the last one's behind the final norm. Frames may be larger, smaller or wider
        than image_size. Raises ValueError if they do not divide into patches."""
        own_frame = self.settings.attention == "frame" and clip.shape[1] > self.tubelet_size
        if own_frame and keep is None:
            # Folding time into the batch is the cheaper way to the same numbers.
            frames = clip.unflatten(1, (self.extent(clip)[0], self.tubelet_size)).flatten(0, 1)
            return self(frames, levels=levels).unflatten(0, (len(clip), -1)).flatten(1, 2)

        # Patches of the kept tokens, with their places.
        x = self.embed(self.patches(clip))  # [B, T*N, D]
        positions = self.positions(clip)[None]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
            positions = positions[0, keep]  # [B, K, 3]
        bias = None
        if own_frame:
            time = positions[:, None, :, :1]  # [B, 1, K, 1]
            bias = attention_bias(time != time.transpose(-2, -1))
        base, kind = self.settings.rope_base, self.settings.rope
        rope = rope_tables(positions[:, None], self.head_dim, base, kind)

        # The blocks, with what comes out of some of them kept where several levels are asked for.
        depth, lower = len(self.blocks), []
        level_ends = {depth * level // levels for level in range(1, levels)}
        for done, block in enumerate(self.blocks, 1):
            x = block(x, rope, bias)
            if done in level_ends:
                lower.append(x)
        return torch.cat([*lower, self.norm(x)], -1) if lower else self.norm(x)

    def positions(self, clip: Tensor) -> Tensor:
        """[T*N, 3] time, row and column of each token of a clip [B, T, C, h, w], in token
        order."""
        return grid_positions(*self.extent(clip), device=clip.device)

    def patches(self, clip: Tensor) -> Tensor:
        """[B, T*N, tubelet*C*patch*patch] pixels of each tubelet patch, in token order."""
        (b, _, c, _, _), (steps, rows, columns) = clip.shape, self.extent(clip)
        tubelet, patch = self.tubelet_size, self.patch_size
        x = clip.reshape(b, steps, tubelet, c, rows, patch, columns, patch)
        return x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(b, -1, tubelet * c * patch**2)

    def extent(self, clip: Tensor) -> tuple[int, int, int]:
        """How many tokens a clip [B, T, C, h, w] has over time, height and width; ValueError
        where it does not divide into patches."""
        _, frames, _, height, width = clip.shape
        tubelet, patch = self.tubelet_size, self.patch_size
        if frames % tubelet or height % patch or width % patch:
            raise ValueError(
                f"clip of {frames} frames of {height} x {width} px does not divide into patches "
                f"of {patch} px over {tubelet} frames; cut or resize it"
            )
        return frames // tubelet, height // patch, width // patch
