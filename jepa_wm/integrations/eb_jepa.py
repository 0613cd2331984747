"""Our world model in eb_jepa's two-rooms evaluation.

It is not imported; it is met by the shapes it asks for. B episodes, S plans, T frames, h x w px, a
numbers of one environment action, N latent tokens of width D on a grid of h' x w'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jepa_wm.core.errors import UserError
from jepa_wm.world_model.proprio import refuse_proprio
from jepa_wm.world_model.world_model import WorldModel


class EbJepa(nn.Module):
    """What eb_jepa's two-rooms evaluation asks of a model: `encode(obs)` and `unroll(obs, actions,
    nsteps=...)`.

    Observations have two channels, agent and walls, in 0..255; `mean` and `std`, a number a
    channel, undo the harness' own standardising. Latents lie on their grid, h' x w', or in one
    row.
    UserError unless the model's frameskip is 1."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: WorldModel, *, mean: Sequence[float] = (0, 0), std: Sequence[float] = (1, 1)
    ) -> None:
        super().__init__()
        skip = model.frameskip
        if skip != 1:
            raise UserError(
                f"dynamics.frameskip {skip}: eb_jepa asks for a latent after every action; train "
                "with dynamics.frameskip=1 (configs/two_rooms_ebjepa.yaml)"
            )
        refuse_proprio(model)
        self.model = model
        for name, numbers in (("mean", mean), ("std", std)):
            channels = torch.tensor(numbers, dtype=torch.float32, device=model.device)
            self.register_buffer(name, channels.view(1, 2, 1, 1, 1))

    @torch.no_grad()
    def encode(self, obs: Tensor) -> Tensor:
        """[B, D, T, h', w'] latents of observations [B, 2, T, h, w]."""
        latents = self.model.encode(self.frames(obs).flatten(0, 1)).unflatten(
            0, (len(obs), -1)
        )  # [B, T, N, D]
        return self._on_grid(latents)

    @torch.no_grad()
    def unroll(
        self, obs: Tensor, actions: Tensor, *, nsteps: int | None = None, **rest: Any
    ) -> tuple[Tensor, None]:
        """([B, D, 1 + n, h', w'], None): the latest observation of obs [B, 2, T, h, w] and what
        follows each of actions [B, a, n], the first `nsteps` of them where given. One observation
        serves all rows of actions."""
        taken = actions.to(self.model.device).movedim(1, -1)[:, :nsteps]  # [B, n, a]
        latest = self.model.encode(self.frames(obs[:, :, -1:])[:, 0])  # [B or 1, N, D]
        if len(latest) not in (1, len(taken)):
            raise ValueError(
                f"{len(latest)} observations for {len(taken)} rows of actions; give one, or one "
                "each"
            )
        plans = taken.unflatten(0, (len(latest), -1))  # [B, S, n, a]
        nothing = latest.new_zeros(len(latest), 0, self.model.block)
        future = self.model.imagine(latest[:, None], nothing, plans).flatten(
            0, 1
        )  # [B * S, n, N, D]
        first = latest.repeat_interleave(plans.shape[1], 0)[:, None]
        return self._on_grid(torch.cat([first, future], 1)), None

    def frames(self, obs: Tensor) -> Tensor:
        """[B, T, h, w, 3] uint8 pictures, as the world renders them with world.render_style
        ebjepa. Raises ValueError for observations of another range, once standardising is
        undone."""
        if obs.dim() != 5 or obs.shape[1] != 2:
            raise ValueError(
                f"obs has shape {tuple(obs.shape)}; [B, 2, T, h, w] is wanted, agent and walls"
            )
        raw = obs.to(self.model.device).float() * self.std + self.mean
        low, high = float(raw.min()), float(raw.max())
        if not (low > -2 and 16 < high < 257):
            raise ValueError(
                f"obs spans {low:.3g}..{high:.3g} instead of 0..255: give EbJepa the mean and "
                "std by which the harness standardises its two channels"
            )
        third = torch.zeros_like(raw[:, :1])
        return torch.cat([raw, third], 1).movedim(1, -1).round().clamp(0, 255).byte()

    def _on_grid(self, latents: Tensor) -> Tensor:
        """[B, D, T, h', w'] of latents [B, T, N, D]."""
        tokens = latents.shape[2]
        side = round(tokens**0.5)
        shape = (side, side) if side * side == tokens else (1, tokens)
        return latents.unflatten(2, shape).permute(0, 4, 1, 2, 3)
