"""The frozen eye: an encoder that learns no more, with the numbers that standardise what it sees.

B frames, N tokens a frame, D width.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_strict
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.precision import autocast
from jepa_wm.core.schema import Encode
from jepa_wm.encode.vit import Encoder
from jepa_wm.observe.clips import to_input


class Eye(nn.Module):
    """Single frames to standardised tokens: mean per position and one scale per dimension are removed, because a
    constant, position-only part otherwise drowns what differs between frames."""

    mean: Tensor
    scale: Tensor

    def __init__(self, encoder: Encoder, image_size: int, *, precision: str = "bf16") -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.image_size, self.precision = image_size, precision
        self.register_buffer("mean", torch.zeros(encoder.tokens_per_frame, encoder.width))
        self.register_buffer("scale", torch.ones(encoder.width))

    @property
    def tokens_per_frame(self) -> int:
        return self.encoder.tokens_per_frame

    @property
    def width(self) -> int:
        return self.encoder.width

    @torch.no_grad()
    def raw(self, frames: Tensor, *, batch: int = 256) -> Tensor:
        """[B, N, D] fp32 tokens of uint8 frames [B, h, w, c], before standardising."""
        out = []
        for part in frames.split(batch):
            with autocast(part.device, self.precision):
                clip = to_input(part, self.image_size)[:, None].expand(-1, self.encoder.tubelet, -1, -1, -1)
                out.append(self.encoder(clip).float())
        return torch.cat(out)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, N, D] fp32 standardised tokens of uint8 frames [B, h, w, c]."""
        return (self.raw(frames) - self.mean) / self.scale

    @torch.no_grad()
    def standardise_on(self, frames: np.ndarray) -> Tensor:
        """Set mean and scale from frames [B, h, w, c]; returns their standardised tokens."""
        tokens = self.raw(torch.from_numpy(frames))
        self.mean.copy_(tokens.mean(0))
        self.scale.copy_((tokens - self.mean).square().mean((0, 1)).sqrt() + 1e-6)
        return (tokens - self.mean) / self.scale

    def save(self, folder: Path, encode: Encode) -> None:
        """`eye.safetensors` and `eye.json` in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "eye.partial"
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, partial)
        partial.replace(folder / "eye.safetensors")
        sizes = {"image_size": self.image_size, "precision": self.precision, "encode": encode.model_dump()}
        write_atomic(folder / "eye.json", json.dumps(sizes, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Eye:
        """The eye saved in `folder`; UserError names what is missing."""
        for name in ("eye.json", "eye.safetensors"):
            if not (folder / name).exists():
                raise UserError(f"{folder / name}: no frozen eye here; run `jepa-wm encode` first")
        sizes = json.loads((folder / "eye.json").read_text(encoding="utf-8"))
        encode = Encode(**sizes["encode"])
        encoder = Encoder.from_settings(sizes["image_size"], encode)
        eye = cls(encoder, sizes["image_size"], precision=sizes["precision"])
        load_strict(eye, load_file(folder / "eye.safetensors"), source=str(folder / "eye.safetensors"))
        return eye
