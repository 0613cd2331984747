"""The frozen encoder: an encoder that learns no more, with the numbers that standardise what it
sees.

B frames, N tokens a frame, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelCard, ModelHubMixin, hf_hub_download
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_strict, save_weights
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.precision import autocast
from jepa_wm.core.scaling import centred_scale
from jepa_wm.data.images import to_input
from jepa_wm.features.backbone import Backbone
from jepa_wm.models.encoder_settings import EncoderSettings
from jepa_wm.models.vit import Encoder

UNSTATED = "what was not stated"
_SHARED = ("model.safetensors", "config.json")  # the names that the hub knows
# What goes with a shared encoder; huggingface_hub fills it in.
CARD = """---
{{ card_data }}
---

# A frozen encoder of jepa_wm

A vision transformer that turns single frames into standardised patch tokens, without decoding a
pixel.

| | |
| --- | --- |
| frames | {{ image_size }} x {{ image_size }} px, three colours |
| tokens a frame | {{ tokens }} |
| numbers a token | {{ width }} |
| encoder | {{ encoder }} |
| parameters | {{ parameters }} |
| trained by | {{ supervision }} |

```python
import torch
from jepa_wm.features.encoder import FrozenEncoder

encoder = FrozenEncoder.from_pretrained("PATH_OR_REPOSITORY")
frames = torch.zeros(1, {{ image_size }}, {{ image_size }}, 3, dtype=torch.uint8)
tokens = encoder(frames)  # [1, {{ tokens }}, {{ width }}]
```

## What to know before using it

- Each position's mean over the training frames is removed and each number divided by its spread;
  both are stored with the weights.
- How well it does is measured by `jepa-wm eval linear`, `attentive`, `knn` or `state` on data of
  your own, beside a random encoder and raw pixels. {{ measured }}
- It knows what it was trained on, and nothing else; who shares it says here what that was.
"""


class FrozenEncoder(
    nn.Module,
    ModelHubMixin,
    library_name="jepa_wm",
    pipeline_tag="image-feature-extraction",
    model_card_template=CARD,
):
    """Single frames to standardised tokens: mean per position and one scale per dimension are
    removed, because a constant, position-only part otherwise drowns what differs between frames.

    `save_pretrained`, `push_to_hub` and `from_pretrained` (huggingface_hub) share one with others;
    a run keeps its own by `save` and `load`."""

    mean: Tensor
    scale: Tensor

    def __init__(
        self, encoder: Encoder | Backbone, image_size: int, *, precision: str = "bf16",
        supervision: str = UNSTATED,
    ) -> None:  # fmt: skip
        """`supervision` says what the encoder was trained by, in words (`supervision_of`)."""
        super().__init__()
        self.supervision = supervision
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
        """[B, N, D] fp32 tokens, where the encoder is, of uint8 frames [B, h, w, c] from anywhere,
        before standardising."""
        tokens = []
        for part in frames.split(batch):
            part = part.to(self.mean.device)
            with autocast(part.device, self.precision):
                # A still clip of as many frames as a tubelet has.
                frame = to_input(part, self.image_size)[:, None]
                clip = frame.expand(-1, self.encoder.tubelet_size, -1, -1, -1)
                tokens.append(self.encoder(clip).float())
        return torch.cat(tokens)

    def forward(self, frames: Tensor) -> Tensor:
        """[B, N, D] fp32 standardised tokens, as `raw`."""
        return (self.raw(frames) - self.mean) / self.scale

    @torch.no_grad()
    def standardise_on(self, frames: np.ndarray) -> Tensor:
        """Set mean and scale from frames [B, h, w, c]; returns their standardised tokens."""
        tokens = self.raw(torch.from_numpy(frames))
        self.mean.copy_(tokens.mean(0))
        self.scale.copy_(centred_scale(tokens, self.mean))
        return (tokens - self.mean) / self.scale

    def save(self, folder: Path) -> None:
        """`encoder.safetensors` and `encoder.json` in `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self._write(folder / "encoder.safetensors", folder / "encoder.json", self._sizes())

    @classmethod
    def load(cls, folder: Path) -> FrozenEncoder:
        """The encoder saved in `folder`; UserError names what is missing."""
        for name in ("encoder.json", "encoder.safetensors"):
            if not (folder / name).exists():
                raise UserError(
                    f"{folder / name}: no frozen encoder here; run `jepa-wm features` first"
                )
        sizes = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))
        return cls._read(folder / "encoder.safetensors", sizes)

    def _sizes(self) -> dict[str, Any]:
        """What it takes to build an equal encoder before its weights are loaded."""
        sizes: dict[str, Any] = {"image_size": self.image_size, "precision": self.precision}
        sizes["supervision"] = self.supervision
        return sizes | self.encoder.sizes

    def _write(self, weights: Path, sizes_file: Path, sizes: dict[str, Any]) -> None:
        save_weights(self, weights)
        write_atomic(sizes_file, json.dumps(sizes, indent=1))

    @classmethod
    def _read(cls, weights: Path, sizes: dict[str, Any]) -> FrozenEncoder:
        # A default would stand in, and the encoder might not be the one it was.
        known = sizes.get("encoder", EncoderSettings.model_fields)
        missing = sorted(set(EncoderSettings.model_fields) - set(known))
        if missing:
            raise UserError(
                f"{weights}: is of an older version that knew no {', '.join(missing)}; make "
                "it again"
            )
        encoder = fresh_encoder(sizes, sizes["image_size"])
        frozen = cls(
            encoder, sizes["image_size"], precision=sizes["precision"],
            supervision=sizes.get("supervision", UNSTATED),
        )  # fmt: skip
        load_strict(frozen, load_file(weights), source=str(weights))
        return frozen

    def generate_model_card(self, *, measured: str = "No figures were given.") -> ModelCard:
        """The README that is shared with the encoder; `measured` says how well it does
        (`model_card_kwargs` of `save_pretrained` and `push_to_hub`)."""
        return super().generate_model_card(
            image_size=self.image_size, tokens=self.tokens_per_frame, width=self.width,
            measured=measured, encoder=json.dumps(self.encoder.sizes),
            supervision=self.supervision,
            parameters=f"{sum(p.numel() for p in self.encoder.parameters()):,}",
        )  # fmt: skip

    def _save_pretrained(self, save_directory: Path) -> None:
        # Under one key: the mixin would hand keys that are parameters of ours to _from_pretrained
        # as well.
        self._write(
            save_directory / _SHARED[0],
            save_directory / _SHARED[1],
            {"frozen_encoder": self._sizes()},
        )

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, revision: str | None, cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool, token: str | bool | None, **unknown: Any,
    ) -> FrozenEncoder:  # fmt: skip
        """The encoder in a folder, or in a repository of the hub of that name."""
        # The hub's mixin hands on whatever it is called with: a setting that has no effect is
        # refused, or it would be believed to have one.
        if unknown:
            raise UserError(
                f"from_pretrained: an encoder takes no {', '.join(unknown)}; its config.json "
                "says it all"
            )
        if Path(model_id).is_dir():
            weights, config = (Path(model_id) / name for name in _SHARED)
        else:
            weights, config = (
                Path(
                    hf_hub_download(
                        model_id, name, revision=revision, cache_dir=cache_dir,
                        force_download=force_download,
                        local_files_only=local_files_only, token=token,
                    )
                )
                for name in _SHARED
            )  # fmt: skip
        for file in (weights, config):
            if not file.exists():
                raise UserError(
                    f"{file}: no shared encoder here; give a folder that "
                    "FrozenEncoder.save_pretrained wrote"
                )
        # Every model of the hub has files of these names: only the key tells ours.
        sizes = json.loads(config.read_text(encoding="utf-8"))
        if "frozen_encoder" not in sizes:
            raise UserError(
                f"{config}: describes another kind of model, not an encoder of jepa_wm"
            )
        return cls._read(weights, sizes["frozen_encoder"])


def fresh_encoder(sizes: Mapping[str, Any], image_size: int) -> Encoder | Backbone:
    """An encoder of such `sizes`, with random weights."""
    if "backbone" in sizes:
        return Backbone(sizes["backbone"], image_size)
    return Encoder(image_size, EncoderSettings(**sizes["encoder"]))
