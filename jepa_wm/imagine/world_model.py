"""The world model as the planner and the user meet it: load, encode, imagine, distance.

B episodes, S candidates, H horizon, N latent tokens of width D, A action numbers a model step.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_strict
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.precision import autocast
from jepa_wm.core.schema import Dynamics as Settings
from jepa_wm.dynamics.latent import LatentModel
from jepa_wm.freeze.eye import Eye
from jepa_wm.imagine.rollout import fixed_bytes, imagine_candidates, plan_bytes, unroll_candidates


class WorldModel(nn.Module):
    """A frozen eye and the latent model on it."""

    def __init__(self, eye: Eye, latent: LatentModel) -> None:
        super().__init__()
        expected, seen = (latent.sizes["tokens"], latent.sizes["token_width"]), (eye.tokens_per_frame, eye.width)
        if expected != seen:
            raise UserError(
                f"the dynamics were trained on {expected[0]} tokens of width {expected[1]} a frame, but the eye gives "
                f"{seen[0]} of width {seen[1]}; take the eye they were trained with, or train dynamics on this one"
            )
        self.eye, self.latent = eye.eval(), latent.eval()

    @classmethod
    def load(cls, run: Path | str) -> WorldModel:
        """The world model of a finished run folder (stages `encode` and `dynamics`)."""
        eye = Eye.load(Path(run) / "encode")
        return cls(eye, load_latent_model(Path(run) / "dynamics"))

    @property
    def block(self) -> int:
        """Action numbers between two latents: action size x frameskip."""
        return self.latent.block

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, N, D] of uint8 frames [B, h, w, c]."""
        with autocast(frames.device, self.eye.precision):
            return self.latent.summarise(self.eye(frames))

    def imagine(self, context: Tensor, past: Tensor, actions: Tensor, *, truncate: int = 0) -> Tensor:
        """Futures [B, S, H, N, D] after context [B, C, N, D] with past action blocks [B, C-1, A], for raw candidate
        action blocks [B, S, H, A].

        Where the actions want gradients the futures carry them, cut every `truncate` steps (0: nowhere).
        """
        past, steps = self.latent.scaled(past), self.latent.scaled(actions)
        if not _wants_gradient(actions):
            return imagine_candidates(self.latent.dynamics, context, past, steps, precision=self.eye.precision)
        with autocast(context.device, self.eye.precision):
            return unroll_candidates(self.latent.dynamics, context, past, steps, truncate=truncate).float()

    def steps_to_go(self, latents: Tensor, goal: Tensor) -> Tensor:
        """[B, ...] learned model steps from latents [B, ..., N, D] to goal [B, N, D]."""
        metric = self.latent.metric
        with torch.set_grad_enabled(_wants_gradient(latents)), autocast(latents.device, self.eye.precision):
            here = metric.embed(latents.flatten(-2))
            there = metric.embed(goal.flatten(-2))
            shape = (len(goal), *[1] * (here.dim() - 3), *there.shape[1:])
            return metric.between(here, there.view(shape))

    def plan_bytes(self, horizon: int, *, gradients: bool = False) -> tuple[int, int]:
        """(bytes that imagining and judging one plan takes at most, bytes that it takes for any number of plans),
        estimated from shapes on the safe side."""
        metric, dynamics = self.latent.settings.metric, self.latent.dynamics
        judging = 4 * horizon * (8 * metric.width + 4 * metric.groups * metric.components)
        each = plan_bytes(dynamics, horizon, gradients=gradients) + judging
        return each, fixed_bytes(dynamics, precision=self.eye.precision)


def _wants_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def save_latent_model(folder: Path, model: LatentModel) -> None:
    """`latent.safetensors` and `latent.json` in `folder`; each appears whole or not at all."""
    partial = folder / "latent.partial"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, partial)
    partial.replace(folder / "latent.safetensors")
    sizes = {"settings": model.settings.model_dump(), **model.sizes}
    write_atomic(folder / "latent.json", json.dumps(sizes, indent=1))


def load_latent_model(folder: Path) -> LatentModel:
    """The latent model saved in `folder`; UserError names what is missing."""
    for name in ("latent.json", "latent.safetensors"):
        if not (folder / name).exists():
            raise UserError(f"{folder / name}: no trained dynamics here; run `jepa-wm dynamics` first")
    sizes = json.loads((folder / "latent.json").read_text(encoding="utf-8"))
    model = LatentModel(settings=Settings(**sizes.pop("settings")), **sizes)
    load_strict(model, load_file(folder / "latent.safetensors"), source=str(folder / "latent.safetensors"))
    return model
