"""All that is trained on frozen features before heads: a latent, an ensemble of dynamics that move
it, and how far two latents are apart. Saved as safetensors with the weights and JSON with the
sizes; no pickles.

B batch, T frames, n frozen tokens of width E, N latent tokens of width D, F numbers that distance
and heads read, P that policies read, A action numbers between two frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from jepa_wm.core.checkpoint import load_strict, save_weights
from jepa_wm.core.errors import UserError
from jepa_wm.core.files import write_atomic
from jepa_wm.core.scaling import ActionStatistics
from jepa_wm.models.distance import TemporalDistance
from jepa_wm.models.dynamics import Dynamics
from jepa_wm.models.pooling import Components
from jepa_wm.models.token_map import MapField
from jepa_wm.models.world_model_settings import DistanceSettings, WorldModelSettings

MANY = 8192  # numbers of a latent above which distance and heads read its principal components
COMPONENTS = 512  # of a latent of many tokens


class LatentModel(nn.Module):
    """The latent model of its settings, and the units of its actions."""

    action_centre: Tensor
    action_scale: Tensor
    action_low: Tensor
    action_high: Tensor

    def __init__(
        self, tokens: int, token_width: int, action_size: int, settings: WorldModelSettings,
        *, proprio_units: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """For frames of n tokens of width E, environment actions of `action_size` numbers, and
        proprioception in `proprio_units`, one for each number that the latent's settings name."""
        super().__init__()
        assert len(proprio_units) == len(settings.latent.proprio), proprio_units
        self.settings, self.proprio_units = settings, tuple(proprio_units)
        self.sizes = {"tokens": tokens, "token_width": token_width, "action_size": action_size}
        self.frameskip = settings.dynamics.frameskip
        self.context_frames = settings.dynamics.context_frames
        self.block = action_size * self.frameskip
        self.latent = settings.latent.make(tokens, token_width)
        if proprio_units:
            self.latent.take_proprio(proprio_units)
        how = settings.dynamics
        members = [how.make(self.latent, self.block) for _ in range(how.ensemble_size)]
        self.dynamics, self.other_members = members[0], nn.ModuleList(members[1:])
        # What distance and heads read: what a goal image shows too.
        seen = self.latent.visual_dim + self.latent.static_dim
        self.numbers = self.latent.tokens * (seen - self.latent.map_dim)
        self.components = Components(self.numbers, COMPONENTS) if self.numbers > MANY else None
        self.flat_width = self.numbers if self.components is None else COMPONENTS
        self.distance: TemporalDistance | None = None
        if settings.distance is not None:
            self.distance = self._distance(tokens, settings.distance)
        self.register_buffer("action_centre", torch.zeros(action_size))
        self.register_buffer("action_scale", torch.ones(action_size))
        self.register_buffer("action_low", torch.full((action_size,), -torch.inf))
        self.register_buffer("action_high", torch.full((action_size,), torch.inf))

    def save(self, folder: Path) -> None:
        """`latent_model.safetensors` and `.json` in `folder`; each appears whole or not at all."""
        about = {"settings": self.settings.model_dump(), "proprio_units": self.proprio_units}
        save_sized(self, folder, "latent_model", **about, **self.sizes)

    @classmethod
    def load(cls, folder: Path) -> LatentModel:
        """The latent model saved in `folder`; UserError names what is missing."""
        sizes = read_sizes(folder, "latent_model", stage="dynamics")
        settings = WorldModelSettings.model_validate(sizes.pop("settings"))
        model = cls(settings=settings, **sizes)
        fill(model, folder, "latent_model")
        return model

    @property
    def ensemble(self) -> list[Dynamics]:
        """All members, the first one included."""
        members = [self.dynamics, *self.other_members]
        return [member for member in members if isinstance(member, Dynamics)]

    def flat(self, latents: Tensor) -> Tensor:
        """[..., F] what heads and, without a map, the distance read of latents [..., N, D]: all
        that pictures show, their numbers end to end but a map's, or where these are many their
        principal components, which keep where in the picture something is."""
        read = self.latent.without_map(self.latent.visual(latents))
        return read.flatten(-2) if self.components is None else self.components(read)

    def map_field(self, latents: Tensor) -> Tensor | None:
        """[B, *] what the distance makes of the map of latents [B, N, D], for all places at once;
        None where there is no map."""
        net = None if self.distance is None else self.distance.field
        return None if net is None else net(self.latent.map_of(latents))

    def distance_input(self, latents: Tensor, field: Tensor | None) -> Tensor:
        """[..., F] what the distance reads of latents [..., N, D]: as `flat`, or where there is a
        map the dynamic numbers and what the `map_field` [..., *] (it broadcasts) says there. The
        static numbers beside a map tell layouts apart, and that is learned by heart."""
        if field is None:
            return self.flat(latents)
        dynamic = latents[..., 0, : self.latent.visual_dim]
        return torch.cat([dynamic, self.latent.near(latents, field)], -1)

    @property
    def policy_inputs(self) -> int:
        """How many numbers `policy_input` gives."""
        if not self.latent.map_dim:
            return self.flat_width
        net = None if self.distance is None else self.distance.field
        return self.flat_width + self.latent.near_dim(
            self.latent.map_channels if net is None else net.channels
        )

    def policy_input(self, latents: Tensor, field: Tensor | None) -> Tensor:
        """[..., P] what policies read of goals [..., N, D]: as `flat`, and where there is a map
        what of it, or of the distance's `map_field` [..., *] (it broadcasts), lies around the
        dynamic numbers."""
        if not self.latent.map_dim:
            return self.flat(latents)
        return torch.cat([self.flat(latents), self.latent.near(latents, field)], -1)

    def policy_start(self, seen: Tensor, field: Tensor | None, frames: int) -> Tensor:
        """[B, S] what policies read of starts, the last of latents seen [B, C, N, D]: as of goals,
        and what moved before."""
        now, moves = self.policy_input(seen[:, -1], field), moved_before(self.flat(seen), frames)
        return torch.cat([now, moves], -1)

    def _distance(self, tokens: int, settings: DistanceSettings) -> TemporalDistance:
        if not self.latent.map_dim:
            return TemporalDistance(self.flat_width, settings)
        width, depth = settings.field_width, settings.field_depth
        field = MapField(tokens, self.latent.map_channels, width, depth)
        around = self.latent.near_dim(field.channels)
        return TemporalDistance(
            self.latent.visual_dim + around, settings, field=field, around=around
        )

    def needed_distance(self) -> TemporalDistance:
        """The temporal distance; UserError where none was learned."""
        if self.distance is None:
            raise UserError(
                "this model was trained without a temporal distance (distance is null); set "
                "planner.cost.objective=l1"
            )
        return self.distance

    # ------------------------------------------------------------------ actions

    def scaled(self, actions: Tensor) -> Tensor:
        """Action blocks [..., A] in the units the dynamics work in: each action number cut to
        where the data reach, less its centre, divided by its scale. One that never varied is 0."""
        if not self.dynamics.scales_actions:
            return actions
        parts = self.action_low, self.action_high, self.action_centre, self.action_scale
        low, high, centre, scale = (part.repeat(self.frameskip) for part in parts)
        return (actions.clamp(low, high) - centre) / scale

    def unscaled(self, actions: Tensor) -> Tensor:
        """The inverse of `scaled`; a number that never varied has the value it had."""
        if not self.dynamics.scales_actions:
            return actions
        scale = torch.where(self.action_low < self.action_high, self.action_scale, 0)
        return actions * scale.repeat(self.frameskip) + self.action_centre.repeat(self.frameskip)

    @torch.no_grad()
    def take_units(self, actions: np.ndarray) -> dict[int, str]:
        """Take the units of the action numbers from the data's [R, A / frameskip]; returns
        {number: what it was} of those that never or hardly varied."""
        if not self.dynamics.scales_actions:
            self.action_low.copy_(torch.from_numpy(actions.min(0)))
            self.action_high.copy_(torch.from_numpy(actions.max(0)))
            return {}
        units = ActionStatistics.of(actions)
        for name in ("centre", "scale", "low", "high"):
            getattr(self, f"action_{name}").copy_(torch.from_numpy(getattr(units, name)))
        steady = {}
        for i in np.nonzero(units.steady)[0].tolist():
            often = "always" if units.low[i] == units.high[i] else "nearly always"
            steady[i] = f"{often} {units.centre[i]:g}"
        return steady

    # ------------------------------------------------------------------ training

    def dynamics_losses(
        self, latents: Tensor, actions: Tensor, *, rollout: float, member: int = 0
    ) -> dict[str, Tensor]:
        """Losses of a member for latents [B, T, N, D] that no longer change and the raw action
        blocks between them [B, T-1, A]."""
        return self.ensemble[member].loss(latents, self.scaled(actions), rollout=rollout)


# ---------------------------------------------------------------- files


def save_sized(model: nn.Module, folder: Path, name: str, **sizes: Any) -> None:
    """A model's weights, and the sizes that it takes to build an equal one, in `folder`."""
    save_weights(model, folder / f"{name}.safetensors")
    write_atomic(folder / f"{name}.json", json.dumps(sizes, indent=1))


def read_sizes(folder: Path, name: str, *, stage: str) -> dict[str, Any]:
    """The sizes beside weights that are there too; UserError names what is missing, and the
    `stage` that makes it."""
    for file in (folder / f"{name}.json", folder / f"{name}.safetensors"):
        if not file.exists():
            raise UserError(f"{file}: no trained {stage} here; run `jepa-wm {stage}` first")
    sizes: dict[str, Any] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return sizes


def fill(model: nn.Module, folder: Path, name: str) -> None:
    """Load the weights that lie in `folder`."""
    file = folder / f"{name}.safetensors"
    load_strict(model, load_file(file), source=str(file))


def moved_before(flat: Tensor, frames: int) -> Tensor:
    """[..., (frames - 1) * F] how the last of `flat` latents [..., C, F], a model step apart, came
    about: the change in each of the `frames` - 1 steps before it, the latest first; 0 before the
    first frame."""
    moves = flat[..., -frames:, :].diff(dim=-2).flip(-2).flatten(-2)
    return F.pad(moves, (0, (frames - 1) * flat.shape[-1] - moves.shape[-1]))
