"""Latent models and heads as files: safetensors with the weights, JSON beside them with the sizes;
no pickles."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from jepa_wm.core.checkpoint import load_strict, save_weights
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.world_model_settings import HeadSettings, WorldModelSettings


def save_latent_model(folder: Path, model: LatentModel) -> None:
    """`latent_model.safetensors` and `.json` in `folder`; each appears whole or not at all."""
    _save(folder, "latent_model", model, {"settings": model.settings.model_dump(), **model.sizes})


def load_latent_model(folder: Path) -> LatentModel:
    """The latent model saved in `folder`; UserError names what is missing."""
    sizes = _sizes(folder, "latent_model", "dynamics")
    settings = WorldModelSettings.model_validate(sizes.pop("settings"))
    model = LatentModel(settings=settings, **sizes)
    _fill(model, folder, "latent_model")
    return model


def save_heads(folder: Path, heads: Heads) -> None:
    """`heads.safetensors` and `heads.json` in `folder`, as `save_latent_model`."""
    sizes = {"settings": heads.settings.model_dump(), "present": asdict(heads.present)}
    _save(folder, "heads", heads, sizes | heads.sizes)


def load_heads(folder: Path) -> Heads:
    """The heads saved in `folder`; UserError names what is missing."""
    sizes = _sizes(folder, "heads", "heads")
    present = sizes.pop("present")
    present["state"] = tuple(present["state"])
    settings = HeadSettings(**sizes.pop("settings"))
    heads = Heads(settings=settings, present=Present(**present), **sizes)
    _fill(heads, folder, "heads")
    return heads


def _save(folder: Path, name: str, model: nn.Module, sizes: dict[str, Any]) -> None:
    save_weights(model, folder / f"{name}.safetensors")
    write_atomic(folder / f"{name}.json", json.dumps(sizes, indent=1))


def _sizes(folder: Path, name: str, stage: str) -> dict[str, Any]:
    """What lies in JSON beside weights that are there too."""
    for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not file.exists():
            raise UserError(f"{file}: no trained {stage} here; run `jepa-wm {stage}` first")
    sizes: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return sizes


def _fill(model: nn.Module, folder: Path, name: str) -> None:
    file = folder / f"{name}.safetensors"
    load_strict(model, load_file(file), source=str(file))
