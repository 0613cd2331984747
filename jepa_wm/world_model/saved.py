"""Latent models and heads as files: safetensors with the weights, JSON beside them with the sizes;
no pickles."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from jepa_wm.core.checkpoint import load_strict, save_weights
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.models.action_predictor import ActionPredictor
from jepa_wm.models.heads import Heads, Present
from jepa_wm.models.latent_model import LatentModel
from jepa_wm.models.settings import DynamicsSettings, HeadSettings, WorldModelSettings


def save_latent_model(folder: Path, model: LatentModel) -> None:
    """`latent.safetensors` and `latent.json` in `folder`; each appears whole or not at all."""
    _save(folder, "latent", model, {"settings": model.settings.model_dump(), **model.sizes})


def save_action_predictor(
    folder: Path,
    model: ActionPredictor,
    settings: DynamicsSettings,
    low: Sequence[float],
    high: Sequence[float],
) -> None:
    """`action_predictor.safetensors` and `.json` in `folder`, as `save_latent_model`; `low` and
    `high` [7] are how far one environment step's change of pose reaches in the data."""
    sizes = {
        "encoder_width": model.embed.in_features, "grid": model.grid, "width": model.embed.out_features,
        "depth": len(model.blocks), "num_heads": model.embed.out_features // model.head_dim,
    }  # fmt: skip
    about: dict[str, object] = {
        "sizes": sizes,
        "settings": settings.model_dump(),
        "low": list(low),
        "high": list(high),
    }
    _save(folder, "action_predictor", model, about)


def load_action_predictor(
    folder: Path,
) -> tuple[ActionPredictor, DynamicsSettings, list[float], list[float]]:
    """What `save_action_predictor` was given; UserError names what is missing."""
    about = _about(folder, "action_predictor")
    if "sizes" not in about:
        raise UserError(
            f"{folder}: is of an older version; delete it and run `jepa-wm dynamics` again"
        )
    model = ActionPredictor(**about["sizes"])
    file = folder / "action_predictor.safetensors"
    load_strict(model, load_file(file), source=str(file))
    return model, DynamicsSettings(**about["settings"]), about["low"], about["high"]


def save_heads(folder: Path, heads: Heads) -> None:
    """`heads.safetensors` and `heads.json` in `folder`, as `save_latent_model`."""
    sizes = {
        "settings": heads.settings.model_dump(),
        "present": asdict(heads.present),
        **heads.sizes,
    }
    _save(folder, "heads", heads, sizes)


def load_heads(folder: Path) -> Heads:
    """The heads saved in `folder`."""
    sizes = json.loads((folder / "heads.json").read_text(encoding="utf-8"))
    present = sizes.pop("present")
    present["state"] = tuple(present["state"])
    heads = Heads(
        settings=HeadSettings(**sizes.pop("settings")), present=Present(**present), **sizes
    )
    load_strict(
        heads, load_file(folder / "heads.safetensors"), source=str(folder / "heads.safetensors")
    )
    return heads


def _save(folder: Path, name: str, model: nn.Module, sizes: dict[str, object]) -> None:
    save_weights(model, folder / f"{name}.safetensors")
    write_atomic(folder / f"{name}.json", json.dumps(sizes, indent=1))


def load_latent_model(folder: Path) -> LatentModel:
    """The latent model saved in `folder`; UserError names what is missing."""
    if is_action_predictor(folder):
        raise UserError(
            f"{folder}: holds V-JEPA 2's action-conditioned predictor, without the latents that this is made for: "
            "train with dynamics.kind=latent in another --run"
        )
    sizes = _about(folder, "latent")
    model = LatentModel(settings=WorldModelSettings(**sizes.pop("settings")), **sizes)
    load_strict(
        model, load_file(folder / "latent.safetensors"), source=str(folder / "latent.safetensors")
    )
    return model


def is_action_predictor(folder: Path) -> bool:
    """Whether the dynamics in a folder are V-JEPA 2's action-conditioned predictor (dynamics.kind
    vjepa2_ac)."""
    return (folder / "action_predictor.json").exists()


def _about(folder: Path, name: str) -> dict[str, Any]:
    """What lies in JSON beside weights that are there too."""
    for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not file.exists():
            raise UserError(f"{file}: no trained dynamics here; run `jepa-wm dynamics` first")
    about: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return about
