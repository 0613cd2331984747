"""The encoder: a vision transformer over tubelet patches of a clip; tokens that are masked out are
never computed.

B clips, T frames, C channels, H and W height and width in px, N = T/tubelet * H/patch * W/patch
tokens, K kept tokens, D width."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jepa_wm.models.blocks import Block, init_transformer
from jepa_wm.models.rope import Rope, grid_positions, rope_tables
from jepa_wm.models.settings import EncoderSettings


class Encoder(nn.Module):
    """Clip or frames to tokens. With `attention='frame'` a token sees only its own frame, so that a
    single frame is encoded in exactly the way in which it was in pretraining; with 'clip' it sees
    the whole clip. `rope='vjepa2'` is for weights that were trained with it."""

    def __init__(
        self, *, image_size: int, patch_size: int, tubelet_size: int, width: int, depth: int,
        num_heads: int,
        channels: int = 3, attention: str = "clip", rope: Rope = "rotation", rope_base: float = 100.0,
        mlp_ratio: float = 4.0, locality: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.grid, self.patch_size, self.tubelet_size = (
            image_size // patch_size,
            patch_size,
            tubelet_size,
        )
        self.attention, self.rope, self.rope_base = attention, rope, rope_base
        self.width, self.head_dim = width, width // num_heads
        self.settings: EncoderSettings | None = None  # what from_settings made it of
        self.embed = nn.Linear(tubelet_size * channels * patch_size**2, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_transformer(self, self.blocks, locality=locality)

    @classmethod
    def from_settings(cls, image_size: int, encode: EncoderSettings) -> Encoder:
        """A freshly initialised encoder of the config's size."""
        encoder = cls(
            image_size=image_size, patch_size=encode.patch_size, tubelet_size=encode.tubelet_size, width=encode.width,
            depth=encode.depth, num_heads=encode.num_heads, channels=encode.channels, attention=encode.attention,
            rope=encode.rope, rope_base=encode.rope_base, mlp_ratio=encode.mlp_ratio, locality=encode.locality,
        )  # fmt: skip
        encoder.settings = encode
        return encoder

    def forward(self, clip: Tensor, keep: Tensor | None = None, *, levels: int = 1) -> Tensor:
        """Tokens [B, K, D] of a clip [B, T, C, H, W] in -1..1; keep [B, K] are token numbers, None
        keeps all N.

        With several `levels` [B, K, levels * D]: what comes out of as many blocks at equal
        distances, the last one's behind the final norm. Frames may be larger, smaller or wider
        than image_size. Raises ValueError if they do not divide into patches."""
        if self.attention == "frame" and keep is None and clip.shape[1] > self.tubelet_size:
            # No token looks beyond its frame: fold time into the batch, which is the cheaper way
            # to the same numbers.
            frames = clip.unflatten(1, (self._extent(clip)[0], self.tubelet_size)).flatten(0, 1)
            return self(frames, levels=levels).unflatten(0, (clip.shape[0], -1)).flatten(1, 2)
        x = self.embed(self._patches(clip))  # [B, N, D]
        positions = self.positions(clip)[None]
        if keep is not None:
            x = x.gather(1, keep[..., None].expand(-1, -1, x.shape[-1]))
            positions = positions[0, keep]  # [B, K, 3]
        bias = (
            self._own_frame(positions)
            if self.attention == "frame" and clip.shape[1] > self.tubelet_size
            else None
        )
        cos, sin = rope_tables(positions, self.head_dim, self.rope_base, self.rope)
        rope = (cos[:, None], sin[:, None])
        depth, lower = len(self.blocks), []
        shown = {depth * level // levels for level in range(1, levels)}  # after how many blocks
        for done, block in enumerate(self.blocks, 1):
            x = block(x, rope, bias)
            if done in shown:
                lower.append(x)
        return torch.cat([*lower, self.norm(x)], -1) if lower else self.norm(x)

    def positions(self, clip: Tensor) -> Tensor:
        """[N, 3] time, row and column of each token of a clip [B, T, C, H, W], in token order."""
        return grid_positions(*self._extent(clip), device=clip.device)

    @property
    def tokens_per_frame(self) -> int:
        return self.grid * self.grid

    def _patches(self, clip: Tensor) -> Tensor:
        """[B, N, tubelet*C*patch*patch] pixels of each tubelet patch, in token order."""
        (b, _, c, _, _), (steps, rows, columns) = clip.shape, self._extent(clip)
        x = clip.reshape(
            b, steps, self.tubelet_size, c, rows, self.patch_size, columns, self.patch_size
        )
        return x.permute(0, 1, 4, 6, 2, 3, 5, 7).reshape(
            b, -1, self.tubelet_size * c * self.patch_size**2
        )

    def _extent(self, clip: Tensor) -> tuple[int, int, int]:
        """How many tokens a clip has over time, height and width."""
        _, frames, _, height, width = clip.shape
        if frames % self.tubelet_size or height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"clip of {frames} frames of {height} x {width} px does not divide into patches of {self.patch_size} px "
                f"over {self.tubelet_size} frames; cut or resize it"
            )
        return frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @staticmethod
    def _own_frame(positions: Tensor) -> Tensor:
        """[B, 1, K, K] additive mask that lets a token see tokens of its own frame only."""
        time = positions[..., 0]
        other = time[:, None, :, None] != time[:, None, None, :]
        return torch.zeros(other.shape, device=other.device).masked_fill_(other, -1e4)
