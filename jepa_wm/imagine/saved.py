"""Latent models and heads as files: safetensors with the weights, JSON beside them with the sizes; no pickles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from jepa_wm.core.checkpoint import load_strict
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.schema import Dynamics as Settings
from jepa_wm.core.schema import HeadSizes
from jepa_wm.dynamics.heads import Heads, Present
from jepa_wm.dynamics.latent import LatentModel


def save_latent_model(folder: Path, model: LatentModel) -> None:
    """`latent.safetensors` and `latent.json` in `folder`; each appears whole or not at all."""
    _save(folder, "latent", model, {"settings": model.settings.model_dump(), **model.sizes})


def save_heads(folder: Path, heads: Heads) -> None:
    """`heads.safetensors` and `heads.json` in `folder`, as `save_latent_model`."""
    sizes = {"settings": heads.settings.model_dump(), "present": asdict(heads.present), **heads.sizes}
    _save(folder, "heads", heads, sizes)


def load_heads(folder: Path) -> Heads:
    """The heads saved in `folder`."""
    sizes = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    present = sizes.pop("present")
    present["state"] = tuple(present["state"])
    heads = Heads(settings=HeadSizes(**sizes.pop("settings")), present=Present(**present), **sizes)
    load_strict(heads, load_file(folder / "heads.safetensors"), source=str(folder / "heads.safetensors"))
    return heads


def _save(folder: Path, name: str, model: nn.Module, sizes: dict[str, object]) -> None:
    partial = folder / f"{name}.partial"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    partial.replace(folder / f"{name}.safetensors")
    write_atomic(folder / f"{name}.json", json.dumps(sizes, indent=1))


def load_latent_model(folder: Path) -> LatentModel:
    """The latent model saved in `folder`; UserError names what is missing."""
    for name in ("latent.json", "latent.safetensors"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: no trained dynamics here; run `jepa-wm dynamics` first")
    sizes = json.loads((folder / "latent.json").read_text(encoding="utf-8"))
    model = LatentModel(settings=Settings(**sizes.pop("settings")), **sizes)
    load_strict(model, load_file(folder / "latent.safetensors"), source=str(folder / "latent.safetensors"))
    return model
